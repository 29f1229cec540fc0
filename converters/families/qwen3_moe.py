"""Qwen3 mixtures of experts: a router and `num_experts` gated MLPs in every layer."""

from dataclasses import replace
from typing import Any

from converters.families.family import (
    ATTENTION_NORM,
    DOWN,
    EMBEDDING,
    FINAL_NORM,
    GATE_UP,
    KEY_NORM,
    LAYER,
    MLP_NORM,
    OUTPUT,
    PROJECTION,
    QKV,
    QUERY_NORM,
    Family,
    Weight,
    in_layer,
)
from converters.hf_config import model_shape, size_of

_ROUTER = in_layer("mlp.router.weight", ["mlp.gate.weight"], ["num_experts"], "hidden_size")
# The experts' input is normed once for all of them and for the router, so no linear layer can take the norm in.
_EXPERTS_NORM = replace(MLP_NORM, key=LAYER + "pre_mlp_layernorm.weight")


def _of_expert(weight: Weight) -> Weight:
    """The line of a dense MLP for every expert."""
    key = weight.key.replace("mlp.", "mlp.experts.experts.")
    return replace(weight, key=key, hf=tuple(name.replace("mlp.", "mlp.experts.{expert}.") for name in weight.hf))


def _transformer(hf_config: dict[str, Any]) -> dict[str, Any]:
    return {
        "qk_layernorm": True,
        "num_moe_experts": model_shape(hf_config, 1).num_experts,
        "moe_router_topk": size_of(hf_config, "num_experts_per_tok"),
        # Softmax over all experts first, renormalised over the chosen ones (`norm_topk_prob`).
        "moe_router_pre_softmax": False,
        "moe_ffn_hidden_size": size_of(hf_config, "moe_intermediate_size"),
        "moe_router_dtype": "fp32",
        "moe_router_load_balancing_type": "none",
    }


QWEN3_MOE = Family(
    model_type="qwen3_moe",
    weights=(
        EMBEDDING,
        *(QKV, PROJECTION, QUERY_NORM, KEY_NORM, _ROUTER, _of_expert(GATE_UP), _of_expert(DOWN)),
        *(ATTENTION_NORM, _EXPERTS_NORM),
        FINAL_NORM,
        OUTPUT,
    ),
    transformer=_transformer,
    required=("head_dim", "num_experts_per_tok", "moe_intermediate_size", "norm_topk_prob"),
    honoured={
        "use_sliding_window": False,
        "attention_bias": False,
        "norm_topk_prob": True,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
    },
)
