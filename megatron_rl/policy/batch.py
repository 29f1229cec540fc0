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
        old_log_probs: those of the policy that generated, where it has been updated since; else empty.
    """

    tokens: Sequence[int]
    prompt_length: int
    weight: float
    rollout_log_probs: Sequence[float] = ()
    old_log_probs: Sequence[float] = ()


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """Packed sequences: T positions, each predicting the label at the same place.

    With context parallelism every sequence is cut into 2 CP chunks, and rank r holds the r-th from either end, which
    balances causal attention; T then counts this rank's positions.

    Attributes:
        tokens, labels: [T] int64.
        positions: [T] int64, place of each in the whole micro-batch.
        cu_seqlens: [sequences + 1] int32, where each sequence begins in the whole micro-batch; the last is its length.
        longest: length of the longest sequence.
        response_mask: [T] bool, true where the label is a response token.
        weights: [T] float32, zero outside responses.
        rollout_log_probs: [T] float32, zero outside responses.
        old_log_probs: [T] float32, of the policy that generated; None where it is the policy itself.
        members: for each real sequence its index in the step's list.
    """

    tokens: Tensor
    labels: Tensor
    positions: Tensor
    cu_seqlens: Tensor
    longest: int
    response_mask: Tensor
    weights: Tensor
    rollout_log_probs: Tensor
    old_log_probs: Tensor | None
    members: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Share:
    """What this rank gets of every batch.

    Attributes:
        dp_rank, dp: sequences are dealt out over data-parallel ranks.
        cp_rank, cp: tokens of every sequence over context-parallel ranks.
        multiple: T is rounded up to a multiple of this (sequence parallelism cuts T evenly over TP).
        group: the number of micro-batches is rounded up to a multiple of this (an interleaved pipeline's stages).
    """

    dp_rank: int = 0
    dp: int = 1
    cp_rank: int = 0
    cp: int = 1
    multiple: int = 1
    group: int = 1

    @property
    def chunks(self) -> int:
        """In how many chunks of one length every sequence is cut."""
        return 2 * self.cp if self.cp > 1 else 1


def micro_batches(
    sequences: Sequence[TrainSequence], share: Share, budget: int, device: torch.device
) -> list[MicroBatch]:
    """This rank's micro-batches; every rank gets the same number, if need be empty ones of no weight.

    Args:
        budget: tokens of a whole micro-batch, over all context-parallel ranks.
    """
    lengths = [len(sequence.tokens) - 1 for sequence in sequences]
    packed_per_rank = []
    for members in split_over_ranks(lengths, share.dp):
        bins = pack([lengths[i] for i in members], budget)
        packed_per_rank.append([[members[i] for i in indices] for indices in bins])
    most = max(1, *(len(bins) for bins in packed_per_rank))
    count = most + -most % share.group
    mine = packed_per_rank[share.dp_rank]
    return [_build(sequences, indices, share, device) for indices in [*mine, *[[]] * (count - len(mine))]]


class _Columns:
    """The whole micro-batch while it is put together, one list per column."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.labels: list[int] = []
        self.mask: list[bool] = []
        self.weights: list[float] = []
        self.rollout: list[float] = []
        self.old: list[float] = []
        self.starts = [0]

    def add(self, sequence: TrainSequence) -> None:
        response_length = len(sequence.tokens) - sequence.prompt_length
        ignored = sequence.prompt_length - 1
        nothing = [0.0] * response_length
        self.tokens += sequence.tokens[:-1]
        self.labels += sequence.tokens[1:]
        self.mask += [False] * ignored + [True] * response_length
        self.weights += [0.0] * ignored + [sequence.weight] * response_length
        self.rollout += [0.0] * ignored + list(sequence.rollout_log_probs or nothing)
        self.old += [0.0] * ignored + list(sequence.old_log_probs or nothing)

    def fill(self, multiple: int) -> None:
        """Tokens of no weight, up to a multiple."""
        filler = -len(self.tokens) % multiple
        self.tokens += [0] * filler
        self.labels += [0] * filler
        self.mask += [False] * filler
        for column in (self.weights, self.rollout, self.old):
            column += [0.0] * filler

    def end(self) -> None:
        """A sequence ends here."""
        if len(self.tokens) > self.starts[-1]:
            self.starts.append(len(self.tokens))


def _build(
    sequences: Sequence[TrainSequence], members: Sequence[int], share: Share, device: torch.device
) -> MicroBatch:
    columns = _Columns()
    for index in members:
        columns.add(sequences[index])
        columns.fill(share.chunks)
        columns.end()
    if not members:
        columns.add(_EMPTY)
    columns.fill(share.chunks * share.multiple)
    columns.end()
    cu_seqlens = torch.tensor(columns.starts, dtype=torch.int32)
    positions = positions_of(cu_seqlens, share.cp_rank, share.cp)

    def mine(column: Sequence[float], dtype: torch.dtype) -> Tensor:
        return torch.tensor(column, dtype=dtype)[positions].to(device)

    has_old = any(sequences[index].old_log_probs for index in members)
    return MicroBatch(
        tokens=mine(columns.tokens, torch.int64),
        labels=mine(columns.labels, torch.int64),
        positions=positions.to(device),
        cu_seqlens=cu_seqlens.to(device),
        longest=int(cu_seqlens.diff().max()),
        response_mask=mine(columns.mask, torch.bool),
        weights=mine(columns.weights, torch.float32),
        rollout_log_probs=mine(columns.rollout, torch.float32),
        old_log_probs=mine(columns.old, torch.float32) if has_old else None,
        members=tuple(members),
    )


def positions_of(cu_seqlens: Tensor, cp_rank: int, cp: int) -> Tensor:
    """[T], the places of a context-parallel rank in the whole micro-batch: of each sequence two of 2 CP chunks."""
    everything = torch.arange(int(cu_seqlens[-1]), device=cu_seqlens.device)
    if cp == 1:
        return everything
    chunks = []
    for sequence in everything.split(cu_seqlens.diff().tolist()):
        cut = sequence.chunk(2 * cp)
        chunks += [cut[cp_rank], cut[-1 - cp_rank]]
    return torch.cat(chunks)


_EMPTY = TrainSequence(tokens=(0, 0), prompt_length=2, weight=0.0)
"""A micro-batch of nothing: one token, no response."""
