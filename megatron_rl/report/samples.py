"""The samples that a run or an evaluation wrote down."""

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


def read_samples(folder: Path, stage: int) -> list[Sample]:
    """Every sample of the run in `folder`, long texts shortened, in order of step; `stage` goes into each.

    Raises:
        InputError: a broken line, with its file and number.
    """
    paths = [path for path in sorted((folder / "samples").glob("*.jsonl")) if path.name.startswith(_FILES)]
    samples = [sample for path in paths for sample in read_sample_file(path, {"stage": stage})]
    return sorted(samples, key=lambda sample: sample["step"] or 0)


def read_sample_file(path: Path, fields: Sample) -> list[Sample]:
    """The samples of one file, long texts shortened; `fields` go into each.

    Raises:
        InputError: a broken line, with its file and number.
    """
    samples = []
    for record in read_json_lines(path):
        if not isinstance(record.get("step") or 0, int):
            raise InputError(f"{path}: a sample's step is {record['step']!r:.80}, not a number; remove the line")
        samples.append({field: _shortened(record.get(field)) for field in _FIELDS} | fields)
    return samples


def _shortened(value: Any) -> Any:
    if isinstance(value, list | dict):
        value = str(value)
    if not isinstance(value, str) or len(value) <= _TEXT_HEAD + _TEXT_TAIL:
        return value
    left_out = len(value) - _TEXT_HEAD - _TEXT_TAIL
    return f"{value[:_TEXT_HEAD]}\n\n[… {left_out:,} characters left out …]\n\n{value[-_TEXT_TAIL:]}"
