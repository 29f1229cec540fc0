"""Guards by themselves: what trips them, to the bound, and what they know of a run from its metrics."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny import train_config

from megatron_rl.config.schema import GuardsConfig, OnTrip, TrainConfig
from megatron_rl.guards import SKIPPED, History, Trip, check_guards
from megatron_rl.logger import MetricsLogger
from megatron_rl.run_folder import RunFolder

HEALTHY = {
    "train/loss": 0.1,
    "train/grad_norm": 1.0,
    "train/entropy": 0.5,
    "train/token_mult_prob_error": 1.0,
    "train/reward": 0.5,
    "generation/truncated_fraction": 0.25,
}
ALL_ON = {
    "max_grad_norm_ratio": 4.0,
    "min_entropy": 0.25,
    "max_entropy": 2.0,
    "max_truncated_fraction": 0.5,
    "max_uniform_reward_steps": 2,
}
PAST = History(grad_norms=(1.0, 9.0, 2.0, 2.0, 1.0, 3.0), uniform=2, had_spread=True)
"""Its median is 2."""


def guarded(**guards: Any) -> TrainConfig:
    return train_config("model", guards=guards)


def tripped(metrics: dict[str, float], history: History = PAST, **guards: Any) -> Trip | None:
    """What `HEALTHY` with these metrics trips."""
    try:
        check_guards(HEALTHY | metrics, guarded(**guards), lambda: history)
    except Trip as trip:
        return trip
    return None


def test_by_default_a_trip_stops_the_run_and_what_has_a_bound_is_off() -> None:
    guards = train_config("model").guards
    assert guards == GuardsConfig(on_trip=OnTrip.STOP, max_consecutive_skips=3, grad_norm_window=20)
    assert {key for key in ALL_ON if getattr(guards, key) is not None} == set()


@pytest.mark.parametrize("guards", [{}, ALL_ON])
def test_a_healthy_update_is_made(guards: dict[str, Any]) -> None:
    assert tripped({}, **guards) is None


@pytest.mark.parametrize("metrics", [{}, {"train/reward": 0.5}, {"train/clip_fraction": 0.5, "train/loss": 1e30}])
def test_a_metric_that_is_not_there_trips_nothing(metrics: dict[str, float]) -> None:
    """Before an update there are those of the batch, of a later update there is no mismatch, in SFT there is less."""
    check_guards(metrics, guarded(**ALL_ON), lambda: PAST)


TRIPS: list[tuple[str, dict[str, float], str]] = [
    ("grad_norm", {"train/grad_norm": 8.1}, "train/grad_norm=8.1 is 4.05 times 2, the median of the last 6 updates, "),
    ("entropy", {"train/entropy": 0.24}, "train/entropy=0.24 is below guards.min_entropy=0.25"),
    ("entropy", {"train/entropy": 2.1}, "train/entropy=2.1 is above guards.max_entropy=2.0"),
    (
        "truncated",
        {"generation/truncated_fraction": 0.51},
        "generation/truncated_fraction=0.51 is above guards.max_truncated_fraction=0.5",
    ),
    ("uniform_reward", {"train/reward": 0.0}, "train/reward=0 of every sample, as in the 2 steps before, more in a "),
    ("uniform_reward", {"train/reward": 1.0}, "train/reward=1 of every sample, as in the 2 steps before, more in a "),
]


@pytest.mark.parametrize(("guard", "metrics", "message"), TRIPS)
def test_a_bound_that_is_passed_trips_its_guard(guard: str, metrics: dict[str, float], message: str) -> None:
    trip = tripped(metrics, **ALL_ON)
    assert trip is not None
    assert (trip.guard, trip.metrics) == (guard, HEALTHY | metrics)
    assert str(trip).startswith(message)
    assert "guards." in str(trip)
    assert trip.remedy


@pytest.mark.parametrize(("guard", "metrics", "message"), TRIPS)
def test_what_has_no_bound_trips_nothing(guard: str, metrics: dict[str, float], message: str) -> None:
    assert tripped(metrics) is None


@pytest.mark.parametrize(
    "metrics",
    [
        {"train/grad_norm": 8.0},
        {"train/entropy": 0.25},
        {"train/entropy": 2.0},
        {"generation/truncated_fraction": 0.5},
        {"train/reward": 0.001},
        {"train/reward": 0.999},
    ],
)
def test_at_its_bound_an_update_is_made(metrics: dict[str, float]) -> None:
    assert tripped(metrics, **ALL_ON) is None


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", ["train/loss", "train/entropy", "train/grad_norm"])
def test_what_is_no_finite_number_always_trips(name: str, value: float) -> None:
    for guards in ({}, ALL_ON):
        trip = tripped({name: value}, **guards)
        assert trip is not None
        assert (trip.guard, str(trip)) == ("not_finite", f"{name}={value} is no finite number")


@pytest.mark.parametrize("error", [1.0010001, math.inf, math.nan])
def test_a_mismatch_above_the_bound_trips_unless_the_policy_itself_is_broken(error: float) -> None:
    trip = tripped({"train/token_mult_prob_error": error})
    assert trip is not None
    assert trip.guard == "mismatch"
    assert f"train/token_mult_prob_error={error:.6g} is not within grpo.max_token_mult_prob_error=1.001: " in str(trip)
    assert tripped({"train/token_mult_prob_error": 1.001}) is None
    broken = tripped({"train/token_mult_prob_error": error, "train/loss": math.nan})
    assert broken is not None
    assert broken.guard == "not_finite"


@pytest.mark.parametrize(("count", "trips"), [(0, False), (4, False), (5, True)])
def test_a_median_needs_five_norms(count: int, trips: bool) -> None:
    trip = tripped({"train/grad_norm": 100.0}, History((1.0,) * count), max_grad_norm_ratio=4.0)
    assert (trip is not None) == trips


@pytest.mark.parametrize(
    ("past", "trips"),
    [
        (History(uniform=1, had_spread=True), False),
        (History(uniform=2, had_spread=True), True),
        (History(uniform=9, had_spread=False), False),  # it never learnt anything: nothing sudden
    ],
)
def test_rewards_are_suddenly_uniform_only_after_they_were_not(past: History, trips: bool) -> None:
    assert (tripped({"train/reward": 0.0}, past, max_uniform_reward_steps=2) is not None) == trips


def test_the_history_is_read_only_by_a_guard_that_needs_it() -> None:
    """Reading it is a collective, and an old run's metrics are long."""
    for guards in ({}, ALL_ON | {"max_grad_norm_ratio": None, "max_uniform_reward_steps": None}):
        check_guards(HEALTHY | {"train/reward": 0.0}, guarded(**guards), lambda: pytest.fail("was read"))


# History ---------------------------------------------------------------------------------------------------------


def line(
    norm: float | None = 1.0, reward: float | None = None, skipped: float = 0.0, **more: float
) -> dict[str, float | None]:
    """A step's metrics as they are read from the file."""
    rewards = {} if reward is None else {"train/reward": reward}
    return {"train/grad_norm": norm, SKIPPED: skipped, **rewards, **more}


def test_norms_are_those_of_updates_that_were_made_and_had_a_gradient() -> None:
    lines = [line(1.0), line(2.0), line(900.0, skipped=1.0), line(None, skipped=1.0), line(0.0), line(3.0)]
    assert History.of(lines, 20).grad_norms == (1.0, 2.0, 3.0)
    assert History.of(lines, 2).grad_norms == (2.0, 3.0)
    assert History.of([{"validation/accuracy": 0.5}], 20) == History.of([], 20) == History()


@pytest.mark.parametrize(("flags", "count"), [("", 0), ("0", 0), ("1", 1), ("1011", 2), ("0110", 0), ("111", 3)])
def test_skipped_steps_are_counted_from_the_last(flags: str, count: int) -> None:
    lines = [{"validation/accuracy": 0.5}, *(line(skipped=float(flag)) for flag in flags)]
    assert History.of(lines, 20).skipped == count


@pytest.mark.parametrize(
    ("rewards", "uniform", "had_spread"),
    [
        ([], 0, False),
        ([0.0, 0.0], 2, False),
        ([0.0, 0.5], 0, True),
        ([0.5, 0.0, 0.0], 2, True),
        ([0.5, 1.0, 0.0, 1.0], 3, True),
        ([0.0, 0.25, 1.0], 1, True),
    ],
)
def test_uniform_steps_are_counted_from_the_last(rewards: list[float], uniform: int, had_spread: bool) -> None:
    found = History.of([{"step": 0.0}, *(line(reward=reward) for reward in rewards)], 20)
    assert (found.uniform, found.had_spread) == (uniform, had_spread)


@given(st.lists(st.sampled_from([0.0, 0.5, 1.0])), st.integers(1, 4))
def test_whoever_carries_on_decides_as_whoever_has_seen_it_all(rewards: Sequence[float], most: int) -> None:
    """Step for step, against a count that is kept in memory."""
    in_a_row, spread = 0, False
    for number, reward in enumerate(rewards):
        wanted = spread and reward != 0.5 and in_a_row >= most
        past = History.of([line(reward=earlier) for earlier in rewards[:number]], 20)
        assert (tripped({"train/reward": reward}, past, max_uniform_reward_steps=most) is not None) == wanted
        in_a_row, spread = (0, True) if reward == 0.5 else (in_a_row + 1, spread)


def test_history_is_that_of_the_file_where_a_number_that_is_not_finite_is_null(tmp_path: Path) -> None:
    written = [(0.0, 2.0, 0.5), (0.0, 3.0, 1.0), (1.0, math.nan, 0.0), (1.0, math.inf, 0.0)]
    with MetricsLogger(train_config("model", logger__tensorboard_enabled=False), tmp_path, 0) as logger:
        for step, (skipped, norm, reward) in enumerate(written, 1):
            logger.log(step, {SKIPPED: skipped, "train/grad_norm": norm, "train/reward": reward})
    lines = RunFolder(tmp_path).metric_lines()
    assert [json.dumps(found["train/grad_norm"]) for found in lines] == ["2.0", "3.0", "null", "null"]
    assert History.of(lines, 20) == History(grad_norms=(2.0, 3.0), skipped=2, uniform=3, had_spread=True)
