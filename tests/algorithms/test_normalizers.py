"""What a token counts in the loss, against means of means in numpy; and what length costs."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_rl.algorithms.normalizers import token_weights
from megatron_rl.algorithms.rewards import overlong_penalty
from megatron_rl.config.schema import LossNormalizer

LIMIT = 50
responses = st.lists(st.tuples(st.integers(1, LIMIT), st.integers(0, 4)), min_size=1, max_size=20)


@given(responses=responses, seed=st.integers(0, 1000))
def test_weighted_sums_are_the_means_that_they_say(responses: list[tuple[int, int]], seed: int) -> None:
    lengths, groups = [length for length, _ in responses], [group for _, group in responses]
    rng = np.random.default_rng(seed)
    values = [rng.standard_normal(length) for length in lengths]
    by_group = {g: np.concatenate([v for v, group in zip(values, groups, strict=True) if group == g]) for g in groups}
    wanted = {
        LossNormalizer.TOKENS: np.concatenate(values).mean(),
        LossNormalizer.GROUP_TOKENS: np.mean([group.mean() for group in by_group.values()]),
        LossNormalizer.SEQUENCES: np.mean([value.mean() for value in values]),
        LossNormalizer.CONSTANT: np.concatenate(values).sum() / (len(values) * LIMIT),
    }
    for normalizer, mean in wanted.items():
        weights = token_weights(lengths, groups, normalizer, LIMIT)
        assert sum(w * v.sum() for w, v in zip(weights, values, strict=True)) == pytest.approx(mean, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize(
    ("length", "penalty"), [(1, 0.0), (80, 0.0), (81, -0.05), (90, -0.5), (100, -1.0), (101, -1.0)]
)
def test_the_last_tokens_cost_more_and_more(length: int, penalty: float) -> None:
    assert overlong_penalty(length, max_length=100, buffer=20) == pytest.approx(penalty)
