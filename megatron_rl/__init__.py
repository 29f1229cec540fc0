"""Strictly on-policy reinforcement learning on Megatron-Core and vLLM."""

__version__ = "0.1.0"
