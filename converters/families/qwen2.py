"""Qwen2 and Qwen2.5, all dense sizes, and the DeepSeek-R1-Distill-Qwen models."""

from converters.families.family import (
    ATTENTION_NORM,
    DOWN,
    EMBEDDING,
    FINAL_NORM,
    GATE_UP,
    MLP_NORM,
    OUTPUT,
    PROJECTION,
    QKV,
    QKV_BIAS,
    Family,
)

QWEN2 = Family(
    model_type="qwen2",
    weights=(
        EMBEDDING,
        *(QKV, QKV_BIAS, PROJECTION, GATE_UP, DOWN, ATTENTION_NORM, MLP_NORM),
        FINAL_NORM,
        OUTPUT,
    ),
    transformer=lambda hf_config: {"add_qkv_bias": True},
    honoured={"use_sliding_window": False},
)
