"""Figures of an evaluation, from the samples of every problem. Pure functions."""

import statistics
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import comb, sqrt


@dataclass(frozen=True, slots=True)
class Answer:
    """What one sample answered.

    Attributes:
        text: as extracted from the response; None if it gave none.
        is_right: the verifier passed it.
    """

    text: str | None
    is_right: bool


@dataclass(frozen=True, slots=True)
class Figure:
    """A mean over problems, and its standard error: of problems drawn from all such problems (arXiv 2411.00640,
    section 2.2: samples of one problem are one cluster). The error is 0 for a single problem."""

    value: float
    error: float


def mean(values: Sequence[float]) -> Figure:
    """Of one value per problem."""
    error = statistics.stdev(values) / sqrt(len(values)) if len(values) > 1 else 0.0
    return Figure(statistics.fmean(values), error)


def avg_at_k(problems: Sequence[Sequence[Answer]]) -> Figure:
    """The share of right samples, averaged over problems."""
    return mean([statistics.fmean(answer.is_right for answer in answers) for answers in problems])


def pass_at_k(problems: Sequence[Sequence[Answer]], k: int) -> Figure:
    """The chance that of k samples one is right, without bias from n >= k of them: 1 - C(n - c, k) / C(n, k) with c
    right ones (arXiv 2107.03374, section 2.1).

    Raises:
        ValueError: a problem has fewer than k samples.
    """
    values = []
    for answers in problems:
        n, right = len(answers), sum(answer.is_right for answer in answers)
        if n < k:
            raise ValueError(f"pass@{k} of {n} samples")
        values.append(1.0 - comb(n - right, k) / comb(n, k))
    return mean(values)


def maj_at_k(problems: Sequence[Sequence[Answer]], same: Callable[[str, str], bool]) -> Figure:
    """The share of problems whose most frequent answer is right (arXiv 2203.11171); of several that are as frequent one
    is drawn, so each counts by its share. A sample without an answer has no vote.

    Args:
        same: whether two answers are the same one. All right ones are.
    """
    return mean([_majority(answers, same) for answers in problems])


def _majority(answers: Sequence[Answer], same: Callable[[str, str], bool]) -> float:
    votes = Counter(answer.text for answer in answers if answer.text is not None and not answer.is_right)
    wrong: dict[str, int] = {}
    for text, count in votes.items():
        known = next((other for other in wrong if same(text, other)), text)
        wrong[known] = wrong.get(known, 0) + count
    right = sum(answer.is_right for answer in answers)
    most = max([right, *wrong.values()])
    if right < most or right == 0:
        return 0.0
    return 1.0 / (1 + sum(count == most for count in wrong.values()))
