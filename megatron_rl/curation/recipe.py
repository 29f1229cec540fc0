"""The recipe of a dataset: where problems come from, and which steps they go through."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import MISSING, OmegaConf

from megatron_rl.config.loader import compose, parse_overrides, refusals
from megatron_rl.config.schema import Domain
from megatron_rl.errors import InputError


@dataclass(frozen=True, kw_only=True)
class SourceConfig:
    path: str | None = None
    """JSONL, JSON (a list of objects, or an object of them) or Parquet, by its suffix."""
    hub: str | None = None
    """Instead: a dataset of the Hugging Face hub, such as nvidia/AceReason-Math."""
    hub_config: str | None = None
    split: str = "train"
    """Of a dataset of the hub."""
    prompt_key: str = "prompt"
    answer_key: str = "answer"
    """Math: the column with the reference answer."""
    answer_marker: str | None = None
    """The reference is what follows the last occurrence of this text (GSM8K: `####`); default: the whole column."""
    answer_is_boxed: bool = False
    r"""The column holds a solution; the reference is in its last \boxed{}."""
    tests_keys: tuple[str, ...] = ("tests",)
    """Code: the columns with tests, in any form that `code_tests` reads."""
    fn_name_key: str = "fn_name"
    """Code: the function that is called; `metadata.func_name` is what is in a column, LiveCodeBench's."""
    starter_code_key: str = "starter_code"
    solution_key: str | None = None
    """Code: the column with a right program, or with several, also as JSON and as CodeContests has them."""
    meta_keys: tuple[str, ...] = ()
    """Columns to keep under `meta`."""
    max_rows: int | None = None


@dataclass(frozen=True, kw_only=True)
class DatasetRecipe:
    name: str = MISSING
    """Of the file that is made: OUTPUT_DIR/NAME.jsonl."""
    domain: Domain = Domain.MATH
    folder: str = "."
    """Where the files lie; for the recipe's own use, as ${folder}."""
    output_dir: str = "runs/data"
    sources: dict[str, SourceConfig] = field(default_factory=dict)
    """By name; of problems that are the same, the first source's stays."""
    steps: dict[str, Any] = field(default_factory=dict)
    """Settings of each step by its name, in the order of the steps; null: without this one."""
    prompt_key: str = "prompt"
    """The column of the statements in the dataset; the stages of the paper's recipes read `problem`."""
    samples_per_step: int = 100
    """Problems that a step left out are written with their text up to this number, the others with the reason only."""

    @property
    def dataset(self) -> Path:
        """The file that is made."""
        return Path(self.output_dir) / f"{self.name}.jsonl"

    @property
    def left_out(self) -> Path:
        """The folder with what was left out, and with the report."""
        return Path(self.output_dir) / f"{self.name}_left_out"

    @property
    def report(self) -> Path:
        """What became of the problems."""
        return self.left_out / "report.json"


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> DatasetRecipe:
    """The checked recipe, with `key=value` overrides applied last.

    Raises:
        InputError: a missing or broken file, an unknown key, a wrong type, a source without data.
    """
    with refusals(str(path)):
        merged = OmegaConf.merge(OmegaConf.structured(DatasetRecipe), compose(path), parse_overrides(overrides))
        recipe = OmegaConf.to_object(merged)
    assert isinstance(recipe, DatasetRecipe)
    if Path(recipe.name).name != recipe.name:
        raise InputError(f"{path}: name={recipe.name!r}: it must be the name of a file, without its folder")
    if not recipe.sources:
        raise InputError(f"{path}: no sources; give it one, with path or hub")
    for name, source in recipe.sources.items():
        if (source.path is None) == (source.hub is None):
            raise InputError(f"{path}: sources.{name}: give it path or hub, and not both")
    return recipe
