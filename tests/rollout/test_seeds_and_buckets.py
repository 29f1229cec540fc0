"""What of the rollout needs no engine: seeds of samples, and how weights are cut into buckets."""

import math
from itertools import pairwise

import torch
from hypothesis import given
from hypothesis import strategies as st
from vllm.distributed.weight_transfer.base import ParamMeta

from megatron_rl.rollout.rollout import _requests
from megatron_rl.rollout.shm_transfer import _view, plan_buckets

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


def bytes_of(dtype: str, shape: list[int]) -> int:
    return getattr(torch, dtype).itemsize * math.prod(shape)


@given(metas=metadata, bucket_bytes=st.integers(1, 20_000))
def test_buckets_hold_every_tensor_once_in_order(metas: list[ParamMeta], bucket_bytes: int) -> None:
    buckets, _ = plan_buckets(metas, bucket_bytes)
    flat = [(name, getattr(torch, dtype), tuple(shape)) for bucket in buckets for name, dtype, shape, _ in bucket]
    assert flat == [(meta.name, meta.dtype, tuple(meta.shape)) for meta in metas]
    assert all(buckets)


@given(metas=metadata, bucket_bytes=st.integers(1, 20_000))
def test_tensors_of_a_bucket_are_aligned_and_do_not_overlap(metas: list[ParamMeta], bucket_bytes: int) -> None:
    buckets, largest = plan_buckets(metas, bucket_bytes)
    ends = []
    for bucket in buckets:
        end = 0
        for _, dtype, shape, offset in bucket:
            assert offset % ALIGNMENT == 0
            assert offset >= end
            end = offset + bytes_of(dtype, shape)
        assert end <= bucket_bytes or len(bucket) == 1
        ends.append(end)
    assert max(ends) == largest


@given(metas=metadata, bucket_bytes=st.integers(1, 20_000))
def test_no_bucket_could_have_taken_the_next_tensor(metas: list[ParamMeta], bucket_bytes: int) -> None:
    buckets, _ = plan_buckets(metas, bucket_bytes)
    for bucket, following in pairwise(buckets):
        _, dtype, shape, offset = bucket[-1]
        used = -(-(offset + bytes_of(dtype, shape)) // ALIGNMENT) * ALIGNMENT
        assert used + bytes_of(following[0][1], following[0][2]) > bucket_bytes


@given(metas=metadata, bucket_bytes=st.integers(1, 20_000))
def test_a_buffer_of_the_largest_bucket_carries_all_of_them(metas: list[ParamMeta], bucket_bytes: int) -> None:
    """What is written through the sender's views is read through the receiver's, tensor by tensor."""
    buckets, largest = plan_buckets(metas, bucket_bytes)
    buffer = torch.zeros(largest, dtype=torch.uint8)
    for bucket in buckets:
        sent = []
        for number, (_, dtype, shape, offset) in enumerate(bucket):
            tensor = torch.full(shape, number + 1, dtype=torch.float32).to(getattr(torch, dtype))
            _view(buffer, dtype, shape, offset).copy_(tensor)
            sent.append(tensor)
        for tensor, (_, dtype, shape, offset) in zip(sent, bucket, strict=True):
            received = _view(buffer, dtype, shape, offset)
            assert torch.equal(received.flatten().view(torch.uint8), tensor.flatten().view(torch.uint8))


def test_seeds_follow_from_run_step_prompt_and_sample_alone() -> None:
    """The very numbers: whichever engine takes a prompt, and whatever else it is running, they stay."""
    seeds = [request.seed for request in _requests(3, (5, 6), 4, "1/17")]
    assert seeds == [1914663028, 1547494682, 1756731987, 2124407296]


def test_seeds_differ_between_samples_prompts_steps_and_runs() -> None:
    seeds = {
        request.seed
        for run in ("1/0", "1/1", "2/0", "11/0")
        for prompt in range(30)
        for request in _requests(prompt, (5,), 8, run)
    }
    assert len(seeds) == 4 * 30 * 8


def test_requests_carry_prompt_and_place_in_the_group() -> None:
    requests = _requests(7, [5, 6], 3, "seed")
    assert [(r.prompt_index, r.sample_index, r.prompt_tokens) for r in requests] == [(7, i, (5, 6)) for i in range(3)]
    assert all(0 <= request.seed < 2**31 for request in requests)
