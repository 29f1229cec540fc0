"""Several stages, each from the last one's checkpoint; finished stages are skipped on a rerun."""

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import MISSING, DictConfig, ListConfig, OmegaConf

from megatron_rl.config.loader import compose, parse_overrides, refusals, save_config, to_config
from megatron_rl.config.schema import TrainConfig
from megatron_rl.errors import PREEMPTED_EXIT_CODE, InputError
from megatron_rl.launcher import run_ranks
from megatron_rl.preemption import is_requested
from megatron_rl.preflight import check_data, preflight
from megatron_rl.report import write_report
from megatron_rl.run_folder import RunFolder, write_json


@dataclass(frozen=True, kw_only=True)
class StageEntry:
    name: str = MISSING
    recipe: str = MISSING
    """Path relative to the pipeline's file."""
    overrides: dict[str, Any] = field(default_factory=dict)
    """Dotted keys set for this stage only."""


@dataclass(frozen=True, kw_only=True)
class PipelineConfig:
    """Stages in order; the pipeline's folder is `output_dir/name`, each stage's lies inside it."""

    name: str = MISSING
    output_dir: str = "runs"
    seed: int = 1
    stages: list[StageEntry] = field(default_factory=list)
    overrides: dict[str, Any] = field(default_factory=dict)
    """Dotted keys set for every stage, below the stage's own."""


def load_pipeline(recipe: Path, overrides: Sequence[str]) -> tuple[PipelineConfig, list[TrainConfig]]:
    """The pipeline and the checked configuration of each of its stages.

    An override is of the pipeline (`seed=2`), or of one stage where it begins with that stage's name (`math.grpo...`).

    Raises:
        InputError: as `load_config`.
    """
    raw = compose(recipe)
    given = parse_overrides(overrides)
    names = _stage_names(recipe, raw)
    for name in names:
        if name in given and not isinstance(given[name], DictConfig):
            raise InputError(f"override {name}={given[name]!r}: {name} is a stage; set one of its keys, {name}.seed=2")
    with refusals(str(recipe)):
        own = OmegaConf.create({key: value for key, value in given.items() if key not in names})
        merged = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(PipelineConfig), raw, own))
    assert isinstance(merged, PipelineConfig)
    if not merged.stages:
        raise InputError(f"{recipe}: stages is empty; list at least one stage with its recipe")
    if len(set(names)) != len(names):
        raise InputError(f"{recipe}: two stages share a name in {names}; give each its own")
    stages: list[TrainConfig] = []
    for entry in merged.stages:
        stages.append(_stage_config(recipe, merged, entry, given.get(entry.name), stages))
    return merged, stages


def _stage_names(recipe: Path, raw: DictConfig) -> list[str]:
    with refusals(str(recipe)):
        entries = raw.get("stages", [])
        if isinstance(entries, list | ListConfig) and all(isinstance(entry, DictConfig) for entry in entries):
            names = [entry.get("name") for entry in entries]
            if all(isinstance(name, str) for name in names):
                return names
    raise InputError(f"{recipe}: stages is a list of mappings with name and recipe, both texts")


_OF_PIPELINE = ("name", "output_dir", "seed")


def load_stage(recipe: Path, name: str, overrides: Sequence[str]) -> TrainConfig:
    """The checked configuration of one stage of a pipeline; an override is of this stage, or of the whole pipeline
    where that has such a key (`output_dir=...`).

    Raises:
        InputError: as `load_pipeline`, or there is no such stage.
    """
    known = _stage_names(recipe, compose(recipe))
    if name not in known:
        raise InputError(f"{recipe}: has no stage {name!r}; its stages are {known}")
    of_pipeline, of_stage = split_overrides(overrides)
    _, stages = load_pipeline(recipe, [*of_pipeline, *(f"{name}.{override}" for override in of_stage)])
    return next(config for config in stages if config.name == name)


def split_overrides(overrides: Sequence[str]) -> tuple[list[str], list[str]]:
    """Those of the pipeline, and those of a stage."""
    of_pipeline = [override for override in overrides if override.partition("=")[0] in _OF_PIPELINE]
    return of_pipeline, [override for override in overrides if override not in of_pipeline]


def _stage_config(
    recipe: Path, pipeline: PipelineConfig, entry: StageEntry, given: DictConfig | None, before: Sequence[TrainConfig]
) -> TrainConfig:
    layers = [compose(recipe.parent / entry.recipe)]
    fixed: dict[str, Any] = {"name": entry.name, "output_dir": f"{pipeline.output_dir}/{pipeline.name}"}
    fixed["seed"] = pipeline.seed
    if before:
        # Every stage is of the first one's model, with the weights of the stage before.
        first = before[0]
        scratch = first.policy.from_scratch is not None
        model = str(RunFolder(Path(first.run_dir)).model) if scratch else first.policy.model_name
        fixed["policy"] = {"model_name": model, "from_scratch": None, "from_checkpoint": before[-1].run_dir}
    layers.append(OmegaConf.create(fixed))
    source = f"{recipe} stage {entry.name!r}"
    with refusals(source):
        for dotted in (pipeline.overrides, entry.overrides):
            for key, value in dotted.items():
                layer = OmegaConf.create()
                OmegaConf.update(layer, key, value)
                layers.append(layer)
        if given is not None:
            layers.append(given)
        merged = OmegaConf.merge(*layers)
    return to_config(merged, source)


def run_pipeline(pipeline: PipelineConfig, stages: Sequence[TrainConfig]) -> int:
    """Run the stages that are not finished; write the pipeline's `summary.json` at the end.

    Returns:
        0, or the exit status of the stage that failed.
    """
    root = Path(pipeline.output_dir) / pipeline.name
    begin = time.monotonic()
    for config in stages:
        check_data(config)
    for config in stages:
        folder = RunFolder(Path(config.run_dir))
        if folder.summary.is_file():
            continue
        with folder.locked():  # or nothing is touched
            pass
        save_config(config, folder.config)
        preflight(config)
        status = run_ranks(config, ["train", str(folder.config)])
        if status == 0 and config is not stages[-1] and is_requested():
            print(f"megatron-rl: told to stop after stage {config.name}; start the same command again", file=sys.stderr)
            status = PREEMPTED_EXIT_CODE
        if status != 0:
            return status
    summaries = [json.loads(RunFolder(Path(config.run_dir)).summary.read_text(encoding="utf-8")) for config in stages]
    summary: dict[str, Any] = {"name": pipeline.name, "seed": pipeline.seed, "backend": summaries[-1]["backend"]}
    summary["stages"] = summaries
    last = RunFolder(Path(stages[-1].run_dir))
    if stages[-1].checkpointing.export_hf:
        from megatron_rl.export import check_export

        summary["export"] = check_export(last, stages[-1])
    summary["seconds"] = round(time.monotonic() - begin, 1)
    write_json(root / "summary.json", summary)
    write_report(root)
    return 0
