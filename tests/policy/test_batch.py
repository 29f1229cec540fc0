"""Micro-batches: every value at its place, whatever the budget and the number of ranks."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import random_sequences

from megatron_rl.policy.batch import MicroBatch, Share, TrainSequence, batch_metrics, micro_batches, positions_of
from megatron_rl.policy.flops import TOKENS, SequenceCost
from megatron_rl.policy.packing import PACKING_METRICS

CPU = torch.device("cpu")
COST = SequenceCost(per_token=40, per_squared_token=1)


def batches_of_all_ranks(
    sequences: list[TrainSequence],
    dp: int,
    budget: int,
    multiple: int = 1,
    group: int = 1,
    cost: SequenceCost = TOKENS,
) -> list[list[MicroBatch]]:
    shares = [Share(rank, dp, multiple=multiple, group=group) for rank in range(dp)]
    return [micro_batches(sequences, share, budget, CPU, cost) for share in shares]


@st.composite
def packings(draw: st.DrawFn) -> tuple[list[TrainSequence], int, int, int]:
    """Sequences, ranks, token budget, multiple."""
    sequences = random_sequences(draw(st.integers()), draw(st.integers(1, 25)), sft=draw(st.booleans()))
    return sequences, draw(st.integers(1, 5)), draw(st.integers(1, 400)), draw(st.sampled_from([1, 2, 4, 8]))


@given(packing=packings())
def test_every_sequence_is_in_one_micro_batch_and_all_ranks_have_as_many(
    packing: tuple[list[TrainSequence], int, int, int],
) -> None:
    sequences, dp, budget, multiple = packing
    everyone = batches_of_all_ranks(sequences, dp, budget, multiple)
    assert len({len(batches) for batches in everyone}) == 1
    members = [index for batches in everyone for batch in batches for index in batch.members]
    assert sorted(members) == list(range(len(sequences)))


@given(packing=packings())
def test_lengths_are_multiples_and_filler_stays_below_one(packing: tuple[list[TrainSequence], int, int, int]) -> None:
    sequences, dp, budget, multiple = packing
    for batch in (batch for batches in batches_of_all_ranks(sequences, dp, budget, multiple) for batch in batches):
        real = sum(len(sequences[i].tokens) - 1 for i in batch.members)
        total = len(batch.tokens)
        assert total > 0
        assert total % multiple == 0
        assert total - real < multiple or not batch.members


@given(packing=packings())
def test_every_value_stands_where_a_slow_loop_puts_it(packing: tuple[list[TrainSequence], int, int, int]) -> None:
    sequences, dp, budget, multiple = packing
    for batch in (batch for batches in batches_of_all_ranks(sequences, dp, budget, multiple) for batch in batches):
        bounds = batch.cu_seqlens.tolist()
        assert (bounds[0], bounds[-1]) == (0, len(batch.tokens))
        assert batch.longest == max(end - start for start, end in pairwise(bounds))
        for position, index in enumerate(batch.members):
            sequence = sequences[index]
            assert bounds[position + 1] - bounds[position] == len(sequence.tokens) - 1
            for t in range(1, len(sequence.tokens)):  # token t is the label at place t - 1
                place, response = bounds[position] + t - 1, t - sequence.prompt_length
                assert batch.tokens[place] == sequence.tokens[t - 1]
                assert batch.labels[place] == sequence.tokens[t]
                assert batch.response_mask[place] == (response >= 0)
                weight = sequence.weight if response >= 0 else 0.0
                assert batch.weights[place] == torch.tensor(weight, dtype=torch.float32)
                has_rollout = response >= 0 and sequence.rollout_log_probs
                rollout = sequence.rollout_log_probs[response] if has_rollout else 0.0
                assert batch.rollout_log_probs[place] == torch.tensor(rollout, dtype=torch.float32)
        filler = slice(bounds[len(batch.members)], None)
        for values in (batch.response_mask, batch.weights, batch.rollout_log_probs):
            assert not values[filler].any()


@given(packing=packings())
def test_response_tokens_are_counted_once_over_all_ranks(packing: tuple[list[TrainSequence], int, int, int]) -> None:
    sequences, dp, budget, multiple = packing
    everyone = [b for batches in batches_of_all_ranks(sequences, dp, budget, multiple) for b in batches]
    expected = sum(len(s.tokens) - s.prompt_length for s in sequences)
    assert sum(int(batch.response_mask.sum()) for batch in everyone) == expected
    weights = sum((len(s.tokens) - s.prompt_length) * s.weight for s in sequences)
    assert sum(float(batch.weights.double().sum()) for batch in everyone) == pytest.approx(weights, rel=1e-5, abs=1e-6)


def test_a_rank_without_sequences_gets_a_micro_batch_of_no_weight() -> None:
    (batch,) = micro_batches(random_sequences(0, 1, sft=True), Share(1, 2, multiple=4), budget=100, device=CPU)
    assert batch.members == ()
    assert len(batch.tokens) == 4
    assert not batch.response_mask.any()


@given(packing=packings(), group=st.integers(1, 4))
def test_the_number_of_micro_batches_is_a_multiple_and_every_sequence_in_one_of_them(
    packing: tuple[list[TrainSequence], int, int, int], group: int
) -> None:
    sequences, dp, budget, multiple = packing
    everyone = batches_of_all_ranks(sequences, dp, budget, multiple, group)
    assert {len(batches) % group for batches in everyone} == {0}
    members = [index for batches in everyone for batch in batches for index in batch.members]
    assert sorted(members) == list(range(len(sequences)))


@given(packing=packings())
def test_metrics_are_of_what_all_ranks_train_on(packing: tuple[list[TrainSequence], int, int, int]) -> None:
    sequences, dp, budget, _ = packing
    found = batch_metrics([*sequences, *sequences], Share(0, dp), budget, COST)
    everyone = batches_of_all_ranks([*sequences, *sequences], dp, budget, cost=COST)
    lengths = [len(sequence.tokens) - 1 for sequence in sequences] * 2
    costs = [sum(COST.of(lengths[i]) for batch in batches for i in batch.members) for batches in everyone]
    room = sum(len(batches) for batches in everyone) * budget
    assert found.keys() == set(PACKING_METRICS)
    assert found["packing_efficiency"] == pytest.approx(sum(min(length, budget) for length in lengths) / room)
    assert found["dp_imbalance"] == pytest.approx(max(costs) * dp / sum(costs) - 1)
    assert found["shared_prompt_tokens"] >= sum(sequence.prompt_length for sequence in sequences)


def test_the_shortest_sequence_has_one_prompt_and_one_response_token() -> None:
    (batch,) = micro_batches([TrainSequence((5, 6), 1, 2.0)], Share(), budget=1, device=CPU)
    assert (batch.tokens.tolist(), batch.labels.tolist(), batch.weights.tolist()) == ([5], [6], [2.0])


@given(packing=packings(), cp=st.integers(2, 4))
def test_context_parallel_ranks_share_the_batch_of_one_rank(
    packing: tuple[list[TrainSequence], int, int, int], cp: int
) -> None:
    """Every position is on one rank, with its values; each rank has the same number of every sequence's tokens."""
    sequences, dp, budget, multiple = packing
    shares = [micro_batches(sequences, Share(0, dp, rank, cp, multiple), budget, CPU) for rank in range(cp)]
    for parts in zip(*shares, strict=True):
        bounds = parts[0].cu_seqlens
        assert bounds[-1] % (2 * cp * multiple) == 0
        places = torch.cat([part.positions for part in parts])
        assert sorted(places.tolist()) == list(range(int(bounds[-1])))
        assert len({len(part.tokens) for part in parts}) == 1
        tokens, labels, weights = (
            torch.cat([getattr(part, column) for part in parts])[places.argsort()]
            for column in ("tokens", "labels", "weights")
        )
        for start, index in zip(bounds.tolist(), parts[0].members, strict=False):
            sequence = sequences[index]
            length = len(sequence.tokens) - 1
            assert tokens[start : start + length].tolist() == list(sequence.tokens[:-1])
            assert labels[start : start + length].tolist() == list(sequence.tokens[1:])
            assert weights[start : start + length].count_nonzero() == len(sequence.tokens) - sequence.prompt_length
        assert sum(int(part.response_mask.sum()) for part in parts) == int(weights.count_nonzero())


def test_each_context_parallel_rank_holds_a_chunk_from_either_end() -> None:
    cu_seqlens = torch.tensor([0, 8, 12], dtype=torch.int32)
    assert positions_of(cu_seqlens, 0, 2).tolist() == [0, 1, 6, 7, 8, 11]
    assert positions_of(cu_seqlens, 1, 2).tolist() == [2, 3, 4, 5, 9, 10]
