"""A recipe as jobs: what each one runs, and on how many nodes."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from megatron_rl.command import check_command, is_finished, training_command
from megatron_rl.config.loader import compose, load_config
from megatron_rl.config.schema import ClusterConfig, TrainConfig
from megatron_rl.errors import InputError
from megatron_rl.launch.site import Site
from megatron_rl.pipeline import load_pipeline, load_stage, split_overrides


@dataclass(frozen=True, kw_only=True)
class Task:
    """One job. Every task that Slurm starts in it runs `command`; elsewhere the command starts its own ranks."""

    name: str
    command: tuple[str, ...]
    cluster: ClusterConfig


def check_files(recipe: Path, overrides: Sequence[str], stage: str | None, site: Site) -> None:
    """Refuse what the jobs' commands would refuse for a missing or broken file.

    Raises:
        InputError: as `check_command`.
    """
    whole = stage is None and "stages" in compose(recipe)
    settings = of_all_stages(recipe, site.overrides, overrides) if whole else [*site.overrides, *overrides]
    check_command(recipe, settings, stage)


def slurm_tasks(recipe: Path, overrides: Sequence[str], stage: str | None, site: Site) -> tuple[str, list[Task]]:
    """Name of the experiment, and its jobs in order: one per unfinished stage.

    `overrides` are those of `megatron-rl train` or `pipeline`: of the pipeline, or of a stage where they begin with its
    name; with `stage` given, of that stage.

    Raises:
        InputError: as `load_pipeline`; all stages are finished; a stage's override would have to reach another job.
    """
    if "stages" not in compose(recipe):
        config = load_config(recipe, [*site.size, *site.overrides, *overrides])
        return config.name, [_task(recipe, None, config, [*site.overrides, *overrides])]
    if stage is not None:
        config = load_stage(recipe, stage, [*site.size, *site.overrides, *overrides])
        return Path(config.output_dir).name, [_task(recipe, stage, config, [*site.overrides, *overrides])]
    pipeline, configs = load_pipeline(recipe, of_all_stages(recipe, [*site.size, *site.overrides], overrides))
    tasks = []
    for config in configs:
        if is_finished(config):
            continue
        own = [*site.overrides, *split_overrides(overrides)[0]]
        own += [
            override.removeprefix(f"{config.name}.") for override in overrides if override.startswith(f"{config.name}.")
        ]
        if load_stage(recipe, config.name, [*site.size, *own]) != config:
            raise InputError(
                f"{recipe}: an override of another stage changes {config.name!r}, whose job would not know it; "
                f"write it into the recipe, or into OVERRIDES of {site.path}"
            )
        tasks.append(_task(recipe, config.name, config, own))
    if not tasks:
        raise InputError(
            f"{recipe}: every stage in {pipeline.output_dir}/{pipeline.name} is finished; set another name"
        )
    return pipeline.name, tasks


def local_task(recipe: Path, overrides: Sequence[str], stage: str | None, site: Site) -> tuple[str, Task]:
    """Name of the experiment, and the whole of it as one job of this machine; arguments as of `slurm_tasks`.

    One command runs all stages and stops where one fails; NeMo-Run would start the next one all the same.

    Raises:
        InputError: as `load_pipeline`; several nodes.
    """
    if "stages" not in compose(recipe):
        configs = [load_config(recipe, [*site.overrides, *overrides])]
        name, settings = configs[0].name, [*site.overrides, *overrides]
    elif stage is not None:
        configs = [load_stage(recipe, stage, [*site.overrides, *overrides])]
        name, settings = Path(configs[0].output_dir).name, [*site.overrides, *overrides]
    else:
        settings = of_all_stages(recipe, site.overrides, overrides)
        pipeline, configs = load_pipeline(recipe, settings)
        name = pipeline.name
    for config in configs:
        if config.cluster.num_nodes > 1:
            raise InputError(f"{recipe}: cluster.num_nodes={config.cluster.num_nodes}: the local executor has one node")
    command = tuple(training_command(recipe, settings, stage))
    return name, Task(name=stage or name, command=command, cluster=configs[0].cluster)


def of_all_stages(recipe: Path, everywhere: Sequence[str], overrides: Sequence[str]) -> list[str]:
    """Overrides of a pipeline: those of every stage, then the given ones."""
    names = [entry.name for entry in compose(recipe).stages]
    of_pipeline, of_stage = split_overrides(everywhere)
    return [*of_pipeline, *(f"{name}.{override}" for name in names for override in of_stage), *overrides]


def _task(recipe: Path, stage: str | None, config: TrainConfig, settings: Sequence[str]) -> Task:
    """The job of `config`; the size of the allocation stands before the other settings, as in the sbatch scripts."""
    size = [f"cluster.num_nodes={config.cluster.num_nodes}", f"cluster.gpus_per_node={config.cluster.gpus_per_node}"]
    command = tuple(training_command(recipe, [*size, *settings], stage))
    return Task(name=config.name, command=command, cluster=config.cluster)
