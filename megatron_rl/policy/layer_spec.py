"""Layer specs: Transformer Engine's on CUDA; on the CPU Megatron's local one with packed attention and RMSNorm."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from megatron.core import parallel_state
from megatron.core.models.gpt.gpt_layer_specs import (
    get_gpt_layer_local_spec,
    get_gpt_layer_with_transformer_engine_spec,
)
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.tensor_parallel.mappings import gather_from_sequence_parallel_region
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from megatron_rl.policy.batch import positions_of

_LIKE = 0.75
"""Least length, of the longest of those that attention takes together."""


def layer_spec(
    config: TransformerConfig, transformer_engine: bool, num_local_layers: int
) -> ModuleSpec | TransformerBlockSubmodules:
    """The spec of one pipeline stage's decoder block."""
    experts, qk_norm = config.num_moe_experts, config.qk_layernorm
    if transformer_engine:
        return get_gpt_layer_with_transformer_engine_spec(experts, config.moe_grouped_gemm, qk_layernorm=qk_norm)
    layer = get_gpt_layer_local_spec(experts, qk_layernorm=qk_norm, normalization="RMSNorm")
    layer.submodules.input_layernorm = RMSNorm
    layer.submodules.pre_mlp_layernorm = RMSNorm
    attention = layer.submodules.self_attention.submodules
    attention.core_attention = PackedAttention
    if qk_norm:
        attention.q_layernorm = attention.k_layernorm = RMSNorm
    if experts:
        # Experts cannot take their norm in, so Transformer Engine's spec keeps it, and its key, by itself.
        del layer.submodules.sharded_state_dict_keys_map["pre_mlp_layernorm."]
    return TransformerBlockSubmodules(layer_specs=[layer] * num_local_layers, layer_norm=RMSNorm)


class RMSNorm(torch.nn.Module):
    """RMSNorm over [..., H]; unlike Megatron's torch norm it works with sequence parallelism."""

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float = 1e-6, **_: Any) -> None:
        super().__init__()
        self.eps = eps
        self.weight = torch.nn.Parameter(torch.ones(hidden_size, dtype=config.params_dtype))
        # Megatron sums the gradient of such parameters over the tensor-parallel ranks.
        self.weight.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]

    def forward(self, hidden: Tensor) -> Tensor:
        return F.rms_norm(hidden, (hidden.shape[-1],), self.weight, self.eps)


class PackedAttention(torch.nn.Module):
    """Causal attention within each sequence of a packed batch, as Transformer Engine's THD attention.

    Sequences of like length are laid side by side, padded on the right to the longest. A causal mask alone then keeps
    padding out of every real token's sight, so torch's fused kernel serves and no mask is built. With context
    parallelism every rank gathers all tokens and keeps its own: right, not fast.
    """

    def __init__(
        self,
        config: TransformerConfig,
        layer_number: int,
        attn_mask_type: AttnMaskType,
        attention_type: str,
        softmax_scale: float | None = None,
        **_: Any,
    ) -> None:
        super().__init__()
        assert attention_type == "self"
        assert attn_mask_type is AttnMaskType.causal
        self.scale = softmax_scale
        self.groups = config.num_attention_heads // config.num_query_groups

    def forward(
        self,
        query: Tensor,  # [T, A, D]
        key: Tensor,  # [T, K, D]
        value: Tensor,  # [T, K, D]
        attention_mask: None,
        attn_mask_type: AttnMaskType | None = None,
        attention_bias: None = None,
        packed_seq_params: PackedSeqParams | None = None,
    ) -> Tensor:
        """[T, A*D]."""
        assert packed_seq_params is not None
        group = parallel_state.get_context_parallel_group()
        if group.size() == 1:
            return self._whole(query, key, value, packed_seq_params)
        positions_T = [positions_of(packed_seq_params.cu_seqlens_q, rank, group.size()) for rank in range(group.size())]
        order = torch.cat(positions_T).argsort()

        def gathered(part: Tensor) -> Tensor:
            everything: Tensor = gather_from_sequence_parallel_region(part, group=group)
            return everything.index_select(0, order)

        mixed = self._whole(gathered(query), gathered(key), gathered(value), packed_seq_params)
        return mixed.index_select(0, positions_T[group.rank()])

    def _whole(self, query: Tensor, key: Tensor, value: Tensor, packed_seq_params: PackedSeqParams) -> Tensor:
        lengths = packed_seq_params.cu_seqlens_q.diff().tolist()
        key, value = (tensor.repeat_interleave(self.groups, dim=1) for tensor in (key, value))
        pieces = [tensor.split(lengths) for tensor in (query, key, value)]
        mixed: dict[int, Tensor] = {}
        for members in _of_like_length(lengths):
            longest = lengths[members[0]]
            q, k, v = (torch.stack([_padded(piece[i], longest) for i in members]).transpose(1, 2) for piece in pieces)
            found = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=self.scale)
            mixed |= {i: row[: lengths[i]] for i, row in zip(members, found.transpose(1, 2), strict=True)}
        return torch.cat([mixed[i] for i in range(len(lengths))]).flatten(1)


def _padded(packed: Tensor, length: int) -> Tensor:
    """[T, N, D] to [length, N, D]."""
    return packed if len(packed) == length else F.pad(packed, (0, 0, 0, 0, 0, length - len(packed)))


def _of_like_length(lengths: Sequence[int]) -> list[list[int]]:
    """Indices of the sequences in groups, in each of which no one is much shorter than the longest."""
    groups: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True):
        if not groups or lengths[i] < _LIKE * lengths[groups[-1][0]]:
            groups.append([])
        groups[-1].append(i)
    return groups
