"""Every layout operation undoes itself, bit for bit, and puts values where Megatron looks for them."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import shape_of
from torch import Tensor

from converters.hf_config import ModelShape
from converters.ops import FusedQKV, GateUp, Op, Replicated, Row, Vocabulary

OPS = [Replicated(), Row(), Row(feed_forward=True), Vocabulary(), GateUp(), FusedQKV(), FusedQKV(bias=True)]
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


@st.composite
def shapes(draw: st.DrawFn) -> tuple[ModelShape, int]:
    """Sizes of a model with grouped queries and padding, and a TP that divides them."""
    tp = draw(st.sampled_from([1, 2, 4]))
    groups, queries = tp * draw(st.integers(1, 3)), draw(st.integers(1, 4))
    vocab = draw(st.integers(2, 40))
    shape = ModelShape(
        num_layers=1,
        hidden_size=draw(st.integers(1, 9)),
        ffn_hidden_size=tp * draw(st.integers(1, 5)),
        num_attention_heads=groups * queries,
        num_key_value_heads=groups,
        head_dim=draw(st.integers(1, 6)),
        vocab_size=vocab,
        padded_vocab_size=-(-vocab // (tp * draw(st.integers(1, 4)))) * tp * 12,
        tied=draw(st.booleans()),
    )
    return shape, tp


def random_bits(shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> Tensor:
    """Any bit patterns, NaNs and infinities among them."""
    generator = torch.Generator().manual_seed(seed)
    size = torch.Size(shape).numel() * dtype.itemsize
    return torch.randint(0, 256, (size,), dtype=torch.uint8, generator=generator).view(dtype).view(shape)


def same_bits(a: Tensor, b: Tensor) -> bool:
    return (
        a.dtype == b.dtype
        and a.shape == b.shape
        and torch.equal(a.contiguous().view(torch.uint8), b.contiguous().view(torch.uint8))
    )


@pytest.mark.parametrize("op", OPS, ids=repr)
@given(shape_and_tp=shapes(), dtype=st.sampled_from(DTYPES), seed=st.integers(0, 2**32))
def test_there_and_back_again_changes_no_bit(
    op: Op, shape_and_tp: tuple[ModelShape, int], dtype: torch.dtype, seed: int
) -> None:
    shape, tp = shape_and_tp
    parts = [random_bits(size, dtype, seed + i) for i, size in enumerate(op.hf_shapes(shape))]
    shards = [op.shard(op.join(parts, shape), rank, tp).clone() for rank in range(tp)]
    back = op.split(op.unshard(shards, shape), shape)
    assert len(back) == len(parts)
    assert all(same_bits(a, b) for a, b in zip(back, parts, strict=True))


@pytest.mark.parametrize("op", OPS, ids=repr)
@given(shape_and_tp=shapes())
def test_all_ranks_hold_equally_large_shards(op: Op, shape_and_tp: tuple[ModelShape, int]) -> None:
    shape, tp = shape_and_tp
    whole = op.join([torch.zeros(size) for size in op.hf_shapes(shape)], shape)
    assert len({op.shard(whole, rank, tp).shape for rank in range(tp)}) == 1


@pytest.mark.parametrize("tp", [1, 2, 4])
def test_fused_qkv_is_grouped_by_key_value_head(tp: int) -> None:
    """Row by row what Megatron reads: per key-value head its queries, its key, its value."""
    shape = replace(shape_of(), num_attention_heads=8, num_key_value_heads=4, head_dim=3)
    rows = {
        letter: torch.tensor([[1000 * index + head, row] for head in range(heads) for row in range(3)])
        for index, (letter, heads) in enumerate({"q": 8, "k": 4, "v": 4}.items())
    }
    whole = FusedQKV().join(list(rows.values()), shape)
    megatron = torch.cat([FusedQKV().shard(whole, rank, tp) for rank in range(tp)])
    expected = [
        [1000 * index + head, row]
        for group in range(4)
        for index, head in [(0, 2 * group), (0, 2 * group + 1), (1, group), (2, group)]
        for row in range(3)
    ]
    assert megatron.tolist() == expected


@pytest.mark.parametrize("tp", [1, 2, 4])
def test_every_rank_has_its_gate_above_its_up(tp: int) -> None:
    gate, up = torch.arange(8)[:, None], 100 + torch.arange(8)[:, None]
    whole = GateUp().join([gate, up], shape_of())
    for rank in range(tp):
        rows = slice(rank * 8 // tp, (rank + 1) * 8 // tp)
        assert GateUp().shard(whole, rank, tp).tolist() == [*gate[rows].tolist(), *up[rows].tolist()]


def test_padding_rows_of_the_vocabulary_are_zero_and_come_last() -> None:
    shape = shape_of(vocab_divisor=48)
    weight = torch.ones(500, 2)
    padded = Vocabulary().join([weight], shape)
    assert padded.shape == (528, 2)
    assert torch.equal(padded[:500], weight)
    assert not padded[500:].any()
