"""What a pool does with its time: counts and percentiles since they were last read."""

import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

from verifiers.verdict import Result, Verdict


def percentile(ordered: Sequence[float], fraction: float) -> float:
    """Nearest rank of sorted values; 0 without any."""
    return ordered[min(len(ordered) - 1, int(fraction * len(ordered)))] if ordered else 0.0


@dataclass(frozen=True, slots=True)
class PoolMetrics:
    """A pool's work over an interval.

    Attributes:
        verdicts: how many samples got each verdict.
        seconds_p50, seconds_p99: time that a worker spent on a sample.
        latency_p50, latency_p99: time from a sample's submission to its verdict.
        utilization: share of the workers' time that was spent on samples, 0 to 1.
        max_queue_length: the most samples that waited for a worker at once.
    """

    verdicts: dict[Verdict, int]
    seconds_p50: float
    seconds_p99: float
    latency_p50: float
    latency_p99: float
    utilization: float
    max_queue_length: int

    def as_dict(self) -> dict[str, Any]:
        """As one flat record, for JSON."""
        numbers = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "verdicts"}
        return {verdict.value: count for verdict, count in self.verdicts.items()} | numbers


class Meter:
    """Counts for a pool of `workers`; from any thread."""

    def __init__(self, workers: int) -> None:
        self._workers = workers
        self._lock = threading.Lock()
        self._queue_length = 0
        self._reset()

    def _reset(self) -> None:
        self._since = time.monotonic()
        self._max_queue_length = self._queue_length
        self._busy: list[float] = []
        self._latencies: list[float] = []
        self._verdicts: Counter[Verdict] = Counter()

    def submitted(self) -> None:
        """A sample joined the queue."""
        with self._lock:
            self._queue_length += 1
            self._max_queue_length = max(self._max_queue_length, self._queue_length)

    def started(self) -> None:
        """A sample left the queue, for a worker or because nobody wants it any more."""
        with self._lock:
            self._queue_length -= 1

    def finished(self, result: Result, busy: float, latency: float) -> None:
        """A sample got its verdict, after a worker was `busy` for so many seconds, `latency` after its submission."""
        with self._lock:
            self._busy.append(busy)
            self._latencies.append(latency)
            self._verdicts[result.verdict] += 1

    def read(self) -> PoolMetrics:
        """The metrics since the last reading."""
        with self._lock:
            elapsed = max(time.monotonic() - self._since, 1e-9)
            busy, latencies = sorted(self._busy), sorted(self._latencies)
            metrics = PoolMetrics(
                {verdict: self._verdicts[verdict] for verdict in Verdict},
                percentile(busy, 0.50),
                percentile(busy, 0.99),
                percentile(latencies, 0.50),
                percentile(latencies, 0.99),
                min(1.0, sum(busy) / (self._workers * elapsed)),
                self._max_queue_length,
            )
            self._reset()
            return metrics
