"""Losses on hand-made micro-batches: value, gradient and the sums behind the metrics."""

import math

import pytest
import torch
from torch import Tensor

from megatron_rl.algorithms.losses import TokenLoss, policy_gradient_loss, sft_loss
from megatron_rl.policy.batch import MicroBatch, Share, TrainSequence, micro_batches

SEQUENCES = [
    TrainSequence((1, 2, 3, 4), 2, 0.25, (-1.0, -2.0)),
    TrainSequence((5, 6, 7), 1, -0.5, (-0.5, -3.0)),
]


@pytest.fixture
def batch() -> MicroBatch:
    (batch,) = micro_batches(SEQUENCES, Share(multiple=4), budget=100, device=torch.device("cpu"))
    return batch


def log_probs_of(batch: MicroBatch) -> Tensor:
    return torch.linspace(-3, -0.25, len(batch.tokens)).requires_grad_()


def test_the_policy_gradient_loss_at_ratio_one_is_minus_the_sum_of_weights(batch: MicroBatch) -> None:
    loss, _ = policy_gradient_loss(log_probs_of(batch), torch.zeros(len(batch.tokens)), batch)
    assert float(loss) == -(0.25 * 2 - 0.5 * 2)


def test_its_gradient_is_minus_the_weights(batch: MicroBatch) -> None:
    """d/dlogp of -sum r w at r = 1 is -w: the policy gradient, in float64 autograd as in float32."""
    log_probs = log_probs_of(batch)
    policy_gradient_loss(log_probs, torch.zeros(len(batch.tokens)), batch)[0].backward()
    in_double = log_probs.detach().double().requires_grad_()
    old = log_probs.detach().double()
    (-(torch.exp(in_double - old) * batch.weights.double()).sum()).backward()
    assert log_probs.grad is not None
    torch.testing.assert_close(log_probs.grad, -batch.weights, rtol=0, atol=0)
    torch.testing.assert_close(log_probs.grad.double(), in_double.grad, rtol=1e-7, atol=0)


def test_the_sft_loss_is_the_weighted_negative_log_likelihood(batch: MicroBatch) -> None:
    log_probs = log_probs_of(batch)
    loss, _ = sft_loss(log_probs, torch.zeros(len(batch.tokens)), batch)
    wanted = -sum(w * p for w, p in zip(batch.weights.tolist(), log_probs.tolist(), strict=True))
    assert float(loss) == pytest.approx(wanted, rel=1e-6)
    loss.backward()
    assert log_probs.grad is not None
    assert torch.equal(log_probs.grad, -batch.weights)


def test_against_old_log_probs_the_ratio_is_clipped_only_where_that_lowers_the_objective() -> None:
    """Ratios 2, 0.5, 1.1 for a good sample (weight 0.25) and 2, 0.5 for a bad one (weight -0.5)."""
    steps = [[math.log(2), math.log(0.5), math.log(1.1)], [math.log(2), math.log(0.5)]]
    sequences = [
        TrainSequence((1, 2, 3, 4), 1, 0.25, old_log_probs=[-1.0 - d for d in steps[0]]),
        TrainSequence((5, 6, 7), 1, -0.5, old_log_probs=[-1.0 - d for d in steps[1]]),
    ]
    (batch,) = micro_batches(sequences, Share(), budget=100, device=torch.device("cpu"))
    log_probs = torch.full((5,), -1.0, requires_grad=True)
    loss, sums = policy_gradient_loss(log_probs, torch.zeros(5), batch, clip_min=0.3, clip_max=0.4)
    loss.backward()
    assert float(loss) == pytest.approx(-(0.25 * (1.4 + 0.5 + 1.1) - 0.5 * (2 + 0.7)), rel=1e-6)
    assert log_probs.grad is not None
    wanted = [0.0, -0.25 * 0.5, -0.25 * 1.1, 0.5 * 2, 0.0]
    assert log_probs.grad.tolist() == pytest.approx(wanted, rel=1e-5)
    assert int(sums["clip_fraction"]) == 2


@pytest.mark.parametrize("loss", [sft_loss, policy_gradient_loss])
def test_prompt_and_filler_tokens_weigh_nothing(batch: MicroBatch, loss: TokenLoss) -> None:
    entropy = torch.linspace(1, 2, len(batch.tokens))
    plain, sums = loss(log_probs_of(batch), entropy, batch)
    outside = torch.where(batch.response_mask, 0.0, 5.0)
    other, other_sums = loss(log_probs_of(batch) - outside, entropy + outside, batch)
    assert float(plain) == float(other)
    assert {name: float(value) for name, value in sums.items()} == {k: float(v) for k, v in other_sums.items()}


def test_mismatch_metrics_by_hand(batch: MicroBatch) -> None:
    """Each response token's log-prob is the rollout's plus a difference."""
    differences = [0.1, -0.2, 0.0, 0.3]
    log_probs = batch.rollout_log_probs.clone()
    log_probs[batch.response_mask] += torch.tensor(differences)
    entropy = torch.arange(len(batch.tokens), dtype=torch.float32)
    _, sums = policy_gradient_loss(log_probs, entropy, batch)
    assert int(sums["tokens"]) == 4
    assert float(sums["entropy"]) == float(entropy[batch.response_mask].sum())
    wanted = {
        "token_mult_prob_error": sum(math.exp(abs(d)) for d in differences),
        "sampling_importance_ratio": sum(math.exp(d) for d in differences),
        "gen_kl_error": sum(math.exp(d) - d - 1 for d in differences),
    }
    for name, value in wanted.items():
        assert float(sums[name]) == pytest.approx(value, rel=1e-5), name


def test_log_probs_equal_to_the_rollouts_are_no_mismatch(batch: MicroBatch) -> None:
    _, sums = policy_gradient_loss(batch.rollout_log_probs.clone(), torch.zeros(len(batch.tokens)), batch)
    assert float(sums["token_mult_prob_error"]) == 4
    assert float(sums["sampling_importance_ratio"]) == 4
    assert float(sums["gen_kl_error"]) == 0


def test_sft_has_no_mismatch_metrics(batch: MicroBatch) -> None:
    _, sums = sft_loss(log_probs_of(batch), torch.zeros(len(batch.tokens)), batch)
    assert sums.keys() == {"tokens", "loss", "entropy"}
