"""A worker of the pool: takes tasks from the socket on its standard input, one at a time, until it closes.

Started as `python -m verifiers.worker PID` by the process with that id, with which it dies.
"""

import contextlib
import ctypes
import dataclasses
import os
import resource
import signal
import socket
import sys
import time
from collections.abc import Iterator
from typing import Any

from verifiers import frames
from verifiers.math import verify_math
from verifiers.tasks import Task
from verifiers.verdict import Result, Verdict

_PR_SET_PDEATHSIG = 1
NICENESS = 5
_WARM_UP = (r"</think>\boxed{\sqrt{8}}", r"2\sqrt{2}")


def main() -> None:
    """Serve until the pool closes its end. Says `{"ready": true}` first."""
    _die_with_parent(int(sys.argv[1]))
    os.nice(NICENESS)
    connection = _take_connection()
    verify_math(*_WARM_UP)  # imports what it needs lazily, before the first deadline runs
    connection.sendall(frames.pack_record({"ready": True}))
    while (task := frames.receive_task(connection)) is not None:
        connection.sendall(frames.pack_record(_answer(task)))


def _die_with_parent(parent: int) -> None:
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it was gone before the request stood
        os._exit(1)


def _take_connection() -> socket.socket:
    """The socket, moved off standard input and output, so that nothing that verifiers print can reach it."""
    connection = socket.socket(fileno=os.dup(0))
    os.set_inheritable(connection.fileno(), False)
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)
    os.close(null)
    return connection


def _answer(task: Task) -> dict[str, Any]:
    start = time.perf_counter()
    try:
        with _memory_limit(task.memory_bytes):
            result = task.run()
    except Exception as error:  # the edge of the outside world: a bug here must not look like a wrong answer
        if not isinstance(error, MemoryError) or task.memory_bytes is None:
            return {"error": f"{type(error).__name__}: {error}".replace("\n", " ")[:500]}
        # Past the memory limit of a task is like past its deadline: the response's doing, not ours.
        result = Result(Verdict.TIMEOUT, None, time.perf_counter() - start, "over the memory limit")
    return dataclasses.asdict(result)


@contextlib.contextmanager
def _memory_limit(extra_bytes: int | None) -> Iterator[None]:
    """Within, this process may grow by at most `extra_bytes` of address space."""
    if extra_bytes is None:
        yield
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    with open("/proc/self/statm") as statm:
        used = int(statm.read().split()[0]) * resource.getpagesize()
    limit = used + extra_bytes
    if hard != resource.RLIM_INFINITY:
        limit = min(limit, hard)
    resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


if __name__ == "__main__":
    main()
