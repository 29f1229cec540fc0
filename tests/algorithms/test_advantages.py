"""Group advantages against a plain float64 formula."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_rl.algorithms.advantages import group_advantages
from megatron_rl.config.schema import RewardStd

rewards = st.lists(st.floats(-100, 100, width=32), min_size=2, max_size=32)


@given(group=rewards)
def test_advantages_are_reward_minus_mean_over_the_unbiased_std(group: list[float]) -> None:
    values = np.array(group, dtype=np.float64)
    wanted = (values - values.mean()) / (values.std(ddof=1) + 1e-6) if len(set(group)) > 1 else 0 * values
    np.testing.assert_allclose(group_advantages(group), wanted, rtol=1e-9, atol=1e-7)


def test_one_pass_in_four() -> None:
    # mean 1/4, unbiased variance (9/16 + 3/16) / 3 = 1/4
    assert group_advantages([0.0, 1.0, 0.0, 0.0]) == pytest.approx([-0.5, 1.5, -0.5, -0.5], abs=1e-5)


@given(reward=st.floats(-1e6, 1e6), size=st.integers(0, 40))
def test_equal_rewards_are_exactly_zero(reward: float, size: int) -> None:
    assert group_advantages([reward] * size) == [0.0] * size


def test_a_lone_sample_has_no_advantage() -> None:
    assert group_advantages([1.0]) == [0.0]


@given(group=st.lists(st.sampled_from([0.0, 1.0]), min_size=2, max_size=32))
def test_advantages_of_a_group_sum_to_zero(group: list[float]) -> None:
    assert sum(group_advantages(group)) == pytest.approx(0, abs=1e-9)


@given(group=rewards)
def test_the_biased_std_and_none(group: list[float]) -> None:
    values = np.array(group, dtype=np.float64)
    is_mixed = len(set(group)) > 1
    biased = (values - values.mean()) / (values.std() + 1e-6) if is_mixed else 0 * values
    np.testing.assert_allclose(group_advantages(group, RewardStd.BIASED), biased, rtol=1e-9, atol=1e-7)
    plain = values - values.mean() if is_mixed else 0 * values
    np.testing.assert_allclose(group_advantages(group, RewardStd.NONE), plain, rtol=1e-9, atol=1e-7)
