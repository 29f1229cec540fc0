"""Sequences balanced over data-parallel ranks and packed into micro-batches, with no padding between them."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from megatron_rl.policy.packing import pack, split_over_ranks


@dataclass(frozen=True, slots=True)
class TrainSequence:
    """One sequence to train on.

    Attributes:
        tokens: prompt and response ids, at least two.
        prompt_length: leading tokens that carry no loss, at least one.
        weight: what each response token's log-prob is multiplied with in the loss: the advantage (GRPO) or 1 (SFT),
            over the step's global normaliser.
        rollout_log_probs: the engine's log-probs of the response tokens; empty for SFT.
    """

    tokens: Sequence[int]
    prompt_length: int
    weight: float
    rollout_log_probs: Sequence[float] = ()


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """Packed sequences: T positions, each predicting the label at the same place.

    Attributes:
        tokens, labels: [T] int64.
        cu_seqlens: [sequences + 1] int32, where each sequence begins; the last is T.
        longest: length of the longest sequence.
        response_mask: [T] bool, true where the label is a response token.
        weights: [T] float32, zero outside responses.
        rollout_log_probs: [T] float32, zero outside responses.
        members: for each real sequence its index in the step's list.
    """

    tokens: Tensor
    labels: Tensor
    cu_seqlens: Tensor
    longest: int
    response_mask: Tensor
    weights: Tensor
    rollout_log_probs: Tensor
    members: tuple[int, ...]


def micro_batches(
    sequences: Sequence[TrainSequence], dp_rank: int, dp: int, budget: int, multiple: int, device: torch.device
) -> list[MicroBatch]:
    """This data-parallel rank's micro-batches; every rank gets the same number, if need be empty ones of no weight.

    Args:
        multiple: T is rounded up to a multiple of this (sequence parallelism cuts T evenly over TP).
    """
    lengths = [len(sequence.tokens) - 1 for sequence in sequences]
    packed_per_rank = []
    for members in split_over_ranks(lengths, dp):
        bins = pack([lengths[i] for i in members], budget)
        packed_per_rank.append([[members[i] for i in indices] for indices in bins])
    count = max(1, *(len(bins) for bins in packed_per_rank))
    mine = packed_per_rank[dp_rank]
    return [_build(sequences, indices, multiple, device) for indices in [*mine, *[[]] * (count - len(mine))]]


def _build(
    sequences: Sequence[TrainSequence], members: Sequence[int], multiple: int, device: torch.device
) -> MicroBatch:
    inputs: list[int] = []
    labels: list[int] = []
    mask: list[bool] = []
    weights: list[float] = []
    rollout: list[float] = []
    starts = [0]
    for sequence in (sequences[i] for i in members):
        response_length = len(sequence.tokens) - sequence.prompt_length
        inputs += sequence.tokens[:-1]
        labels += sequence.tokens[1:]
        ignored = sequence.prompt_length - 1
        mask += [False] * ignored + [True] * response_length
        weights += [0.0] * ignored + [sequence.weight] * response_length
        rollout += [0.0] * ignored + list(sequence.rollout_log_probs or [0.0] * response_length)
        starts.append(len(inputs))
    filler = multiple if not inputs else -len(inputs) % multiple
    if filler:
        inputs += [0] * filler
        labels += [0] * filler
        mask += [False] * filler
        weights += [0.0] * filler
        rollout += [0.0] * filler
        starts.append(len(inputs))
    cu_seqlens = torch.tensor(starts, dtype=torch.int32, device=device)
    return MicroBatch(
        tokens=torch.tensor(inputs, dtype=torch.int64, device=device),
        labels=torch.tensor(labels, dtype=torch.int64, device=device),
        cu_seqlens=cu_seqlens,
        longest=int(cu_seqlens.diff().max()),
        response_mask=torch.tensor(mask, dtype=torch.bool, device=device),
        weights=torch.tensor(weights, dtype=torch.float32, device=device),
        rollout_log_probs=torch.tensor(rollout, dtype=torch.float32, device=device),
        members=tuple(members),
    )
