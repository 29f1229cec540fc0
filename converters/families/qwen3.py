"""Qwen3, all dense sizes: no biases, a norm on every query and key head."""

from converters.families.family import (
    ATTENTION_NORM,
    DOWN,
    EMBEDDING,
    FINAL_NORM,
    GATE_UP,
    KEY_NORM,
    MLP_NORM,
    OUTPUT,
    PROJECTION,
    QKV,
    QUERY_NORM,
    Family,
)

QWEN3 = Family(
    model_type="qwen3",
    weights=(
        EMBEDDING,
        *(QKV, PROJECTION, QUERY_NORM, KEY_NORM, GATE_UP, DOWN, ATTENTION_NORM, MLP_NORM),
        FINAL_NORM,
        OUTPUT,
    ),
    transformer=lambda hf_config: {"qk_layernorm": True},
    required=("head_dim",),
    honoured={"use_sliding_window": False, "attention_bias": False},
)
