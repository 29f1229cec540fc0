"""Losses over one packed micro-batch, and the sums from which the step's metrics are made.

Every loss is a plain sum: the weights of the micro-batch already hold the step's global normaliser, so packing,
micro-batch size and parallel layout cannot change the update. T: packed tokens.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from megatron_rl.policy.batch import MicroBatch

TokenLoss = Callable[[Tensor, Tensor, MicroBatch], tuple[Tensor, dict[str, Tensor]]]
"""([T] log-probs, [T] entropy, micro-batch) to (loss, sums of metrics); `tokens` counts what the sums run over."""


def sft_loss(log_probs_T: Tensor, entropy_T: Tensor, batch: MicroBatch) -> tuple[Tensor, dict[str, Tensor]]:
    """Negative log-likelihood of the response tokens: -sum_t w_t log p_t."""
    loss = -(batch.weights * log_probs_T).sum()
    return loss, _sums(loss, entropy_T, batch)


def policy_gradient_loss(
    log_probs_T: Tensor, entropy_T: Tensor, batch: MicroBatch, clip_min: float = 0.2, clip_max: float = 0.2
) -> tuple[Tensor, dict[str, Tensor]]:
    """-sum_t min(r_t w_t, clip(r_t, 1 - clip_min, 1 + clip_max) w_t) with r_t = pi(o_t) / pi_old(o_t) and
    w_t = A_t over the normaliser (arXiv 2505.16400, eq. 1).

    In a batch's first update pi_old is pi itself: r_t is 1 in value and its gradient that of the log-prob; clipping and
    old log-probs have nothing to do.
    """
    first = batch.old_log_probs is None
    ratio_T = torch.exp(log_probs_T - (log_probs_T.detach() if batch.old_log_probs is None else batch.old_log_probs))
    plain_T, clipped_T = ratio_T * batch.weights, ratio_T.clamp(1 - clip_min, 1 + clip_max) * batch.weights
    loss = -torch.minimum(plain_T, clipped_T).sum()
    sums = _sums(loss, entropy_T, batch)
    if not first:
        sums["clip_fraction"] = (clipped_T < plain_T).sum()
        return loss, sums
    log_ratio_T = (log_probs_T.detach() - batch.rollout_log_probs)[batch.response_mask].double()
    sums["token_mult_prob_error"] = log_ratio_T.abs().exp().sum()
    sums["gen_kl_error"] = (log_ratio_T.exp() - log_ratio_T - 1).sum()
    sums["sampling_importance_ratio"] = log_ratio_T.exp().sum()
    return loss, sums


def _sums(loss: Tensor, entropy_T: Tensor, batch: MicroBatch) -> dict[str, Tensor]:
    return {
        "tokens": batch.response_mask.sum(),
        "loss": loss.detach(),
        "entropy": entropy_T[batch.response_mask].sum(),
    }
