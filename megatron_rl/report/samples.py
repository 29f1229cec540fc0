"""Which samples the page shows: the whole of a long run would not fit into a file that one can mail."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_rl.errors import InputError
from megatron_rl.report.collect import read_json_lines

Sample = dict[str, Any]

TRAIN_SET = "train"
"""The `set` of training samples; every other set is held-out."""
_FILES = ("step_", "validation_")
"""Not those of a guard, which has written a step's samples once more."""

_FIELDS = (
    "step",
    "set",
    "id",
    "sample",
    "prompt",
    "response",
    "verdict",
    "reward",
    "advantage",
    "extracted",
    "detail",
    "response_tokens",
    "truncated",
    "policy_version",
)
_TEXT_HEAD, _TEXT_TAIL = 2000, 4000
"""Characters kept of a long text. The tail is the longer one: the answer stands at the end."""


@dataclass(frozen=True, slots=True)
class Limits:
    """How much of each set of each stage is shown."""

    train_steps: int
    held_out_steps: int
    samples_per_step: int


LIMITS = (
    Limits(400, 40, 400),
    Limits(48, 8, 200),
    Limits(24, 4, 100),
    Limits(12, 2, 60),
    Limits(6, 2, 30),
    Limits(2, 2, 8),
)
"""From generous to tight: the first with which the page keeps its size is taken."""


def read_samples(folder: Path, stage: int) -> list[Sample]:
    """Every sample of the run in `folder`, long texts shortened, in order of step; `stage` goes into each.

    Raises:
        InputError: a broken line, with its file and number.
    """
    paths = [path for path in sorted((folder / "samples").glob("*.jsonl")) if path.name.startswith(_FILES)]
    samples = []
    for path in paths:
        for record in read_json_lines(path):
            if not isinstance(record.get("step") or 0, int):
                raise InputError(f"{path}: a sample's step is {record['step']!r:.80}, not a number; remove the line")
            samples.append({"stage": stage} | {field: _shortened(record.get(field)) for field in _FIELDS})
    return sorted(samples, key=lambda sample: sample["step"] or 0)


def choose(samples: Sequence[Sample], limits: Limits) -> list[Sample]:
    """The samples within `limits`: steps evenly spread with the first and the last, and of each step the first samples.

    In a held-out set these are the same problems at every step, so that each can be followed from first to last.
    """
    sets: dict[tuple[int, str], dict[int, list[Sample]]] = defaultdict(lambda: defaultdict(list))
    for sample in samples:
        sets[sample["stage"], str(sample["set"])][sample["step"] or 0].append(sample)
    chosen: list[Sample] = []
    for (_, set_name), by_step in sets.items():
        held_out = set_name != TRAIN_SET
        steps = _spread(sorted(by_step), limits.held_out_steps if held_out else limits.train_steps)
        ids = list(dict.fromkeys(sample["id"] for sample in by_step[steps[0]]))[: limits.samples_per_step]
        for step in steps:
            of_step = [s for s in by_step[step] if s["id"] in set(ids)] if held_out else by_step[step]
            chosen += of_step[: limits.samples_per_step]
    return chosen


def text_size(samples: Sequence[Sample]) -> int:
    """Characters of text in `samples`."""
    return sum(len(value) for sample in samples for value in sample.values() if isinstance(value, str))


def _spread(steps: Sequence[int], count: int) -> list[int]:
    """At most `count` (>= 2) of `steps`, evenly spaced, the first and the last among them."""
    if len(steps) <= count:
        return list(steps)
    last = len(steps) - 1
    return [steps[round(i * last / (count - 1))] for i in range(count)]


def _shortened(value: Any) -> Any:
    if isinstance(value, list | dict):
        value = str(value)
    if not isinstance(value, str) or len(value) <= _TEXT_HEAD + _TEXT_TAIL:
        return value
    left_out = len(value) - _TEXT_HEAD - _TEXT_TAIL
    return f"{value[:_TEXT_HEAD]}\n\n[… {left_out:,} characters left out …]\n\n{value[-_TEXT_TAIL:]}"
