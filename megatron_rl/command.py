"""The command that every task of a job runs, the same from `sbatch` and from NeMo-Run."""

from collections.abc import Sequence
from pathlib import Path

from megatron_rl.config.loader import compose, load_config
from megatron_rl.config.schema import TrainConfig
from megatron_rl.errors import InputError
from megatron_rl.pipeline import load_pipeline, load_stage, split_overrides
from megatron_rl.preflight import check_data, preflight
from megatron_rl.run_folder import RunFolder


def training_command(recipe: Path, overrides: Sequence[str], stage: str | None = None) -> list[str]:
    """Arguments of the command, the program first.

    Args:
        recipe: of one stage, or of a pipeline.
        stage: run only this stage of the pipeline; `overrides` are then the stage's.

    Raises:
        InputError: `recipe` has no stages to choose from.
    """
    if "stages" not in compose(recipe):
        if stage is not None:
            raise InputError(f"{recipe}: has no stages to choose from; name a pipeline's recipe")
        return ["megatron-rl", "train", str(recipe), *overrides]
    choice = [] if stage is None else ["--stage", stage]
    return ["megatron-rl", "pipeline", str(recipe), *choice, *overrides]


def check_command(recipe: Path, overrides: Sequence[str], stage: str | None) -> None:
    """Refuse what the command would refuse, before a hundred tasks of it do.

    Raises:
        InputError: as `load_pipeline` and `preflight`.
    """
    if stage is not None:
        preflight(load_stage(recipe, stage, overrides))
    elif "stages" not in compose(recipe):
        preflight(load_config(recipe, overrides))
    else:
        for config in load_pipeline(recipe, overrides)[1]:
            check_data(config)


def first_unfinished(recipe: Path, overrides: Sequence[str], domain: str) -> str:
    """Name of the first stage of `domain` without a `summary.json`.

    Raises:
        InputError: all are finished.
    """
    if "stages" not in compose(recipe):
        raise InputError(f"{recipe}: has no stages to choose from; name a pipeline's recipe")
    _, stages = load_pipeline(recipe, split_overrides(overrides)[0])
    of_domain = [config for config in stages if config.data.domain.value == domain]
    for config in of_domain:
        if not is_finished(config):
            return config.name
    names = [config.name for config in of_domain]
    raise InputError(f"{recipe}: no unfinished {domain} stage among {names}; name one, or set another output_dir")


def is_finished(config: TrainConfig) -> bool:
    """The stage has made its last step."""
    return RunFolder(Path(config.run_dir)).summary.is_file()
