"""Refusals that need several fields at once. Nothing heavy is imported."""

import math
from typing import Any

from megatron_rl.config.schema import (
    MIN_GRAD_NORMS,
    Algorithm,
    FP8Config,
    FP8Recipe,
    GenerationConfig,
    GRPOConfig,
    PolicyConfig,
    Precision,
    TrainConfig,
)
from megatron_rl.errors import InputError

_POSITIVE = (
    *("seed", "cluster.num_nodes", "cluster.gpus_per_node", "cluster.timeout_minutes"),
    *("policy.tensor_model_parallel_size", "policy.pipeline_model_parallel_size", "policy.context_parallel_size"),
    *("policy.micro_batch_tokens", "policy.max_total_sequence_length", "policy.logprob_chunk_tokens"),
    "policy.make_vocab_size_divisible_by",
    *("generation.max_new_tokens", "generation.tensor_parallel_size", "generation.num_engines"),
    *("generation.max_num_seqs", "generation.sync_bucket_mib", "generation.timeout_minutes"),
    *("grpo.num_prompts_per_step", "grpo.updates_per_batch"),
    *("guards.max_consecutive_skips", "guards.max_uniform_reward_steps"),
    "grpo.dynamic_sampling_max_batches",
    *("sft.global_batch_size", "verifier.num_workers"),
    *("checkpointing.save_period", "checkpointing.keep_last", "validation.num_generations_per_prompt"),
)
_RANGES = {
    "grpo.ratio_clip_min": (0.0, 1.0),
    "grpo.ratio_clip_max": (0.0, math.inf),
    "grpo.reference_policy_kl_penalty": (0.0, math.inf),
    "grpo.entropy_bonus": (0.0, math.inf),
    "grpo.rollout_correction_max": (1.0, math.inf),
    "grpo.overlong_buffer_penalty": (0.0, math.inf),
    "grpo.epoch_filter_keep_hard": (0.0, 1.0),
    "grpo.epoch_filter_keep_easy": (0.0, 1.0),
    "guards.grad_norm_window": (MIN_GRAD_NORMS, math.inf),
    "guards.min_entropy": (0.0, math.inf),
    "guards.max_entropy": (0.0, math.inf),
    "guards.max_truncated_fraction": (0.0, 1.0),
}
_ABOVE_ONE = {
    "grpo.max_token_mult_prob_error": "where engine and policy are equal",
    "grpo.ratio_clip_c": "the ratio of a policy that has not moved",
    "guards.max_grad_norm_ratio": "the ratio of a norm like the others",
}
_LISTS = {"generation.temperature_by_epoch": float, "policy.from_scratch.tokenizer_data": str}
"""OmegaConf does not look into lists."""
_SECONDS = (
    ("cluster", "heartbeat_timeout_seconds"),
    ("verifier", "code_timeout_seconds"),
    ("verifier", "code_budget_seconds"),
    ("generation", "engine_stall_seconds"),
)


def check_config(config: TrainConfig) -> None:
    """Refuse a configuration that cannot run.

    Raises:
        InputError: the first impossible combination, with both values and the remedy.
    """
    for key in _POSITIVE:
        value = _at(config, key)
        if value is not None and value < 1:
            raise InputError(f"{key}={value}: must be at least 1")
    if config.checkpointing.keep_top_k < 0:
        raise InputError(f"checkpointing.keep_top_k={config.checkpointing.keep_top_k}: must be at least 0")
    for key, kind in _LISTS.items():
        value = _at(config, key) or ()
        if not all(isinstance(each, kind) for each in value):
            raise InputError(f"{key}={value!r}: must be a list of {kind.__name__}s")
    _check_sections(config)
    _check_ranges(config)
    _check_layout(config)
    _check_precision(config.policy)
    _check_start(config.policy)
    for section, key in _SECONDS:
        seconds = getattr(getattr(config, section), key, 1.0)
        if not 0 < seconds < math.inf:
            raise InputError(f"{section}.{key}={seconds}: must be a positive number of seconds")
    if config.generation is not None:
        _check_generation(config.generation, config)


def _check_sections(config: TrainConfig) -> None:
    section = config.algorithm.value
    if getattr(config, section) is None:
        raise InputError(f"algorithm={section} needs the section {section!r} with {section}.max_num_steps")
    if config.max_num_steps < 1:
        raise InputError(f"{section}.max_num_steps={config.max_num_steps}: must be at least 1")
    generates = config.algorithm is Algorithm.GRPO or bool(config.validation.data)
    if generates and config.generation is None:
        raise InputError("grpo and validation generate text: set generation.max_new_tokens")
    if config.grpo is not None and config.grpo.num_generations_per_prompt < 2:
        raise InputError(
            f"grpo.num_generations_per_prompt={config.grpo.num_generations_per_prompt}: "
            "a group's advantage needs at least 2 samples"
        )
    if config.grpo is not None and config.grpo.num_prompts_per_step % config.grpo.updates_per_batch:
        raise InputError(
            f"grpo.updates_per_batch={config.grpo.updates_per_batch} does not divide "
            f"grpo.num_prompts_per_step={config.grpo.num_prompts_per_step}; an update takes whole groups"
        )
    if config.grpo is not None:
        _check_overlong(config.grpo, config.generation)


def _check_ranges(config: TrainConfig) -> None:
    for key, (least, most) in _RANGES.items():
        value = _at(config, key)
        if value is not None and not least <= value <= most:
            raise InputError(f"{key}={value}: must be from {least:g} to {most:g}")
    for key, why in _ABOVE_ONE.items():
        value = _at(config, key)
        if value is not None and not 1 < value < math.inf:
            raise InputError(f"{key}={value}: must be above 1, {why}")
    low, high = config.guards.min_entropy, config.guards.max_entropy
    if low is not None and high is not None and low > high:
        raise InputError(f"guards.min_entropy={low} is above guards.max_entropy={high}; raise the second")


def _check_overlong(grpo: GRPOConfig, generation: GenerationConfig | None) -> None:
    if generation is not None and not 0 <= grpo.overlong_buffer_length < generation.max_new_tokens:
        raise InputError(
            f"grpo.overlong_buffer_length={grpo.overlong_buffer_length}: must be from 0 to below "
            f"generation.max_new_tokens={generation.max_new_tokens}"
        )
    if grpo.overlong_filtering and grpo.overlong_buffer_length:
        raise InputError(
            f"grpo.overlong_filtering=true leaves out the samples that grpo.overlong_buffer_length="
            f"{grpo.overlong_buffer_length} is to punish most; set one of them"
        )


def _check_layout(config: TrainConfig) -> None:
    policy, world = config.policy, config.world_size
    tp, pp = policy.tensor_model_parallel_size, policy.pipeline_model_parallel_size
    cp = policy.context_parallel_size
    if world % (tp * pp * cp):
        raise InputError(
            f"cluster.num_nodes x cluster.gpus_per_node = {world} ranks is not a multiple of the policy's "
            f"tensor_model_parallel_size x pipeline_model_parallel_size x context_parallel_size = {tp} x {pp} x {cp}; "
            "change one of them"
        )
    vpp = policy.virtual_pipeline_model_parallel_size
    if vpp is not None and vpp < 2:
        raise InputError(
            f"policy.virtual_pipeline_model_parallel_size={vpp}: must be at least 2, or null for stages of one chunk"
        )
    if vpp is not None and pp == 1:
        raise InputError(
            f"policy.virtual_pipeline_model_parallel_size={vpp} needs policy.pipeline_model_parallel_size above 1; "
            "it is 1"
        )
    if policy.sequence_parallel and tp == 1:
        raise InputError("policy.sequence_parallel=true needs policy.tensor_model_parallel_size above 1; it is 1")


def _check_precision(policy: PolicyConfig) -> None:
    optimizer = policy.optimizer
    moments = [key for key in ("exp_avg_dtype", "exp_avg_sq_dtype") if getattr(optimizer, key) is Precision.BF16]
    needs_bf16 = {
        "grad_reduce_in_fp32=false": not policy.grad_reduce_in_fp32,
        "optimizer.optimizer_cpu_offload=true": optimizer.optimizer_cpu_offload,
    } | {f"optimizer.{key}=bf16": True for key in moments}
    for setting, is_set in needs_bf16.items():
        if is_set and policy.precision is not Precision.BF16:
            raise InputError(f"policy.{setting} needs policy.precision=bf16; it is {policy.precision}")
    if policy.fp8 is not None:
        _check_fp8(policy.fp8, policy.precision)
    if optimizer.optimizer_cpu_offload and moments:
        raise InputError(
            f"policy.optimizer.{moments[0]}=bf16 takes no effect with policy.optimizer.optimizer_cpu_offload=true, "
            "whose step in the host's memory is made in fp32; set one of them"
        )


def _check_fp8(fp8: FP8Config, precision: Precision) -> None:
    if precision is not Precision.BF16:
        raise InputError(f"policy.fp8.recipe={fp8.recipe} needs policy.precision=bf16; it is {precision}")
    for key in ("num_layers_at_start_in_bf16", "num_layers_at_end_in_bf16"):
        value = getattr(fp8, key)
        if value < 0:
            raise InputError(f"policy.fp8.{key}={value}: must be at least 0")
        if value and fp8.recipe is FP8Recipe.DELAYED:
            raise InputError(
                f"policy.fp8.{key}={value} with policy.fp8.recipe=delayed: Transformer Engine would mix up the scaling "
                "factors; set the first to 0, or policy.fp8.recipe=tensorwise"
            )


def _check_start(policy: PolicyConfig) -> None:
    if (policy.model_name is None) == (policy.from_scratch is None):
        raise InputError(
            "set exactly one of policy.model_name (a Hugging Face folder) and policy.from_scratch; "
            f"policy.model_name is {policy.model_name!r}"
        )


def _check_generation(generation: GenerationConfig, config: TrainConfig) -> None:
    if config.algorithm is Algorithm.GRPO:
        if generation.top_p != 1.0 or generation.top_k != -1:
            raise InputError(
                f"generation.top_p={generation.top_p}, generation.top_k={generation.top_k}: training samples from the "
                "policy itself, which filtering changes; set generation.top_p=1.0 and generation.top_k=-1"
            )
        for name in ("temperature", "temperature_by_epoch"):
            value = getattr(generation, name)
            if not all(each > 0 for each in (value if isinstance(value, tuple) else (value,))):
                raise InputError(f"generation.{name}={value}: training needs a temperature above 0")
    if generation.max_new_tokens >= config.policy.max_total_sequence_length:
        raise InputError(
            f"generation.max_new_tokens={generation.max_new_tokens} leaves no room for a prompt in "
            f"policy.max_total_sequence_length={config.policy.max_total_sequence_length}; lower the first"
        )
    engines = generation.num_engines or max(1, config.world_size // generation.tensor_parallel_size)
    if engines > config.world_size:
        raise InputError(
            f"generation.num_engines={engines} is above the job's {config.world_size} ranks, each of which leads at "
            "most one engine; lower it"
        )


def _at(config: TrainConfig, key: str) -> Any:
    """The value at a dotted key, None where its section is absent."""
    value: Any = config
    for part in key.split("."):
        value = getattr(value, part, None)
    return value
