"""Recipes, pipelines, overrides and site files that are not what they should be."""

from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
from hypothesis import given
from hypothesis import strategies as st
from malformed import WILD, Reader, damaged, fuzz, malformed_json, put

from megatron_rl.config.loader import load_config, save_config
from megatron_rl.config.schema import TrainConfig
from megatron_rl.evaluation.evaluate import load_evaluation
from megatron_rl.pipeline import load_pipeline, load_stage

RECIPE: dict[str, Any] = {
    "algorithm": "grpo",
    "name": "run",
    "cluster": {"gpus_per_node": 2},
    "policy": {
        "model_name": "model",
        "tensor_model_parallel_size": 2,
        "max_total_sequence_length": 64,
        "optimizer": {"lr": 1e-6},
    },
    "generation": {"max_new_tokens": 32, "temperature_by_epoch": [1.0, 0.9]},
    "grpo": {"max_num_steps": 3, "ratio_clip_max": 0.3, "loss_normalizer": "tokens"},
    "data": {"path": "data.jsonl", "domain": "math"},
    "validation": {"data": {"math": {"path": "held_out.jsonl"}}, "period": 1},
    "verifier": {"code_timeout_seconds": 2.0},
}
CHILD: dict[str, Any] = {"defaults": ["base.yaml"], "seed": 2, "grpo": {"max_num_steps": 4}}
PIPELINE: dict[str, Any] = {
    "name": "both",
    "seed": 3,
    "stages": [
        {"name": "first", "recipe": "recipe.yaml", "overrides": {"grpo.max_num_steps": 5}},
        {"name": "second", "recipe": "child.yaml"},
    ],
    "overrides": {"cluster.gpus_per_node": 2},
}
SITE = ["SBATCH_GPUS=16", "SBATCH_GPUS_PER_NODE=8", "SBATCH_ACCOUNT=me", "OVERRIDES='seed=3 name=x'", "REMOTE_DIR=/x"]


def _keys(cls: type) -> set[str]:
    """Names of all fields of a config class and of those below it."""
    found = set()
    for field in fields(cls):
        hint = get_type_hints(cls)[field.name]
        found |= {field.name}.union(*(_keys(part) for part in (hint, *get_args(hint)) if is_dataclass(part)))
    return found


KEYS = _keys(TrainConfig)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    import json

    for name, content in (("base", RECIPE), ("recipe", RECIPE), ("child", CHILD), ("pipeline", PIPELINE)):
        (tmp_path / f"{name}.yaml").write_text(json.dumps(content))
    return tmp_path


def test_a_malformed_recipe_is_refused_in_one_line_or_makes_a_config(folder: Path) -> None:
    path, reader = folder / "recipe.yaml", Reader()

    @fuzz(70)
    @given(st.one_of(malformed_json(RECIPE), damaged(b"name: x\ndefaults: [base.yaml]\nseed: 2\n"), st.just(None)))
    def reads(content: bytes | None) -> None:
        put(path, content)
        with reader.reads(path, *KEYS):
            save_config(load_config(path), folder / "saved.yaml")
            load_config(folder / "saved.yaml")

    reads()
    assert reader.refused > 40
    assert reader.taken > 5


def test_malformed_defaults_are_refused_in_one_line(folder: Path) -> None:
    path, reader = folder / "child.yaml", Reader()

    @fuzz(30)
    @given(malformed_json(CHILD), malformed_json(RECIPE), st.booleans())
    def reads(content: bytes, parent: bytes, is_own: bool) -> None:
        put(path, content)
        if not is_own:
            put(folder / "base.yaml", parent)
        with reader.reads(path, folder, *KEYS):
            load_config(path)

    reads()
    assert reader.refused > 10


SETTINGS = ["seed=2", "grpo.max_num_steps=2", "policy.optimizer.lr=1e-4", "validation.data.math.path=x"]


@st.composite
def malformed_override(draw: st.DrawFn) -> str:
    """An override with damage, a wild value, or no override at all."""
    override = draw(st.sampled_from(SETTINGS))
    key = override.partition("=")[0]
    wild = f"{key}={draw(st.sampled_from(WILD))}"
    torn = draw(damaged(override.encode())).decode("utf-8", "surrogateescape")
    odd = draw(
        st.sampled_from(["a..b=1", ".=1", "[=1", "a[0]=1", "seed.x=1", "=", "seed", "grpo=1", "data=[1]", "a[=]"])
    )
    return draw(st.sampled_from([wild, torn, odd, draw(st.text(max_size=12))]))


def test_malformed_overrides_are_refused_in_one_line(folder: Path) -> None:
    reader = Reader()

    @fuzz(40)
    @given(st.lists(malformed_override(), min_size=1, max_size=3))
    def reads(overrides: list[str]) -> None:
        for load in (
            lambda: load_config(folder / "recipe.yaml", overrides),
            lambda: load_pipeline(folder / "pipeline.yaml", overrides),
            lambda: load_stage(folder / "pipeline.yaml", "second", overrides),
            lambda: load_evaluation(overrides),
        ):
            with reader.reads("override", folder, *KEYS):
                load()

    reads()
    assert reader.refused > 40


def test_a_malformed_pipeline_is_refused_in_one_line(folder: Path) -> None:
    path, reader = folder / "pipeline.yaml", Reader()

    @fuzz(40)
    @given(st.one_of(malformed_json(PIPELINE), st.just(None)))
    def reads(content: bytes | None) -> None:
        put(path, content)
        with reader.reads(path, folder, *KEYS):
            load_pipeline(path, ["seed=4", "second.seed=5"])
        with reader.reads(path, folder, *KEYS):
            load_stage(path, "second", ["seed=5"])

    reads()
    assert reader.refused > 40
