"""Blocks of a weight hold the right rows of its Hugging Face tensors, and nothing changes on the way there and back."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import shape_of
from torch import Tensor

from converters.blocks import cut_blocks, empty_parts, to_hf, to_megatron, whole_block
from converters.families import FAMILIES
from converters.families.family import EMBEDDING, GATE_UP, QKV, Weight
from converters.hf_config import ModelShape

WEIGHTS = list({weight.key: weight for family in FAMILIES.values() for weight in family.weights}.values())
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


@st.composite
def shapes(draw: st.DrawFn) -> tuple[ModelShape, int]:
    """Sizes of a model with grouped queries, experts and padding, and a TP that divides them."""
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
        num_experts=draw(st.integers(1, 5)),
    )
    return shape, tp


def random_bits(shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> Tensor:
    """Any bit patterns, NaNs and infinities among them."""
    generator = torch.Generator().manual_seed(seed)
    size = torch.Size(shape).numel() * dtype.itemsize
    return torch.randint(0, 256, (size,), dtype=torch.uint8, generator=generator).view(dtype).view(shape)


def same_bits(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a.view(torch.uint8), b.view(torch.uint8))


@pytest.mark.parametrize("weight", WEIGHTS, ids=lambda weight: weight.key)
@given(shape_and_tp=shapes(), dtype=st.sampled_from(DTYPES), seed=st.integers(0, 2**32))
def test_there_and_back_again_changes_no_bit(
    weight: Weight, shape_and_tp: tuple[ModelShape, int], dtype: torch.dtype, seed: int
) -> None:
    shape, tp = shape_and_tp
    parts = [random_bits(size, dtype, seed + i) for i, size in enumerate(weight.hf_shapes(shape))]
    back = empty_parts(weight, shape, parts[0])
    for rank in range(tp):
        for block in cut_blocks(weight, 0, 0, shape, tp, rank):
            data = random_bits(block.size, dtype, seed - 1)
            to_megatron(block, data, parts, shape)
            to_hf(block, data, back, shape)
    assert all(same_bits(a, b) for a, b in zip(back, parts, strict=True))


@pytest.mark.parametrize("weight", WEIGHTS, ids=lambda weight: weight.key)
@given(shape_and_tp=shapes())
def test_the_ranks_blocks_are_equally_large_and_cover_the_weight(
    weight: Weight, shape_and_tp: tuple[ModelShape, int]
) -> None:
    shape, tp = shape_and_tp
    ranks = [cut_blocks(weight, 0, 0, shape, tp, rank) for rank in range(tp)]
    assert len({tuple(block.size for block in blocks) for blocks in ranks}) == 1
    covered = torch.zeros(weight.megatron_shape(shape), dtype=torch.int)
    for block in (block for blocks in (ranks if weight.cut is not None else ranks[:1]) for block in blocks):
        corner = (block.row, block.column)
        covered[tuple(slice(start, start + size) for start, size in zip(corner, block.size, strict=False))] += 1
    assert (covered == 1).all()


@given(shape_and_tp=shapes(), data=st.data())
def test_any_rows_of_a_fused_projection_are_the_rows_of_the_whole(
    shape_and_tp: tuple[ModelShape, int], data: st.DataObject
) -> None:
    """Also of blocks that no tensor parallelism cuts so, such as those of other programs' checkpoints."""
    shape, _ = shape_and_tp
    whole = whole_block(QKV, 0, 0, shape)
    rows = whole.size[0]
    start = data.draw(st.integers(0, rows - 1))
    stop = data.draw(st.integers(start + 1, rows))
    parts = [random_bits(size, torch.float32, i) for i, size in enumerate(QKV.hf_shapes(shape))]
    everything, some = torch.empty(whole.size), torch.empty(stop - start, shape.hidden_size)
    to_megatron(whole, everything, parts, shape)
    to_megatron(replace(whole, row=start, size=(stop - start, shape.hidden_size)), some, parts, shape)
    assert same_bits(some, everything[start:stop])


@pytest.mark.parametrize("tp", [1, 2, 4])
def test_fused_qkv_is_grouped_by_key_value_head(tp: int) -> None:
    """Row by row what Megatron reads: per key-value head its queries, its key, its value."""
    shape = replace(shape_of(), num_attention_heads=8, num_key_value_heads=4, head_dim=3, hidden_size=2)
    parts = [
        torch.tensor([[1000.0 * index + head, row] for head in range(heads) for row in range(3)])
        for index, heads in enumerate((8, 4, 4))
    ]
    expected = [
        [1000 * index + head, row]
        for group in range(4)
        for index, head in [(0, 2 * group), (0, 2 * group + 1), (1, group), (2, group)]
        for row in range(3)
    ]
    assert _ranks_rows(QKV, shape, tp, parts) == expected


@pytest.mark.parametrize("tp", [1, 2, 4])
def test_gate_and_up_are_cut_one_by_one(tp: int) -> None:
    """Every rank has its part of the gate, then its part of the up projection."""
    shape = replace(shape_of(), ffn_hidden_size=8, hidden_size=1)
    parts = [torch.arange(8.0)[:, None], 100 + torch.arange(8.0)[:, None]]
    expected = []
    for rank in range(tp):
        rows = slice(rank * 8 // tp, (rank + 1) * 8 // tp)
        expected += [*parts[0][rows].tolist(), *parts[1][rows].tolist()]
    assert _ranks_rows(GATE_UP, shape, tp, parts) == expected


def _ranks_rows(weight: Weight, shape: ModelShape, tp: int, parts: list[Tensor]) -> list[list[float]]:
    found = []
    for rank in range(tp):
        for block in cut_blocks(weight, 0, 0, shape, tp, rank):
            data = torch.empty(block.size)
            to_megatron(block, data, parts, shape)
            found += data.tolist()
    return found


def test_padding_rows_of_the_vocabulary_are_zero_and_come_last() -> None:
    shape = replace(shape_of(vocab_divisor=48), hidden_size=2)
    padded = torch.full((528, 2), torch.nan)
    to_megatron(whole_block(EMBEDDING, 0, 0, shape), padded, [torch.ones(500, 2)], shape)
    assert torch.equal(padded[:500], torch.ones(500, 2))
    assert not padded[500:].any()
