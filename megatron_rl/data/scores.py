"""How a model did on each problem: the `problems.jsonl` of an evaluation, of `data score`, or of a run of training."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_rl.data.problems import Problem, read_jsonl
from megatron_rl.errors import InputError
from megatron_rl.run_folder import write_lines

_MAX_LENGTH = 2.0**40


@dataclass(frozen=True, slots=True)
class Score:
    """Of one problem.

    Attributes:
        pass_rate: share of its samples that passed.
        length_mean: of its responses, in tokens.
        majority: share of right answers among the most frequent ones; None where nobody asked.
    """

    pass_rate: float
    length_mean: float
    majority: float | None = None


def read_scores(path: Path) -> dict[str, Score]:
    """By the problem's id.

    Raises:
        InputError: the file cannot be read, or a line is no score; names file and line.
    """
    found = {}
    for number, row in read_jsonl(path):
        columns: list[Any] = [row.get(key) for key in ("pass_rate", "length_mean", "majority")]
        rate, length, majority = columns
        if "id" not in row or not (_up_to(1.0, rate) and _up_to(_MAX_LENGTH, length) and _up_to(1.0, majority or 0)):
            raise InputError(f"{path}:{number}: no id, pass_rate and length_mean; eval --out writes them")
        found[str(row["id"])] = Score(rate, length, majority)
    return found


def scores_of(problems: Sequence[Problem], path: Path) -> dict[int, Score]:
    """By the problem's place; of one without a score nothing.

    A dataset that was made of problems with scores has put its source before their ids, which is passed over.

    Raises:
        InputError: `read_scores` refuses the file, or no problem has a score.
    """
    scores = read_scores(path)
    ids = [(problem.id, problem.id.partition("/")[2]) for problem in problems]
    found = {place: scores[name] for place, names in enumerate(ids) for name in names[::-1] if name in scores}
    if not found:
        raise InputError(f"{path}: of none of the problems that there are, such as {problems[0].id!r}; give theirs")
    return found


def write_scores(
    path: Path, problems: Sequence[Problem], pass_rates: Mapping[int, float], lengths: Mapping[int, float]
) -> None:
    """What is known by the problem's place, in order."""
    rows = (
        {"id": problems[place].id, "pass_rate": pass_rates[place], "length_mean": lengths[place]}
        for place in sorted(pass_rates.keys() & lengths.keys())
    )
    write_lines(path, (json.dumps(row) for row in rows))


def _up_to(most: float, value: Any) -> bool:
    return isinstance(value, int | float) and 0 <= value <= most
