"""One GRPO step: one batch and, on-policy, one update without old log-probs (arXiv 2505.16400, section 3.1)."""

import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from megatron_rl.algorithms.losses import policy_gradient_loss
from megatron_rl.config.schema import GenerationConfig, GRPOConfig
from megatron_rl.data.prompts import load_tokenizer
from megatron_rl.errors import RunStopped
from megatron_rl.experience import Experience, ScoredSample
from megatron_rl.guards import Records, guarded_update
from megatron_rl.mismatch import mismatch_records, worst_tokens
from megatron_rl.policy.batch import TrainSequence
from megatron_rl.policy.policy import Policy, StepCheck
from megatron_rl.rollout.samples import Sampling
from megatron_rl.stage import Stage
from megatron_rl.training_batch import (
    loss_settings,
    mean_by_problem,
    prompts_with_spread,
    sample_advantages,
    sample_rewards,
    to_sequences,
)
from megatron_rl.validate import sample_record
from verifiers.metrics import percentile
from verifiers.verdict import Verdict


def grpo_step(stage: Stage, step: int) -> dict[str, float]:
    """Generate, verify, and update; the step's metrics.

    Raises:
        RunStopped: samples are not of the policy that is trained, verification is broken, or a guard says so.
    """
    config, generation = stage.config.grpo, stage.config.generation
    assert config is not None
    assert generation is not None
    assert stage.rollout is not None
    temperature = temperature_of(generation, stage.stream.next_epoch)
    stage.policy.temperature = temperature
    sampling = Sampling(temperature, generation.top_p, generation.top_k, generation.max_new_tokens)
    indices, experience = gather(stage, step, sampling)
    prompt_set = stage.train_set.take(indices)
    _check_infra_errors(experience, config, step)
    samples = verified(experience)
    stage.lengths |= mean_by_problem(indices, experience.samples, lambda sample: sample.sample.length)
    stage.pass_rates |= mean_by_problem(indices, samples, lambda sample: sample.reward)
    rewards = sample_rewards(samples, config, generation.max_new_tokens)
    advantages = sample_advantages(samples, rewards, config)
    metrics = experience_metrics(experience, advantages) | {"generation/temperature": temperature}
    if config.overlong_buffer_length:
        metrics["train/shaped_reward"] = statistics.fmean(rewards)
    if config.dynamic_sampling_max_batches > 1:
        metrics["generation/batches"] = len(indices) / config.num_prompts_per_step
        samples, advantages = the_first_with_spread(samples, advantages, config.num_prompts_per_step)
    records = [
        sample_record(sample, prompt_set, step + 1, "train", advantage)
        for sample, advantage in zip(samples, advantages, strict=True)
    ]
    with stage.phase("policy_training"):
        stage.rollout.sleep()
        metrics |= guarded_update(
            stage,
            step,
            metrics,
            partial(update, stage.policy, samples, advantages, config, generation.max_new_tokens),
            partial(describe, stage, records, samples),
        )
    stage.log_samples(f"step_{step + 1}", records[: stage.config.logger.samples_per_step])
    return metrics


def gather(stage: Stage, step: int, sampling: Sampling) -> tuple[list[int], Experience]:
    """The step's samples, and the indices of the problems that they answer: one batch of them, or with dynamic sampling
    as many as it takes until enough have samples of different rewards (DAPO, arXiv 2503.14476, section 3.2).

    Raises:
        RunStopped: samples are not of the policy that is trained, or an engine dies again and again.
        Preempted: on all ranks.
    """
    config = stage.config.grpo
    assert config is not None
    indices: list[int] = []
    parts: list[Experience] = []
    for number in range(config.dynamic_sampling_max_batches):
        batch = stage.stream.take(config.num_prompts_per_step)
        part = _recall_or_collect(stage, step, number, batch, sampling)
        stage.end_phase("generation", part.generation_seconds)
        stage.end_phase("verification_wait", part.verification_wait_seconds)
        _check_versions(part, step)
        indices += batch
        parts.append(part)
        experience = Experience.joined(parts, config.num_prompts_per_step)
        samples = verified(experience)
        rewards = sample_rewards(samples, config, sampling.max_new_tokens)
        found = prompts_with_spread(samples, sample_advantages(samples, rewards, config))
        if len(found) >= config.num_prompts_per_step:
            break
    return indices, experience


def _recall_or_collect(stage: Stage, step: int, number: int, batch: Sequence[int], sampling: Sampling) -> Experience:
    """Batch `number` of a step: from the journal of an earlier start, or generated and verified now."""
    assert stage.experience is not None
    assert stage.config.grpo is not None
    prompt_set, samples = stage.train_set.take(batch), stage.config.grpo.num_generations_per_prompt
    seed = f"{stage.config.seed}/{step}" + (f"/{number}" if number else "")
    asked = stage.journal.asked(prompt_set.prompts, samples, sampling, seed)
    known = stage.journal.read(step, number, asked, prompt_set.prompts)
    if known is not None:
        return known
    experience = stage.experience.collect(
        prompt_set.problems,
        prompt_set.prompts,
        samples,
        sampling,
        seed,
        on_progress=stage.show,
        may_stop=True,
        expected_lengths=stage.expected_lengths(batch),
    )
    with stage.phase("journal"):
        try:
            stage.journal.write(step, number, asked, experience)
        except OSError as error:
            stage.warn(f"step {step + 1}: its samples are not in the journal: {error}; a crash would cost them")
    return experience


def verified(experience: Experience) -> list[ScoredSample]:
    """The samples that have a verdict."""
    return [sample for sample in experience.samples if sample.result.verdict is not Verdict.INFRA_ERROR]


def the_first_with_spread(
    samples: Sequence[ScoredSample], advantages: Sequence[float], count: int
) -> tuple[list[ScoredSample], list[float]]:
    """The samples of the first `count` prompts whose rewards differ, and their advantages; all if no prompt's do."""
    chosen = prompts_with_spread(samples, advantages)[:count] or {sample.prompt_index for sample in samples}
    kept = [pair for pair in zip(samples, advantages, strict=True) if pair[0].prompt_index in chosen]
    return [sample for sample, _ in kept], [advantage for _, advantage in kept]


def temperature_of(generation: GenerationConfig, epoch: int) -> float:
    """The sampling temperature in an epoch, counted from 0."""
    by_epoch = generation.temperature_by_epoch or (generation.temperature,)
    return by_epoch[min(epoch, len(by_epoch) - 1)]


def update(
    policy: Policy,
    samples: Sequence[ScoredSample],
    advantages: Sequence[float],
    config: GRPOConfig,
    max_new_tokens: int,
    check: StepCheck | None = None,
) -> dict[str, float]:
    """The optimizer steps of a batch, each on its share of the prompts.

    Args:
        check: what it raises of the metrics of an update stops that one and those after it.

    Returns:
        Metrics as means over the updates; those of the mismatch with the engine are of the first one.
    """
    settings = loss_settings(config)
    size = config.num_prompts_per_step // config.updates_per_batch
    places = {prompt: place for place, prompt in enumerate(sorted({sample.prompt_index for sample in samples}))}
    shares: list[list[TrainSequence]] = []
    for number in range(config.updates_per_batch):
        mine = [i for i, sample in enumerate(samples) if places[sample.prompt_index] // size == number]
        members = [samples[i] for i in mine]
        shares.append(to_sequences(members, [advantages[i] for i in mine], config, max_new_tokens))
    shares = [sequences for sequences in shares if sequences]
    if settings.kl_penalty > 0:
        for sequences in shares:
            found = policy.reference_log_probs(sequences)
            sequences[:] = [replace(s, reference_log_probs=x) for s, x in zip(sequences, found, strict=True)]
    for later in shares[1:]:
        found = policy.log_probs(later)
        later[:] = [replace(sequence, old_log_probs=old) for sequence, old in zip(later, found, strict=True)]
    loss = partial(policy_gradient_loss, settings=settings)
    results = [policy.train_step(sequences, loss, check) for sequences in shares]
    policy.skip_updates(config.updates_per_batch - len(shares))
    names = {name for result in results for name in result}
    return {name: statistics.fmean(result[name] for result in results if name in result) for name in sorted(names)}


def describe(stage: Stage, records: Records, samples: Sequence[ScoredSample]) -> tuple[Records, str]:
    """A batch that is not trained on: the records with the policy's log-probs, the worst sample first, and its worst
    tokens for people; called by all ranks together."""
    prompts = [sample.sample.request.prompt_tokens for sample in samples]
    log_probs = stage.policy.log_probs(
        [
            TrainSequence(prompt + sample.sample.tokens, len(prompt), weight=0.0)
            for prompt, sample in zip(prompts, samples, strict=True)
        ]
    )
    found = mismatch_records(records, samples, log_probs, load_tokenizer(stage.folder))
    return found, worst_tokens(found)


def experience_metrics(experience: Experience, advantages: Sequence[float]) -> dict[str, float]:
    """Metrics of generation and verification over all samples of the step."""
    samples = experience.samples
    verdicts = Counter(sample.result.verdict for sample in samples)
    lengths = [sample.sample.length for sample in samples]
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
