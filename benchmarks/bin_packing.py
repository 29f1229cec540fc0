"""How few micro-batches any packing needs at least: bounds from below, for `packing.py`."""

import math
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linprog
from scipy.sparse import csc_array, hstack

Vector = NDArray[np.float64]
UNITS = 2048
"""Of a budget: sizes are rounded down to them, which only makes packing easier."""
MOST_ROUNDS = 1500
SMOOTHING = 0.7


def fewest(sizes: Sequence[int], budget: int) -> int:
    """Martello and Toth's second bound: tokens over the budget, but two samples above half of it never go together."""
    ascending = sorted(sizes)
    sums = [0, *accumulate(ascending)]
    half = bisect_right(ascending, budget // 2)

    def needed(small: int) -> int:
        """Without what is below `small`: samples above half the budget have one each, the rest goes between them."""
        alone, start = bisect_right(ascending, budget - small), bisect_left(ascending, small)
        room = (alone - half) * budget - (sums[alone] - sums[half])
        return len(ascending) - half + max(0, -(-(sums[half] - sums[start] - room) // budget))

    return max(map(needed, {0, *ascending[:half]}))


def needs_more_than(count: int, sizes: Sequence[int], budget: int, known: Iterable[Sequence[int]]) -> bool:
    """Whether that many are shown to be too few by Gilmore and Gomory's linear program, which lets a micro-batch be
    packed by half one way and by half another. It takes up to some minutes; False only says that this does not show it.

    It begins with the `known` micro-batches of some packing, by indices of their samples. Ways to pack one are added
    while there is one that is worth more than a micro-batch, at the prices of sizes that the program finds, or, which
    needs fewer rounds, at prices between those and the best so far. At any prices, those of all samples over those of
    the most that a micro-batch can hold are a bound (Farley).
    """
    units = np.array(sizes) * UNITS // budget
    weights, counts = np.unique(units[units > 0], return_counts=True)
    demand = counts.astype(float)
    packed = [np.isin(np.arange(len(sizes)), batch) & (units > 0) for batch in known]
    found = [np.bincount(np.searchsorted(weights, units[batch]), minlength=len(weights)) for batch in packed]
    ways = csc_array(np.array([*found, *np.eye(len(weights))], float).T)
    best, best_prices = 0.0, None
    for _ in range(MOST_ROUNDS):
        solved = linprog(np.ones(ways.shape[1]), A_ub=-ways, b_ub=-demand, method="highs")
        if math.ceil(solved.fun - 1e-6) <= count:
            return False
        prices = -solved.ineqlin.marginals
        smooth = prices if best_prices is None else (1 - SMOOTHING) * prices + SMOOTHING * best_prices
        new = []
        for tried in (smooth, prices):
            way = _most_worth(weights, demand, tried)
            bound = tried @ demand / max(1.0, tried @ way)
            if bound > best:
                best, best_prices = bound, tried
            if prices @ way > 1 + 1e-7:
                new.append(way)
        if math.ceil(best - 1e-6) > count:
            return True
        if not new:
            return False
        ways = hstack([ways, csc_array(np.array(new).T)], format="csc")
    return False


def _most_worth(weights: Vector, demand: Vector, prices: Vector) -> Vector:
    """How many of each size a micro-batch of the highest price has."""
    worth = np.zeros(UNITS + 1)
    taken: list[tuple[int, int, int, NDArray[np.bool_]]] = []
    for kind, copies in _bundles(weights, demand):
        weight = copies * int(weights[kind])
        with_it = worth[:-weight] + copies * prices[kind]
        better = with_it > worth[weight:] + 1e-12
        worth[weight:] = np.where(better, with_it, worth[weight:])
        taken.append((kind, copies, weight, better))
    way, room = np.zeros(len(weights)), UNITS
    for kind, copies, weight, better in reversed(taken):
        if room >= weight and better[room - weight]:
            way[kind] += copies
            room -= weight
    return way


def _bundles(weights: Vector, demand: Vector) -> Iterator[tuple[int, int]]:
    """Sizes and numbers of copies, of which any number up to the demand is made: 1, 2, 4, ..., the rest."""
    for kind, (weight, wanted) in enumerate(zip(weights, demand, strict=True)):
        left, copies = int(min(wanted, UNITS // weight)), 1
        while left > 0:
            yield kind, min(copies, left)
            left -= copies
            copies *= 2
