"""Memory per GPU, by hand, and what is said where it does not fit."""

import re
from typing import Any

import pytest
from planned import B7, B14, config, shape

from converters.families import family_of
from megatron_rl.config.schema import TrainConfig
from megatron_rl.plan.advice import problems
from megatron_rl.plan.assumptions import ASSUMPTIONS
from megatron_rl.plan.hardware import H100
from megatron_rl.plan.memory import (
    GIB,
    MEMORY_ASSUMPTIONS,
    EngineMemory,
    RankMemory,
    engine_memory,
    longest_micro_batch,
    rank_memory,
)
from megatron_rl.plan.shards import Shard, shards


def memory(planned: TrainConfig, hf_config: dict[str, Any] = B14) -> list[RankMemory]:
    policy = planned.policy
    sizes = shape(hf_config, policy.tensor_model_parallel_size)
    element = 2 if policy.precision == "bf16" else 4
    tp, pp = policy.tensor_model_parallel_size, policy.pipeline_model_parallel_size
    return rank_memory(planned, sizes, shards(family_of(hf_config), sizes, tp, pp, element), H100)


def engine(planned: TrainConfig, hf_config: dict[str, Any] = B14) -> EngineMemory:
    assert planned.generation is not None
    return engine_memory(planned.generation, planned.policy, shape(hf_config), H100, ASSUMPTIONS)


def found(planned: TrainConfig) -> list[str]:
    return list(problems(planned, memory(planned), engine(planned), H100))


def test_what_the_trainer_holds() -> None:
    (rank,) = memory(config())
    parameters = rank.shard.parameters
    assert rank.resident.weights * GIB == 2 * parameters
    assert rank.resident.gradients * GIB == 4 * parameters
    assert rank.resident.optimizer * GIB == pytest.approx(12 * parameters / 16)  # main weights and moments over DP=16


def test_context_parallel_ranks_share_the_optimizer_and_fp32_needs_no_main_weights() -> None:
    (plain,), (shared,), (full,) = (
        memory(config(**changes))
        for changes in ({}, {"policy__context_parallel_size": 2}, {"policy__precision": "fp32"})
    )
    assert shared.resident.optimizer == plain.resident.optimizer
    assert full.resident.optimizer == pytest.approx(plain.resident.optimizer * 8 / 12)
    assert full.resident.weights == 2 * plain.resident.weights


def test_smaller_gradients_and_moments_and_an_optimizer_on_the_host() -> None:
    (plain,), (gradients,), (first,), (both,), (host,) = (
        memory(config(**changes))
        for changes in (
            {},
            {"policy__grad_reduce_in_fp32": False},
            {"policy__optimizer__exp_avg_dtype": "bf16"},
            {"policy__optimizer__exp_avg_dtype": "bf16", "policy__optimizer__exp_avg_sq_dtype": "bf16"},
            {"policy__optimizer__optimizer_cpu_offload": True},
        )
    )
    assert gradients.resident.gradients == plain.resident.gradients / 2
    assert first.resident.optimizer == pytest.approx(plain.resident.optimizer * 10 / 12)
    assert both.resident.optimizer == pytest.approx(plain.resident.optimizer * 8 / 12)
    assert host.resident.optimizer == 0


def test_what_is_offloaded_during_generation_leaves_its_place_to_the_engine() -> None:
    (plain,), (away,) = (memory(config(policy__offload_during_generation=value)) for value in (False, True))
    assert (plain.idle, away.idle) == (plain.resident.total, pytest.approx(plain.resident.weights + 2.5))
    assert away.training == plain.training
    assert plain.generation - away.generation == pytest.approx(plain.idle - away.idle)


def test_the_longest_micro_batch_is_a_whole_sequence_at_least() -> None:
    assert longest_micro_batch(config(policy__micro_batch_tokens=1000).policy) == 34816
    assert longest_micro_batch(config(policy__micro_batch_tokens=70000).policy) == 70000


def test_the_parts_sum_up() -> None:
    (rank,) = memory(config())
    held = rank.resident.weights + rank.resident.gradients + rank.resident.optimizer
    assert rank.resident.total == pytest.approx(held + MEMORY_ASSUMPTIONS.trainer_context_gib)
    work = max(rank.layer_work, rank.log_prob_work)
    live = (rank.activations + work) * (1 + MEMORY_ASSUMPTIONS.fragmentation_share)
    assert rank.training == pytest.approx(rank.resident.total + live + MEMORY_ASSUMPTIONS.engine_asleep_gib)
    vocabulary = 152576 * 5120 * 2  # whole, in parts, and this rank's; then one bucket
    assert rank.sync_buffers * GIB == vocabulary * (2 + 1 / 8) + 512 * 2**20
    assert rank.generation == pytest.approx(rank.resident.total + 0.6 * 79.1 + rank.sync_buffers)


def test_without_generation_there_is_no_engine() -> None:
    (rank,) = memory(config(algorithm="sft", sft={"max_num_steps": 1}, generation=None, grpo=None))
    assert (rank.engine_asleep, rank.engine_awake, rank.generation, rank.sync_buffers) == (0.0, 0.0, 0.0, 0.0)


@pytest.mark.parametrize(("hf_config", "tp", "bytes_per_token"), [
    (B7, 1, 2 * 28 * 4 * 128 * 2),
    (B14, 2, 2 * 48 * 4 * 128 * 2),
    (B7, 4, 2 * 28 * 1 * 128 * 2),
])  # fmt: skip
def test_sequences_in_the_cache_by_hand(hf_config: dict[str, Any], tp: int, bytes_per_token: int) -> None:
    found = engine(config(generation__tensor_parallel_size=tp), hf_config)
    weights = {28: 7_615_616_512, 48: 14_770_033_664}[hf_config["num_hidden_layers"]] * 2 / tp / GIB
    cache = 0.6 * 79.1 - weights - ASSUMPTIONS.engine_reserve_gib
    assert found.kv_bytes_per_token == bytes_per_token
    assert found.weights == pytest.approx(weights, rel=1e-3)
    assert found.kv_cache == pytest.approx(cache, rel=1e-3)
    assert found.full_sequences == int(cache * GIB / bytes_per_token / 34816)


def test_a_recipe_that_fits_has_no_problems() -> None:
    assert found(config()) == []


@pytest.mark.parametrize(("changes", "message"), [
    (
        {"policy__recompute_granularity": None, "policy__tensor_model_parallel_size": 2},
        r"training needs \d+\.\d GiB .*activations.*: set policy.recompute_granularity=full",
    ),
    ({"policy__micro_batch_tokens": 2**20}, r"activations.*: lower policy.micro_batch_tokens=1048576"),
    (
        {"policy__tensor_model_parallel_size": 1, "policy__sequence_parallel": False},
        r"weights and gradients with 82.5 GiB: raise policy.tensor_model_parallel_size=1 or policy.pipeline",
    ),
    ({"policy__tensor_model_parallel_size": 4, "policy__logprob_chunk_tokens": 100000,
      "policy__micro_batch_tokens": 100000}, r"log-probs .*: lower policy.logprob_chunk_tokens=100000"),
    ({"cluster__num_nodes": 1, "cluster__gpus_per_node": 2, "policy__tensor_model_parallel_size": 2},
     r"optimizer's state with \d+\.\d GiB: raise cluster.num_nodes=1"),
    ({"generation__gpu_memory_utilization": 0.9}, r"generation needs 8\d.*utilization=0.9 .*; set it to 0.77 at most"),
    ({"generation__gpu_memory_utilization": 0.2}, r"cache holds 0 tokens, less than one sequence of .*=34816: raise"),
])  # fmt: skip
def test_what_does_not_fit_is_named_with_the_key_to_change(changes: dict[str, Any], message: str) -> None:
    assert len([line for line in found(config(**changes)) if re.search(message, line)]) == 1


def test_a_tied_copy_is_held_but_not_counted_twice() -> None:
    tied = B7 | {"tie_word_embeddings": True}
    first, last = shards(family_of(tied), shape(tied, 2), 2, 2, 2)
    assert isinstance(first, Shard)
    assert (first.tied_copy, last.tied_copy) == (0, 152064 // 2 * 3584)
