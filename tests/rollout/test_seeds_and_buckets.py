"""What of the rollout needs no engine: seeds of samples, and how weights are cut into buckets."""

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from vllm.distributed.weight_transfer.base import ParamMeta

from megatron_rl.rollout.checksums import checksum, piece_checksum
from megatron_rl.rollout.samples import requests_for
from megatron_rl.rollout.shm_buffer import Bucket, Entry, plan_buckets, view
from megatron_rl.rollout.shm_receiver import is_whole

ALIGNMENT = 64
metadata = st.lists(
    st.builds(
        ParamMeta,
        name=st.text(min_size=1, max_size=5),
        dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float8_e4m3fn, torch.int64]),
        shape=st.lists(st.integers(0, 40), max_size=3).map(tuple),
    ),
    min_size=1,
    max_size=30,
)


units = st.lists(metadata, min_size=1, max_size=12)


def bytes_of(dtype: str, shape: list[int]) -> int:
    return getattr(torch, dtype).itemsize * math.prod(shape)


def entries(buckets: list[Bucket]) -> list[Entry]:
    return [entry for bucket in buckets for entry in bucket.entries]


@given(units=units, buffer_bytes=st.integers(128, 20_000))
def test_buckets_hold_every_tensor_once_in_order(units: list[list[ParamMeta]], buffer_bytes: int) -> None:
    buckets, _ = plan_buckets(units, buffer_bytes)
    flat = [(name, getattr(torch, dtype), tuple(shape)) for name, dtype, shape, _ in entries(buckets)]
    assert flat == [(meta.name, meta.dtype, tuple(meta.shape)) for unit in units for meta in unit]
    assert sum(bucket.units for bucket in buckets) == len(units)


@given(units=units, buffer_bytes=st.integers(128, 20_000))
def test_a_unit_is_never_cut(units: list[list[ParamMeta]], buffer_bytes: int) -> None:
    buckets, _ = plan_buckets(units, buffer_bytes)
    first = 0
    for bucket in buckets:
        assert len(bucket.entries) == sum(len(unit) for unit in units[first : first + bucket.units])
        first += bucket.units


@given(units=units, buffer_bytes=st.integers(128, 20_000))
def test_tensors_are_aligned_and_do_not_overlap(units: list[list[ParamMeta]], buffer_bytes: int) -> None:
    buckets, size = plan_buckets(units, buffer_bytes)
    for bucket in buckets:
        end = 0
        for _, dtype, shape, offset in bucket.entries:
            assert offset % ALIGNMENT == 0
            assert offset >= end
            end = offset + bytes_of(dtype, shape)
        assert end <= size


@given(units=units, buffer_bytes=st.integers(128, 20_000))
def test_neighbours_share_the_buffer_unless_one_takes_it_whole(units: list[list[ParamMeta]], buffer_bytes: int) -> None:
    buckets, _ = plan_buckets(units, buffer_bytes)
    half = buffer_bytes // 2 // ALIGNMENT * ALIGNMENT
    for bucket in buckets:
        ends = [offset + bytes_of(dtype, shape) for _, dtype, shape, offset in bucket.entries]
        assert bucket.is_whole == (
            sum(-(-bytes_of(d, s) // ALIGNMENT) * ALIGNMENT for _, d, s, _ in bucket.entries) > half
        )
        assert bucket.is_whole or {
            end > half for end, entry in zip(ends, bucket.entries, strict=True) if end > entry[3]
        } < {
            True,
            False,
        }
    for bucket, following in pairwise(buckets):
        if not bucket.is_whole and not following.is_whole:
            assert (bucket.entries[0][3] >= half) != (following.entries[0][3] >= half)


@given(units=units, buffer_bytes=st.integers(128, 20_000))
def test_what_is_written_through_views_is_read_through_views(units: list[list[ParamMeta]], buffer_bytes: int) -> None:
    buckets, size = plan_buckets(units, buffer_bytes)
    buffer = torch.zeros(size, dtype=torch.uint8)
    for bucket in buckets:
        sent = []
        for number, entry in enumerate(bucket.entries):
            tensor = torch.full(entry[2], number + 1, dtype=torch.float32).to(getattr(torch, entry[1]))
            view(buffer, entry).copy_(tensor)
            sent.append(tensor)
        for tensor, entry in zip(sent, bucket.entries, strict=True):
            received = view(buffer, entry)
            assert torch.equal(received.flatten().view(torch.uint8), tensor.flatten().view(torch.uint8))


matrices = st.tuples(st.integers(1, 9), st.integers(1, 9), st.sampled_from([torch.float32, torch.bfloat16]))


@given(matrices, st.data())
def test_pieces_sum_up_to_the_checksum_and_one_bit_changes_it(
    matrix: tuple[int, int, torch.dtype], data: st.DataObject
) -> None:
    rows, columns, dtype = matrix
    whole = torch.randn(rows, columns).to(dtype)
    row, column = data.draw(st.integers(0, rows)), data.draw(st.integers(0, columns))
    pieces = [whole[:row, :column], whole[:row, column:], whole[row:]]
    total = sum(piece_checksum(piece.clone(), piece, whole) for piece in pieces if piece.numel())
    assert total == checksum(whole)
    damaged = whole.clone()
    bits = damaged.view(torch.uint8)
    at = data.draw(st.integers(0, bits.numel() - 1))
    bits.flatten()[at] ^= 1 << data.draw(st.integers(0, 7))
    assert checksum(damaged) != total


def test_exchanged_rows_change_the_checksum() -> None:
    whole = torch.randn(5, 7)
    assert checksum(whole[[1, 0, 2, 3, 4]]) != checksum(whole)
    assert checksum(whole.flatten()) == checksum(whole.flatten().clone())


def test_seeds_follow_from_run_step_prompt_and_sample_alone() -> None:
    """The very numbers: whichever engine takes a prompt, and whatever else it is running, they stay."""
    seeds = [request.seed for request in requests_for([(5, 6)] * 4, 4, "1/17")[12:]]
    assert seeds == [1914663028, 1547494682, 1756731987, 2124407296]


def test_seeds_differ_between_samples_prompts_steps_and_runs() -> None:
    seeds = {request.seed for run in ("1/0", "1/1", "2/0", "11/0") for request in requests_for([(5,)] * 30, 8, run)}
    assert len(seeds) == 4 * 30 * 8


def test_requests_carry_prompt_and_place_in_the_group() -> None:
    requests = requests_for([[1], [5, 6]], 3, "seed", done={(0, 1), (1, 2)})
    places = [(request.prompt_index, request.sample_index, request.prompt_tokens) for request in requests]
    assert places == [(0, 0, (1,)), (0, 2, (1,)), (1, 0, (5, 6)), (1, 1, (5, 6))]
    assert all(0 <= request.seed < 2**31 for request in requests)


MEMORY = torch.arange(96, dtype=torch.float32)


def piece(shard: str | int | None, first: int, rows: int, columns: int = 4) -> dict[str, object]:
    """Rows in memory, as an engine's loader is given them."""
    tensor = MEMORY[first : first + rows * columns].view(rows, columns)
    return {"loaded_weight": tensor} | ({} if shard is None else {"loaded_shard_id": shard})


@pytest.mark.parametrize(
    ("pieces", "expected"),
    [
        ([piece(None, 8, 8)], True),
        ([piece("q", 8, 4), piece("k", 24, 2), piece("v", 32, 2)], True),
        ([piece(0, 0, 4), piece(1, 16, 4)], True),
        ([piece(0, 0, 4), piece(1, 20, 4)], False),  # a gap between
        ([piece(1, 0, 4), piece(0, 16, 4)], False),  # not in this order
        ([piece("k", 0, 4), piece("q", 16, 2), piece("v", 24, 2)], False),
        ([piece(None, 0, 16)], False),  # an engine's worker at TP=2 has half of the rows
        ([piece(None, 0, 8, 8)], False),  # or of the columns
        ([piece(None, 0, 4, 8)], False),  # another shape
        ([piece(None, 0, 4)], False),  # the rest pads a vocabulary
    ],
)
def test_only_what_lies_there_as_the_parameter_is_taken_for_it(pieces: list[dict[str, object]], expected: bool) -> None:
    assert is_whole(torch.empty(8, 4), pieces) is expected
    assert not is_whole(torch.empty(8, 4, dtype=torch.bfloat16), pieces)
