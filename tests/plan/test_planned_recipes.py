"""Every recipe for a cluster is planned, and fits."""

from pathlib import Path

import pytest

from converters.families import family_of
from converters.hf_config import model_shape
from megatron_rl.config.loader import compose
from megatron_rl.pipeline import load_pipeline
from megatron_rl.plan.activations import element_bytes
from megatron_rl.plan.advice import problems
from megatron_rl.plan.assumptions import ASSUMPTIONS
from megatron_rl.plan.hardware import H100
from megatron_rl.plan.layouts import padded_for
from megatron_rl.plan.memory import engine_memory, rank_memory
from megatron_rl.plan.planner import make_plan
from megatron_rl.plan.recipe import load_stage, model_config
from megatron_rl.plan.shards import shards

RECIPES = Path(__file__).parents[2] / "recipes"
STAGES = ("math_8k", "math_16k", "math_24k", "code_24k", "code_32k", "math_32k")
FILES = sorted(path for size in ("7b", "14b") for path in (RECIPES / size).glob("*.yaml"))
PUBLISHED = {"7b": 7_615_616_512, "14b": 14_770_033_664}


def name_of(path: Path) -> str:
    return str(path.relative_to(RECIPES))


def test_the_papers_stages_are_there() -> None:
    assert {f"{size}/{stage}.yaml" for size in PUBLISHED for stage in STAGES} <= set(map(name_of, FILES))


@pytest.mark.parametrize(
    "path",
    [path for path in FILES if {"algorithm", "name"} <= compose(path).keys()],
    ids=name_of,
)
def test_every_stage_fits_its_cluster(path: Path) -> None:
    config, hf_config = load_stage(path, [], stage=None, nodes=None)
    plan = make_plan(config, hf_config, H100, suggestions=0)
    assert plan.parameters == PUBLISHED[path.parent.name]
    assert plan.problems == []
    assert plan.engine is not None
    assert plan.engine.full_sequences >= 1


@pytest.mark.parametrize("path", [path for path in FILES if "stages" in compose(path)], ids=name_of)
def test_every_stage_of_every_pipeline_fits(path: Path) -> None:
    """Told from the families' tables, which say what is counted (`test_count.py`)."""
    _, stages = load_pipeline(path, [])
    for config in stages:
        hf_config = model_config(config, path, scratch=None)
        policy, generation = config.policy, config.generation
        tp, pp = policy.tensor_model_parallel_size, policy.pipeline_model_parallel_size
        shape = padded_for(model_shape(hf_config, 1), policy)
        ranks = rank_memory(config, shape, shards(family_of(hf_config), shape, tp, pp, element_bytes(policy)), H100)
        assert generation is not None
        engine = engine_memory(generation, policy, shape, H100, ASSUMPTIONS)
        assert list(problems(config, ranks, engine, H100)) == [], config.name
