"""What a run folder holds, as plain data for the page: stages in order, their metrics and held-out figures."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from megatron_rl.errors import InputError
from megatron_rl.run_folder import RunFolder, read_object

Json = dict[str, Any]

_SET_ACCURACY = re.compile(r"validation/(.+)/accuracy")


def collect_run(run_dir: Path) -> Json:
    """The run or pipeline in `run_dir` without its samples.

    Returns:
        `{name, model, backend: {part: version}, seconds, stages}`, a stage being `{name, algorithm, steps, seconds,
        response_length, entropy: {before, after} or None, accuracies: [{set, before, after}], step: [N], series:
        {metric: [value or None] as long as step}}`.

    Raises:
        InputError: no run folder, no metrics in it, or a broken file (named with its line).
    """
    summary = read_summary(run_dir)
    stages = [_collect_stage(folder, summary) for folder in stage_folders(run_dir)]
    backend = summary["backend"] if isinstance(summary.get("backend"), dict) else {}
    return {
        "name": str(summary.get("name") or run_dir.resolve().name),
        "model": _model(stage_folders(run_dir)[0]),
        "backend": {part: found for part, found in backend.items() if isinstance(found, str)},
        "seconds": _number(summary.get("seconds")) or sum(stage["seconds"] for stage in stages),
        "stages": stages,
    }


def stage_folders(run_dir: Path) -> list[Path]:
    """`run_dir` itself if it is a run, else its subfolders that are runs, in the pipeline's order.

    That order is its own list of stages; what is not on it follows by the time at which it began.

    Raises:
        InputError: there is no run.
    """
    if not run_dir.is_dir():
        raise InputError(f"{run_dir}: no such run folder; give that of a run, a pipeline or an evaluation")
    if _has_metrics(run_dir):
        return [run_dir]
    folders = sorted((path for path in run_dir.iterdir() if path.is_dir() and _has_metrics(path)), key=_begin)
    if not folders:
        raise InputError(
            f"{run_dir}: no metrics here or in a subfolder (metrics.jsonl is missing or empty), and no summary.json of "
            "an evaluation that is done; train or evaluate first"
        )
    order = _stage_order(run_dir)
    return sorted(folders, key=lambda folder: order.index(folder.name) if folder.name in order else len(order))


def read_json_lines(path: Path) -> Iterator[Json]:
    """The objects of a JSONL file; NaN and infinity read as None, a torn last line (no newline) is left out.

    Raises:
        InputError: another line that is no JSON object, with its number.
    """
    if not path.is_file():
        raise InputError(f"{path}: not a file; remove it")
    with path.open(encoding="utf-8", errors="replace") as file:
        for number, line in enumerate(file, 1):
            if not line.endswith("\n"):
                return
            yield read_object(line, f"{path}:{number}")


def read_summary(folder: Path) -> Json:
    """`summary.json` in `folder`; nothing if there is none.

    Raises:
        InputError: it is no JSON object.
    """
    path = RunFolder(folder).summary
    if not path.is_file():
        return {}
    return read_object(path.read_text(encoding="utf-8", errors="replace"), str(path))


def _has_metrics(folder: Path) -> bool:
    path = RunFolder(folder).metrics
    return path.is_file() and next(read_json_lines(path), None) is not None


def _begin(folder: Path) -> tuple[float, str]:
    return _number(next(read_json_lines(RunFolder(folder).metrics)).get("time")) or 0.0, folder.name


def _stage_order(run_dir: Path) -> list[str]:
    """Stage names as `pipeline.yaml` lists them, else as `summary.json` does; an entry is a name or has one."""
    pipeline = _read_yaml(run_dir / "pipeline.yaml")
    stages = _list(pipeline.get("stages")) or _list(read_summary(run_dir).get("stages"))
    return [str(stage.get("name")) if isinstance(stage, dict) else Path(str(stage)).stem for stage in stages]


def _collect_stage(folder: Path, pipeline_summary: Json) -> Json:
    listed = [stage for stage in _list(pipeline_summary.get("stages")) if isinstance(stage, dict)]
    summary = read_summary(folder)
    for stage in listed:
        summary |= stage if stage.get("name") == folder.name else {}
    steps, series, seconds = _read_metrics(RunFolder(folder).metrics)
    return {
        "name": folder.name,
        "algorithm": str(_read_yaml(RunFolder(folder).config).get("algorithm", "")).lower(),
        "steps": max(steps),
        "seconds": _number(summary.get("seconds")) or seconds,
        "response_length": _before_and_after(series.get("generation/length_mean", [])),
        "entropy": _before_and_after(series.get("train/entropy", [])),
        "accuracies": _accuracies(series, summary),
        "step": steps,
        "series": series,
    }


def _read_metrics(path: Path) -> tuple[list[int], dict[str, list[float | None]], float]:
    """Steps in order, a column per metric, and the wall-clock seconds from the first line to the last."""
    rows: dict[int, Json] = {}
    times: list[float] = []
    for number, record in enumerate(read_json_lines(path), 1):
        step, time = record.pop("step", None), record.pop("time", None)
        if not isinstance(step, int):
            raise InputError(f"{path}:{number}: no step; every line of metrics has one")
        rows.setdefault(step, {}).update(record)  # training and validation may log the same step apart
        times += [at for at in [_number(time)] if at is not None]
    steps = sorted(rows)
    names = sorted({name for row in rows.values() for name in row})
    series = {name: [_rounded(rows[step].get(name)) for step in steps] for name in names}
    return steps, series, max(times, default=0.0) - min(times, default=0.0)


def _rounded(value: Any) -> float | None:
    """Nine significant digits: a mismatch of 1.000001 must show, what lies beyond only swells the file."""
    number = _number(value)
    return None if number is None else float(f"{number:.9g}")


def _number(value: Any) -> float | None:
    """`value` if it is one."""
    return value if isinstance(value, int | float) and abs(value) < 1e300 else None


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _before_and_after(column: list[float | None]) -> Json | None:
    """Its first and its last value."""
    values = [value for value in column if value is not None]
    return {"before": values[0], "after": values[-1]} if values else None


def _accuracies(series: dict[str, list[float | None]], summary: Json) -> list[Json]:
    """Each held-out set's accuracy at its first and last validation, the headline set first.

    `validation/accuracy` repeats the set of the run's domain: it is taken out of `series` where that set is there.
    """
    headline = series.get("validation/accuracy")
    sets = {match[1]: column for name, column in series.items() if (match := _SET_ACCURACY.fullmatch(name))}
    if sets:
        series.pop("validation/accuracy", None)
    elif headline:
        sets = {"held-out": headline}
    found: list[Json] = []
    for name in sorted(sets, key=lambda name: (sets[name] != headline, name)):
        ends = _before_and_after(sets[name])
        found += [{"set": name} | ends] if ends else []
    before, after = summary.get("held_out_accuracy_before"), summary.get("held_out_accuracy_after")
    if not found and isinstance(before, int | float) and isinstance(after, int | float):
        found = [{"set": "held-out", "before": before, "after": after}]
    return found


def _model(folder: Path) -> str:
    policy = _read_yaml(RunFolder(folder).config).get("policy")
    if not isinstance(policy, dict):
        return ""
    scratch = policy.get("from_scratch")
    if isinstance(scratch, dict):
        return f"Qwen2, {scratch.get('num_hidden_layers')} layers of {scratch.get('hidden_size')}, from scratch"
    return str(policy.get("model_name") or policy.get("from_checkpoint") or "")


def _read_yaml(path: Path) -> Json:
    if not path.is_file():
        return {}
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise InputError(
            f"{path}: not YAML ({' '.join(str(error).split())}); remove it, the report does without"
        ) from error
    return content if isinstance(content, dict) else {}
