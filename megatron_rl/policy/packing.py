"""Which sequence goes to which micro-batch of which data-parallel rank. Lengths and costs only: no torch.

    lengths -> micro-batches, as few as fit -> dealt out -> exchanges -> ranks of one cost, with as many micro-batches
               and evenly filled

A rank waits for the others at the end of a step, and all run the same number of micro-batches. Everything is arithmetic
of integers in a fixed order, so every rank finds the same by itself.
"""

import heapq
from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache

from megatron_rl.policy.flops import TOKENS, SequenceCost

Packing = tuple[tuple[tuple[int, ...], ...], ...]
"""By data-parallel rank and micro-batch: the indices of its sequences."""
Members = list[int]
"""The same of one micro-batch, while it is put together."""

PACKING_METRICS = ("packing_efficiency", "dp_imbalance", "shared_prompt_tokens")

_NEAR = 1000
"""Ranks are left as they are where none costs more than the mean by above one part in this."""


@lru_cache(maxsize=64)  # a planner's search asks again and again; the policy once more, for its metrics
def pack(lengths: tuple[int, ...], budget: int, ranks: int = 1, group: int = 1, cost: SequenceCost = TOKENS) -> Packing:
    """Every sequence in one micro-batch of at most `budget` tokens; a longer sequence in one of its own.

    All ranks have the same number of micro-batches, a multiple of `group`, the most costly ones first. Ranks differ in
    cost at most as much as micro-batches do, and mostly by far less.
    """
    sizes = [min(length, budget) for length in lengths]  # what is longer fills its micro-batch
    costs = [cost.of(length) for length in lengths]
    parts = _deal(_micro_batches(sizes, budget, ranks * group), costs, ranks)
    _level(parts, [*costs, 0], [*sizes, 0], budget)
    return tuple(tuple(tuple(sorted(batch)) for batch in _by_cost(part, costs)) for part in parts)


def packing_metrics(packing: Packing, lengths: Sequence[int], budget: int, cost: SequenceCost) -> dict[str, float]:
    """How well a step is packed.

    Returns:
        `packing_efficiency`: tokens over the budget of all micro-batches, the empty ones too. A sequence above the
            budget counts as the budget, so that 1 is the most there can be.
        `dp_imbalance`: cost of the rank that has most to do over the mean of all ranks, less 1.
    """
    loads = [sum(cost.of(lengths[i]) for batch in part for i in batch) for part in packing]
    room = budget * sum(len(part) for part in packing)
    return {
        "packing_efficiency": sum(min(length, budget) for length in lengths) / room,
        "dp_imbalance": max(loads) * len(loads) / sum(loads) - 1,
    }


def shared_prompt_tokens(prompts: Iterable[Sequence[int]]) -> int:
    """Tokens of the prompts that came before: what computing each prompt only once would save."""
    seen: set[tuple[int, ...]] = set()
    repeated = 0
    for prompt in map(tuple, prompts):
        repeated += len(prompt) if prompt in seen else 0
        seen.add(prompt)
    return repeated


def _micro_batches(sizes: Sequence[int], budget: int, multiple: int) -> list[Members]:
    """As few as best fit needs, or fewer, rounded up to a multiple; evenly filled, where exchanges find such a way."""
    batches = _best_fit(sizes, budget)
    batches += [[] for _ in range(-len(batches) % multiple if batches else multiple)]
    low, high = max(1, -(-sum(sizes) // (budget * multiple))), len(batches) // multiple
    while low <= high:
        middle = (low + high) // 2
        even = _spread(sizes, budget, middle * multiple)
        if even is None:
            low = middle + 1
        else:
            batches, high = even, middle - 1
    return batches


def _best_fit(sizes: Sequence[int], budget: int) -> list[Members]:
    """The longest first, each into the micro-batch with the least room that holds it."""
    batches: list[Members] = []
    rooms: list[tuple[int, int]] = []  # ascending, with the micro-batch
    for index in _descending(sizes):
        place = bisect_left(rooms, (sizes[index], -1))
        if place == len(rooms):
            rooms.append((budget, len(batches)))
            batches.append([])
        room, number = rooms.pop(place)
        batches[number].append(index)
        insort(rooms, (room - sizes[index], number))
    return batches


def _spread(sizes: Sequence[int], budget: int, count: int) -> list[Members] | None:
    """The longest first, each into the emptiest micro-batch; then exchanges bring all within the budget, or None."""
    batches: list[Members] = [[] for _ in range(count)]
    emptiest = [(0, number) for number in range(count)]
    for index in _descending(sizes):
        filled, number = emptiest[0]
        batches[number].append(index)
        heapq.heapreplace(emptiest, (filled + sizes[index], number))
    return batches if _keep_budget(batches, sizes, budget) else None


def _keep_budget(batches: list[Members], sizes: Sequence[int], budget: int) -> bool:
    """Exchange sequences of the micro-batches above the budget for shorter ones of others that have room.

    Each time that pair which differs least of those that are enough, else that which differs most.

    Returns:
        Whether all are within the budget now.
    """
    filled = [sum(sizes[i] for i in batch) for batch in batches]
    home = {i: number for number, batch in enumerate(batches) for i in batch}
    ascending = _descending(sizes)[::-1]

    def shorter(i: int, excess: int, most_room: int) -> Iterator[tuple[int, int, int]]:
        """The next to `excess` on either side, as (difference, i, j)."""
        place = bisect_right(ascending, sizes[i] - excess, key=sizes.__getitem__)
        for outwards in reversed(ascending[:place]), ascending[place:]:
            for j in outwards:
                difference = sizes[i] - sizes[j]
                if not 0 < difference <= max(excess, most_room):
                    break
                if filled[home[j]] + difference <= budget:
                    yield difference, i, j
                    break

    for number, batch in enumerate(batches):
        while (excess := filled[number] - budget) > 0:
            most_room = budget - min(filled)
            pairs = [pair for i in batch for pair in shorter(i, excess, most_room)]
            if not pairs:
                return False
            enough = [pair for pair in pairs if pair[0] >= excess]
            difference, i, j = min(enough) if enough else max(pairs)
            _swap(batch, i, batches[home[j]], j)
            filled[number] -= difference
            filled[home[j]] += difference
            home[i], home[j] = home[j], home[i]
    return True


def _deal(batches: Iterable[Members], costs: Sequence[int], ranks: int) -> list[list[Members]]:
    """As many to every rank: by falling cost, to and fro."""
    ordered = _by_cost(batches, costs)
    rounds = [ordered[start : start + ranks] for start in range(0, len(ordered), ranks)]
    to_and_fro = [row if number % 2 == 0 else row[::-1] for number, row in enumerate(rounds)]
    return [list(part) for part in zip(*to_and_fro, strict=True)]


def _level(parts: list[list[Members]], costs: Sequence[int], sizes: Sequence[int], budget: int) -> None:
    """Exchange sequences between the most costly rank and the others, the cheapest first, until ranks are near."""
    loads = [sum(costs[i] for batch in part for i in batch) for part in parts]
    while max(loads) * len(loads) * _NEAR > sum(loads) * (_NEAR + 1):
        most = loads.index(max(loads))
        for rank in sorted(range(len(parts)), key=loads.__getitem__):
            moved = _exchange(parts[most], parts[rank], loads[most] - loads[rank], costs, sizes, budget)
            if moved:
                loads[most] -= moved
                loads[rank] += moved
                break
        else:
            return


def _exchange(
    giver: list[Members], taker: list[Members], gap: int, costs: Sequence[int], sizes: Sequence[int], budget: int
) -> int:
    """Exchange a sequence for a cheaper one, or for none (index -1), within the budget of both micro-batches.

    Args:
        gap: by how much one rank costs more than the other. Of all exchanges that which leaves least of it is made.

    Returns:
        The cost that has moved over; 0 if no exchange makes the gap smaller.
    """
    offers = sorted((costs[j], j, number) for number, batch in enumerate(taker) for j in [*batch, -1])
    rooms = [budget - sum(sizes[j] for j in batch) for batch in taker]

    def partners(i: int, room: int) -> Iterator[tuple[int, int, int, int]]:
        """Those on either side of half the gap, with what they gain."""
        half = bisect_left(offers, (costs[i] - gap // 2, -1, -1))
        for outwards in offers[half:], reversed(offers[:half]):
            for cost, j, number in outwards:
                gain = min(costs[i] - cost, gap - (costs[i] - cost))
                if gain <= 0:
                    break
                if -room <= sizes[i] - sizes[j] <= rooms[number]:
                    yield gain, i, j, number
                    break

    found = [
        (*partner, number)
        for number, batch in enumerate(giver)
        for i in batch
        for partner in partners(i, budget - sum(sizes[other] for other in batch))
    ]
    if not found:
        return 0
    _, i, j, to, of = max(found)
    _swap(giver[of], i, taker[to], j)
    return costs[i] - costs[j]


def _swap(batch: Members, i: int, other: Members, j: int) -> None:
    """`i` of a micro-batch for `j` of another; -1 is none."""
    batch.remove(i)
    other.append(i)
    if j >= 0:
        other.remove(j)
        batch.append(j)


def _descending(sizes: Sequence[int]) -> list[int]:
    return sorted(range(len(sizes)), key=lambda i: (-sizes[i], i))


def _by_cost(batches: Iterable[Members], costs: Sequence[int]) -> list[Members]:
    return sorted(batches, key=lambda batch: (-sum(costs[i] for i in batch), batch))
