"""What is planned: one stage's configuration and its model's `config.json`."""

from collections.abc import Sequence
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from converters.errors import ConversionError
from converters.hf_config import read_config
from megatron_rl.config.loader import compose, load_config
from megatron_rl.config.schema import ScratchConfig, TrainConfig
from megatron_rl.errors import InputError
from megatron_rl.pipeline import load_pipeline

_NEEDED = {"torch": "torch", "megatron-core": "megatron"}
PUBLIC_CONFIGS = Path("recipes") / "models"
"""Where the repository keeps the `config.json` of public models, for planning where the model is not downloaded."""


def check_installed() -> None:
    """Refuse to plan in the launcher's environment.

    Raises:
        InputError: torch or Megatron-Core is missing.
    """
    missing = [package for package, module in _NEEDED.items() if find_spec(module) is None]
    if missing:
        raise InputError(
            f"plan counts the parameters of the real model, for which {' and '.join(missing)} must be installed; run "
            "it in the environment that trains"
        )


def load_stage(
    recipe: Path, overrides: Sequence[str], stage: str | None, nodes: int | None
) -> tuple[TrainConfig, dict[str, Any]]:
    """The checked configuration of a recipe, or of one stage of a pipeline, and its model's `config.json`.

    Raises:
        InputError: as `load_config`; a pipeline without a stage's name; a stage or model that is not there.
    """
    given = [*overrides, *([f"cluster.num_nodes={nodes}"] if nodes is not None else [])]
    if "stages" not in compose(recipe):
        if stage is not None:
            raise InputError(f"{recipe}: --stage {stage}: the recipe is of one stage; leave --stage out")
        config = load_config(recipe, given)
        return config, model_config(config, recipe, config.policy.from_scratch)
    pipeline, stages = load_pipeline(recipe, [f"{stage}.{override}" for override in given] if stage else [])
    names = [entry.name for entry in pipeline.stages]
    if stage not in names:
        given_name = "no --stage" if stage is None else f"--stage {stage}"
        raise InputError(f"{recipe}: {given_name}: a pipeline is planned by stage; name one of {names}")
    config = stages[names.index(stage)]
    return config, model_config(config, recipe, stages[0].policy.from_scratch)


def model_config(config: TrainConfig, recipe: Path, scratch: ScratchConfig | None) -> dict[str, Any]:
    """The model's `config.json`: of its folder, of the repository's copy, or what `scratch` will make.

    Raises:
        InputError: it lies in neither place, or is broken.
    """
    if scratch is not None:
        return {"model_type": "qwen2"} | asdict(scratch)
    assert config.policy.model_name is not None  # checked when the config is loaded
    model = Path(config.policy.model_name)
    roots = [folder for folder in recipe.resolve().parents if (folder / PUBLIC_CONFIGS).is_dir()]
    public = roots[0] / PUBLIC_CONFIGS / model.name if roots else PUBLIC_CONFIGS / model.name
    for folder in (model, public):
        if (folder / "config.json").is_file():
            try:
                return read_config(folder)
            except ConversionError as error:
                raise InputError(f"policy.model_name: {error}") from error
    raise InputError(
        f"policy.model_name={config.policy.model_name}: neither {model / 'config.json'} nor {public / 'config.json'} "
        "is there; download the model, or put its config.json in the second place"
    )
