"""One worker process of a pool: a fresh interpreter at the head of a process group of its own, and the socket to it."""

import contextlib
import os
import select
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Any

from verifiers import frames

START_SECONDS = 60.0

_PACKAGE_PARENT = str(Path(__file__).resolve().parent.parent)
_READ_BYTES = 1 << 20


class WorkerFailed(Exception):
    """A worker died, broke the protocol or reported a bug: the verifier's fault, not the sample's."""


class DeadlineExceeded(Exception):
    """A worker did not answer in time."""


class WorkerProcess:
    """One worker process and the socket to it."""

    def __init__(self, stop: socket.socket) -> None:
        """Raises WorkerFailed if the process does not come up."""
        self._stop = stop
        self._process_fd = -1
        self._socket, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "verifiers.worker", str(os.getpid())],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                env=_environment(),
                start_new_session=True,
            )
        try:
            self._process_fd = os.pidfd_open(self._process.pid)
            self._socket.setblocking(False)
            self._exchange(b"", START_SECONDS)
        except BaseException as error:
            self.kill()
            if isinstance(error, DeadlineExceeded):
                raise WorkerFailed(f"a verifier worker did not start within {START_SECONDS:g} s") from None
            raise

    def ask(self, frame: bytes, seconds: float) -> dict[str, Any]:
        """The answer to a task.

        Raises DeadlineExceeded after `seconds`, WorkerFailed if the process dies, CancelledError if the pool closes.
        """
        return self._exchange(frame, seconds)

    def kill(self) -> None:
        """Kill the whole process group and reap the process."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._socket.close()
        if self._process_fd >= 0:
            os.close(self._process_fd)

    def _exchange(self, frame: bytes, seconds: float) -> dict[str, Any]:
        """Send a frame and receive an answer, both before one deadline."""
        deadline = time.monotonic() + seconds
        unsent = memoryview(frame)
        reader = frames.AnswerReader()
        while True:
            readable, writable = self._wait(bool(unsent), deadline)
            if self._stop in readable:
                raise CancelledError("the verifier pool was closed")
            if self._socket in readable:
                data = self._socket.recv(_READ_BYTES)
                answer = reader.feed(data)
                if answer is not None:
                    return answer
                if not data:
                    raise self._death()
            elif self._process_fd in readable:
                raise self._death()
            if writable:
                unsent = unsent[self._socket.send(unsent[:_READ_BYTES]) :]

    def _wait(self, sending: bool, deadline: float) -> tuple[set[Any], bool]:
        """What can be read, and whether the socket can be written."""
        poll = select.poll()
        sources = {s if isinstance(s, int) else s.fileno(): s for s in (self._stop, self._socket, self._process_fd)}
        for descriptor in sources:
            poll.register(descriptor, select.POLLIN)
        if sending:
            poll.modify(self._socket, select.POLLIN | select.POLLOUT)
        remaining = deadline - time.monotonic()
        events = poll.poll(remaining * 1000) if remaining > 0 else []
        if not events:
            raise DeadlineExceeded
        readable = {sources[fd] for fd, event in events if event & ~select.POLLOUT}
        return readable, any(event & select.POLLOUT for _, event in events)

    def _death(self) -> WorkerFailed:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(1.0)
        return WorkerFailed(f"a verifier worker ended with status {self._process.returncode}")


def _environment() -> dict[str, str]:
    path = os.environ.get("PYTHONPATH")
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([_PACKAGE_PARENT, *([path] if path else [])]),
        "OMP_NUM_THREADS": "1",
    }
