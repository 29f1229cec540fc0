"""One GRPO step: one batch and, on-policy, one update without old log-probs (arXiv 2505.16400, section 3.1)."""

import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from megatron_rl.algorithms.advantages import group_advantages
from megatron_rl.algorithms.losses import policy_gradient_loss
from megatron_rl.config.schema import GenerationConfig, GRPOConfig
from megatron_rl.errors import RunStopped
from megatron_rl.experience import Experience, ScoredSample
from megatron_rl.mismatch import SKIPPED, Mismatch, check_mismatch, mismatch_bound, refuse_batch
from megatron_rl.policy.batch import TrainSequence
from megatron_rl.policy.policy import Policy, StepCheck
from megatron_rl.rollout.samples import Sampling
from megatron_rl.stage import Stage
from megatron_rl.validate import sample_record
from verifiers.metrics import percentile
from verifiers.verdict import Verdict


def grpo_step(stage: Stage, step: int) -> dict[str, float]:
    """Generate, verify, and update; the step's metrics.

    Raises:
        RunStopped: samples are not of the policy that is trained, or verification is broken.
    """
    config, generation = stage.config.grpo, stage.config.generation
    assert config is not None
    assert generation is not None
    assert stage.experience is not None
    assert stage.rollout is not None
    indices = stage.batch(step, config.num_prompts_per_step)
    prompt_set = stage.train_set.take(indices)
    temperature = temperature_of(generation, stage.epoch(step, config.num_prompts_per_step))
    stage.policy.temperature = temperature
    sampling = Sampling(temperature, generation.top_p, generation.top_k, generation.max_new_tokens)
    experience = stage.experience.collect(
        prompt_set.problems,
        prompt_set.prompts,
        config.num_generations_per_prompt,
        sampling,
        seed=f"{stage.config.seed}/{step}",
        on_progress=stage.show,
        may_stop=True,
        expected_lengths=stage.expected_lengths(indices),
    )
    stage.lengths |= mean_lengths(indices, experience)
    stage.end_phase("generation", experience.generation_seconds)
    stage.end_phase("verification_wait", experience.verification_wait_seconds)
    _check_versions(experience, step)
    _check_infra_errors(experience, config, step)
    scored = [sample for sample in experience.samples if sample.result.verdict is not Verdict.INFRA_ERROR]
    advantages = sample_advantages(scored)
    with stage.phase("policy_training"):
        stage.rollout.sleep()
        check = partial(check_mismatch, bound=mismatch_bound(stage.config))
        try:
            result = update(stage.policy, scored, advantages, config, check) | {SKIPPED: 0.0}
        except Mismatch as mismatch:
            result = refuse_batch(stage, step, scored, prompt_set.problems, mismatch)
    stage.log_samples(
        f"step_{step + 1}",
        [
            sample_record(sample, prompt_set, step + 1, "train", advantage)
            for sample, advantage in list(zip(scored, advantages, strict=True))[: stage.config.logger.samples_per_step]
        ],
    )
    metrics = experience_metrics(experience, advantages) | {"generation/temperature": temperature}
    return {f"train/{name}": value for name, value in result.items()} | metrics


def mean_lengths(indices: Sequence[int], experience: Experience) -> dict[int, float]:
    """Mean length of the responses to each problem of the step, in tokens."""
    groups: dict[int, list[int]] = {}
    for sample in experience.samples:
        groups.setdefault(indices[sample.prompt_index], []).append(len(sample.sample.tokens))
    return {index: statistics.fmean(lengths) for index, lengths in groups.items()}


def temperature_of(generation: GenerationConfig, epoch: int) -> float:
    """The sampling temperature in an epoch, counted from 0."""
    by_epoch = generation.temperature_by_epoch or (generation.temperature,)
    return by_epoch[min(epoch, len(by_epoch) - 1)]


def update(
    policy: Policy,
    samples: Sequence[ScoredSample],
    advantages: Sequence[float],
    config: GRPOConfig,
    check: StepCheck | None = None,
) -> dict[str, float]:
    """The optimizer steps of a batch, each on its share of the prompts.

    Args:
        check: what it raises of the metrics of an update stops that one and those after it.

    Returns:
        Metrics as means over the updates; those of the mismatch with the engine are of the first one.
    """
    loss = partial(policy_gradient_loss, clip_min=config.ratio_clip_min, clip_max=config.ratio_clip_max)
    share = config.num_prompts_per_step // config.updates_per_batch
    shares: list[list[TrainSequence]] = []
    for number in range(config.updates_per_batch):
        mine = [i for i, sample in enumerate(samples) if sample.prompt_index // share == number]
        members = [samples[i] for i in mine]
        shares.append(to_sequences(members, [advantages[i] for i in mine], config.overlong_filtering))
    shares = [sequences for sequences in shares if sequences]
    for later in shares[1:]:
        later[:] = [
            replace(sequence, old_log_probs=old) for sequence, old in zip(later, policy.log_probs(later), strict=True)
        ]
    results = [policy.train_step(sequences, loss, check) for sequences in shares]
    policy.skip_updates(config.updates_per_batch - len(shares))
    names = {name for result in results for name in result}
    return {name: statistics.fmean(result[name] for result in results if name in result) for name in sorted(names)}


def sample_advantages(samples: Sequence[ScoredSample]) -> list[float]:
    """The advantage of every sample within its prompt's group; samples of a group stand together."""
    groups: dict[int, list[float]] = {}
    for sample in samples:
        groups.setdefault(sample.prompt_index, []).append(sample.reward)
    return [advantage for rewards in groups.values() for advantage in group_advantages(rewards)]


def to_sequences(
    samples: Sequence[ScoredSample], advantages: Sequence[float], overlong_filtering: bool = False
) -> list[TrainSequence]:
    """What the policy trains on: samples with an advantage, weighted over all response tokens of the batch.

    With `overlong_filtering` truncated samples are left out, of the normaliser too.

    Groups without spread have no gradient and are left out of forward and backward, yet their tokens stay in the
    normaliser: leaving them out saves time and changes nothing. A step of only such groups keeps one sample, of weight
    0, on which the mismatch between engine and policy is measured.
    """
    kept = [
        (sample, advantage)
        for sample, advantage in zip(samples, advantages, strict=True)
        if not (overlong_filtering and sample.sample.truncated)
    ]
    tokens = sum(len(sample.sample.tokens) for sample, _ in kept)
    sequences = [
        TrainSequence(
            tokens=sample.sample.request.prompt_tokens + sample.sample.tokens,
            prompt_length=len(sample.sample.request.prompt_tokens),
            weight=advantage / tokens,
            rollout_log_probs=sample.sample.log_probs,
        )
        for sample, advantage in kept
    ]
    return [sequence for sequence in sequences if sequence.weight != 0.0] or sequences[:1]


def experience_metrics(experience: Experience, advantages: Sequence[float]) -> dict[str, float]:
    """Metrics of generation and verification over all samples of the step."""
    samples = experience.samples
    verdicts = Counter(sample.result.verdict for sample in samples)
    lengths = [len(sample.sample.tokens) for sample in samples]
    seconds = sorted(sample.result.seconds for sample in samples if not sample.sample.truncated)
    scored = [sample.reward for sample in samples if sample.result.verdict is not Verdict.INFRA_ERROR]
    return {
        "train/reward": statistics.fmean(scored),
        "train/zero_advantage_fraction": sum(a == 0.0 for a in advantages) / len(advantages),
        "generation/length_mean": statistics.fmean(lengths),
        "generation/length_max": float(max(lengths)),
        "generation/truncated_fraction": sum(sample.sample.truncated for sample in samples) / len(samples),
        **{f"verify/{verdict.value}": verdicts[verdict] / len(samples) for verdict in Verdict},
        "verify/seconds_p50": percentile(seconds, 0.50),
        "verify/seconds_p99": percentile(seconds, 0.99),
        "verify/latency_p99": max(pool.latency_p99 for pool in experience.pools),
        "verify/utilization": statistics.fmean(pool.utilization for pool in experience.pools),
        "verify/queue_length_max": float(max(pool.max_queue_length for pool in experience.pools)),
        "generation/engine_restarts": float(experience.engine_restarts),
        "timing/engine_recovery": experience.engine_recovery_seconds,  # a part of the other timings
        "performance/tokens": float(sum(lengths)),
    }


def _check_versions(experience: Experience, step: int) -> None:
    """Weights that are behind by one small update pass the gate by their log-probs: their version does not."""
    off_policy = [s.sample for s in experience.samples if s.sample.policy_version != step]
    if off_policy:
        raise RunStopped(
            f"step {step + 1}: {len(off_policy)} of {len(experience.samples)} samples are of policy version "
            f"{off_policy[0].policy_version} and not of version {step}, which is trained (the first: prompt "
            f"{off_policy[0].request.prompt_index}, sample {off_policy[0].request.sample_index}): an engine missed a "
            "weight sync. Nothing of the batch was trained on; start the same command again, and report it"
        )


def _check_infra_errors(experience: Experience, config: GRPOConfig, step: int) -> None:
    failed = [s for s in experience.samples if s.result.verdict is Verdict.INFRA_ERROR]
    share = len(failed) / len(experience.samples)
    if share > config.max_infra_error_fraction:
        raise RunStopped(
            f"step {step + 1}: {share:.1%} of the samples could not be verified, above "
            f"grpo.max_infra_error_fraction={config.max_infra_error_fraction:.1%}; the last said: "
            f"{failed[-1].result.detail!r}. Mend the verifier and start the same command again"
        )
