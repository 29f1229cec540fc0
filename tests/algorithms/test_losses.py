"""Losses on hand-made micro-batches: value, gradient and the sums behind the metrics."""

import math
import os
import random
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from megatron_rl.algorithms.losses import PolicyGradient, TokenLoss, kl_to_reference, policy_gradient_loss, sft_loss
from megatron_rl.config.schema import KLType, RolloutCorrection
from megatron_rl.policy.batch import MicroBatch, Share, TrainSequence, micro_batches

SEQUENCES = [
    TrainSequence((1, 2, 3, 4), 2, 0.5, 0.5, (-1.0, -2.0)),
    TrainSequence((5, 6, 7), 1, 0.5, -1.0, (-0.5, -3.0)),
]


@pytest.fixture
def batch() -> MicroBatch:
    (batch,) = micro_batches(SEQUENCES, Share(multiple=4), budget=100, device=torch.device("cpu"))
    return batch


def log_probs_of(batch: MicroBatch) -> Tensor:
    return torch.linspace(-3, -0.25, len(batch.tokens)).requires_grad_()


def test_the_policy_gradient_loss_at_ratio_one_is_minus_the_weighted_sum_of_advantages(batch: MicroBatch) -> None:
    loss, _ = policy_gradient_loss(log_probs_of(batch), torch.zeros(len(batch.tokens)), batch)
    assert float(loss) == -(0.25 * 2 - 0.5 * 2)


def test_its_gradient_is_minus_the_weighted_advantages(batch: MicroBatch) -> None:
    """d/dlogp of -sum r w A at r = 1 is -w A: the policy gradient, in float64 autograd as in float32."""
    log_probs = log_probs_of(batch)
    policy_gradient_loss(log_probs, torch.zeros(len(batch.tokens)), batch)[0].backward()
    in_double = log_probs.detach().double().requires_grad_()
    old = log_probs.detach().double()
    factors = batch.weights * batch.advantages
    (-(torch.exp(in_double - old) * factors.double()).sum()).backward()
    assert log_probs.grad is not None
    torch.testing.assert_close(log_probs.grad, -factors, rtol=0, atol=0)
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
        TrainSequence((1, 2, 3, 4), 1, 0.25, 1.0, old_log_probs=[-1.0 - d for d in steps[0]]),
        TrainSequence((5, 6, 7), 1, 0.5, -1.0, old_log_probs=[-1.0 - d for d in steps[1]]),
    ]
    (batch,) = micro_batches(sequences, Share(), budget=100, device=torch.device("cpu"))
    log_probs = torch.full((5,), -1.0, requires_grad=True)
    loss, sums = policy_gradient_loss(log_probs, torch.zeros(5), batch, PolicyGradient(0.3, 0.4))
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


# What is off by default: each against its formula in float64 --------------------------------------------------------


def random_batch(seed: int, **changes: bool) -> MicroBatch:
    """Three sequences with everything that a loss may use."""
    rng = random.Random(seed)
    values = lambda count: [rng.uniform(-3, -0.1) for _ in range(count)]  # noqa: E731
    sequences = [
        TrainSequence(
            tokens=range(count + 2),
            prompt_length=2,
            weight=rng.uniform(0.01, 0.2),
            advantage=rng.uniform(-2, 2),
            rollout_log_probs=values(count),
            old_log_probs=values(count) if changes.get("old") else (),
            reference_log_probs=values(count),
        )
        for count in (3, 7, 5)
    ]
    (batch,) = micro_batches(sequences, Share(multiple=4), budget=100, device=torch.device("cpu"))
    return batch


def value_and_gradient(batch: MicroBatch, settings: PolicyGradient) -> tuple[float, Tensor, Tensor, dict[str, Tensor]]:
    """Of the log-probs and of the entropy."""
    log_probs = log_probs_of(batch)
    entropy = torch.linspace(1, 2, len(batch.tokens)).requires_grad_()
    loss, sums = policy_gradient_loss(log_probs, entropy, batch, settings)
    loss.backward()
    assert log_probs.grad is not None
    return float(loss), log_probs.grad, torch.zeros_like(entropy) if entropy.grad is None else entropy.grad, sums


# New in every run, the same in all of its processes.
SEEDS = random.Random(os.environ.get("PYTEST_XDIST_TESTRUNUID")).sample(range(10**6), 3)


@pytest.mark.parametrize("seed", SEEDS)
def test_dual_clip_bounds_what_a_bad_token_costs(seed: int) -> None:
    batch = random_batch(seed, old=True)
    loss, _, _, sums = value_and_gradient(batch, PolicyGradient(0.2, 0.3, dual_clip=1.5))
    assert batch.old_log_probs is not None
    ratio = (log_probs_of(batch).detach().double() - batch.old_log_probs.double()).exp()
    advantage, weight = batch.advantages.double(), batch.weights.double()
    wanted, size, clipped = 0.0, 0.0, 0
    for r, a, w in zip(ratio.tolist(), advantage.tolist(), weight.tolist(), strict=True):
        objective = min(r * a, min(max(r, 0.8), 1.3) * a)
        bounded = max(objective, 1.5 * a) if a < 0 else objective
        wanted -= w * bounded
        size += abs(w * bounded)  # what rounding errors are of: the sum may be near 0
        clipped += w > 0 and bounded not in (r * a,)
    assert loss == pytest.approx(wanted, abs=1e-6 * size)
    assert int(sums["clip_fraction"]) == clipped


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("kind", list(KLType))
def test_the_kl_penalty_is_added_with_the_normalisers_weights(seed: int, kind: KLType) -> None:
    batch = random_batch(seed)
    plain, plain_grad, _, _ = value_and_gradient(batch, PolicyGradient())
    loss, grad, _, sums = value_and_gradient(batch, PolicyGradient(kl_penalty=0.3, kl_type=kind))
    assert batch.reference_log_probs is not None
    ratio = batch.reference_log_probs.double() - log_probs_of(batch).detach().double()
    kl = -ratio if kind is KLType.K1 else ratio.exp() - ratio - 1
    slope = -ratio if kind is KLType.K1 else 1 - ratio.exp()
    weights = batch.weights.double()
    assert loss - plain == pytest.approx(float(0.3 * (weights * kl).sum()), rel=1e-4, abs=1e-6)
    torch.testing.assert_close((grad - plain_grad).double(), 0.3 * weights * slope, rtol=1e-4, atol=1e-7)
    assert float(sums["reference_kl"]) == pytest.approx(float(kl[batch.response_mask].sum()), rel=1e-5, abs=1e-5)


def test_the_gradients_of_both_kl_estimators_are_the_divergences_where_that_is_known() -> None:
    """Over a whole vocabulary, each token drawn as often as the policy has it likely: d KL / d logits. k1's is exact;
    k3's is that of KL(reference || pi), with which it agrees where the two are close."""
    torch.manual_seed(SEEDS[0])
    logits = torch.randn(6, dtype=torch.float64, requires_grad=True)
    reference = (logits.detach() + 1e-3 * torch.randn(6, dtype=torch.float64)).log_softmax(0)
    log_probs = logits.log_softmax(0)
    (wanted,) = torch.autograd.grad((log_probs.exp() * (log_probs - reference)).sum(), logits, retain_graph=True)
    for kind in KLType:
        expectation = (log_probs.detach().exp() * kl_to_reference(log_probs, reference, kind)).sum()
        (found,) = torch.autograd.grad(expectation, logits, retain_graph=True)
        assert (found - wanted).abs().max() < 0.02 * wanted.abs().max()


@pytest.mark.parametrize("seed", SEEDS)
def test_the_entropy_bonus_lowers_the_loss_and_has_a_gradient(seed: int) -> None:
    batch = random_batch(seed)
    plain, _, no_grad, _ = value_and_gradient(batch, PolicyGradient())
    loss, _, grad, _ = value_and_gradient(batch, PolicyGradient(entropy_bonus=0.7))
    entropy = torch.linspace(1, 2, len(batch.tokens)).double()
    assert loss - plain == pytest.approx(float(-0.7 * (batch.weights.double() * entropy).sum()), rel=1e-4, abs=1e-6)
    torch.testing.assert_close(grad, -0.7 * batch.weights)
    assert not no_grad.any()


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("kind", [RolloutCorrection.TOKEN, RolloutCorrection.SEQUENCE])
@pytest.mark.parametrize("old", [False, True])
def test_truncated_importance_weights(seed: int, kind: RolloutCorrection, old: bool) -> None:
    batch = random_batch(seed, old=old)
    _, plain, _, _ = value_and_gradient(batch, PolicyGradient())
    _, grad, _, sums = value_and_gradient(batch, PolicyGradient(correction=kind, correction_max=1.5))
    policy = (log_probs_of(batch) if batch.old_log_probs is None else batch.old_log_probs).detach().double()
    differences = (policy - batch.rollout_log_probs.double()).where(batch.response_mask, torch.tensor(0.0).double())
    sequences = [differences[a:b] for a, b in pairwise(batch.cu_seqlens.tolist())]
    if kind is RolloutCorrection.SEQUENCE:
        differences = torch.cat([part.sum().expand(len(part)) for part in sequences])
    weights = differences.exp().clamp(max=1.5)
    if kind is RolloutCorrection.TOKEN:
        assert 0 < int((weights[batch.response_mask] == 1.5).sum()) < int(batch.response_mask.sum())
    torch.testing.assert_close(grad.double(), plain.double() * weights, rtol=1e-4, atol=1e-8)
    assert float(sums["correction_weight"]) == pytest.approx(float(weights[batch.response_mask].sum()), rel=1e-5)


def test_only_a_kl_penalty_or_an_entropy_bonus_needs_samples_without_an_advantage() -> None:
    assert not PolicyGradient(dual_clip=3.0, correction=RolloutCorrection.TOKEN).needs_every_sample
    assert PolicyGradient(kl_penalty=0.1).needs_every_sample
    assert PolicyGradient(entropy_bonus=0.1).needs_every_sample
