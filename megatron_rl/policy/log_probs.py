"""Log-probs of given tokens and the entropy of the policy, without ever holding full logits.

Shape letters: T packed tokens, C tokens of one chunk, H hidden, V this rank's part of the padded vocabulary.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

_NEVER = -1e30
"""Logit of padding: exp(_NEVER) is 0 and, other than with -inf, so is exp(_NEVER) * _NEVER."""
_ROWS = 4096
"""Of the weight's gradient, to which a product in lower precision is added at a time."""


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


class _ChunkLogits:
    """Logits of one chunk after another, all in the same memory: fresh memory costs a CPU more than what is computed
    in it. `memory_CV`, in float32, is used for it where there is some already."""

    def __init__(
        self, weight_VH: Tensor, part: VocabularyPart, temperature: float, tokens: int, memory_CV: Tensor | None = None
    ) -> None:
        self.weight_VH, self.part, self.temperature = weight_VH, part, temperature
        self._memory = {
            dtype: weight_VH.new_empty((tokens, len(weight_VH)), dtype=dtype)
            for dtype in {torch.float32, weight_VH.dtype}
            if dtype is not torch.float32 or memory_CV is None
        }
        if memory_CV is not None:
            self._memory[torch.float32] = memory_CV

    def __call__(self, hidden_CH: Tensor) -> Tensor:
        """hidden @ weight.T / temperature, [C, V] in float32, padding `_NEVER`."""
        product_CV = self._memory[hidden_CH.dtype][: len(hidden_CH)]
        logits_CV = self.cast(torch.mm(hidden_CH, self.weight_VH.t(), out=product_CV), torch.float32)
        logits_CV.div_(self.temperature)
        logits_CV[:, self.part.real :] = _NEVER
        return logits_CV

    @cached_property
    def spare_CV(self) -> Tensor:
        """Memory for something else of a chunk, in float32."""
        return torch.empty_like(self._memory[torch.float32])

    def cast(self, values_CV: Tensor, dtype: torch.dtype) -> Tensor:
        """Over what this memory held in that dtype."""
        return values_CV if values_CV.dtype is dtype else self._memory[dtype][: len(values_CV)].copy_(values_CV)


def _local_labels(labels_C: Tensor, part: VocabularyPart) -> tuple[Tensor, Tensor]:
    """Column of each label on this rank, and whether it is here."""
    columns = labels_C - part.start
    here = (columns >= 0) & (columns < part.real)
    return columns.clamp(0, max(part.real - 1, 0)), here


def _add_product(sum_VH: Tensor, grad_CV: Tensor, hidden_CH: Tensor) -> None:
    """sum += grad.T @ hidden, in float32, without another tensor of its size."""
    if grad_CV.dtype is sum_VH.dtype:
        sum_VH.addmm_(grad_CV.t(), hidden_CH)
        return
    for rows_VH, columns_CV in zip(sum_VH.split(_ROWS), grad_CV.split(_ROWS, dim=1), strict=True):
        rows_VH.add_(columns_CV.t() @ hidden_CH)


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
        logits = _ChunkLogits(weight_VH, part, temperature, min(chunk_tokens, len(hidden_TH)))
        maxima, sums = [], []
        for hidden_CH, labels_C in zip(hidden_TH.split(chunk_tokens), labels_T.split(chunk_tokens), strict=True):
            logits_CV = logits(hidden_CH)
            maximum_C = logits_CV.amax(dim=-1)
            if part.group is not None:
                dist.all_reduce(maximum_C, op=dist.ReduceOp.MAX, group=part.group)
            logits_CV.sub_(maximum_C[:, None])
            columns, here = _local_labels(labels_C, part)
            label_logits_C = logits_CV.gather(1, columns[:, None]).squeeze(1).where(here, 0.0)
            weights_CV = torch.exp(logits_CV, out=logits.spare_CV[: len(logits_CV)])
            sums_3C = torch.stack([weights_CV.sum(-1), logits_CV.mul_(weights_CV).sum(-1), label_logits_C])
            if part.group is not None:
                dist.all_reduce(sums_3C, group=part.group)
            maxima.append(maximum_C)
            sums.append(sums_3C)
        total_T, weighted_T, label_logits_T = torch.cat(sums, dim=1)
        entropy_T = total_T.log() - weighted_T / total_T
        ctx.save_for_backward(hidden_TH, weight_VH, labels_T, torch.cat(maxima), total_T, entropy_T)
        ctx.part, ctx.temperature, ctx.chunk_tokens = part, temperature, chunk_tokens
        # What the last chunk leaves in memory its backward pass can start from, which comes next.
        ctx.last_weights_CV = logits.spare_CV
        ctx.set_materialize_grads(False)
        return label_logits_T - total_T.log(), entropy_T

    @staticmethod
    def backward(ctx: Any, grad_T: Tensor | None, grad_entropy_T: Tensor | None) -> tuple[Tensor | None, ...]:
        hidden_TH, weight_VH, labels_T, maximum_T, total_T, entropy_T = ctx.saved_tensors
        # With p = weights / total, a logit's gradient is weight * (slope * log weight + level), and the label's own.
        grad_T = torch.zeros_like(entropy_T) if grad_T is None else grad_T / ctx.temperature
        level_T, slope_T = -grad_T / total_T, None
        if grad_entropy_T is not None:
            slope_T = -grad_entropy_T / (total_T * ctx.temperature)
            level_T = level_T + slope_T * (entropy_T - total_T.log())
        chunk_tokens = min(ctx.chunk_tokens, len(hidden_TH))
        last_weights_CV, ctx.last_weights_CV = ctx.last_weights_CV, None
        logits = _ChunkLogits(weight_VH, ctx.part, ctx.temperature, chunk_tokens, last_weights_CV)
        if slope_T is not None:  # needs their logarithms, too, which are gone
            last_weights_CV = None
        grad_hidden_TH, grad_weight_VH = torch.empty_like(hidden_TH), torch.zeros_like(weight_VH, dtype=torch.float32)
        for start in reversed(range(0, len(hidden_TH), chunk_tokens)):
            chunk = slice(start, start + chunk_tokens)
            if last_weights_CV is not None:
                grad_CV = last_weights_CV[: len(hidden_TH) - start].mul_(level_T[chunk, None])
                last_weights_CV = None
            elif slope_T is None:
                log_weights_CV = logits(hidden_TH[chunk]).sub_(maximum_T[chunk, None])
                grad_CV = log_weights_CV.exp_().mul_(level_T[chunk, None])
            else:
                log_weights_CV = logits(hidden_TH[chunk]).sub_(maximum_T[chunk, None])
                weights_CV = torch.exp(log_weights_CV, out=logits.spare_CV[: len(log_weights_CV)])
                grad_CV = log_weights_CV.mul_(slope_T[chunk, None]).add_(level_T[chunk, None]).mul_(weights_CV)
            columns, here = _local_labels(labels_T[chunk], ctx.part)
            grad_CV.scatter_add_(1, columns[:, None], grad_T[chunk].where(here, 0.0)[:, None])
            grad_CV = logits.cast(grad_CV, hidden_TH.dtype)
            torch.mm(grad_CV, weight_VH, out=grad_hidden_TH[chunk])
            _add_product(grad_weight_VH, grad_CV, hidden_TH[chunk])
        return grad_hidden_TH, grad_weight_VH.to(weight_VH.dtype), None, None, None, None
