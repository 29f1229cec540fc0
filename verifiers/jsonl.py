"""Verification of a file of responses, one JSON object per line, in input order and bounded memory."""

import contextlib
import json
import os
import sys
import time
from array import array
from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any, TextIO

from verifiers.metrics import percentile
from verifiers.pool import Pool
from verifiers.records import ReadTask, parse_line
from verifiers.tasks import Task
from verifiers.verdict import Result, Verdict

# Read ahead of the line that is written next: enough that one slow program does not leave the workers without work.
IN_FLIGHT_PER_WORKER = 64
IN_FLIGHT_BYTES = 512 << 20


def verify_file(
    path: Path,
    read: ReadTask,
    pool: Pool,
    out: Path | None,
    progress: Callable[[int], None] | None = None,
) -> dict[str, float]:
    """Verify every line of a JSONL file.

    Each line comes back with `verdict`, `reward`, `extracted` and `seconds` added, in input order. Blank lines are
    skipped.

    Args:
        path: the file.
        read: how its lines are read; see `verifiers.records`.
        pool: who verifies; it stays open.
        out: where to write, by way of a temporary file beside it; None for standard output.
        progress: called with the number of finished lines, after each.

    Returns:
        The count of each verdict, `samples`, `seconds` (wall clock), over the samples' own seconds `p50` and `p99`, and
        `utilization` and `max_queue_length` of the pool.

    Raises:
        ValueError: a line is not usable; the message names the file, the line and the remedy.
        FileNotFoundError: there is no such file, or no folder to write to.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; expected JSON lines to verify")
    start = time.monotonic()
    counts = Counter({verdict.value: 0 for verdict in Verdict})
    seconds = array("d")
    pool.metrics()
    with _output(out) as output:
        for record, result in _verified(pool, _tasks(path, read)):
            output.write(json.dumps({**record, **_added(result)}) + "\n")
            counts[result.verdict.value] += 1
            seconds.append(result.seconds)
            if progress is not None:
                progress(len(seconds))
    ordered, metrics = sorted(seconds), pool.metrics()
    return {
        **counts,
        "samples": len(ordered),
        "seconds": round(time.monotonic() - start, 3),
        "p50": round(percentile(ordered, 0.50), 6),
        "p99": round(percentile(ordered, 0.99), 6),
        "utilization": round(metrics.utilization, 3),
        "max_queue_length": metrics.max_queue_length,
    }


def _verified(pool: Pool, tasks: Iterator[tuple[dict[str, Any], Task, int]]) -> Iterator[tuple[dict[str, Any], Result]]:
    """Results in the order of their tasks, with a bounded number of them, and of their bytes, read ahead."""
    waiting: deque[tuple[dict[str, Any], Future[Result], int]] = deque()
    waiting_bytes = 0
    try:
        for record, task, size in tasks:
            waiting.append((record, pool.submit(task), size))
            waiting_bytes += size
            while len(waiting) >= pool.workers * IN_FLIGHT_PER_WORKER or waiting_bytes > IN_FLIGHT_BYTES:
                record, future, size = waiting.popleft()
                waiting_bytes -= size
                yield record, future.result()
        while waiting:
            record, future, _ = waiting.popleft()
            yield record, future.result()
    finally:
        for _, future, _ in waiting:
            future.cancel()


def _added(result: Result) -> dict[str, Any]:
    return {
        "verdict": result.verdict.value,
        "reward": result.reward,
        "extracted": result.extracted,
        "seconds": round(result.seconds, 6),
    }


@contextlib.contextmanager
def _output(out: Path | None) -> Iterator[TextIO]:
    """Standard output, or a file that appears under its name only when all is written."""
    if out is None:
        yield sys.stdout
        sys.stdout.flush()
        return
    out = Path(out)
    if not out.parent.is_dir():
        raise FileNotFoundError(f"{out.parent}: no such folder to write {out.name} into; create it first")
    temporary = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, out)
    finally:
        temporary.unlink(missing_ok=True)


def _tasks(path: Path, read: ReadTask) -> Iterator[tuple[dict[str, Any], Task, int]]:
    """The records of the file, with their tasks and sizes in bytes."""
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if line.isspace():
                continue
            try:
                record = parse_line(line)
                task = read(record)
            except ValueError as error:
                raise ValueError(f"{path}, line {number}: {error}") from None
            yield record, task, len(line)
