"""From scored samples to what the policy is trained on: rewards, advantages, weights."""

import statistics
from collections.abc import Callable, Sequence

from megatron_rl.algorithms.advantages import group_advantages
from megatron_rl.algorithms.losses import PolicyGradient
from megatron_rl.algorithms.normalizers import token_weights
from megatron_rl.algorithms.rewards import overlong_penalty
from megatron_rl.config.schema import GRPOConfig
from megatron_rl.experience import ScoredSample
from megatron_rl.policy.batch import TrainSequence


def sample_rewards(samples: Sequence[ScoredSample], config: GRPOConfig, max_new_tokens: int) -> list[float]:
    """The reward of every sample: its verdict's, less what its length costs."""
    buffer = config.overlong_buffer_length
    if buffer == 0:
        return [sample.reward for sample in samples]
    return [
        sample.reward + config.overlong_buffer_penalty * overlong_penalty(sample.sample.length, max_new_tokens, buffer)
        for sample in samples
    ]


def sample_advantages(samples: Sequence[ScoredSample], rewards: Sequence[float], config: GRPOConfig) -> list[float]:
    """The advantage of every sample within its prompt's group; samples of a group stand together."""
    groups: dict[int, list[float]] = {}
    for sample, reward in zip(samples, rewards, strict=True):
        groups.setdefault(sample.prompt_index, []).append(reward)
    return [advantage for group in groups.values() for advantage in group_advantages(group, config.reward_std)]


def prompts_with_spread(samples: Sequence[ScoredSample], advantages: Sequence[float]) -> list[int]:
    """Prompts, in order, whose samples differ in their rewards."""
    return sorted({s.prompt_index for s, advantage in zip(samples, advantages, strict=True) if advantage != 0.0})


def mean_by_problem(
    indices: Sequence[int], samples: Sequence[ScoredSample], value: Callable[[ScoredSample], float]
) -> dict[int, float]:
    """The mean of a value over the samples of each problem; `indices` are those of the step's prompts."""
    groups: dict[int, list[float]] = {}
    for sample in samples:
        groups.setdefault(indices[sample.prompt_index], []).append(value(sample))
    return {index: statistics.fmean(values) for index, values in groups.items()}


def loss_settings(config: GRPOConfig) -> PolicyGradient:
    """Those of the policy gradient loss."""
    return PolicyGradient(
        clip_min=config.ratio_clip_min,
        clip_max=config.ratio_clip_max,
        dual_clip=config.ratio_clip_c,
        kl_penalty=config.reference_policy_kl_penalty,
        kl_type=config.reference_policy_kl_type,
        entropy_bonus=config.entropy_bonus,
        correction=config.rollout_correction,
        correction_max=config.rollout_correction_max,
    )


def to_sequences(
    samples: Sequence[ScoredSample], advantages: Sequence[float], config: GRPOConfig, max_new_tokens: int
) -> list[TrainSequence]:
    """What the policy trains on: samples that have a gradient, weighted over all response tokens of the batch.

    With `overlong_filtering` truncated samples are left out, of the normaliser too.

    Groups without spread have no gradient, where nothing but the advantage gives one, and are left out of forward and
    backward, yet they stay in the normaliser: leaving them out saves time and changes nothing. A step of only such
    groups keeps one sample, on which the mismatch between engine and policy is measured.
    """
    kept = [
        (sample, advantage)
        for sample, advantage in zip(samples, advantages, strict=True)
        if not (config.overlong_filtering and sample.sample.truncated)
    ]
    if not kept:
        return []
    weights = token_weights(
        [sample.sample.length for sample, _ in kept],
        [sample.prompt_index for sample, _ in kept],
        config.loss_normalizer,
        max_new_tokens,
    )
    sequences = [
        TrainSequence(
            tokens=sample.sample.request.prompt_tokens + sample.sample.tokens,
            prompt_length=len(sample.sample.request.prompt_tokens),
            weight=weight,
            advantage=advantage,
            rollout_log_probs=sample.sample.log_probs,
        )
        for (sample, advantage), weight in zip(kept, weights, strict=True)
    ]
    if loss_settings(config).needs_every_sample:
        return sequences
    return [sequence for sequence in sequences if sequence.advantage != 0.0] or sequences[:1]
