"""What `megatron-rl eval --out` wrote, as plain data for the page: figures of benchmarks, and of every problem."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from megatron_rl.errors import InputError
from megatron_rl.evaluation.table import reported, title
from megatron_rl.report.collect import Json, read_json_lines, read_summary
from megatron_rl.report.samples import Sample, read_sample_file

_FIGURES = ("accuracy", "accuracy_error", "samples_per_prompt")


def is_evaluation(folder: Path) -> bool:
    """Its summary is that of an evaluation which is done."""
    return isinstance(read_summary(folder).get("benchmarks"), dict)


def collect_evaluation(folder: Path, name: str) -> Json:
    """The evaluation in `folder` without its samples.

    Returns:
        `{name, model, figures: {benchmark: {accuracy, accuracy_error, samples_per_prompt}}, problems: [{set, id,
        samples, pass_rate, majority, length_mean}]}`.

    Raises:
        InputError: a broken file, or figures that are none.
    """
    summary = read_summary(folder)
    return {
        "name": name,
        "model": str(summary.get("checkpoint") or ""),
        "figures": {
            benchmark: _figures(folder, benchmark, found) for benchmark, found in summary["benchmarks"].items()
        },
        "problems": [problem for benchmark in summary["benchmarks"] for problem in _problems(folder, benchmark)],
    }


def collect_benchmarks(evaluations: list[Json]) -> Json:
    """The head of the table, and what the paper reports of these benchmarks."""
    names = list(dict.fromkeys(name for evaluation in evaluations for name in evaluation["figures"]))
    return {"benchmarks": [{"name": name, "title": title(name)} for name in names], "reported": reported(names)}


def read_evaluation_samples(folder: Path, stage: int) -> list[Sample]:
    """Every sample of the evaluation, its set being the benchmark's name; `stage` goes into each.

    Raises:
        InputError: a broken line, with its file and number.
    """
    paths = {name: folder / name / "samples.jsonl" for name in read_summary(folder)["benchmarks"]}
    found = [
        read_sample_file(path, {"stage": stage, "set": name, "step": None})
        for name, path in paths.items()
        if path.exists()
    ]
    return [sample for samples in found for sample in samples]


def _figures(folder: Path, benchmark: str, found: Any) -> Json:
    figures = {key: found.get(key) for key in _FIGURES} if isinstance(found, dict) else {}
    if not figures or not all(isinstance(value, int | float) for value in figures.values()):
        raise InputError(f"{folder / 'summary.json'}: {benchmark}: no {', '.join(_FIGURES)}; evaluate it again")
    return figures


def _problems(folder: Path, benchmark: str) -> Iterator[Json]:
    path = folder / benchmark / "problems.jsonl"
    if not path.exists():
        return
    for number, row in enumerate(read_json_lines(path), 1):
        numbers = [row.get("pass_rate"), row.get("samples"), row.get("length_mean"), row.get("majority") or 0]
        if "id" not in row or not all(isinstance(value, int | float) for value in numbers):
            raise InputError(f"{path}:{number}: no id, pass_rate, samples and length_mean; eval --out writes them")
        keys = ("id", "samples", "pass_rate", "majority", "length_mean")
        yield {"set": benchmark} | {key: row.get(key) for key in keys}
