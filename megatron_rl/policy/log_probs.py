"""Log-probs of given tokens and the entropy of the policy, without ever holding full logits.

Shape letters: T packed tokens, C tokens of one chunk, H hidden, V this rank's part of the padded vocabulary.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

_NEVER = -1e30
"""Logit of padding: exp(_NEVER) is 0 and, other than with -inf, so is exp(_NEVER) * _NEVER."""


@dataclass(frozen=True, slots=True)
class VocabularyPart:
    """The rows of the output layer that this rank holds.

    Attributes:
        start: global id of the first row.
        real: rows before padding begins; the rest have probability zero.
        group: tensor-parallel group, None if the vocabulary is whole.
    """

    start: int
    real: int
    group: dist.ProcessGroup | None


def vocabulary_part(vocab_size: int, padded_vocab_size: int, group: dist.ProcessGroup | None) -> VocabularyPart:
    """This rank's rows of a vocabulary cut evenly over `group`."""
    rank, size = (0, 1) if group is None else (dist.get_rank(group), dist.get_world_size(group))
    rows = padded_vocab_size // size
    start = rank * rows
    return VocabularyPart(start, max(0, min(rows, vocab_size - start)), group)


def token_log_probs(
    hidden_TH: Tensor,
    weight_VH: Tensor,
    labels_T: Tensor,
    part: VocabularyPart,
    temperature: float,
    chunk_tokens: int,
) -> tuple[Tensor, Tensor]:
    """Log-prob of each label and entropy, both [T] in float32, under softmax(hidden @ weight.T / temperature).

    Gradients flow from both to `hidden_TH` and `weight_VH`, with z = logits / temperature and p = softmax(z):

        d log p_label / dz_j = [j = label] - p_j        dH / dz_j = -p_j (log p_j + H)

    the entropy's at no cost where the loss leaves it out. Logits exist for `chunk_tokens` tokens at a time, forward and
    backward. The gradient of `hidden_TH` is this rank's share: the caller sums it over the tensor-parallel group.
    """
    log_probs_T, entropy_T = _TokenLogProbs.apply(hidden_TH, weight_VH, labels_T, part, temperature, chunk_tokens)
    return log_probs_T, entropy_T


def _scaled_logits(hidden_CH: Tensor, weight_VH: Tensor, part: VocabularyPart, temperature: float) -> Tensor:
    logits_CV = (hidden_CH @ weight_VH.t()).float() / temperature
    logits_CV[:, part.real :] = _NEVER
    return logits_CV


def _local_labels(labels_C: Tensor, part: VocabularyPart) -> tuple[Tensor, Tensor]:
    """Column of each label on this rank, and whether it is here."""
    columns = labels_C - part.start
    here = (columns >= 0) & (columns < part.real)
    return columns.clamp(0, max(part.real - 1, 0)), here


class _TokenLogProbs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_TH: Tensor,
        weight_VH: Tensor,
        labels_T: Tensor,
        part: VocabularyPart,
        temperature: float,
        chunk_tokens: int,
    ) -> tuple[Tensor, Tensor]:
        log_normalizers, log_probs, entropies = [], [], []
        for hidden_CH, labels_C in zip(hidden_TH.split(chunk_tokens), labels_T.split(chunk_tokens), strict=True):
            logits_CV = _scaled_logits(hidden_CH, weight_VH, part, temperature)
            maximum_C = logits_CV.amax(dim=-1)
            if part.group is not None:
                dist.all_reduce(maximum_C, op=dist.ReduceOp.MAX, group=part.group)
            columns, here = _local_labels(labels_C, part)
            label_logits_C = logits_CV.gather(1, columns[:, None]).squeeze(1).where(here, 0.0)
            weights_CV = (logits_CV - maximum_C[:, None]).exp_()
            sums_3C = torch.stack([weights_CV.sum(-1), (weights_CV * logits_CV).sum(-1), label_logits_C])
            if part.group is not None:
                dist.all_reduce(sums_3C, group=part.group)
            log_normalizer_C = maximum_C + sums_3C[0].log()
            log_normalizers.append(log_normalizer_C)
            log_probs.append(sums_3C[2] - log_normalizer_C)
            entropies.append(log_normalizer_C - sums_3C[1] / sums_3C[0])
        entropy_T = torch.cat(entropies)
        ctx.save_for_backward(hidden_TH, weight_VH, labels_T, torch.cat(log_normalizers), entropy_T)
        ctx.part, ctx.temperature, ctx.chunk_tokens = part, temperature, chunk_tokens
        ctx.set_materialize_grads(False)
        return torch.cat(log_probs), entropy_T

    @staticmethod
    def backward(ctx: Any, grad_T: Tensor | None, grad_entropy_T: Tensor | None) -> tuple[Tensor | None, ...]:
        hidden_TH, weight_VH, labels_T, log_normalizer_T, entropy_T = ctx.saved_tensors
        if grad_T is None:
            grad_T = torch.zeros_like(entropy_T)
        grad_weight_VH = torch.zeros_like(weight_VH, dtype=torch.float32)
        grad_hidden = []
        for start in range(0, len(hidden_TH), ctx.chunk_tokens):
            chunk = slice(start, start + ctx.chunk_tokens)
            hidden_CH, grad_C = hidden_TH[chunk], grad_T[chunk]
            logits_CV = _scaled_logits(hidden_CH, weight_VH, ctx.part, ctx.temperature)
            all_log_probs_CV = logits_CV.sub_(log_normalizer_T[chunk, None])
            if grad_entropy_T is None:
                grad_CV = all_log_probs_CV.exp_().mul_(-grad_C[:, None])
            else:
                slope_C = -grad_entropy_T[chunk]
                level_C = slope_C * entropy_T[chunk] - grad_C
                probs_CV = all_log_probs_CV.exp()
                grad_CV = all_log_probs_CV.mul_(slope_C[:, None]).add_(level_C[:, None]).mul_(probs_CV)
            columns, here = _local_labels(labels_T[chunk], ctx.part)
            grad_CV.scatter_add_(1, columns[:, None], torch.where(here, grad_C, 0.0)[:, None])
            grad_CV = grad_CV.div_(ctx.temperature).to(hidden_CH.dtype)
            grad_hidden.append(grad_CV @ weight_VH)
            grad_weight_VH += grad_CV.t() @ hidden_CH
        return torch.cat(grad_hidden), grad_weight_VH.to(weight_VH.dtype), None, None, None, None
