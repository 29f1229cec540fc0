"""What a GRPO step makes of scored samples: weights over the global normaliser, metrics, and its guards."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from megatron_rl.algorithms.losses import policy_gradient_loss
from megatron_rl.config.schema import Domain, GenerationConfig, GRPOConfig, VerifierConfig
from megatron_rl.data.problems import Problem
from megatron_rl.errors import RunStopped
from megatron_rl.experience import Experience, ScoredSample, verification_task
from megatron_rl.grpo import (
    _check_infra_errors,
    experience_metrics,
    temperature_of,
    the_first_with_spread,
    update,
)
from megatron_rl.policy.batch import Share, TrainSequence, micro_batches
from megatron_rl.policy.policy import step_metrics
from megatron_rl.rollout.samples import Sample, SampleRequest
from megatron_rl.training_batch import mean_by_problem, sample_advantages, sample_rewards, to_sequences
from megatron_rl.validate import accuracies
from verifiers.isolation import IsolationLevel
from verifiers.metrics import PoolMetrics
from verifiers.tasks import CodeTask, MathTask
from verifiers.verdict import Result, Verdict

CONFIG = GRPOConfig(max_num_steps=1, max_infra_error_fraction=0.25)
LIMIT = 100
"""Tokens of a response."""
VERIFIER = VerifierConfig(
    code_timeout_seconds=2.0,
    code_budget_seconds=9.0,
    longest_tests_first=True,
    min_isolation=IsolationLevel.SECCOMP,
)
POOLS = [
    PoolMetrics({}, 0.1, 0.2, 0.3, latency, utilization, queue)
    for latency, utilization, queue in ((0.5, 0.25, 3), (0.25, 0.75, 5))
]


def scored(
    prompt: int, verdict: Verdict, length: int = 3, seconds: float = 0.5, truncated: bool = False
) -> ScoredSample:
    request = SampleRequest(prompt_index=prompt, sample_index=0, prompt_tokens=(7, 8), seed=1)
    sample = Sample(request, length, tuple(range(length)), tuple([-1.0] * length), "text", truncated, policy_version=0)
    return ScoredSample(sample, Result(verdict, None, seconds, "detail"))


def advantages_of(samples: Sequence[ScoredSample], config: GRPOConfig = CONFIG) -> list[float]:
    return sample_advantages(samples, sample_rewards(samples, config, LIMIT), config)


def sequences_of(samples: Sequence[ScoredSample], advantages: Sequence[float], **changes: Any) -> list[TrainSequence]:
    return to_sequences(samples, advantages, replace(CONFIG, **changes), LIMIT)


def experience(*samples: ScoredSample) -> Experience:
    return Experience(list(samples), POOLS, 1.0, 0.0, engine_restarts=0, engine_recovery_seconds=0.0)


def test_advantages_are_within_the_prompts_group_also_after_drops() -> None:
    samples = [
        scored(0, Verdict.PASS),
        scored(0, Verdict.WRONG),
        scored(1, Verdict.PASS),
        scored(1, Verdict.PASS),
        scored(2, Verdict.TIMEOUT),
        scored(2, Verdict.PASS),
        scored(2, Verdict.NO_ANSWER),
        scored(3, Verdict.PASS),
    ]
    third = 1 / math.sqrt(3)
    wanted = [math.sqrt(0.5), -math.sqrt(0.5), 0.0, 0.0, -third, 2 * third, -third, 0.0]
    assert advantages_of(samples) == pytest.approx(wanted, abs=1e-5)


def test_lengths_are_remembered_by_problem() -> None:
    samples = [scored(0, Verdict.PASS, 4), scored(0, Verdict.WRONG, 7), scored(1, Verdict.TIMEOUT, 9)]
    assert mean_by_problem([17, 3], samples, lambda s: len(s.sample.tokens)) == {17: 5.5, 3: 9.0}


def test_the_normaliser_counts_all_response_tokens_of_the_batch() -> None:
    samples = [scored(0, Verdict.PASS, 4), scored(0, Verdict.WRONG, 6), scored(1, Verdict.WRONG, 90)]
    sequences = sequences_of(samples, [2.0, -2.0, 0.0])
    found = [(len(s.tokens), s.prompt_length, s.weight, s.advantage) for s in sequences]
    assert found == [(6, 2, 0.01, 2.0), (8, 2, 0.01, -2.0)]
    assert sequences[0].rollout_log_probs == samples[0].sample.log_probs


def test_overlong_filtering_leaves_truncated_samples_out_of_loss_and_normaliser_but_not_of_the_group() -> None:
    samples = [
        scored(0, Verdict.PASS, 4),
        scored(0, Verdict.NO_ANSWER, 90, truncated=True),
        scored(0, Verdict.WRONG, 6),
    ]
    advantages = advantages_of(samples)
    assert advantages[0] == pytest.approx(2 / math.sqrt(3), abs=1e-5)  # of one right among three
    (right, wrong) = sequences_of(samples, advantages, overlong_filtering=True)
    assert (right.weight, wrong.weight) == (1 / 10, 1 / 10)
    assert (right.advantage, wrong.advantage) == (advantages[0], advantages[2])
    assert len(sequences_of(samples, advantages)) == 3
    assert sequences_of(samples[1:2], [1.0], overlong_filtering=True) == []


def test_the_temperature_of_an_epoch() -> None:
    by_epoch = GenerationConfig(max_new_tokens=1, temperature_by_epoch=(0.6, 0.8, 1.0))
    assert [temperature_of(by_epoch, epoch) for epoch in range(5)] == [0.6, 0.8, 1.0, 1.0, 1.0]
    assert temperature_of(GenerationConfig(max_new_tokens=1, temperature=0.85), 3) == 0.85


class Recorder:
    """Stands for the policy where only the order of its calls is asked for."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, list[TrainSequence]]] = []
        self.skipped = 0

    def log_probs(self, sequences: list[TrainSequence]) -> list[list[float]]:
        self.calls.append(("log_probs", sequences[:]))
        return [[-0.5] * (len(s.tokens) - s.prompt_length) for s in sequences]

    def reference_log_probs(self, sequences: list[TrainSequence]) -> list[list[float]]:
        self.calls.append(("reference", sequences[:]))
        return [[-0.25] * (len(s.tokens) - s.prompt_length) for s in sequences]

    def train_step(self, sequences: list[TrainSequence], loss: Any, check: Any) -> dict[str, float]:
        self.calls.append(("train_step", sequences[:]))
        metrics = {"loss": float(len(self.calls))}
        if check is not None:
            check(metrics)
        return metrics | {"lr": 1.0}

    def skip_updates(self, count: int) -> None:
        self.skipped = count


def test_two_updates_take_half_of_the_prompts_each_the_second_against_log_probs_from_before_the_first() -> None:
    samples = [scored(prompt, verdict, 3 + prompt) for prompt in range(4) for verdict in (Verdict.PASS, Verdict.WRONG)]
    config = GRPOConfig(max_num_steps=1, num_prompts_per_step=4, updates_per_batch=2)
    recorder = Recorder()
    found = update(recorder, samples, advantages_of(samples), config, LIMIT)  # type: ignore[arg-type]
    assert [name for name, _ in recorder.calls] == ["log_probs", "train_step", "train_step"]
    first, second = recorder.calls[1][1], recorder.calls[2][1]
    assert [len(s.tokens) for s in first] == [5, 5, 6, 6]
    assert [len(s.tokens) for s in second] == [7, 7, 8, 8]
    assert not any(s.old_log_probs for s in first)
    assert [s.old_log_probs for s in second] == [[-0.5] * n for n in (5, 5, 6, 6)]
    assert [s.advantage for s in first] == pytest.approx(advantages_of(samples[:4]))
    assert {s.weight for s in first} == {1 / 14}
    assert found == {"loss": 2.5, "lr": 1.0}
    assert recorder.skipped == 0


def test_an_update_that_is_forbidden_is_the_last_of_its_batch() -> None:
    def forbid(metrics: Mapping[str, float]) -> None:
        raise ZeroDivisionError(metrics["loss"])

    samples = [scored(prompt, verdict) for prompt in range(4) for verdict in (Verdict.PASS, Verdict.WRONG)]
    config = GRPOConfig(max_num_steps=1, num_prompts_per_step=4, updates_per_batch=2)
    recorder = Recorder()
    with pytest.raises(ZeroDivisionError, match=r"2\.0"):
        update(recorder, samples, advantages_of(samples), config, LIMIT, forbid)  # type: ignore[arg-type]
    assert [name for name, _ in recorder.calls] == ["log_probs", "train_step"]


def test_where_overlong_filtering_leaves_nothing_of_a_share_the_next_one_is_on_policy_and_the_learning_rate_moves() -> (
    None
):
    samples = [scored(prompt, Verdict.PASS, truncated=prompt == 0) for prompt in range(2)]
    config = GRPOConfig(max_num_steps=1, num_prompts_per_step=2, updates_per_batch=2, overlong_filtering=True)
    recorder = Recorder()
    update(recorder, samples, [0.7, 0.7], config, LIMIT)  # type: ignore[arg-type]
    ((name, (sequence,)),) = recorder.calls
    assert (name, sequence.old_log_probs) == ("train_step", ())
    assert recorder.skipped == 1


def test_one_update_needs_no_old_log_probs() -> None:
    samples = [scored(0, Verdict.PASS), scored(0, Verdict.WRONG)]
    recorder = Recorder()
    update(recorder, samples, [0.7, -0.7], GRPOConfig(max_num_steps=1), LIMIT)  # type: ignore[arg-type]
    assert [name for name, _ in recorder.calls] == ["train_step"]


def test_how_a_step_was_packed_is_no_metric_of_training() -> None:
    found = step_metrics({"loss": 1.0, "packing_efficiency": 0.9, "dp_imbalance": 0.1, "shared_prompt_tokens": 7.0})
    assert found == {
        "train/loss": 1.0,
        "performance/packing_efficiency": 0.9,
        "performance/dp_imbalance": 0.1,
        "performance/shared_prompt_tokens": 7.0,
    }


def test_leaving_out_groups_without_spread_changes_no_gradient() -> None:
    samples = [scored(0, Verdict.PASS, 4), scored(0, Verdict.WRONG, 6), scored(1, Verdict.WRONG, 9)]
    advantages = advantages_of([*samples, scored(1, Verdict.WRONG, 5)])[:3]
    (batch,) = micro_batches(sequences_of(samples, advantages), Share(), 1000, torch.device("cpu"))
    log_probs = torch.zeros(len(batch.tokens), requires_grad=True)
    policy_gradient_loss(log_probs, torch.zeros(len(batch.tokens)), batch)[0].backward()
    assert log_probs.grad is not None
    wanted = sum(a * len(s.sample.tokens) for a, s in zip(advantages, samples, strict=True)) / 19
    assert float(-log_probs.grad.sum()) == pytest.approx(wanted, rel=1e-5)


def test_a_batch_without_any_spread_keeps_one_sequence() -> None:
    (only,) = sequences_of([scored(0, Verdict.PASS), scored(1, Verdict.WRONG)], [0.0, 0.0])
    assert only.advantage == 0.0


def test_metrics_of_a_step() -> None:
    samples = [
        scored(0, Verdict.PASS, length=4, seconds=0.1),
        scored(0, Verdict.NO_ANSWER, length=10, seconds=0.2, truncated=True),
        scored(1, Verdict.TIMEOUT, length=6, seconds=3.0),
        scored(1, Verdict.INFRA_ERROR, length=20, seconds=0.4),
    ]
    found = experience_metrics(experience(*samples), [1.0, -1.0, 0.0])
    wanted = {
        "train/reward": 1 / 3,  # what could not be verified is no 0
        "train/zero_advantage_fraction": 1 / 3,
        "generation/length_mean": 10.0,
        "generation/length_max": 20.0,
        "generation/truncated_fraction": 0.25,
        "verify/pass": 0.25,
        "verify/wrong": 0.0,
        "verify/timeout": 0.25,
        "verify/infra_error": 0.25,
        "verify/seconds_p50": 0.4,
        "verify/seconds_p99": 3.0,
        "verify/latency_p99": 0.5,
        "verify/utilization": 0.5,
        "verify/queue_length_max": 5.0,
        "performance/tokens": 40.0,
    }
    assert {name: found[name] for name in wanted} == pytest.approx(wanted)


@pytest.mark.parametrize(("failed", "stops"), [(1, False), (2, True), (4, True)])
def test_too_many_infra_errors_stop_the_run(failed: int, stops: bool) -> None:
    samples = [scored(0, Verdict.INFRA_ERROR if i < failed else Verdict.WRONG) for i in range(4)]
    if not stops:
        _check_infra_errors(experience(*samples), CONFIG, step=0)
        return
    with pytest.raises(RunStopped, match=r"could not be verified, above .*=25.0%; the last said: 'detail'"):
        _check_infra_errors(experience(*samples), CONFIG, step=0)


def test_validation_accuracy_is_a_mean_over_prompts() -> None:
    verdicts = ("pass", "wrong"), ("pass", "infra_error", "pass", "pass"), ("wrong", "wrong")
    samples = [scored(prompt, Verdict(verdict)) for prompt, group in enumerate(verdicts) for verdict in group]
    found = {"accuracy": 0.5, "accuracy_error": math.sqrt(1 / 4 / 3), "pass_k": 2 / 3}
    assert accuracies(experience(*samples)) == pytest.approx(found)
    assert accuracies(experience(samples[0], samples[-1])) == pytest.approx({"accuracy": 0.5, "accuracy_error": 0.5})
    assert accuracies(experience(scored(0, Verdict.INFRA_ERROR))) == {}


def test_a_problem_with_tests_goes_to_the_code_verifier() -> None:
    columns: dict[str, Any] = {"id": "1", "question": "q", "starter_code": None, "response": None}
    math_problem = Problem(**columns, domain=Domain.MATH, answer="4", tests=None, fn_name=None)
    assert verification_task(math_problem, "said", VERIFIER) == MathTask("said", "4")
    tests = ({"input": "1", "output": "1", "testtype": "functional"},)
    code_problem = Problem(**columns, domain=Domain.CODE, answer=None, tests=tests, fn_name="f")
    task = verification_task(code_problem, "said", VERIFIER)
    assert isinstance(task, CodeTask)
    assert task == CodeTask(
        "said",
        tests,
        fn_name="f",
        timeout=2.0,
        budget=9.0,
        longest_first=True,
        min_isolation=IsolationLevel.SECCOMP,
    )


def test_what_length_costs_is_taken_off_the_reward_and_makes_a_spread() -> None:
    samples = [scored(0, Verdict.PASS, length) for length in (50, 90, 100)]
    config = replace(CONFIG, overlong_buffer_length=20, overlong_buffer_penalty=0.5)
    assert sample_rewards(samples, config, LIMIT) == pytest.approx([1.0, 0.75, 0.5])
    assert sample_rewards(samples, CONFIG, LIMIT) == [1.0, 1.0, 1.0]
    assert advantages_of(samples, config) == pytest.approx([1.0, 0.0, -1.0], abs=1e-4)


def test_dynamic_sampling_trains_on_the_first_prompts_whose_samples_differ() -> None:
    verdicts = [(Verdict.PASS, Verdict.PASS), (Verdict.WRONG, Verdict.PASS), (Verdict.WRONG, Verdict.WRONG)]
    samples = [scored(prompt, verdict) for prompt in range(9) for verdict in verdicts[prompt % 3]]
    kept, advantages = the_first_with_spread(samples, advantages_of(samples), 2)
    assert [sample.prompt_index for sample in kept] == [1, 1, 4, 4]
    assert advantages == advantages_of(kept)
    assert len(the_first_with_spread(samples, advantages_of(samples), 99)[0]) == 6
    equal = samples[:2]
    assert the_first_with_spread(equal, [0.0, 0.0], 2) == (equal, [0.0, 0.0])


def test_batches_of_a_step_are_joined_prompt_after_prompt() -> None:
    parts = [experience(scored(0, Verdict.PASS), scored(1, Verdict.WRONG)), experience(scored(0, Verdict.WRONG))]
    found = Experience.joined(parts, prompts_per_part=2)
    assert [sample.prompt_index for sample in found.samples] == [0, 1, 2]
    assert (found.generation_seconds, len(found.pools)) == (2.0, 4)


def test_samples_without_an_advantage_are_kept_where_the_loss_has_another_gradient_for_them() -> None:
    samples = [scored(0, Verdict.PASS), scored(1, Verdict.WRONG)]
    assert len(sequences_of(samples, [0.0, 0.0], entropy_bonus=0.1)) == 2
    assert len(sequences_of(samples, [0.0, 0.0], reference_policy_kl_penalty=0.1)) == 2


def test_a_kl_penalty_asks_for_the_reference_policys_log_probs_before_any_update() -> None:
    samples = [scored(prompt, verdict) for prompt in range(2) for verdict in (Verdict.PASS, Verdict.WRONG)]
    config = GRPOConfig(max_num_steps=1, num_prompts_per_step=2, updates_per_batch=2, reference_policy_kl_penalty=0.1)
    recorder = Recorder()
    update(recorder, samples, advantages_of(samples), config, LIMIT)  # type: ignore[arg-type]
    assert [name for name, _ in recorder.calls] == ["reference"] * 2 + ["log_probs", "train_step", "train_step"]
    first, second = recorder.calls[3][1], recorder.calls[4][1]
    assert [s.reference_log_probs for s in first + second] == [[-0.25] * 3] * 4
    assert [bool(s.old_log_probs) for s in first + second] == [False, False, True, True]
