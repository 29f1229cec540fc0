"""Qwen2 and Qwen2.5, all dense sizes, and the DeepSeek-R1-Distill-Qwen models."""

from typing import Any

from converters.errors import ConversionError
from converters.families.family import Entry, Family, MegatronConfig
from converters.hf_config import model_shape
from converters.ops import FusedQKV, GateUp, Replicated, Row, Vocabulary

_LAYER = "decoder.layers.{i}."
_HF_LAYER = "model.layers.{i}."


def _translate(hf_config: dict[str, Any]) -> MegatronConfig:
    shape = model_shape(hf_config, vocab_divisor=1)
    rope = hf_config.get("rope_parameters") or hf_config.get("rope_scaling") or {}
    rope_type = rope.get("rope_type", rope.get("type", "default"))
    for key, value, supported in (
        ("hidden_act", hf_config.get("hidden_act", "silu"), "silu"),
        ("use_sliding_window", bool(hf_config.get("use_sliding_window", False)), False),
        ("rope type", rope_type, "default"),
        ("attention_dropout", hf_config.get("attention_dropout", 0.0), 0.0),
    ):
        if value != supported:
            raise ConversionError(f"config.json: {key}={value!r} is not supported for qwen2; only {supported!r} is")
    return MegatronConfig(
        transformer={
            "num_layers": shape.num_layers,
            "hidden_size": shape.hidden_size,
            "ffn_hidden_size": shape.ffn_hidden_size,
            "num_attention_heads": shape.num_attention_heads,
            "num_query_groups": shape.num_key_value_heads,
            "kv_channels": shape.head_dim,
            "normalization": "RMSNorm",
            "layernorm_epsilon": hf_config.get("rms_norm_eps", 1e-6),
            "gated_linear_unit": True,
            "add_bias_linear": False,
            "add_qkv_bias": True,
        },
        rotary_base=rope.get("rope_theta") or hf_config.get("rope_theta", 10000.0),
        max_position_embeddings=hf_config["max_position_embeddings"],
    )


QWEN2 = Family(
    model_type="qwen2",
    first=(Entry(("embedding.word_embeddings.weight",), ("model.embed_tokens.weight",), Vocabulary()),),
    layer=(
        Entry(
            (_LAYER + "input_layernorm.weight", _LAYER + "self_attention.linear_qkv.layer_norm_weight"),
            (_HF_LAYER + "input_layernorm.weight",),
            Replicated(),
        ),
        Entry(
            (_LAYER + "self_attention.linear_qkv.weight",),
            tuple(f"{_HF_LAYER}self_attn.{p}_proj.weight" for p in "qkv"),
            FusedQKV(),
        ),
        Entry(
            (_LAYER + "self_attention.linear_qkv.bias",),
            tuple(f"{_HF_LAYER}self_attn.{p}_proj.bias" for p in "qkv"),
            FusedQKV(bias=True),
        ),
        Entry((_LAYER + "self_attention.linear_proj.weight",), (_HF_LAYER + "self_attn.o_proj.weight",), Row()),
        Entry(
            (_LAYER + "pre_mlp_layernorm.weight", _LAYER + "mlp.linear_fc1.layer_norm_weight"),
            (_HF_LAYER + "post_attention_layernorm.weight",),
            Replicated(),
        ),
        Entry(
            (_LAYER + "mlp.linear_fc1.weight",),
            (_HF_LAYER + "mlp.gate_proj.weight", _HF_LAYER + "mlp.up_proj.weight"),
            GateUp(),
        ),
        Entry((_LAYER + "mlp.linear_fc2.weight",), (_HF_LAYER + "mlp.down_proj.weight",), Row(feed_forward=True)),
    ),
    last=(Entry(("decoder.final_layernorm.weight",), ("model.norm.weight",), Replicated()),),
    output=Entry(("output_layer.weight",), ("lm_head.weight",), Vocabulary()),
    translate=_translate,
)
