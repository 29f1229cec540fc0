"""Parameters counted on the real Megatron model, against the published numbers and against the families' tables."""

from dataclasses import replace
from typing import Any

import pytest
import torch.distributed as dist
from planned import B7, B14, PARAMETERS_7B, PARAMETERS_14B
from tiny import family_config

from converters.families import family_of
from converters.hf_config import model_shape
from megatron_rl.config.schema import PolicyConfig, Precision
from megatron_rl.plan.count import count_shards
from megatron_rl.plan.shards import shards, whole_model
from megatron_rl.policy.model import Architecture

SMALL = {"num_hidden_layers": 8}


def policy(tp: int, pp: int, precision: Precision = Precision.BF16) -> PolicyConfig:
    return PolicyConfig(
        model_name="unused",
        tensor_model_parallel_size=tp,
        pipeline_model_parallel_size=pp,
        sequence_parallel=tp > 1,
        max_total_sequence_length=1024,
        precision=precision,
    )


def architecture(hf_config: dict[str, Any], tp: int) -> Architecture:
    return Architecture(family_of(hf_config), model_shape(hf_config, 128 * tp), hf_config)


@pytest.mark.parametrize(("hf_config", "tp", "pp", "published"), [
    (B7, 1, 1, PARAMETERS_7B),
    (B7, 4, 2, PARAMETERS_7B),
    (B14, 8, 1, PARAMETERS_14B),
    (B14, 4, 4, PARAMETERS_14B),
])  # fmt: skip
def test_the_shards_of_a_layout_make_up_the_published_model(
    hf_config: dict[str, Any], tp: int, pp: int, published: int
) -> None:
    model = architecture(hf_config, tp)
    counted = count_shards(policy(tp, pp), model)
    assert len(counted) == pp
    assert whole_model(counted, model.shape, tp) == published


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("model_type", ["qwen2", "llama", "qwen3"])
@pytest.mark.parametrize(("tp", "pp"), [(1, 1), (2, 1), (1, 2), (2, 4)])
def test_the_table_tells_what_is_counted(model_type: str, tied: bool, tp: int, pp: int) -> None:
    hf_config = family_config(model_type, tie_word_embeddings=tied, **SMALL)
    model = architecture(hf_config, tp)
    counted = count_shards(policy(tp, pp), model)
    assert counted == shards(model.family, model.shape, tp, pp, bytes_per_parameter=2)
    assert counted[0].layers == 8 // pp
    whole = shards(model.family, model_shape(hf_config, 1), 1, 1, 2)
    assert whole_model(counted, model.shape, tp) == whole[0].parameters


def test_bytes_follow_the_precision_and_norms_are_on_every_rank() -> None:
    model = architecture(B7, 4)
    (half,) = count_shards(policy(4, 1), model)
    (full,) = count_shards(policy(4, 1, Precision.FP32), model)
    assert half.weight_bytes == 2 * half.parameters
    assert full == replace(half, weight_bytes=4 * half.parameters)
    assert half.replicated == 3584 * (2 * 28 + 1)


def test_counting_leaves_no_process_group_behind() -> None:
    count_shards(policy(2, 1), architecture(family_config("qwen2"), 2))
    assert not dist.is_initialized()
