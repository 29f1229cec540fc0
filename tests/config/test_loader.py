"""Recipes composed by `defaults`, overrides, and refusals that name the place and the remedy."""

import re
from pathlib import Path

import pytest
import yaml

from megatron_rl.config.loader import load_config, parse_overrides, save_config
from megatron_rl.config.schema import Algorithm, Domain, Precision
from megatron_rl.errors import InputError

COMPLETE = {
    "algorithm": "sft",
    "name": "run",
    "cluster": {"gpus_per_node": 1},
    "policy": {"model_name": "model", "max_total_sequence_length": 64},
    "sft": {"max_num_steps": 3},
    "data": {"path": "data.jsonl"},
}


def write(path: Path, content: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content), encoding="utf-8")
    return path


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    return write(tmp_path / "recipe.yaml", COMPLETE)


def test_a_recipe_gives_typed_values_and_the_schemas_defaults(recipe: Path) -> None:
    config = load_config(recipe)
    assert config.algorithm is Algorithm.SFT
    assert config.policy.precision is Precision.BF16
    assert config.data.domain is Domain.MATH
    assert (config.max_num_steps, config.world_size, config.run_dir) == (3, 1, "runs/run")
    assert (config.policy.optimizer.lr, config.policy.optimizer.adam_beta2) == (1e-6, 0.999)


def test_later_defaults_win_over_earlier_ones_and_the_recipe_over_both(tmp_path: Path) -> None:
    write(tmp_path / "shared" / "root.yaml", COMPLETE | {"seed": 11, "output_dir": "root", "name": "root"})
    write(tmp_path / "shared" / "a.yaml", {"defaults": ["root.yaml"], "seed": 22, "name": "a"})
    write(tmp_path / "b.yaml", {"name": "b", "sft": {"global_batch_size": 5}})
    recipe = write(tmp_path / "recipe.yaml", {"defaults": ["shared/a.yaml", "b.yaml"], "sft": {"max_num_steps": 9}})
    config = load_config(recipe)
    assert (config.output_dir, config.seed, config.name) == ("root", 22, "b")
    assert config.sft is not None
    assert (config.sft.global_batch_size, config.sft.max_num_steps) == (5, 9)


def test_overrides_come_last_and_keep_their_types(recipe: Path) -> None:
    config = load_config(
        recipe,
        [
            "sft.max_num_steps=7",
            "policy.optimizer.lr=3e-4",
            "policy.sequence_parallel=false",
            "data.answer_marker='####'",
        ],
    )
    assert config.max_num_steps == 7
    assert config.policy.optimizer.lr == 3e-4
    assert config.policy.sequence_parallel is False
    assert config.data.answer_marker == "####"


def test_one_parent_reached_twice_is_no_circle(tmp_path: Path) -> None:
    write(tmp_path / "root.yaml", COMPLETE)
    for name in "ab":
        write(tmp_path / f"{name}.yaml", {"defaults": ["root.yaml"]})
    assert load_config(write(tmp_path / "recipe.yaml", {"defaults": ["a.yaml", "b.yaml"]})).name == "run"


def test_a_circle_of_defaults_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "a.yaml", {"defaults": ["b.yaml"]})
    write(tmp_path / "b.yaml", {"defaults": ["a.yaml"]})
    with pytest.raises(InputError, match="its defaults lead back to itself"):
        load_config(tmp_path / "a.yaml")


def test_a_circle_through_a_relative_path_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "a.yaml", {"defaults": ["a.yaml"]})
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="its defaults lead back to itself"):
        load_config("a.yaml")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("policy.tensor_model_paralel_size=2", "did you mean 'policy.tensor_model_parallel_size'?"),
        ("polcy.precision=fp32", "did you mean 'policy'?"),
        ("sft.max_steps=2", "did you mean 'sft.max_num_steps'?"),
        ("seeed=2", "unknown key 'seeed'; did you mean 'seed'?"),
        ("data.zzz=2", "unknown key 'data.zzz'; known here: ['answer_key', 'answer_marker'"),
        ("policy.precision=fp23", "fp23"),
        ("sft.max_num_steps=many", "sft.max_num_steps: Value 'many'"),
        ("algorithm=ppo", "ppo"),
        ("policy.sequence_parallel=7.5", "policy.sequence_parallel"),
        ("policy=3", "PolicyConfig"),
        ("policy.activation_checkpointing=true", "activation_checkpointing'; write policy.recompute_granularity=full"),
    ],
)
def test_bad_overrides_name_the_key(recipe: Path, override: str, message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)) as caught:
        load_config(recipe, [override])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("override", ["seed", "seed:2", "=2", "=="])
def test_an_override_without_key_and_value_is_refused(override: str) -> None:
    with pytest.raises(InputError, match="write it as key=value"):
        parse_overrides([override])


@pytest.mark.parametrize("override", ["a=[1", "a={b", "a=${oops", "a=*x"])
def test_an_override_that_is_no_value_is_refused_in_one_line(recipe: Path, override: str) -> None:
    with pytest.raises(InputError) as caught:
        load_config(recipe, [override])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a: [1", "not YAML"),
        ("- a\n- b\n", "a recipe is a mapping"),
        ("just text", "unknown key 'just text'"),
        ("\xff", "recipe.yaml"),
        ("a: 1\na: 2\n", "not YAML"),
    ],
)
def test_a_broken_recipe_is_refused(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(InputError, match=re.escape(message)) as caught:
        load_config(path)
    assert "\n" not in str(caught.value)


def test_a_missing_recipe_or_parent_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.yaml: no such recipe"):
        load_config(tmp_path / "none.yaml")
    recipe = write(tmp_path / "recipe.yaml", {"defaults": ["gone.yaml"]})
    with pytest.raises(InputError, match=r"gone\.yaml: no such recipe"):
        load_config(recipe)


@pytest.mark.parametrize("missing", ["algorithm", "name", "data", "sft"])
def test_a_value_that_a_recipe_must_give_is_named(tmp_path: Path, missing: str) -> None:
    recipe = write(tmp_path / "recipe.yaml", {k: v for k, v in COMPLETE.items() if k != missing})
    with pytest.raises(InputError, match=missing):
        load_config(recipe)


def test_a_saved_config_loads_to_the_same_config(recipe: Path, tmp_path: Path) -> None:
    config = load_config(
        recipe, ["data.answer_marker='####'", "generation.max_new_tokens=8", "validation.data.a.path=b"]
    )
    save_config(config, tmp_path / "saved.yaml")
    assert load_config(tmp_path / "saved.yaml") == config
