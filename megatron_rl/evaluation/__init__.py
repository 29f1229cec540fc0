"""A model on benchmarks: `megatron-rl eval`."""
