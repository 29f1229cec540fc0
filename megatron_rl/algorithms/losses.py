"""Losses over one packed micro-batch, and the sums from which the step's metrics are made.

Every loss is a plain sum: the weights of the micro-batch already hold the step's global normaliser, so packing,
micro-batch size and parallel layout cannot change the update. T: packed tokens.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from megatron_rl.config.schema import KLType, RolloutCorrection
from megatron_rl.policy.batch import MicroBatch

TokenLoss = Callable[[Tensor, Tensor, MicroBatch], tuple[Tensor, dict[str, Tensor]]]
"""([T] log-probs, [T] entropy, micro-batch) to (loss, sums of metrics); `tokens` counts what the sums run over."""


def sft_loss(log_probs_T: Tensor, entropy_T: Tensor, batch: MicroBatch) -> tuple[Tensor, dict[str, Tensor]]:
    """Negative log-likelihood of the response tokens: -sum_t w_t log p_t."""
    loss = -(batch.weights * log_probs_T).sum()
    return loss, _sums(entropy_T, batch) | {"loss": loss.detach()}


@dataclass(frozen=True, slots=True)
class PolicyGradient:
    """Settings of `policy_gradient_loss`; the defaults are the paper's loss.

    Attributes:
        clip_min, clip_max: the ratio is clipped to [1 - clip_min, 1 + clip_max].
        dual_clip: c > 1 of arXiv 1912.09729, eq. 5: a bad token's objective is not below c times its advantage.
        kl_penalty, kl_type: beta and the estimator of the KL divergence to the reference policy.
        entropy_bonus: what the mean entropy counts.
        correction, correction_max: of the difference between engine and policy, and where its weight is cut off.
    """

    clip_min: float = 0.2
    clip_max: float = 0.2
    dual_clip: float | None = None
    kl_penalty: float = 0.0
    kl_type: KLType = KLType.K3
    entropy_bonus: float = 0.0
    correction: RolloutCorrection = RolloutCorrection.NONE
    correction_max: float = 2.0

    @property
    def needs_every_sample(self) -> bool:
        """Samples without an advantage have a gradient too."""
        return self.kl_penalty > 0 or self.entropy_bonus > 0


def policy_gradient_loss(
    log_probs_T: Tensor, entropy_T: Tensor, batch: MicroBatch, settings: PolicyGradient = PolicyGradient()
) -> tuple[Tensor, dict[str, Tensor]]:
    """-sum_t w_t (min(r_t A_t, clip(r_t, 1 - clip_min, 1 + clip_max) A_t) - beta KL_t + c H_t) with
    r_t = pi(o_t) / pi_old(o_t) and w_t one over the normaliser (arXiv 2505.16400, eq. 1, where beta = c = 0).

    In a batch's first update pi_old is pi itself: r_t is 1 in value and its gradient that of the log-prob; clipping and
    old log-probs have nothing to do.
    """
    first = batch.old_log_probs is None
    old_T = log_probs_T.detach() if batch.old_log_probs is None else batch.old_log_probs
    ratio_T = torch.exp(log_probs_T - old_T)
    objective_T, is_clipped_T = clipped_objective(ratio_T, batch.advantages, settings)
    sums = _sums(entropy_T, batch)
    if settings.correction is not RolloutCorrection.NONE:
        weights_T = correction_weights(old_T, batch, settings)
        objective_T = objective_T * weights_T
        sums["correction_weight"] = weights_T[batch.response_mask].sum()
    if settings.kl_penalty > 0:
        assert batch.reference_log_probs is not None
        kl_T = kl_to_reference(log_probs_T, batch.reference_log_probs, settings.kl_type)
        objective_T = objective_T - settings.kl_penalty * kl_T
        sums["reference_kl"] = kl_T.detach()[batch.response_mask].sum()
    if settings.entropy_bonus > 0:
        objective_T = objective_T + settings.entropy_bonus * entropy_T
    loss = -(batch.weights * objective_T).sum()
    sums["loss"] = loss.detach()
    return loss, sums | (_mismatch(log_probs_T, batch) if first else {"clip_fraction": is_clipped_T.sum()})


def clipped_objective(ratio_T: Tensor, advantages_T: Tensor, settings: PolicyGradient) -> tuple[Tensor, Tensor]:
    """[T] what PPO maximises (arXiv 1707.06347, eq. 7; with different bounds arXiv 2503.14476, eq. 10; with dual clip
    arXiv 1912.09729, eq. 5), and where it is clipped."""
    plain_T = ratio_T * advantages_T
    clipped_T = ratio_T.clamp(1 - settings.clip_min, 1 + settings.clip_max) * advantages_T
    objective_T = torch.minimum(plain_T, clipped_T)
    if settings.dual_clip is not None:
        least_T = torch.where(advantages_T < 0, settings.dual_clip * advantages_T, -torch.inf)
        return torch.maximum(objective_T, least_T), (clipped_T < plain_T) | (objective_T < least_T)
    return objective_T, clipped_T < plain_T


def kl_to_reference(log_probs_T: Tensor, reference_T: Tensor, kind: KLType) -> Tensor:
    """[T] estimates of KL(pi || reference) from the policy's own samples (Schulman, "Approximating KL divergence").

    k1, log(pi / ref), has the right value, but its own gradient is zero on average: it is given that of
    log(pi / ref) as a cost, k1 times the log-prob's gradient, which is the divergence's (arXiv 2506.09477). k3,
    ref / pi - 1 - log(ref / pi), is never negative, and its gradient as it stands is what GRPO was published with
    (arXiv 2402.03300, eq. 4).
    """
    log_ratio_T = reference_T - log_probs_T
    if kind is KLType.K1:
        cost_T = -log_ratio_T.detach()
        return cost_T * torch.exp(log_probs_T - log_probs_T.detach())
    return torch.exp(log_ratio_T) - log_ratio_T - 1


def correction_weights(old_T: Tensor, batch: MicroBatch, settings: PolicyGradient) -> Tensor:
    """[T] min(pi_old / rollout, `correction_max`), by token or of the whole response: truncated importance sampling for
    samples that the engine drew a little differently."""
    log_ratio_T = torch.where(batch.response_mask, old_T.detach() - batch.rollout_log_probs, 0.0)
    if settings.correction is RolloutCorrection.SEQUENCE:
        log_ratio_T = batch.sequence_sums(log_ratio_T)
    return log_ratio_T.exp().clamp(max=settings.correction_max)


def _mismatch(log_probs_T: Tensor, batch: MicroBatch) -> dict[str, Tensor]:
    log_ratio_T = (log_probs_T.detach() - batch.rollout_log_probs)[batch.response_mask].double()
    return {
        "token_mult_prob_error": log_ratio_T.abs().exp().sum(),
        "gen_kl_error": (log_ratio_T.exp() - log_ratio_T - 1).sum(),
        "sampling_importance_ratio": log_ratio_T.exp().sum(),
    }


def _sums(entropy_T: Tensor, batch: MicroBatch) -> dict[str, Tensor]:
    return {"tokens": batch.response_mask.sum(), "entropy": entropy_T.detach()[batch.response_mask].sum()}
