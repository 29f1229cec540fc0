"""Several runs, pipelines and evaluations as one report: every stage of every run is one entry, and so is every
evaluation."""

from collections.abc import Iterable, Sequence
from itertools import count
from pathlib import Path

from megatron_rl.errors import InputError
from megatron_rl.report.collect import Json, collect_run, stage_folders
from megatron_rl.report.evaluations import (
    collect_benchmarks,
    collect_evaluation,
    is_evaluation,
    read_evaluation_samples,
)
from megatron_rl.report.samples import Sample, read_samples


def collect(folders: Sequence[Path]) -> Json:
    """All that the page shows but the samples.

    Returns:
        What `collect_run` returns, the stages of all runs in one list and named RUN/STAGE where there are several
        folders; with `evaluations` (see `collect_evaluation`), `benchmarks` and `reported`.

    Raises:
        InputError: one is no folder of a run, a pipeline or an evaluation, or given twice, or a file in it is broken.
    """
    names = distinct_names(folders)
    runs, evaluations = [], []
    for folder, name in zip(folders, names, strict=True):
        if is_evaluation(folder):
            evaluations.append(collect_evaluation(folder, name))
        else:
            runs.append(collect_run(folder) if len(folders) == 1 else _named(folder, name))
    parts = dict.fromkeys(part for run in runs for part in run["backend"])
    return {
        "name": runs[0]["name"] if len(folders) == len(runs) == 1 else _title(names),
        "model": _listed(entry["model"] for entry in [*runs, *evaluations]),
        "backend": {part: _listed(run["backend"].get(part, "") for run in runs) for part in parts},
        "seconds": sum(run["seconds"] for run in runs),
        "stages": [stage for run in runs for stage in run["stages"]],
        "evaluations": evaluations,
        **collect_benchmarks(evaluations),
    }


def collect_samples(folders: Sequence[Path]) -> list[Sample]:
    """The samples of all folders; `stage` counts the entries: the stages, and after them the evaluations.

    Raises:
        InputError: a broken line, with its file and number.
    """
    stages = [stage for folder in folders if not is_evaluation(folder) for stage in stage_folders(folder)]
    evaluations = [folder for folder in folders if is_evaluation(folder)]
    samples = [sample for index, stage in enumerate(stages) for sample in read_samples(stage, index)]
    for index, folder in enumerate(evaluations, len(stages)):
        samples += read_evaluation_samples(folder, index)
    return samples


def distinct_names(folders: Sequence[Path]) -> list[str]:
    """Of each folder as much of the end of its path as tells it from the others.

    Raises:
        InputError: one is given twice.
    """
    paths = [folder.resolve().parts for folder in folders]
    twice = [str(folder) for folder, path in zip(folders, paths, strict=True) if paths.count(path) > 1]
    if twice:
        raise InputError(f"{', '.join(twice)}: the same folder; give each once")
    depth = next(depth for depth in count(1) if len({path[-depth:] for path in paths}) == len(paths))
    return ["/".join(path[-depth:]) for path in paths]


def _named(folder: Path, name: str) -> Json:
    """The run with `name` in its stages' names; one that is no pipeline has a single stage, which has its name."""
    run, is_pipeline = collect_run(folder), stage_folders(folder) != [folder]
    for stage in run["stages"]:
        stage["name"] = f"{name}/{stage['name']}" if is_pipeline else name
    return run


def _title(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"


def _listed(texts: Iterable[object]) -> str:
    """Each once."""
    return ", ".join(dict.fromkeys(str(text) for text in texts if text))
