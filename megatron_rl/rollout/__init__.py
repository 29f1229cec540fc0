"""Generation: a vLLM engine in its own process, fed from one queue and given the policy's weights every step."""
