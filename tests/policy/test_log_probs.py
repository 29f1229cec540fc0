"""Chunked, padded log-probs and their gradients against torch's own in float64."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
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


def test_entropy_carries_no_gradient() -> None:
    hidden, weight, labels = inputs(37, 48)
    _, entropy = token_log_probs(hidden, weight, labels, VocabularyPart(0, 37, None), 1.0, 8)
    assert not entropy.requires_grad


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
