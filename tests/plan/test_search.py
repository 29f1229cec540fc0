"""The search for layouts."""

from itertools import pairwise

import pytest
from planned import B14, config

from converters.families import family_of
from converters.hf_config import model_shape
from megatron_rl.config.check import check_config
from megatron_rl.config.schema import RecomputeGranularity, TrainConfig
from megatron_rl.plan.advice import problems
from megatron_rl.plan.assumptions import ASSUMPTIONS
from megatron_rl.plan.hardware import H100
from megatron_rl.plan.layouts import Candidate, Search


def search(planned: TrainConfig, count: int = 5) -> list[Candidate]:
    shape = model_shape(B14, 1)
    return Search(config=planned, family=family_of(B14), shape=shape, gpu=H100, assumptions=ASSUMPTIONS).best(count)


def changed(candidate: Candidate) -> dict[str, str | None]:
    """Its settings as `config` takes them."""
    changes = dict(setting.replace(".", "__").split("=") for setting in candidate.settings)
    return {key: None if value == "null" else value for key, value in changes.items()}


@pytest.fixture(scope="module")
def best() -> list[Candidate]:
    """Of a recipe with a poor layout."""
    return search(config(policy__pipeline_model_parallel_size=8, generation__tensor_parallel_size=1), 1000)


def test_every_suggestion_is_legal_and_fits(best: list[Candidate]) -> None:
    assert len(best) > 20
    for candidate in best:
        check_config(candidate.config)
        assert not list(problems(candidate.config, candidate.ranks, candidate.engine, H100))
        assert 40 % candidate.config.policy.tensor_model_parallel_size == 0


def test_the_fastest_come_first(best: list[Candidate]) -> None:
    seconds = [candidate.step.total for candidate in best]
    assert all(after > before * 0.98 for before, after in pairwise(seconds))
    assert best[0].step.training < best[-1].step.training


def test_the_settings_make_the_layout_of_the_recipe(best: list[Candidate]) -> None:
    poor = {"policy__pipeline_model_parallel_size": 8, "generation__tensor_parallel_size": 1}
    for candidate in best[:5]:
        changes = changed(candidate)
        assert config(**poor | changes) == candidate.config
        assert "policy__pipeline_model_parallel_size" in changes


def test_interleaving_is_kept_or_left_out() -> None:
    interleaved = {"policy__pipeline_model_parallel_size": 8, "policy__virtual_pipeline_model_parallel_size": 3}
    found = search(config(**interleaved), 1000)
    assert {candidate.config.policy.virtual_pipeline_model_parallel_size for candidate in found} == {None, 3}
    for candidate in found[:20]:
        assert config(**interleaved | changed(candidate)) == candidate.config


def test_recomputation_is_suggested_only_where_it_does_not_fit_without(best: list[Candidate]) -> None:
    by_recompute = {candidate.config.policy.recompute_granularity for candidate in best}
    assert by_recompute == {None, *RecomputeGranularity}
    tight = [candidate for candidate in best if candidate.config.policy.recompute_granularity]
    assert all(max(rank.training for rank in candidate.ranks) < H100.memory_gib for candidate in tight)


def test_nothing_is_suggested_where_nothing_fits() -> None:
    assert search(config(generation__gpu_memory_utilization=0.99)) == []
