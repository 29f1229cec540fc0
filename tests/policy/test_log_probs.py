"""Chunked, padded log-probs and their gradients against torch's own in float64."""

import random
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peak_memory import PeakMemory
from ranks import run_job
from safetensors.torch import load_file, save_file
from torch import Tensor

from megatron_rl.policy.log_probs import VocabularyPart, token_log_probs, vocabulary_part

TOKENS, HIDDEN = 23, 12


def inputs(vocab: int, padded: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states, output weight with large padding rows (to be ignored), labels."""
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(TOKENS, HIDDEN, generator=generator, dtype=torch.float64)
    weight = torch.randn(padded, HIDDEN, generator=generator, dtype=torch.float64)
    weight[vocab:] *= 30
    labels = torch.randint(vocab, (TOKENS,), generator=generator)
    return hidden.to(dtype).requires_grad_(), weight.to(dtype).requires_grad_(), labels


def reference(
    hidden: Tensor, weight: Tensor, labels: Tensor, vocab: int, temperature: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Log-probs, entropy and the two leaves in float64, on whole logits."""
    hidden, weight = hidden.detach().double().requires_grad_(), weight.detach().double().requires_grad_()
    log_probs = torch.log_softmax(hidden @ weight[:vocab].t() / temperature, dim=-1)
    entropy = -(log_probs.exp() * log_probs).sum(-1)
    return log_probs.gather(1, labels[:, None]).squeeze(1), entropy, hidden, weight


@pytest.mark.parametrize("temperature", [0.3, 0.7, 1.0, 1.7])
@pytest.mark.parametrize(("vocab", "padded"), [(40, 40), (37, 48), (1, 16)])
@pytest.mark.parametrize("chunk", [1, 7, TOKENS, 1000])
def test_values_and_gradients_are_those_of_log_softmax(chunk: int, vocab: int, padded: int, temperature: float) -> None:
    hidden, weight, labels = inputs(vocab, padded)
    found, entropy = token_log_probs(hidden, weight, labels, VocabularyPart(0, vocab, None), temperature, chunk)
    wanted, wanted_entropy, hidden64, weight64 = reference(hidden, weight, labels, vocab, temperature)
    torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(entropy.double(), wanted_entropy, rtol=1e-5, atol=1e-5)

    upstream = torch.linspace(-2, 3, TOKENS)
    found.backward(upstream)
    wanted.backward(upstream.double())
    assert hidden.grad is not None
    assert weight.grad is not None
    torch.testing.assert_close(hidden.grad.double(), hidden64.grad, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(weight.grad.double(), weight64.grad, rtol=1e-4, atol=1e-5)
    assert not weight.grad[vocab:].any(), "padding rows must not move"


@settings(deadline=None)
@given(seed=st.integers(0, 10**6), chunk=st.integers(1, 30), temperature=st.floats(0.2, 3.0))
def test_chunks_change_nothing(seed: int, chunk: int, temperature: float) -> None:
    hidden, weight, labels = inputs(37, 48, seed)
    part = VocabularyPart(0, 37, None)
    whole, whole_entropy = token_log_probs(hidden, weight, labels, part, temperature, TOKENS)
    cut, cut_entropy = token_log_probs(hidden, weight, labels, part, temperature, chunk)
    torch.testing.assert_close(cut, whole, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(cut_entropy, whole_entropy, rtol=1e-5, atol=1e-5)


def gradients(found: Tensor, entropy: Tensor, leaves: tuple[Tensor, Tensor], bonus: float | None) -> list[Tensor]:
    """Of a loss with a weight of its own for every token, an entropy bonus of that size among it."""
    weights = torch.linspace(-2, 3, len(found), dtype=found.dtype)
    loss = (weights * found).sum()
    if bonus is not None:
        loss = loss + bonus * (weights.flip(0).square() * entropy).sum()
    return list(torch.autograd.grad(loss, leaves))


def error(found: Tensor, wanted: Tensor) -> float:
    """Length of the difference, relative."""
    return float((found.double() - wanted).norm() / wanted.norm())


@settings(deadline=None)
@given(
    seed=st.integers(0, 10**6),
    sizes=st.sampled_from([(40, 40), (37, 48), (2, 16)]),
    chunk=st.integers(1, 30),
    temperature=st.floats(0.2, 3.0),
    bonus=st.sampled_from([-3.0, 0.01, 5.0]),
)
def test_an_entropy_bonus_has_the_gradient_of_float64(
    seed: int, sizes: tuple[int, int], chunk: int, temperature: float, bonus: float
) -> None:
    hidden, weight, labels = inputs(*sizes, seed)
    found = token_log_probs(hidden, weight, labels, VocabularyPart(0, sizes[0], None), temperature, chunk)
    *wanted, hidden64, weight64 = reference(hidden, weight, labels, sizes[0], temperature)
    both = gradients(*found, (hidden, weight), bonus)
    for mine, theirs in zip(both, gradients(*wanted, (hidden64, weight64), bonus), strict=True):
        assert error(mine, theirs) < 2e-5
    assert not both[1][sizes[0] :].any(), "padding rows must not move"


@pytest.mark.parametrize("chunk", [1, 7, TOKENS, 1000])
def test_entropy_alone_can_be_the_loss(chunk: int) -> None:
    hidden, weight, labels = inputs(37, 48)
    _, entropy = token_log_probs(hidden, weight, labels, VocabularyPart(0, 37, None), 0.7, chunk)
    _, wanted, *leaves64 = reference(hidden, weight, labels, 37, 0.7)
    theirs = torch.autograd.grad(wanted.square().sum(), leaves64)
    for mine, its in zip(torch.autograd.grad(entropy.square().sum(), (hidden, weight)), theirs, strict=True):
        assert error(mine, its) < 1e-5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("temperature", [0.7, 1.0])
def test_a_bonus_of_zero_changes_no_bit(temperature: float, dtype: torch.dtype) -> None:
    hidden, weight, labels = inputs(37, 48, dtype=dtype)
    part = VocabularyPart(0, 37, None)
    without, with_zero = (
        gradients(*token_log_probs(hidden, weight, labels, part, temperature, 8), (hidden, weight), bonus)
        for bonus in (None, 0.0)
    )
    assert all(torch.equal(one, other) for one, other in zip(without, with_zero, strict=True))


def test_entropy_costs_memory_only_where_the_loss_uses_it() -> None:
    hidden, weight, labels = inputs(4000, 4096)
    peaks = []
    for bonus in (None, 0.1):
        found = token_log_probs(hidden, weight, labels, VocabularyPart(0, 4000, None), 1.0, TOKENS)
        with PeakMemory() as memory:
            gradients(*found, (hidden, weight), bonus)
        peaks.append(memory.peak)
    assert peaks[1] - peaks[0] == pytest.approx(4 * TOKENS * 4096, rel=0.1), "one more chunk of probabilities"


@pytest.fixture(scope="session")
def seed() -> int:
    """A new one in every run."""
    return random.SystemRandom().randrange(10**6)


def test_a_vocabulary_over_two_ranks_has_the_values_and_gradients_of_a_whole_one(seed: int, tmp_path: Path) -> None:
    """No padding, some in the second part, more than the second part."""
    cases = [
        {"vocab": vocab, "padded": padded, "temperature": temperature, "chunk": chunk, "bonus": bonus}
        for vocab, padded in [(48, 48), (37, 48), (20, 48)]
        for temperature, chunk in [(0.7, 7), (1.0, 1000)]
        for bonus in [None, 0.0, 2.5]
    ]
    made = [inputs(case["vocab"], case["padded"], seed + place) for place, case in enumerate(cases)]
    named = {f"{name}_{i}": t.detach() for i, case in enumerate(made) for name, t in zip("hwl", case, strict=True)}
    save_file(named, tmp_path / "inputs.safetensors")
    run_job("log_probs.py", {"cases": cases, "inputs": str(tmp_path / "inputs.safetensors")}, 2, tmp_path / "job")
    found = load_file(tmp_path / "job" / "found.safetensors")
    for place, (case, (hidden, weight, labels)) in enumerate(zip(cases, made, strict=True)):
        *wanted, hidden64, weight64 = reference(hidden, weight, labels, case["vocab"], case["temperature"])
        wanted += gradients(*wanted, (hidden64, weight64), case["bonus"])
        for name, theirs in zip(["log_probs", "entropy", "hidden", "weight"], wanted, strict=True):
            assert error(found[f"{name}_{place}"], theirs.detach()) < 1e-5, (name, case)


def test_extreme_logits_do_not_overflow() -> None:
    hidden, weight, labels = inputs(37, 48)
    scaled = (hidden.detach() * 1e4).requires_grad_()
    found, entropy = token_log_probs(scaled, weight, labels, VocabularyPart(0, 37, None), 0.1, 8)
    found.sum().backward()
    assert scaled.grad is not None
    assert all(bool(torch.isfinite(tensor).all()) for tensor in (found, entropy, scaled.grad))
    wanted, _, _, _ = reference(scaled, weight, labels, 37, 0.1)
    torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1.0)


def test_bfloat16_inputs_give_float32_log_probs_and_bfloat16_gradients() -> None:
    hidden, weight, labels = inputs(37, 48, dtype=torch.bfloat16)
    found, _ = token_log_probs(hidden, weight, labels, VocabularyPart(0, 37, None), 0.7, 8)
    assert found.dtype is torch.float32
    found.sum().backward()
    assert hidden.grad is not None
    assert weight.grad is not None
    assert (hidden.grad.dtype, weight.grad.dtype) == (torch.bfloat16, torch.bfloat16)
    wanted, _, hidden64, _ = reference(hidden, weight, labels, 37, 0.7)
    wanted.sum().backward()
    assert hidden64.grad is not None
    torch.testing.assert_close(found.double(), wanted, rtol=0.03, atol=0.15)
    torch.testing.assert_close(hidden.grad.double(), hidden64.grad, rtol=0.05, atol=0.1)


def test_a_whole_vocabulary_is_one_part() -> None:
    assert vocabulary_part(500, 512, None) == VocabularyPart(0, 500, None)
