"""Which library's code each part of a step runs: Transformer Engine's, apex's, or torch's where neither is there."""

from typing import Any

from megatron.core.optimizer import clip_grads
from megatron.core.transformer.identity_op import IdentityOp

from megatron_rl.policy.policy import Policy

_LIBRARIES = {
    "transformer_engine": "Transformer Engine",
    "transformer_engine_torch": "Transformer Engine",
    "apex": "apex",
    "amp_C": "apex",
}
"""By top-level module."""


def kernels_in_use(policy: Policy) -> dict[str, str]:
    """Library by part, as Megatron-Core has put this rank's first layer and its optimizer together."""
    layer = policy.chunks[0].decoder.layers[0]
    attention, norm = layer.self_attention, layer.input_layernorm
    parts = {
        "attention": type(attention.core_attention),
        # Transformer Engine makes the norm in the product that comes after it.
        "norms": type(attention.linear_qkv if isinstance(norm, IdentityOp) else norm),
        "linear layers": type(attention.linear_proj),
        "optimizer": type(policy.inner_optimizer),
        "gradient clipping": clip_grads.l2_norm_impl,
    }
    return {name: library_of(part) for name, part in parts.items()}


def library_of(part: Any) -> str:
    """Of a function, or of a class: that of the first among itself and its bases which one of the libraries brings."""
    modules = (str(kind.__module__).partition(".")[0] for kind in getattr(part, "__mro__", (part,)))
    return next((_LIBRARIES[module] for module in modules if module in _LIBRARIES), "torch")
