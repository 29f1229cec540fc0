"""Every recipe of the repository loads, and repeats nothing that it inherits."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from megatron_rl.config.loader import compose, load_config
from megatron_rl.config.schema import TrainConfig
from megatron_rl.curation.recipe import load_recipe
from megatron_rl.curation.steps import STEPS
from megatron_rl.pipeline import load_pipeline

RECIPES = Path(__file__).parents[2] / "recipes"
FILES = sorted(RECIPES.rglob("*.yaml"))


def name_of(path: Path) -> str:
    return str(path.relative_to(RECIPES))


def kind(path: Path) -> str:
    """A pipeline, a recipe of one stage or of a dataset, or a part that others inherit."""
    keys = compose(path).keys()
    if "sources" in keys:
        return "dataset"
    return "pipeline" if "stages" in keys else "stage" if "name" in keys else "part"


def leaves(values: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def plain(config: Any) -> dict[str, Any]:
    values = OmegaConf.to_container(config, resolve=False)
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items()}


def of_kind(wanted: str) -> list[Path]:
    return [path for path in FILES if kind(path) == wanted]


def test_there_are_recipes() -> None:
    assert {"tiny/sft.yaml", "tiny/math.yaml", "tiny/code.yaml", "tiny/pipeline.yaml"} <= set(map(name_of, FILES))


@pytest.mark.parametrize("path", of_kind("dataset"), ids=name_of)
def test_every_recipe_of_a_dataset_loads(path: Path) -> None:
    recipe = load_recipe(path)
    assert recipe.name == path.stem
    assert set(recipe.steps) <= set(STEPS)


@pytest.mark.parametrize("path", of_kind("stage"), ids=name_of)
def test_every_recipe_of_a_stage_loads(path: Path) -> None:
    blanks = [f"{key}=given.jsonl" for key, value in leaves(plain(compose(path))) if value == "???"]
    assert isinstance(load_config(path, blanks), TrainConfig)


@pytest.mark.parametrize("path", of_kind("pipeline"), ids=name_of)
def test_every_pipeline_loads_with_all_its_stages(path: Path) -> None:
    pipeline, stages = load_pipeline(path, [])
    assert [stage.name for stage in stages] == [entry.name for entry in pipeline.stages]


@pytest.mark.parametrize("path", of_kind("part"), ids=name_of)
def test_every_part_is_inherited_by_a_recipe(path: Path) -> None:
    heirs = [
        other for other in FILES for parent in OmegaConf.load(other).get("defaults", [])
        if (other.parent / parent).resolve() == path.resolve()
    ]  # fmt: skip
    assert heirs


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_no_recipe_repeats_what_it_inherits(path: Path) -> None:
    own = OmegaConf.load(path)
    schema = {} if kind(path) == "pipeline" else dict(leaves(plain(OmegaConf.structured(TrainConfig))))
    inherited = {key: value for key, value in schema.items() if value != "???"}
    for parent in own.pop("defaults", []):
        inherited |= dict(leaves(plain(compose((path.parent / parent).resolve()))))
    repeated = {key: value for key, value in leaves(plain(own)) if key in inherited and same(inherited[key], value)}
    assert not repeated


def same(inherited: object, value: object) -> bool:
    return type(inherited) is type(value) and inherited == value
