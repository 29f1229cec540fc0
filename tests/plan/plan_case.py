"""What the tests of the speed model share: the 7B model's sizes, a tiny model's, and a GRPO recipe of either."""

from typing import Any

from converters.hf_config import ModelShape
from megatron_rl.config.schema import (
    Algorithm,
    ClusterConfig,
    DataConfig,
    Domain,
    GenerationConfig,
    GRPOConfig,
    PolicyConfig,
    TrainConfig,
)

QWEN_7B = ModelShape(
    num_layers=28,
    hidden_size=3584,
    ffn_hidden_size=18944,
    num_attention_heads=28,
    num_key_value_heads=4,
    head_dim=128,
    vocab_size=152064,
    padded_vocab_size=152064,
    tied=False,
)
# 2 layers: attention 4 x 2 x (2 x 4 + 2 x 2), MLP 3 x 4 x 8; table and head 10 x 4.
TINY = ModelShape(
    num_layers=2,
    hidden_size=4,
    ffn_hidden_size=8,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=2,
    vocab_size=10,
    padded_vocab_size=10,
    tied=False,
)


def grpo_config(
    nodes: int = 2,
    domain: Domain = Domain.MATH,
    policy: dict[str, Any] | None = None,
    generation: dict[str, Any] | None = None,
    grpo: dict[str, Any] | None = None,
) -> TrainConfig:
    """A small step of the 7B model; sections override."""
    return TrainConfig(
        algorithm=Algorithm.GRPO,
        name="case",
        cluster=ClusterConfig(num_nodes=nodes),
        policy=PolicyConfig(
            **{"model_name": "x", "max_total_sequence_length": 5120, "micro_batch_tokens": 5120} | (policy or {})
        ),
        generation=GenerationConfig(**{"max_new_tokens": 4096} | (generation or {})),
        grpo=GRPOConfig(
            **{"num_prompts_per_step": 32, "num_generations_per_prompt": 8, "max_num_steps": 1} | (grpo or {})
        ),
        data=DataConfig(path="x", domain=domain),
    )
