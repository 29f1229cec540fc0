"""Packing: nothing lost, nothing doubled, every value at its place, whatever the budget and the number of ranks."""

import random
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import random_sequences

from megatron_rl.policy.batch import MicroBatch, Share, TrainSequence, micro_batches, positions_of
from megatron_rl.policy.packing import pack, split_over_ranks

CPU = torch.device("cpu")
lengths_lists = st.lists(st.integers(1, 60), min_size=1, max_size=40)


def batches_of_all_ranks(
    sequences: list[TrainSequence], dp: int, budget: int, multiple: int = 1, group: int = 1
) -> list[list[MicroBatch]]:
    shares = [Share(rank, dp, multiple=multiple, group=group) for rank in range(dp)]
    return [micro_batches(sequences, share, budget, CPU) for share in shares]


@st.composite
def packings(draw: st.DrawFn) -> tuple[list[TrainSequence], int, int, int]:
    """Sequences, ranks, token budget, multiple."""
    sequences = random_sequences(draw(st.integers()), draw(st.integers(1, 25)), sft=draw(st.booleans()))
    return sequences, draw(st.integers(1, 5)), draw(st.integers(1, 400)), draw(st.sampled_from([1, 2, 4, 8]))


@given(lengths=lengths_lists, ranks=st.integers(1, 8))
def test_every_sequence_goes_to_one_rank(lengths: list[int], ranks: int) -> None:
    members = split_over_ranks(lengths, ranks)
    assert len(members) == ranks
    assert sorted(index for part in members for index in part) == list(range(len(lengths)))


@given(lengths=lengths_lists, ranks=st.integers(1, 8))
def test_no_rank_has_more_than_a_sequence_above_the_lightest(lengths: list[int], ranks: int) -> None:
    loads = [sum(lengths[i] for i in part) for part in split_over_ranks(lengths, ranks)]
    assert max(loads) - min(loads) <= max(lengths)


@given(lengths=lengths_lists, budget=st.integers(1, 100))
def test_packing_respects_the_budget_unless_a_single_sequence_is_longer(lengths: list[int], budget: int) -> None:
    bins = pack(lengths, budget)
    assert sorted(index for part in bins for index in part) == list(range(len(lengths)))
    for part in bins:
        assert len(part) == 1 or sum(lengths[i] for i in part) <= budget


@given(lengths=lengths_lists, budget=st.integers(60, 200))
def test_first_fit_leaves_no_two_bins_half_empty(lengths: list[int], budget: int) -> None:
    loads = [sum(lengths[i] for i in part) for part in pack(lengths, budget)]
    assert sum(2 * load <= budget for load in loads) <= 1


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
def test_the_number_of_micro_batches_is_a_multiple_with_as_few_empty_ones_as_need_be(
    packing: tuple[list[TrainSequence], int, int, int], group: int
) -> None:
    sequences, dp, budget, multiple = packing
    plain = batches_of_all_ranks(sequences, dp, budget, multiple)
    for batches, fewer in zip(batches_of_all_ranks(sequences, dp, budget, multiple, group), plain, strict=True):
        assert len(batches) % group == 0
        assert len(batches) - len(fewer) < group
        assert [batch.members for batch in batches[: len(fewer)]] == [batch.members for batch in fewer]
        assert not any(batch.members or batch.response_mask.any() for batch in batches[len(fewer) :])


def test_the_shortest_sequence_has_one_prompt_and_one_response_token() -> None:
    (batch,) = micro_batches([TrainSequence((5, 6), 1, 2.0)], Share(), budget=1, device=CPU)
    assert (batch.tokens.tolist(), batch.labels.tolist(), batch.weights.tolist()) == ([5], [6], [2.0])


def test_packing_does_not_depend_on_anything_random() -> None:
    lengths = [random.Random(3).randrange(1, 50) for _ in range(200)]
    assert pack(lengths, 100) == pack(list(lengths), 100)
    assert split_over_ranks(lengths, 8) == split_over_ranks(list(lengths), 8)


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
