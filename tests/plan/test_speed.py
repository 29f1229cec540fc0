"""The roofline against sums by hand, and what a step's parts may and may not depend on."""

import statistics
from dataclasses import replace

import pytest
from plan_case import QWEN_7B, TINY, grpo_config

from megatron_rl.config.schema import Algorithm, Domain, FP8Config, RecomputeGranularity, SFTConfig
from megatron_rl.errors import InputError
from megatron_rl.plan import roofline
from megatron_rl.plan.assumptions import ASSUMPTIONS, Assumptions, assumption_lines
from megatron_rl.plan.hardware import H100, H200, H800
from megatron_rl.plan.lengths import draw_lengths
from megatron_rl.plan.speed import estimate_step, train_on

# Links that cost nothing and kernels at the peak: what remains are operations and bytes.
IDEAL = Assumptions(
    hbm_efficiency=1.0,
    decode_compute_efficiency=1.0,
    decode_overhead_seconds=0.0,
    decode_overhead_per_sequence_seconds=0.0,
    allreduce_latency_seconds=0.0,
    training_efficiency=1.0,
    fp8_efficiency=1.0,
    link_efficiency=1e9,
    sync_fixed_seconds=0.0,
)


def decode(**generation: object) -> roofline.DecodeCost:
    config = grpo_config(generation=dict(generation)).generation
    assert config is not None
    return roofline.decode_cost(config, QWEN_7B, H100, IDEAL)


def test_parameters_equal_the_published_count() -> None:
    assert roofline.weight_parameters(QWEN_7B) == pytest.approx(7.62e9, rel=0.001)


def test_parameters_of_a_tiny_model_by_hand() -> None:
    assert roofline.matmul_parameters(TINY) == 2 * (4 * (4 + 4 + 2 + 2) + 3 * 4 * 8) + 40
    assert roofline.weight_parameters(TINY) == roofline.matmul_parameters(TINY) + 40 + 5 * 4
    assert roofline.weight_parameters(replace(TINY, tied=True)) == roofline.matmul_parameters(TINY) + 5 * 4


def test_one_sequence_is_bound_by_reading_the_weights() -> None:
    seconds = decode().step_seconds(1, 0)
    assert seconds == pytest.approx(2 * roofline.matmul_parameters(QWEN_7B) / 3.35e12)


def test_many_short_sequences_are_bound_by_arithmetic() -> None:
    seconds = decode().step_seconds(2000, 0)
    assert seconds == pytest.approx(2000 * 2 * roofline.matmul_parameters(QWEN_7B) / 989e12)


def test_context_costs_its_cache_once_per_step() -> None:
    cost = decode()
    tokens = 100_000
    cache = tokens * 28 * 2 * 4 * 128 * 2
    assert cost.step_seconds(1, tokens) - cost.step_seconds(1, 0) == pytest.approx(cache / 3.35e12)


def test_engines_of_several_gpus_share_weights_and_cache_but_not_a_key_value_head() -> None:
    assert decode(tensor_parallel_size=2).weights == pytest.approx(decode().weights / 2)
    assert decode(tensor_parallel_size=4).kv_per_token == pytest.approx(decode().kv_per_token / 4)
    assert decode(tensor_parallel_size=8).kv_per_token == pytest.approx(decode().kv_per_token / 4)


def test_eager_mode_launches_every_layer() -> None:
    assert decode(enforce_eager=True).fixed == pytest.approx(28 * IDEAL.eager_launch_seconds_per_layer)


def test_cache_is_what_weights_and_reserve_leave() -> None:
    config = grpo_config(generation={"gpu_memory_utilization": 0.5}).generation
    assert config is not None
    free = 79.1 * 0.5 - 4 - 2 * roofline.weight_parameters(QWEN_7B) / 2**30
    expected = free * 2**30 / roofline.kv_bytes_per_token(QWEN_7B)
    assert roofline.kv_cache_tokens(config, QWEN_7B, H100, ASSUMPTIONS) == int(expected)
    assert roofline.kv_cache_tokens(config, QWEN_7B, H200, ASSUMPTIONS) > expected


def test_training_does_three_times_the_forward_pass_by_hand() -> None:
    config = grpo_config(nodes=1)
    lengths = [1000] * 8
    # Two operations per parameter and token; causal attention: half of 2 products x 2 operations x length squared.
    forward = 1000 * 2 * roofline.matmul_parameters(QWEN_7B) + 28 * 0.5 * 4 * 28 * 128 * 1000**2
    training = train_on(lengths, config, QWEN_7B, H100, IDEAL)
    assert training.flops == pytest.approx(8 * 3 * forward)
    assert training.seconds == pytest.approx(3 * forward / 989e12, rel=1e-6)  # 8 ranks, one sequence each


def test_recomputation_adds_a_third_or_the_mlps_and_fp8_takes_from_linear_layers_only() -> None:
    plain = roofline.train_cost(grpo_config().policy, grpo_config().cluster, QWEN_7B, H100, IDEAL)
    again = grpo_config(policy={"recompute_granularity": RecomputeGranularity.FULL})
    fp8 = grpo_config(policy={"fp8": FP8Config()})
    cost = roofline.train_cost(again.policy, again.cluster, QWEN_7B, H100, IDEAL)
    assert cost.micro_batch_seconds([512, 64]) == pytest.approx(4 / 3 * plain.micro_batch_seconds([512, 64]), rel=1e-6)
    mlps = grpo_config(policy={"recompute_granularity": RecomputeGranularity.SELECTIVE})
    cost = roofline.train_cost(mlps.policy, mlps.cluster, QWEN_7B, H100, IDEAL)
    assert cost.per_squared_token == plain.per_squared_token
    assert cost.per_token - plain.per_token == pytest.approx(2 * 28 * 3 * 3584 * 18944 / 989e12, rel=1e-6)
    cost = roofline.train_cost(fp8.policy, fp8.cluster, QWEN_7B, H100, IDEAL)
    assert cost.per_squared_token == plain.per_squared_token
    head = 3 * 2 * 152064 * 3584 / 989e12
    assert cost.per_token - head == pytest.approx((plain.per_token - head) * 989 / 1979, rel=1e-6)
    spared = grpo_config(policy={"fp8": FP8Config(num_layers_at_start_in_bf16=3, num_layers_at_end_in_bf16=4)})
    mixed = roofline.train_cost(spared.policy, spared.cluster, QWEN_7B, H100, IDEAL)
    assert mixed.per_token == pytest.approx(0.75 * cost.per_token + 0.25 * plain.per_token, rel=1e-6)


def test_pipeline_bubble_is_stages_less_one_over_micro_batches() -> None:
    lengths = [5120] * 8
    one = grpo_config(nodes=1, policy={"tensor_model_parallel_size": 8})
    four = grpo_config(nodes=1, policy={"tensor_model_parallel_size": 2, "pipeline_model_parallel_size": 4})
    whole = train_on(lengths, one, QWEN_7B, H100, IDEAL)
    staged = train_on(lengths, four, QWEN_7B, H100, IDEAL)
    assert staged.seconds == pytest.approx(whole.seconds * (1 + 3 / 8), rel=1e-6)
    assert staged.idle_gpu_seconds == pytest.approx(8 * whole.seconds * 3 / 8, rel=1e-6)
    assert whole.idle_gpu_seconds == 0
    assert four.policy.virtual_pipeline_model_parallel_size is None
    interleaved = replace(four, policy=replace(four.policy, virtual_pipeline_model_parallel_size=7))
    waits = train_on(lengths, interleaved, QWEN_7B, H100, IDEAL).seconds
    assert waits == pytest.approx(whole.seconds * (1 + 3 / 7 / 8), rel=1e-6)


@pytest.mark.parametrize("key", ["tensor_model_parallel_size", "context_parallel_size"])
def test_exchange_costs_more_with_more_ranks_and_far_more_over_the_network(key: str) -> None:
    def gpu_seconds(ranks: int) -> float:
        config = grpo_config(nodes=4, policy={key: ranks})
        return ranks * roofline.train_cost(config.policy, config.cluster, QWEN_7B, H100, ASSUMPTIONS).per_token

    alone, some, node, beyond = (gpu_seconds(ranks) for ranks in (1, 4, 8, 16))
    assert alone < some < node
    assert beyond - alone > 9 * (node - alone)  # 450 GB/s against 50


def test_sync_gathers_what_other_ranks_hold() -> None:
    config = grpo_config(nodes=1, policy={"tensor_model_parallel_size": 4})
    assert config.generation is not None
    assumptions = replace(IDEAL, link_efficiency=1.0)
    seconds = roofline.sync_seconds(config.policy, config.generation, config.cluster, QWEN_7B, H100, assumptions)
    size = 2 * roofline.weight_parameters(QWEN_7B)
    assert seconds == pytest.approx(size * 3 / 4 / 450e9 + 2 * size / 3.35e12)
    slower = roofline.sync_seconds(config.policy, config.generation, config.cluster, QWEN_7B, H800, assumptions)
    assert slower == pytest.approx(size * 3 / 4 / 200e9 + 2 * size / 3.35e12)


@pytest.mark.parametrize(("mean", "sigma"), [(0.2, 0.5), (0.45, 0.7), (0.8, 1.2)])
def test_lengths_have_the_mean_after_the_cut(mean: float, sigma: float) -> None:
    assumptions = Assumptions(mean_response_share=mean, response_sigma=sigma)
    lengths = [n for group in draw_lengths(400, 50, 10_000, assumptions, seed=1) for n in group]
    assert statistics.fmean(lengths) == pytest.approx(10_000 * mean, rel=0.03)
    assert max(lengths) == 10_000
    assert min(lengths) >= 1


def test_samples_of_a_prompt_are_alike_only_as_far_as_assumed() -> None:
    def spread_of_means(correlation: float) -> float:
        assumptions = Assumptions(same_prompt_correlation=correlation)
        return statistics.stdev(statistics.fmean(group) for group in draw_lengths(300, 50, 10_000, assumptions, seed=1))

    assert spread_of_means(0.0) < 0.3 * spread_of_means(0.5) < 0.3 * spread_of_means(1.0)


def test_estimate_adds_up_and_is_the_same_twice() -> None:
    config = grpo_config()
    step = estimate_step(config, QWEN_7B)
    assert step == estimate_step(config, QWEN_7B)
    assert step != estimate_step(replace(config, seed=2), QWEN_7B)
    assert step.total == step.generation + step.verification_wait + step.training + step.sync
    assert 0 < step.idle_share < 1
    assert 0 < step.mfu < ASSUMPTIONS.training_efficiency
    assert step.tokens_per_second_per_gpu == pytest.approx(step.response_tokens / step.total / 16)


def test_prompts_without_an_advantage_are_generated_but_not_trained_on() -> None:
    some = estimate_step(grpo_config(), QWEN_7B, assumptions=replace(ASSUMPTIONS, zero_advantage_share=0.5))
    every = estimate_step(grpo_config(), QWEN_7B, assumptions=replace(ASSUMPTIONS, zero_advantage_share=0.0))
    assert some.response_tokens == every.response_tokens
    assert every.train_tokens == every.response_tokens + 32 * 8 * ASSUMPTIONS.prompt_tokens
    assert some.train_tokens < 0.7 * every.train_tokens
    assert some.training < every.training


def test_overlong_filtering_trains_on_less() -> None:
    filtered = estimate_step(grpo_config(grpo={"overlong_filtering": True}), QWEN_7B)
    assert filtered.train_tokens < estimate_step(grpo_config(), QWEN_7B).train_tokens


def test_code_is_verified_longer_than_math() -> None:
    few = {"generation": {"num_engines": 1}}
    math = estimate_step(grpo_config(**few), QWEN_7B)
    code = estimate_step(grpo_config(domain=Domain.CODE, **few), QWEN_7B)
    assert math.verification_wait < 1 < code.verification_wait
    assert math.generation == code.generation


def test_sft_only_trains() -> None:
    config = replace(
        grpo_config(), algorithm=Algorithm.SFT, grpo=None, sft=SFTConfig(global_batch_size=4, max_num_steps=1)
    )
    step = estimate_step(config, QWEN_7B)
    assert (step.generation, step.verification_wait, step.sync) == (0, 0, 0)
    assert step.train_tokens == 4 * 5120
    assert step.total == step.training > 0


def test_a_mixture_of_experts_is_refused() -> None:
    with pytest.raises(InputError, match="mixture of 8 experts"):
        estimate_step(grpo_config(), replace(QWEN_7B, num_experts=8))


def test_every_assumption_is_shown() -> None:
    assert ("mean_response_share", "0.45") in assumption_lines(ASSUMPTIONS)
    assert len(assumption_lines(ASSUMPTIONS)) == len(ASSUMPTIONS.__dataclass_fields__)
