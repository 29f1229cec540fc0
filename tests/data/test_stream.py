"""The order of problems: every epoch whole, the same for the same seed, resumable; and the epoch-wise filter."""

import json
import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_rl.config.schema import GRPOConfig
from megatron_rl.data.stream import ProblemStream, epoch_filter
from megatron_rl.errors import RunStopped

sizes = {"num_items": st.integers(1, 40), "batch_size": st.integers(1, 60), "seed": st.integers()}


def visited(num_items: int, batch_size: int, seed: int, shuffle: bool, epochs: int) -> list[list[int]]:
    """The items of the first whole epochs, epoch by epoch."""
    stream = ProblemStream(num_items, seed, shuffle)
    order = [i for _ in range(-(-num_items * epochs // batch_size)) for i in stream.take(batch_size)]
    return [order[epoch * num_items : (epoch + 1) * num_items] for epoch in range(epochs)]


@given(**sizes, shuffle=st.booleans())
def test_batches_visit_every_item_once_per_epoch(num_items: int, batch_size: int, seed: int, shuffle: bool) -> None:
    for epoch in visited(num_items, batch_size, seed, shuffle, epochs=6):
        assert sorted(epoch) == list(range(num_items))


@given(**sizes, other=st.integers(1, 60))
def test_the_order_does_not_depend_on_the_batch_size(num_items: int, batch_size: int, seed: int, other: int) -> None:
    assert visited(num_items, batch_size, seed, True, 3) == visited(num_items, other, seed, True, 3)


@given(**sizes)
def test_without_shuffling_the_order_is_the_file_s(num_items: int, batch_size: int, seed: int) -> None:
    assert visited(num_items, batch_size, seed, False, 3) == [list(range(num_items))] * 3


@given(**sizes, before=st.lists(st.integers(1, 60), max_size=9))
def test_a_resumed_stream_goes_on_as_one_that_never_stopped(
    num_items: int, batch_size: int, seed: int, before: list[int]
) -> None:
    stream, resumed = ProblemStream(num_items, seed, True), ProblemStream(num_items, seed, True)
    taken = [problem for count in before for problem in stream.take(count)]
    assert len(taken) == sum(before)
    assert stream.next_epoch == len(taken) // num_items
    resumed.restore(json.loads(json.dumps(stream.state())))
    assert resumed.take(batch_size) == stream.take(batch_size)
    replayed = ProblemStream(num_items, seed, True)  # as for a checkpoint that has no order
    assert replayed.take(sum(before)) == taken


def test_the_order_stays_the_same_over_releases() -> None:
    """The very numbers: a run resumed by a newer version goes on where it stopped."""
    stream = ProblemStream(5, seed=1, shuffle=True)
    assert [stream.take(4) for _ in range(3)] == [[3, 4, 0, 2], [1, 0, 3, 4], [2, 1, 3, 4]]


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    orders = [tuple(epoch) for seed in (1, 2) for epoch in visited(50, 10, seed, True, epochs=3)]
    assert len({*orders, tuple(range(50))}) == 7


FILTER = GRPOConfig(max_num_steps=1, epoch_filter=True, epoch_filter_keep_hard=0.1, epoch_filter_keep_easy=0.01)


def test_from_the_second_epoch_on_few_problems_that_teach_nothing_are_visited() -> None:
    """Of 3,000 of each kind 10% of the hard and 1% of the easy, within 5 standard deviations; others always."""
    pass_rates: dict[int, float] = {}
    stream = ProblemStream(12_000, 1, True, epoch_filter(FILTER, pass_rates, 1))
    assert sorted(stream.take(12_000)) == list(range(12_000))
    kinds = {0: 0.0, 1: 1.0, 2: 0.5}
    pass_rates |= {problem: kinds[problem % 4] for problem in range(12_000) if problem % 4 in kinds}
    stream.take(1)
    epoch = [*stream.pending]
    counts = Counter(problem % 4 for problem in epoch)
    assert counts[0] == pytest.approx(300, abs=5 * 16.4)
    assert counts[1] == pytest.approx(30, abs=5 * 5.4)
    assert counts[2] + counts[3] in (5999, 6000)  # one was taken
    stream.take(len(epoch) + 1)
    assert set(stream.pending) != set(epoch), "the same hard and easy problems again"


def test_a_filtered_stream_is_resumed_in_the_middle_of_an_epoch() -> None:
    pass_rates = {problem: random.Random(problem).choice([0.0, 0.5, 1.0]) for problem in range(40)}
    streams = [ProblemStream(40, 3, True, epoch_filter(FILTER, pass_rates, 3)) for _ in range(2)]
    streams[0].take(50)
    streams[1].restore(streams[0].state())
    assert streams[1].take(100) == streams[0].take(100)


def test_a_filter_that_leaves_nothing_stops_the_run() -> None:
    config = GRPOConfig(max_num_steps=1, epoch_filter_keep_hard=0.0, epoch_filter_keep_easy=0.0)
    stream = ProblemStream(3, 1, True, epoch_filter(config, {0: 0.0, 1: 1.0, 2: 0.0}, 1))
    with pytest.raises(RunStopped, match=r"epoch 1: grpo.epoch_filter leaves none of the 3 problems"):
        stream.take(1)
