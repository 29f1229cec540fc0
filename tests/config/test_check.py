"""Every refusal of `check_config`, with both values in its message, and the nearest setting that is allowed."""

import re
from typing import Any

import pytest
from tiny import train_config

from megatron_rl.errors import InputError

SFT = {"algorithm": "sft", "sft": {"max_num_steps": 1}, "grpo": None, "generation": None}
BF16 = {"policy__precision": "bf16"}

REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"algorithm": "sft"}, "algorithm=sft needs the section 'sft'"),
    ({"grpo": None}, "algorithm=grpo needs the section 'grpo'"),
    ({"grpo__max_num_steps": 0}, "grpo.max_num_steps=0: must be at least 1"),
    ({"generation": None}, "set generation.max_new_tokens"),
    (SFT | {"validation": {"data": {"math": {"path": "x"}}}}, "set generation.max_new_tokens"),
    ({"grpo__num_generations_per_prompt": 1}, "grpo.num_generations_per_prompt=1"),
    ({"grpo__num_prompts_per_step": 0}, "grpo.num_prompts_per_step=0"),
    (SFT | {"sft__global_batch_size": 0}, "sft.global_batch_size=0"),
    ({"policy__tensor_model_parallel_size": 0}, "policy.tensor_model_parallel_size=0: must be at least 1"),
    ({"policy__pipeline_model_parallel_size": -1}, "policy.pipeline_model_parallel_size=-1: must be at least 1"),
    ({"policy__virtual_pipeline_model_parallel_size": 1}, "policy.virtual_pipeline_model_parallel_size=1: must be at"),
    (
        {"policy__virtual_pipeline_model_parallel_size": 2},
        "policy.virtual_pipeline_model_parallel_size=2 needs policy.pipeline_model_parallel_size above 1; it is 1",
    ),
    ({"policy__tensor_model_parallel_size": 2}, "= 1 ranks is not a multiple of"),
    ({"policy__context_parallel_size": 0}, "policy.context_parallel_size=0: must be at least 1"),
    ({"policy__context_parallel_size": 2}, "= 1 x 1 x 2; change one of them"),
    ({"grpo__updates_per_batch": 0}, "grpo.updates_per_batch=0"),
    ({"grpo__updates_per_batch": 3}, "grpo.updates_per_batch=3 does not divide grpo.num_prompts_per_step=128"),
    ({"guards__max_consecutive_skips": 0}, "guards.max_consecutive_skips=0: must be at least 1"),
    ({"guards__max_uniform_reward_steps": 0}, "guards.max_uniform_reward_steps=0: must be at least 1"),
    ({"guards__max_grad_norm_ratio": 1.0}, "guards.max_grad_norm_ratio=1.0: must be above 1"),
    ({"guards__grad_norm_window": 4}, "guards.grad_norm_window=4: must be from 5 to inf"),
    ({"guards__min_entropy": -0.1}, "guards.min_entropy=-0.1: must be from 0"),
    (SFT | {"guards__max_entropy": float("nan")}, "guards.max_entropy=nan: must be from 0"),
    (
        {"guards__min_entropy": 2.0, "guards__max_entropy": 1.0},
        "guards.min_entropy=2.0 is above guards.max_entropy=1.0; raise the second",
    ),
    ({"guards__max_truncated_fraction": 1.1}, "guards.max_truncated_fraction=1.1: must be from 0 to 1"),
    ({"grpo__max_token_mult_prob_error": 1.0}, "grpo.max_token_mult_prob_error=1.0: must be above 1"),
    ({"grpo__max_token_mult_prob_error": float("nan")}, "grpo.max_token_mult_prob_error=nan: must be above 1"),
    ({"grpo__ratio_clip_c": 1.0}, "grpo.ratio_clip_c=1.0: must be above 1"),
    ({"grpo__ratio_clip_min": 1.5}, "grpo.ratio_clip_min=1.5: must be from 0 to 1"),
    ({"grpo__ratio_clip_max": float("nan")}, "grpo.ratio_clip_max=nan: must be from 0"),
    ({"grpo__reference_policy_kl_penalty": -0.1}, "grpo.reference_policy_kl_penalty=-0.1: must be from 0"),
    ({"grpo__entropy_bonus": -1.0}, "grpo.entropy_bonus=-1.0: must be from 0"),
    ({"grpo__rollout_correction_max": 0.5}, "grpo.rollout_correction_max=0.5: must be from 1"),
    ({"grpo__overlong_buffer_penalty": -1.0}, "grpo.overlong_buffer_penalty=-1.0: must be from 0"),
    ({"grpo__epoch_filter_keep_hard": 1.1}, "grpo.epoch_filter_keep_hard=1.1: must be from 0 to 1"),
    ({"grpo__dynamic_sampling_max_batches": 0}, "grpo.dynamic_sampling_max_batches=0: must be at least 1"),
    ({"grpo__overlong_buffer_length": 32}, "must be from 0 to below generation.max_new_tokens=32"),
    ({"grpo__overlong_buffer_length": 8, "grpo__overlong_filtering": True}, "to punish most; set one of them"),
    ({"generation__temperature_by_epoch": [0.6, 0.0]}, "generation.temperature_by_epoch=(0.6, 0.0): training needs"),
    ({"cluster__gpus_per_node": 6, "policy__tensor_model_parallel_size": 4}, "= 6 ranks is not a multiple of"),
    ({"cluster__gpus_per_node": 0}, "cluster.gpus_per_node=0"),
    ({"cluster__num_nodes": -1}, "cluster.num_nodes=-1"),
    ({"policy__sequence_parallel": True}, "policy.sequence_parallel=true needs policy.tensor_model_parallel_size"),
    (
        {"policy__grad_reduce_in_fp32": False},
        "policy.grad_reduce_in_fp32=false needs policy.precision=bf16; it is fp32",
    ),
    (
        {"policy__optimizer__exp_avg_sq_dtype": "bf16"},
        "policy.optimizer.exp_avg_sq_dtype=bf16 needs policy.precision=bf16",
    ),
    (
        {"policy__optimizer__optimizer_cpu_offload": True},
        "optimizer_cpu_offload=true needs policy.precision=bf16; it is fp32",
    ),
    (
        BF16 | {"policy__optimizer__optimizer_cpu_offload": True, "policy__optimizer__exp_avg_dtype": "bf16"},
        "policy.optimizer.exp_avg_dtype=bf16 takes no effect with policy.optimizer.optimizer_cpu_offload=true",
    ),
    ({"policy__fp8__recipe": "mxfp8"}, "policy.fp8.recipe=mxfp8 needs policy.precision=bf16; it is fp32"),
    (
        BF16 | {"policy__fp8__num_layers_at_end_in_bf16": -1},
        "policy.fp8.num_layers_at_end_in_bf16=-1: must be at least 0",
    ),
    (
        BF16 | {"policy__fp8": {"recipe": "delayed", "num_layers_at_start_in_bf16": 1}},
        "policy.fp8.num_layers_at_start_in_bf16=1 with policy.fp8.recipe=delayed",
    ),
    ({"policy__model_name": None}, "exactly one of policy.model_name"),
    (
        {
            "policy__from_scratch": {
                "hidden_size": 64,
                "intermediate_size": 64,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "num_key_value_heads": 2,
                "vocab_size": 300,
                "max_position_embeddings": 128,
            }
        },
        "exactly one of policy.model_name",
    ),
    ({"generation__top_p": 0.95}, "generation.top_p=0.95"),
    ({"generation__top_k": 20}, "generation.top_k=20"),
    ({"generation__temperature": 0.0}, "generation.temperature=0.0: training needs a temperature above 0"),
    ({"generation__max_new_tokens": 128}, "generation.max_new_tokens=128 leaves no room"),
    ({"generation__max_new_tokens": 0}, "generation.max_new_tokens=0"),
    ({"generation__tensor_parallel_size": 0}, "generation.tensor_parallel_size=0"),
    ({"generation__num_engines": 2}, "generation.num_engines=2 is above the job's 1 ranks"),
    ({"seed": 0}, "seed=0: must be at least 1"),
    ({"policy__micro_batch_tokens": 0}, "policy.micro_batch_tokens=0: must be at least 1"),
    ({"policy__logprob_chunk_tokens": 0}, "policy.logprob_chunk_tokens=0: must be at least 1"),
    (SFT | {"policy__max_total_sequence_length": 0}, "policy.max_total_sequence_length=0: must be at least 1"),
    ({"policy__make_vocab_size_divisible_by": 0}, "policy.make_vocab_size_divisible_by=0"),
    ({"checkpointing__save_period": 0}, "checkpointing.save_period=0"),
    ({"checkpointing__keep_last": 0}, "checkpointing.keep_last=0"),
    ({"checkpointing__keep_top_k": -1}, "checkpointing.keep_top_k=-1"),
    ({"verifier__num_workers": 0}, "verifier.num_workers=0"),
]


def set_all(changes: dict[str, Any]) -> None:
    train_config("model", **changes)


@pytest.mark.parametrize(("changes", "message"), REFUSED, ids=[message for _, message in REFUSED])
def test_what_cannot_run_is_refused_in_one_line(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)) as caught:
        set_all(changes)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        SFT,
        SFT | {"validation__period": 5},
        {"cluster__gpus_per_node": 8, "policy__tensor_model_parallel_size": 4},
        {"cluster__gpus_per_node": 4, "policy__tensor_model_parallel_size": 2, "policy__sequence_parallel": True},
        {"generation__max_new_tokens": 127},
        {"cluster__gpus_per_node": 2, "generation__num_engines": 2},
        {"generation__temperature": 0.01},
        BF16 | {"policy__fp8": {"recipe": "delayed"}},
        BF16 | {"policy__fp8": {"recipe": "mxfp8", "num_layers_at_start_in_bf16": 1, "num_layers_at_end_in_bf16": 2}},
        BF16 | {"policy__grad_reduce_in_fp32": False, "policy__optimizer__optimizer_cpu_offload": True},
        BF16 | {"policy__optimizer__exp_avg_dtype": "bf16", "policy__optimizer__exp_avg_sq_dtype": "bf16"},
        {"validation__temperature": 0.0, "validation__top_p": 0.9},
        {"guards__min_entropy": 1.0, "guards__max_entropy": 1.0, "guards__grad_norm_window": 5},
        {"algorithm": "sft", "sft": {"max_num_steps": 1}, "generation__top_p": 0.9},
    ],
    ids=repr,
)
def test_what_can_run_is_allowed(changes: dict[str, Any]) -> None:
    set_all(changes)
