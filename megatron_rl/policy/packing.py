"""Which sequence goes to which micro-batch of which data-parallel rank. Lengths and costs only: no torch.

    lengths -> micro-batches, as few as are found -> dealt out -> exchanges -> ranks of one cost, with as many of them

A rank waits for the others at the end of a step, and all run the same number of micro-batches. Everything is arithmetic
of integers in a fixed order, chance included, so every rank finds the same by itself.
"""

import random
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache

from megatron_rl.policy.flops import TOKENS, SequenceCost

Packing = tuple[tuple[tuple[int, ...], ...], ...]
"""By data-parallel rank and micro-batch: the indices of its sequences."""
Members = list[int]
"""The same of one micro-batch, while it is put together."""
Filled = tuple[int, Members]
"""With its tokens."""

PACKING_METRICS = ("packing_efficiency", "dp_imbalance", "shared_prompt_tokens")

_TRIES = 400
"""Ways to fill one micro-batch of which the best is taken."""
_REFILLS, _EMPTIEST, _OTHERS = 600, 4, 12
"""How often some are filled anew; how many of those with most room, and of the others."""
_ROOMS = (0.1, 0.5)
"""Parts of the room that is there on average by which micro-batches may be fuller than the mean, to be even."""
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
    """As few as first fit needs, or fewer, rounded up to a multiple; filled evenly, where they have room for that."""
    everything = range(len(sizes))
    least = multiple * max(1, -(-sum(sizes) // (budget * multiple)))
    filled = min((_fill(everything, sizes, budget, tries) for tries in (1, _TRIES)), key=len)
    filled = _refill(filled, sizes, budget, least)
    count = multiple * max(1, -(-len(filled) // multiple))
    mean = -(-sum(sizes) // count)
    for room in _ROOMS:
        evenly = _fill(everything, sizes, mean + int((budget - mean) * room))
        if len(evenly) <= count:
            filled = evenly
            break
    return [members for _, members in filled] + [[] for _ in range(count - len(filled))]


def _refill(filled: list[Filled], sizes: Sequence[int], budget: int, least: int) -> list[Filled]:
    """Empty the ones with most room and some others, and fill them again, time after time, until `least` are left.

    What comes of it stays if it is fewer, or leaves the room in fewer of them: by the sum of squares of their tokens.
    """
    choose = random.Random(0)
    for _ in range(_REFILLS):
        if len(filled) <= least:
            break
        filled.sort()
        with_room = sum(tokens < budget for tokens, _ in filled)
        others = range(_EMPTIEST, with_room)
        places = {*range(min(_EMPTIEST, with_room)), *choose.sample(others, min(_OTHERS, len(others)))}
        old = [filled[place] for place in places]
        new = _fill((i for _, members in old for i in members), sizes, budget)
        if (len(new), -_squares(new)) <= (len(old), -_squares(old)):
            filled = [one for place, one in enumerate(filled) if place not in places] + new
    return filled


def _squares(filled: Iterable[Filled]) -> int:
    return sum(tokens**2 for tokens, _ in filled)


def _fill(members: Iterable[int], sizes: Sequence[int], budget: int, tries: int = _TRIES) -> list[Filled]:
    """One micro-batch after the other: the longest sequence left, and with it what fills it best."""
    left = sorted(members, key=lambda i: (sizes[i], -i))
    left_sizes = [sizes[i] for i in left]
    filled: list[Filled] = []
    while left:
        places = _fullest(left_sizes, budget, tries)
        filled.append((sum(left_sizes[place] for place in places), [left[place] for place in places]))
        for place in places:
            del left[place], left_sizes[place]
    return filled


def _fullest(ascending: Sequence[int], budget: int, tries: int) -> list[int]:
    """Places of the last of these sizes and of those that leave least room with it; in falling order.

    Of ways in order of depth, always the largest first that fits: the first is first fit's. Of ways that leave the same
    room the first is taken, since smaller ones are easier to place later.
    """
    chosen = [len(ascending) - 1]
    room = budget - ascending[-1]
    best, least = chosen, budget
    for _ in range(tries):
        while (place := bisect_right(ascending, room, 0, chosen[-1]) - 1) >= 0:
            chosen.append(place)
            room -= ascending[place]
        if room < least:
            best, least = chosen.copy(), room
        while least > 0 and len(chosen) > 1:
            place = chosen.pop()
            room += ascending[place]
            smaller = bisect_left(ascending, ascending[place], 0, place) - 1
            if smaller >= 0 and not ascending[0] > room - ascending[smaller] >= least:
                chosen.append(smaller)
                room -= ascending[smaller]
                break
        else:
            break
    return best


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
