"""What the policy must compute, written slowly: transformers' model in float64, one sequence at a time, plain AdamW."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from tiny import TEMPERATURE
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from megatron_rl.algorithms.losses import PolicyGradient
from megatron_rl.policy.batch import TrainSequence


def load(folder: Path, dtype: torch.dtype = torch.float64) -> PreTrainedModel:
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    )
    embedding = model.get_input_embeddings()
    assert isinstance(embedding, torch.nn.Embedding)
    embedding.padding_idx = None  # transformers gives the padding token's row no gradient; here no token is padding
    return model.to(dtype)


def log_probs(model: PreTrainedModel, sequence: TrainSequence) -> tuple[Tensor, Tensor]:
    """Log-probs of the response tokens and the entropies at their places, with gradients."""
    tokens = torch.tensor([list(sequence.tokens)])
    logits = model(tokens).logits[0, sequence.prompt_length - 1 : -1] / TEMPERATURE
    every = torch.log_softmax(logits.to(model.dtype), dim=-1)
    return every.gather(1, tokens[0, sequence.prompt_length :, None]).squeeze(1), -(every.exp() * every).sum(-1)


def loss_and_gradients(
    model: PreTrainedModel, sequences: Sequence[TrainSequence], sft: bool, old: Sequence[Tensor] | None = None
) -> dict[str, float]:
    """Loss, global gradient norm and mean entropy; the gradients stay in the model.

    `old` are log-probs of the policy that generated; without them it is the policy itself.
    """

    def objective(number: int, found: Tensor, entropy: Tensor) -> Tensor:
        advantage = sequences[number].advantage
        ratio = torch.exp(found - (found.detach() if old is None else old[number]))
        clipped = ratio.clamp(0.8, 1.2)
        return found if sft else torch.where(advantage * ratio < advantage * clipped, ratio, clipped) * advantage

    return _backward(model, sequences, objective)


def _backward(
    model: PreTrainedModel, sequences: Sequence[TrainSequence], objective: Callable[[int, Tensor, Tensor], Tensor]
) -> dict[str, float]:
    """One sequence at a time; `objective` of (number, log-probs, entropies) is to be raised at every token."""
    model.zero_grad()
    loss, entropies = 0.0, []
    for number, sequence in enumerate(sequences):
        found, entropy = log_probs(model, sequence)
        part = -(sequence.weight * objective(number, found, entropy)).sum()
        part.backward()
        loss += part.item()
        entropies.append(entropy.detach())
    norm = torch.stack([p.grad.norm() for p in model.parameters() if p.grad is not None]).norm()
    return {"loss": loss, "grad_norm": norm.item(), "entropy": torch.cat(entropies).mean().item()}


def variant_loss_and_gradients(
    model: PreTrainedModel, start: PreTrainedModel, sequences: Sequence[TrainSequence], settings: PolicyGradient
) -> dict[str, float]:
    """The same of `PolicyGradient`'s settings, token by token as their papers write it; `start` is the reference."""

    def objective(number: int, found: Tensor, entropy: Tensor) -> Tensor:
        sequence, terms = sequences[number], []
        old = found.detach() if not sequence.old_log_probs else torch.tensor(sequence.old_log_probs).double()
        rollout = torch.tensor(sequence.rollout_log_probs).double()
        with torch.no_grad():
            reference, _ = log_probs(start, sequence)
        for t in range(len(found)):
            ratio, advantage = torch.exp(found[t] - old[t]), sequence.advantage
            bounded = min(max(ratio.item(), 1 - settings.clip_min), 1 + settings.clip_max)
            term = (
                ratio * advantage
                if ratio.item() * advantage <= bounded * advantage
                else 0 * ratio + bounded * advantage
            )
            if settings.dual_clip is not None and advantage < 0 and term.item() < settings.dual_clip * advantage:
                term = 0 * ratio + settings.dual_clip * advantage
            if settings.correction.value == "token":
                term = term * min(math.exp(old[t] - rollout[t]), settings.correction_max)
            if settings.correction.value == "sequence":
                term = term * min(math.exp((old - rollout).sum()), settings.correction_max)
            kl = found[t] - reference[t]
            if settings.kl_type.value == "k3":
                term = term - settings.kl_penalty * (torch.exp(-kl) + kl - 1)
            else:  # a cost of its value, and what that cost teaches: its value times the log-prob's gradient
                term = term - settings.kl_penalty * kl.detach() * (1 + found[t] - found[t].detach())
            terms.append(term + settings.entropy_bonus * entropy[t])
        return torch.stack(terms)

    return _backward(model, sequences, objective)


class Trainer:
    """AdamW with clipping at 1, weight decay on matrices only, and a linear warm-up from 0 over three steps."""

    def __init__(self, folder: Path, lr: float = 1e-3, warmup_steps: int = 3) -> None:
        self.model = load(folder)
        self._lr, self._warmup_steps, self._steps = lr, warmup_steps, 0
        matrices = [p for p in self.model.parameters() if p.ndim > 1]
        vectors = [p for p in self.model.parameters() if p.ndim == 1]
        groups = [{"params": matrices, "weight_decay": 0.01}, {"params": vectors, "weight_decay": 0.0}]
        self._optimizer = torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.999), eps=1e-8)

    def step(self, sequences: Sequence[TrainSequence], sft: bool) -> dict[str, float]:
        return self._update(loss_and_gradients(self.model, sequences, sft))

    def variant_step(
        self, start: PreTrainedModel, sequences: Sequence[TrainSequence], settings: PolicyGradient
    ) -> dict[str, float]:
        return self._update(variant_loss_and_gradients(self.model, start, sequences, settings))

    def _update(self, metrics: dict[str, float]) -> dict[str, float]:
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        lr = self._lr * min(1.0, self._steps / self._warmup_steps)
        for group in self._optimizer.param_groups:
            group["lr"] = lr
        self._optimizer.step()
        self._steps += 1
        return metrics | {"lr": lr}
