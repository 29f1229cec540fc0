"""Llama 3 and 3.x, and DeepSeek-R1-Distill-Llama, with Llama 3's RoPE scaling."""

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
    Family,
)

LLAMA = Family(
    model_type="llama",
    weights=(EMBEDDING, QKV, PROJECTION, GATE_UP, DOWN, ATTENTION_NORM, MLP_NORM, FINAL_NORM, OUTPUT),
    transformer=lambda hf_config: {},
    honoured={"attention_bias": False, "mlp_bias": False},
    rope_types=("default", "llama3"),
)
