"""The figures of an evaluation, against ones worked out by hand and by drawing."""

import itertools
import math
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_rl.evaluation.metrics import Answer, avg_at_k, maj_at_k, mean, pass_at_k


def answers(words: str) -> list[Answer]:
    """`7* 8 - 7*`: right ones with a star, a minus for none."""
    return [Answer(None if word == "-" else word.rstrip("*"), word.endswith("*")) for word in words.split()]


def same(a: str, b: str) -> bool:
    return float(a) == float(b)


def test_by_hand() -> None:
    problems = [answers("7* 7* 8 -"), answers("1 2 3* 1"), answers("- - - -"), answers("5* 5.0* 5* 5*")]
    assert avg_at_k(problems).value == pytest.approx((0.5 + 0.25 + 0 + 1) / 4)
    assert avg_at_k(problems).error == pytest.approx(statistics.stdev([0.5, 0.25, 0, 1]) / 2)
    assert pass_at_k(problems, 1).value == pytest.approx(avg_at_k(problems).value)
    assert pass_at_k(problems, 2).value == pytest.approx(((1 - 1 / 6) + (1 - 3 / 6) + 0 + 1) / 4)
    assert pass_at_k(problems, 4).value == pytest.approx((1 + 1 + 0 + 1) / 4)
    assert maj_at_k(problems, same).value == pytest.approx((1 + 0 + 0 + 1) / 4)


@pytest.mark.parametrize(
    ("words", "share"),
    [
        ("7* 8", 1 / 2),
        ("7* 8 9", 1 / 3),
        ("7* 7* 8 9 8.0", 1 / 2),  # 8 and 8.0 are one answer
        ("7* 8 8.0", 0),
        ("7* - - -", 1),  # no answer has no vote
        ("7* 7.0* 8 9", 1),
        ("8", 0),
        ("-", 0),
    ],
)
def test_the_majority(words: str, share: float) -> None:
    assert maj_at_k([answers(words)], same).value == pytest.approx(share)


@given(st.lists(st.booleans(), min_size=1, max_size=8), st.integers(1, 8))
def test_pass_at_k_is_the_share_of_draws_with_a_right_one(right: list[bool], k: int) -> None:
    problem = [Answer("1", is_right) for is_right in right]
    if k > len(right):
        with pytest.raises(ValueError, match=f"pass@{k} of {len(right)} samples"):
            pass_at_k([problem], k)
        return
    draws = list(itertools.combinations(right, k))
    assert pass_at_k([problem], k).value == pytest.approx(sum(map(any, draws)) / len(draws))


def test_pass_at_k_is_that_of_the_humaneval_estimator() -> None:
    """1 - prod(1 - k / i) for i from n - c + 1 to n, as HumanEval computes it."""
    for n, right, k in itertools.product((1, 5, 64, 200), (0, 1, 3, 64), (1, 5, 64)):
        if right <= n and k <= n:
            product = math.prod(1 - k / i for i in range(n - right + 1, n + 1)) if n - right >= k else 0.0
            found = pass_at_k([[Answer("1", i < right) for i in range(n)]], k).value
            assert found == pytest.approx(1 - product, abs=1e-12)


def test_the_error_of_one_problem_is_0() -> None:
    assert mean([0.5]).error == 0.0
