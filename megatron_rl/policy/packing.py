"""Which sequence goes to which data-parallel rank, and to which of its micro-batches. Lengths only: no torch."""

from collections.abc import Sequence


def split_over_ranks(lengths: Sequence[int], ranks: int) -> list[list[int]]:
    """Indices of `lengths` per rank, balanced by tokens: the longest first, each to the lightest rank so far."""
    loads = [0] * ranks
    members: list[list[int]] = [[] for _ in range(ranks)]
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        rank = loads.index(min(loads))
        loads[rank] += lengths[index]
        members[rank].append(index)
    return members


def pack(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Indices per micro-batch: first fit, longest first; a sequence above the budget gets a micro-batch of its own."""
    bins: list[list[int]] = []
    room: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        for bin_index, free in enumerate(room):
            if lengths[index] <= free:
                bins[bin_index].append(index)
                room[bin_index] -= lengths[index]
                break
        else:
            bins.append([index])
            room.append(budget - lengths[index])
    return bins
