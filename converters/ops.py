"""Invertible layouts between Hugging Face tensors and one Megatron parameter.

`join` makes the whole Megatron tensor of the Hugging Face ones and `split` undoes it; `shard` cuts out the part of a
tensor-parallel rank and `unshard` puts the parts together again. Nothing but views and copies: exact in every dtype.

Shape letters: V vocabulary, H hidden, D head size, A attention heads, K key-value heads, F feed-forward size.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from converters.hf_config import ModelShape


class Op(ABC):
    """One layout; `join`/`split` and `shard`/`unshard` are inverse pairs."""

    def join(self, parts: Sequence[Tensor], shape: ModelShape) -> Tensor:
        """Hugging Face tensors to the whole Megatron tensor."""
        (tensor,) = parts
        return tensor

    def split(self, whole: Tensor, shape: ModelShape) -> list[Tensor]:
        """The whole Megatron tensor to its Hugging Face tensors."""
        return [whole]

    @abstractmethod
    def shard(self, whole: Tensor, tp_rank: int, tp: int) -> Tensor:
        """The part of tensor-parallel rank `tp_rank`."""

    @abstractmethod
    def unshard(self, shards: Sequence[Tensor], shape: ModelShape) -> Tensor:
        """The whole tensor of all ranks' parts."""

    @abstractmethod
    def hf_shapes(self, shape: ModelShape) -> list[tuple[int, ...]]:
        """Shapes of the Hugging Face tensors, in order."""


@dataclass(frozen=True, slots=True)
class Replicated(Op):
    """The same [H] vector on every rank: norms."""

    def shard(self, whole: Tensor, tp_rank: int, tp: int) -> Tensor:
        return whole

    def unshard(self, shards: Sequence[Tensor], shape: ModelShape) -> Tensor:
        return shards[0]

    def hf_shapes(self, shape: ModelShape) -> list[tuple[int, ...]]:
        return [(shape.hidden_size,)]


@dataclass(frozen=True, slots=True)
class Row(Op):
    """A row-parallel weight, cut along its input dimension: [H, A*D] (attention) or [H, F] (feed-forward)."""

    feed_forward: bool = False

    def shard(self, whole: Tensor, tp_rank: int, tp: int) -> Tensor:
        return whole.chunk(tp, dim=1)[tp_rank]

    def unshard(self, shards: Sequence[Tensor], shape: ModelShape) -> Tensor:
        return torch.cat(list(shards), dim=1)

    def hf_shapes(self, shape: ModelShape) -> list[tuple[int, ...]]:
        width = shape.ffn_hidden_size if self.feed_forward else shape.num_attention_heads * shape.head_dim
        return [(shape.hidden_size, width)]


@dataclass(frozen=True, slots=True)
class Vocabulary(Op):
    """An embedding or output layer [V, H], cut by vocabulary and padded with zero rows to a multiple of TP."""

    def join(self, parts: Sequence[Tensor], shape: ModelShape) -> Tensor:
        (tensor,) = parts
        padding = tensor.new_zeros(shape.padded_vocab_size - shape.vocab_size, tensor.shape[1])
        return torch.cat([tensor, padding])

    def split(self, whole: Tensor, shape: ModelShape) -> list[Tensor]:
        return [whole[: shape.vocab_size]]

    def shard(self, whole: Tensor, tp_rank: int, tp: int) -> Tensor:
        return whole.chunk(tp, dim=0)[tp_rank]

    def unshard(self, shards: Sequence[Tensor], shape: ModelShape) -> Tensor:
        return torch.cat(list(shards))

    def hf_shapes(self, shape: ModelShape) -> list[tuple[int, ...]]:
        return [(shape.vocab_size, shape.hidden_size)]


@dataclass(frozen=True, slots=True)
class GateUp(Op):
    """Gate and up projections [F, H] each; every rank holds its part of the gate above its part of the up."""

    def join(self, parts: Sequence[Tensor], shape: ModelShape) -> Tensor:
        return torch.stack(list(parts))  # [2, F, H]

    def split(self, whole: Tensor, shape: ModelShape) -> list[Tensor]:
        return list(whole.unbind())

    def shard(self, whole: Tensor, tp_rank: int, tp: int) -> Tensor:
        return whole.chunk(tp, dim=1)[tp_rank].flatten(0, 1)

    def unshard(self, shards: Sequence[Tensor], shape: ModelShape) -> Tensor:
        return torch.cat([shard.unflatten(0, (2, -1)) for shard in shards], dim=1)

    def hf_shapes(self, shape: ModelShape) -> list[tuple[int, ...]]:
        return [(shape.ffn_hidden_size, shape.hidden_size)] * 2


@dataclass(frozen=True, slots=True)
class FusedQKV(Op):
    """Query, key and value projections, weight [A*D, H] or bias [A*D]; Megatron groups them by key-value head.

    Whole: [K, A/K + 2, D, ...], in each group the queries, then the key, then the value.
    """

    bias: bool = False

    def join(self, parts: Sequence[Tensor], shape: ModelShape) -> Tensor:
        groups = shape.num_key_value_heads
        return torch.cat([part.unflatten(0, (groups, -1, shape.head_dim)) for part in parts], dim=1)

    def split(self, whole: Tensor, shape: ModelShape) -> list[Tensor]:
        queries = shape.num_attention_heads // shape.num_key_value_heads
        return [part.flatten(0, 2) for part in whole.split([queries, 1, 1], dim=1)]

    def shard(self, whole: Tensor, tp_rank: int, tp: int) -> Tensor:
        return whole.chunk(tp, dim=0)[tp_rank].flatten(0, 2)

    def unshard(self, shards: Sequence[Tensor], shape: ModelShape) -> Tensor:
        per_group = shape.num_attention_heads // shape.num_key_value_heads + 2
        return torch.cat([shard.unflatten(0, (-1, per_group, shape.head_dim)) for shard in shards])

    def hf_shapes(self, shape: ModelShape) -> list[tuple[int, ...]]:
        rows = [heads * shape.head_dim for heads in (shape.num_attention_heads, *[shape.num_key_value_heads] * 2)]
        return [(row,) if self.bias else (row, shape.hidden_size) for row in rows]
