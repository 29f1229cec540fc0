"""The one queue: every sample is generated once, whoever draws, dies or idles; and the longest start first."""

import random

import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st

from megatron_rl.rollout.queue import SampleQueue
from megatron_rl.rollout.rollout import longest_first
from megatron_rl.rollout.samples import SampleRequest


class Player:
    """A rank with an engine of a given capacity, which may die."""

    def __init__(self, store: dist.Store, order: list[int], index: int, players: int, capacity: int) -> None:
        self.queue = SampleQueue(store, "round", order)
        self.capacity = capacity
        self.in_flight = self.queue.deal(index, players, capacity)
        self.finished: list[int] = []

    def act(self, rng: random.Random, may_die: bool) -> None:
        while len(self.in_flight) < self.capacity and (number := self.queue.draw()) is not None:
            self.in_flight.append(number)
        if may_die and rng.random() < 0.1:
            self.queue.give_back(self.in_flight)
            self.in_flight = []
        elif self.in_flight:
            self.finished.append(self.in_flight.pop(rng.randrange(len(self.in_flight))))
            self.queue.finish(1)


@given(st.integers(1, 60), st.integers(1, 4), st.integers(1, 9), st.integers(0, 10**9))
def test_every_sample_ends_once_whichever_engines_die(samples: int, engines: int, capacity: int, seed: int) -> None:
    rng = random.Random(seed)
    store, order = dist.HashStore(), list(range(samples))
    rng.shuffle(order)
    players = [Player(store, order, index, engines, capacity) for index in range(engines)]
    for turn in range(20_000):
        if players[0].queue.is_finished:
            break
        rng.choice(players).act(rng, may_die=turn < 500)
    assert sorted(number for player in players for number in player.finished) == list(range(samples))
    assert all(player.in_flight == [] for player in players)


def test_what_a_dead_engine_held_is_drawn_by_one_that_lives() -> None:
    """Even if the dead one's rank was the first to ask for more."""
    store = dist.HashStore()
    dead, living = (Player(store, [0, 1, 2, 3], index, 2, 2) for index in range(2))
    assert (dead.in_flight, living.in_flight) == ([0, 2], [1, 3])
    assert dead.queue.draw() is None
    assert living.queue.draw() is None
    dead.queue.give_back(dead.in_flight)
    assert [living.queue.draw() for _ in range(3)] == [0, 2, None]


def test_the_first_hands_are_dealt_in_turns_and_the_rest_is_drawn_in_order() -> None:
    store, order = dist.HashStore(), [9, 8, 7, 6, 5, 4, 3]
    first, second = (SampleQueue(store, "round", order) for _ in range(2))
    assert first.deal(0, 2, 2) == [9, 7]
    assert second.deal(1, 2, 2) == [8, 6]
    assert [second.draw(), first.draw(), second.draw(), second.draw()] == [5, 4, 3, None]


def test_a_meeting_is_due_once_for_every_call() -> None:
    store = dist.HashStore()
    first, second = (SampleQueue(store, "round", [0]) for _ in range(2))
    assert not first.is_meeting_called
    second.call_meeting()
    for queue in (first, second):
        assert queue.is_meeting_called
        queue.hold_meeting()
        assert not queue.is_meeting_called


def test_rounds_do_not_know_of_each_other() -> None:
    store = dist.HashStore()
    SampleQueue(store, "round-1", [0]).finish(1)
    assert not SampleQueue(store, "round-2", [0]).is_finished


def test_samples_of_the_longest_prompts_start_first_and_else_in_order() -> None:
    requests = [SampleRequest(prompt, sample, (5,), 1) for prompt in range(3) for sample in range(2)]
    assert longest_first(requests, [10.0, 30.0, 20.0]) == [2, 3, 4, 5, 0, 1]
    assert longest_first(requests, [1.0, 1.0, 2.0]) == [4, 5, 0, 1, 2, 3]
    assert longest_first(requests, []) == list(range(6))
