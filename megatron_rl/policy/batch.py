"""Sequences balanced over data-parallel ranks and packed into micro-batches, with no padding between them."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_rl.policy.flops import TOKENS, SequenceCost
from megatron_rl.policy.packing import pack, packing_metrics, shared_prompt_tokens


@dataclass(frozen=True, slots=True)
class TrainSequence:
    """One sequence to train on.

    Attributes:
        tokens: prompt and response ids, at least two.
        prompt_length: leading tokens that carry no loss, at least one.
        weight: what each response token counts in the step's mean: 1 over the global normaliser.
        advantage: of every response token; SFT has none but 1.
        rollout_log_probs: the engine's log-probs of the response tokens; empty for SFT.
        old_log_probs: those of the policy that generated, where it has been updated since; else empty.
        reference_log_probs: those of the reference policy, where the loss has a KL term; else empty.
    """

    tokens: Sequence[int]
    prompt_length: int
    weight: float
    advantage: float = 1.0
    rollout_log_probs: Sequence[float] = ()
    old_log_probs: Sequence[float] = ()
    reference_log_probs: Sequence[float] = ()


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
        weights, advantages: [T] float32, zero outside responses.
        rollout_log_probs: [T] float32, zero outside responses.
        old_log_probs: [T] float32, of the policy that generated; None where it is the policy itself.
        reference_log_probs: [T] float32, of the reference policy; None without one.
        members: for each real sequence its index in the step's list.
        cp_group: the ranks that share the sequences; None where every rank has whole ones.
    """

    tokens: Tensor
    labels: Tensor
    positions: Tensor
    cu_seqlens: Tensor
    longest: int
    response_mask: Tensor
    weights: Tensor
    advantages: Tensor
    rollout_log_probs: Tensor
    members: tuple[int, ...]
    old_log_probs: Tensor | None = None
    reference_log_probs: Tensor | None = None
    cp_group: dist.ProcessGroup | None = None

    def sequence_sums(self, values_T: Tensor) -> Tensor:
        """[T], at each position the sum of the values of its whole sequence; without gradient."""
        sequence_T = torch.searchsorted(self.cu_seqlens[1:], self.positions, right=True)
        sums = values_T.new_zeros(len(self.cu_seqlens) - 1).index_add(0, sequence_T, values_T.detach())
        if self.cp_group is not None:
            dist.all_reduce(sums, group=self.cp_group)
        return sums[sequence_T]


@dataclass(frozen=True, slots=True)
class Share:
    """What this rank gets of every batch.

    Attributes:
        dp_rank, dp: sequences are dealt out over data-parallel ranks.
        cp_rank, cp: tokens of every sequence over context-parallel ranks.
        multiple: T is rounded up to a multiple of this (sequence parallelism cuts T evenly over TP).
        group: the number of micro-batches is rounded up to a multiple of this (an interleaved pipeline's stages).
        cp_group: the context-parallel ranks, if they are several.
    """

    dp_rank: int = 0
    dp: int = 1
    cp_rank: int = 0
    cp: int = 1
    multiple: int = 1
    group: int = 1
    cp_group: dist.ProcessGroup | None = None

    @property
    def chunks(self) -> int:
        """In how many chunks of one length every sequence is cut."""
        return 2 * self.cp if self.cp > 1 else 1


def micro_batches(
    sequences: Sequence[TrainSequence], share: Share, budget: int, device: torch.device, cost: SequenceCost = TOKENS
) -> list[MicroBatch]:
    """This rank's micro-batches; every rank gets the same number, if need be empty ones of no weight.

    Args:
        budget: tokens of a whole micro-batch, over all context-parallel ranks.
        cost: what is made equal over data-parallel ranks.
    """
    mine = pack(_lengths(sequences), budget, share.dp, share.group, cost)[share.dp_rank]
    return [_build(sequences, members, share, device) for members in mine]


def batch_metrics(
    sequences: Sequence[TrainSequence], share: Share, budget: int, cost: SequenceCost
) -> dict[str, float]:
    """`PACKING_METRICS` of what `micro_batches` makes, over all ranks."""
    lengths = _lengths(sequences)
    packing = pack(lengths, budget, share.dp, share.group, cost)
    prompts = (sequence.tokens[: sequence.prompt_length] for sequence in sequences)
    return packing_metrics(packing, lengths, budget, cost) | {"shared_prompt_tokens": shared_prompt_tokens(prompts)}


def _lengths(sequences: Sequence[TrainSequence]) -> tuple[int, ...]:
    return tuple(len(sequence.tokens) - 1 for sequence in sequences)


_RESPONSE_COLUMNS = ("weights", "advantages", "rollout_log_probs", "old_log_probs", "reference_log_probs")


class _Columns:
    """The whole micro-batch while it is put together, one list per column."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.labels: list[int] = []
        self.mask: list[bool] = []
        self.of_responses: dict[str, list[float]] = {name: [] for name in _RESPONSE_COLUMNS}
        self.starts = [0]

    def add(self, sequence: TrainSequence) -> None:
        length = len(sequence.tokens) - sequence.prompt_length
        ignored = sequence.prompt_length - 1
        self.tokens += sequence.tokens[:-1]
        self.labels += sequence.tokens[1:]
        self.mask += [False] * ignored + [True] * length
        values = (
            [sequence.weight] * length,
            [sequence.advantage] * length,
            sequence.rollout_log_probs,
            sequence.old_log_probs,
            sequence.reference_log_probs,
        )
        for column, of_response in zip(self.of_responses.values(), values, strict=True):
            column += [0.0] * ignored + list(of_response or [0.0] * length)

    def fill(self, multiple: int) -> None:
        """Tokens of no weight, up to a multiple."""
        filler = -len(self.tokens) % multiple
        self.tokens += [0] * filler
        self.labels += [0] * filler
        self.mask += [False] * filler
        for column in self.of_responses.values():
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

    found = {name: mine(column, torch.float32) for name, column in columns.of_responses.items()}
    for name in ("old_log_probs", "reference_log_probs"):
        if not any(getattr(sequences[index], name) for index in members):
            found.pop(name)
    return MicroBatch(
        tokens=mine(columns.tokens, torch.int64),
        labels=mine(columns.labels, torch.int64),
        positions=positions.to(device),
        cu_seqlens=cu_seqlens.to(device),
        longest=int(cu_seqlens.diff().max()),
        response_mask=mine(columns.mask, torch.bool),
        members=tuple(members),
        cp_group=share.cp_group,
        **found,
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
