"""Verification as it streams: each engine's samples go to its own worker processes the moment they end."""

import heapq
from collections.abc import Container, Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class End:
    """A sample's end."""

    seconds: float
    engine: int
    index: int


def last_verdict(ends: Iterable[End], unverified: Container[int], workers: int, seconds: float) -> float:
    """When the last sample has its verdict.

    Args:
        ends: in order of time.
        unverified: samples that are not verified (truncated ones): their verdict is there at once.
        workers: processes per engine.
        seconds: of one sample on one process.
    """
    free: dict[int, list[float]] = {}
    last = 0.0
    for end in ends:
        done = end.seconds
        if end.index not in unverified:
            processes = free.setdefault(end.engine, [0.0] * workers)
            done = max(heapq.heappop(processes), end.seconds) + seconds
            heapq.heappush(processes, done)
        last = max(last, done)
    return last
