"""How much the page shows: the whole of a long run would not fit into a file that one can mail."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from megatron_rl.report.samples import TRAIN_SET, Sample


@dataclass(frozen=True, slots=True)
class Limits:
    """How much of each stage is shown, and of each set of its samples."""

    train_steps: int
    held_out_steps: int
    samples_per_step: int
    curve_steps: int


LIMITS = (
    Limits(400, 40, 400, 5000),
    Limits(48, 8, 200, 5000),
    Limits(24, 4, 100, 5000),
    Limits(12, 2, 60, 2000),
    Limits(6, 2, 30, 2000),
    Limits(2, 2, 8, 1000),
    Limits(2, 2, 2, 250),
    Limits(2, 2, 0, 50),
)
"""From generous to tight: the first with which the page keeps its size is taken."""


def choose(samples: Sequence[Sample], limits: Limits) -> list[Sample]:
    """The samples within `limits`: steps evenly spread with the first and the last, and of each step the first samples.

    In a held-out set or a benchmark these are the same problems at every step, so that each can be followed from first
    to last, and of each problem as many samples as of the others.
    """
    sets: dict[tuple[int, str], dict[int, list[Sample]]] = defaultdict(lambda: defaultdict(list))
    for sample in samples:
        sets[sample["stage"], str(sample["set"])][sample["step"] or 0].append(sample)
    chosen: list[Sample] = []
    for (_, set_name), by_step in sets.items():
        if set_name == TRAIN_SET:
            for step in _spread(sorted(by_step), limits.train_steps):
                chosen += by_step[step][: limits.samples_per_step]
            continue
        steps = _spread(sorted(by_step), limits.held_out_steps)
        ids = set(list(dict.fromkeys(sample["id"] for sample in by_step[steps[0]]))[: limits.samples_per_step])
        for step in steps:
            chosen += _of_each_problem([s for s in by_step[step] if s["id"] in ids], limits.samples_per_step)
    return chosen


def thinned(stage: dict[str, Any], count: int) -> dict[str, Any]:
    """A stage with about `count` points of each curve, and as many validations; `logged` is how many steps there are.

    The steps are evenly spread, with the first and the last.
    """
    rows = range(len(stage["step"]))
    held_out = [column for name, column in stage["series"].items() if name.startswith("validation/")]
    validated = [row for row in rows if any(column[row] is not None for column in held_out)]
    kept = sorted({*_spread(rows, count), *_spread(validated, count)})
    series = {name: [column[row] for row in kept] for name, column in stage["series"].items()}
    return stage | {"step": [stage["step"][row] for row in kept], "series": series, "logged": len(rows)}


def text_size(samples: Sequence[Sample]) -> int:
    """Characters of text in `samples`."""
    return sum(len(value) for sample in samples for value in sample.values() if isinstance(value, str))


def _of_each_problem(samples: Sequence[Sample], count: int) -> list[Sample]:
    """At most `count` of `samples` in their order: the first of every problem, then the second, and so on."""
    seen: Counter[Any] = Counter()
    turns = []
    for place, sample in enumerate(samples):
        turns.append((seen[sample["id"]], place))
        seen[sample["id"]] += 1
    return [samples[place] for _, place in sorted(sorted(turns)[:count], key=lambda turn: turn[1])]


def _spread(items: Sequence[int], count: int) -> list[int]:
    """At most `count` (>= 2) of `items`, evenly spaced, the first and the last among them."""
    if len(items) <= count:
        return list(items)
    last = len(items) - 1
    return [items[round(i * last / (count - 1))] for i in range(count)]
