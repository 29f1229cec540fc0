"""Packing: nothing lost, nothing doubled, the budget kept, as few micro-batches as first fit needs, ranks alike."""

import os
import random
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import shape_of

from megatron_rl.policy.flops import TOKENS, SequenceCost, forward_flops, matmul_parameters
from megatron_rl.policy.packing import Packing, pack, packing_metrics, shared_prompt_tokens

ROOT = Path(__file__).parents[2]
ATTENTION = SequenceCost(per_token=40, per_squared_token=1)
SEVEN_B = SequenceCost(per_token=70_400, per_squared_token=1)
"""In proportion as a 7B model: with 70K tokens attention costs as much as all else."""

Case = tuple[tuple[int, ...], int, int, int, SequenceCost]
"""Lengths, budget (longer sequences too), ranks, group, cost: the arguments of `pack`."""


def even_lengths(seed: int, count: int) -> tuple[int, ...]:
    rng = random.Random(seed)
    return tuple(rng.randint(1, 60) for _ in range(count))


# Hypothesis' own lists are mostly short or of equal numbers, which are easily packed.
lengths_tuples = st.lists(st.integers(1, 60), min_size=1, max_size=50).map(tuple) | st.builds(
    even_lengths, st.integers(), st.integers(10, 60)
)
cases = st.tuples(
    lengths_tuples,
    st.integers(1, 200),
    st.integers(1, 9),
    st.integers(1, 4),
    st.sampled_from([TOKENS, ATTENTION]),
)


def log_normal_lengths(seed: int, count: int, limit: int = 8192) -> tuple[int, ...]:
    """A tenth of them at the limit, as where responses are truncated."""
    rng = random.Random(seed)
    responses = [min(limit, round(limit * rng.lognormvariate(-0.9, 0.7))) for _ in range(count)]
    return tuple(rng.randrange(50, 300) + response for response in responses)


def loads(packing: Packing, lengths: Sequence[int], cost: SequenceCost) -> list[int]:
    return [sum(cost.of(lengths[i]) for batch in part for i in batch) for part in packing]


def first_fit_count(lengths: Sequence[int], budget: int) -> int:
    """Micro-batches of the textbook's first fit, longest first."""
    rooms: list[int] = []
    for length in sorted((min(length, budget) for length in lengths), reverse=True):
        place = next((n for n, room in enumerate(rooms) if room >= length), len(rooms))
        rooms[place : place + 1] = [(rooms[place] if place < len(rooms) else budget) - length]
    return len(rooms)


@given(case=cases)
def test_every_sequence_is_in_one_micro_batch(case: Case) -> None:
    members = [index for part in pack(*case) for batch in part for index in batch]
    assert sorted(members) == list(range(len(case[0])))


@given(case=cases)
def test_the_budget_is_kept_unless_a_single_sequence_is_longer(
    case: Case,
) -> None:
    lengths, budget, *_ = case
    for batch in (batch for part in pack(*case) for batch in part):
        assert len(batch) <= 1 or sum(lengths[i] for i in batch) <= budget


@given(case=cases)
def test_ranks_have_the_same_number_of_micro_batches_and_no_more_than_first_fit_needs(
    case: Case,
) -> None:
    lengths, budget, ranks, group, _ = case
    packing = pack(*case)
    counts = {len(part) for part in packing}
    needed = -(-first_fit_count(lengths, budget) // (ranks * group)) * group
    assert len(packing) == ranks
    assert len(counts) == 1
    assert counts.pop() in range(group, needed + 1, group)


@given(case=cases)
def test_ranks_differ_by_no_more_than_the_costliest_micro_batch_there_can_be(
    case: Case,
) -> None:
    lengths, budget, _, _, cost = case
    found = loads(pack(*case), lengths, cost)
    assert max(found) - min(found) <= cost.of(max(budget, *lengths))


@given(lengths=lengths_tuples, ranks=st.integers(1, 9))
def test_where_the_budget_is_no_limit_ranks_differ_by_no_more_than_the_longest_sequence(
    lengths: tuple[int, ...], ranks: int
) -> None:
    """What the longest first, each to the lightest rank, would promise."""
    found = loads(pack(lengths, sum(lengths), ranks), lengths, TOKENS)
    assert max(found) - min(found) <= max(lengths)


@given(case=cases)
def test_the_costliest_micro_batches_come_first(case: Case) -> None:
    lengths, *_, cost = case
    for part in pack(*case):
        found = [sum(cost.of(lengths[i]) for i in batch) for batch in part]
        assert found == sorted(found, reverse=True)


@settings(max_examples=20)
@given(
    seed=st.integers(),
    count=st.integers(256, 1024),
    budget=st.sampled_from([16384, 32768]),
    ranks=st.sampled_from([1, 4, 16]),
)
def test_many_sequences_leave_ranks_alike_and_few_more_micro_batches_than_their_tokens_need(
    seed: int, count: int, budget: int, ranks: int
) -> None:
    lengths = log_normal_lengths(seed, count)
    packing = pack(lengths, budget, ranks, 1, SEVEN_B)
    needed = -(-sum(lengths) // (budget * ranks))
    assert packing_metrics(packing, lengths, budget, SEVEN_B)["dp_imbalance"] <= 0.03
    assert len(packing[0]) <= needed + max(1, needed // 40)


def test_attention_counts() -> None:
    lengths = (30, 15, 15, 15, 15)
    one_token = SequenceCost(per_token=0, per_squared_token=1)
    assert pack(lengths, 60, 2, 1, one_token) == (((0,),), ((1, 2, 3, 4),))
    assert loads(pack(lengths, 60, 2, 1, TOKENS), lengths, TOKENS) == [45, 45]


def test_the_fullest_micro_batches_fit_what_first_fit_does_not() -> None:
    lengths = (12, 11, 6, 5, 3, 3)  # first fit: 12 6 | 11 5 3 | 3
    assert first_fit_count(lengths, 20) == 3
    assert pack(lengths, 20) == (((0, 3, 4), (1, 2, 5)),)


def test_micro_batches_filled_anew_fit_what_one_after_the_other_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    lengths = log_normal_lengths(19, 400)
    needed = -(-sum(lengths) // 16384)
    assert len(pack(lengths, 16384)[0]) == needed
    monkeypatch.setattr("megatron_rl.policy.packing._REFILLS", 0)
    assert len(pack.__wrapped__(lengths, 16384)[0]) > needed


def test_micro_batches_are_filled_evenly() -> None:
    """Not ten and one: the same number of full ones leaves less memory to others, and pipeline stages waiting."""
    lengths = (1,) * 11
    assert sorted(len(batch) for batch in pack(lengths, 10)[0]) == [5, 6]


def test_there_is_a_micro_batch_even_of_nothing() -> None:
    assert pack((), 10, 2, 3) == (((), (), ()),) * 2


def test_packing_does_not_depend_on_anything_random() -> None:
    case = (log_normal_lengths(3, 200), 16384, 4, 2)
    code = f"from megatron_rl.policy.packing import pack; print(pack(*{case}))"
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code],
            env=os.environ | {"PYTHONPATH": str(ROOT), "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert outputs == {f"{pack(*case)}\n"}


def test_metrics_of_a_packing_by_hand() -> None:
    packing, lengths = (((0,), (1, 2)), ((3,), ())), (12, 3, 4, 5)
    found = packing_metrics(packing, lengths, 10, TOKENS)
    assert found["packing_efficiency"] == pytest.approx((10 + 3 + 4 + 5) / 40)  # one is longer than the budget
    assert found["dp_imbalance"] == pytest.approx(19 / 12 - 1)
    assert packing_metrics(packing, lengths, 10, ATTENTION)["dp_imbalance"] == pytest.approx(
        (ATTENTION.of(12) + ATTENTION.of(3) + ATTENTION.of(4)) / (sum(map(ATTENTION.of, lengths)) / 2) - 1
    )


def test_shared_prompt_tokens_are_those_of_every_sample_of_a_prompt_but_the_first() -> None:
    assert shared_prompt_tokens([(1, 2, 3), (1, 2), (1, 2, 3), [1, 2, 3], (4,)]) == 6
    assert shared_prompt_tokens([]) == 0


def test_flops_of_a_forward_pass_by_hand() -> None:
    shape = shape_of()  # 4 layers, 128 wide, 192 in the MLP, 4 heads of 32, 2 of them for keys and values, 500 tokens
    parameters = 4 * (128 * (128 + 64 + 64 + 128) + 3 * 128 * 192) + 500 * 128
    assert matmul_parameters(shape) == parameters
    # Two operations per parameter and token; two products of length squared times width, half of each masked.
    assert forward_flops(shape).of(10) == 2 * parameters * 10 + 4 * 2 * (2 * 128 * 10**2) // 2
