"""Verification in worker processes that are killed from outside when their time is up.

    submit -> queue -> one thread per worker -> worker process -> Result

A worker is a fresh interpreter, never a fork of the caller, and leads a process group of its own. At a task's
deadline the group is killed, the sample gets `timeout`, and the next task gets a new worker. A worker that dies, or
a verifier that raises, costs one retry on a fresh worker, then the sample gets `infra_error`. Neither signals nor
the caller's main thread are involved, so a pool may be made and used from any thread.
"""

import contextlib
import os
import queue
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import CancelledError, Future
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from verifiers import frames
from verifiers.tasks import Task
from verifiers.verdict import Result, Verdict

START_SECONDS = 60.0
ATTEMPTS = 2

_PACKAGE_PARENT = str(Path(__file__).resolve().parent.parent)
_READ_BYTES = 1 << 20


class WorkerFailed(Exception):
    """A worker died, broke the protocol or reported a bug: the verifier's fault, not the sample's."""


class DeadlineExceeded(Exception):
    """A worker did not answer in time."""


class VerifierPool:
    """Up to `workers` processes that verify tasks; a context manager.

    Processes start when there is work for them. Leaving the context closes the pool.
    """

    def __init__(self, workers: int) -> None:
        if workers < 1:
            raise ValueError(f"a verifier pool needs at least 1 worker, got {workers}")
        self._size = workers
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._threads: list[_WorkerThread] = []
        self._unfinished = 0
        self._closed = False

    def submit(self, task: Task) -> "Future[Result]":
        """Start one verification. The future holds a `Result`; it raises `CancelledError` if the pool is closed first.

        Raises ValueError if the task is too large to send, RuntimeError if the pool is closed.
        """
        job = _Job(task)
        with self._lock:
            if self._closed:
                raise RuntimeError("the verifier pool is closed")
            self._unfinished += 1
            job.future.add_done_callback(self._finished)
            self._jobs.put(job)
            if len(self._threads) < min(self._size, self._unfinished):
                thread = _WorkerThread(self._jobs)
                self._threads.append(thread)
                thread.start()
        return job.future

    def close(self) -> None:
        """Cancel what is not finished, kill all workers and wait until they are gone. May be called again."""
        with self._lock:
            self._closed = True
            threads = list(self._threads)
        with contextlib.suppress(queue.Empty):
            while True:
                job = self._jobs.get_nowait()
                if job is not None:
                    job.cancel()
        for thread in threads:
            thread.stop()
        for _ in threads:
            self._jobs.put(None)
        for thread in threads:
            thread.join()

    def _finished(self, _: "Future[Result]") -> None:
        with self._lock:
            self._unfinished -= 1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class _Job:
    def __init__(self, task: Task) -> None:
        self.deadline_seconds = task.deadline_seconds
        self.frame = frames.pack_task(task)
        self.future: Future[Result] = Future()

    def cancel(self) -> None:
        if self.future.cancel():
            self.future.set_running_or_notify_cancel()


class _WorkerThread(threading.Thread):
    """Feeds one worker process at a time with jobs. The process starts in this thread and so dies with it."""

    def __init__(self, jobs: "queue.SimpleQueue[_Job | None]") -> None:
        super().__init__(name="verifier-worker", daemon=True)
        self._jobs = jobs
        self._stop_reader, self._stop_writer = socket.socketpair()
        self._stopping = False
        self._worker: _Worker | None = None

    def stop(self) -> None:
        """End the job in progress; from any thread."""
        self._stopping = True
        with contextlib.suppress(OSError):  # already ended
            self._stop_writer.send(b"x")

    def run(self) -> None:
        try:
            while not self._stopping and (job := self._jobs.get()) is not None:
                if job.future.set_running_or_notify_cancel():
                    self._serve(job)
        finally:
            self._drop_worker()
            self._stop_reader.close()
            self._stop_writer.close()

    def _serve(self, job: _Job) -> None:
        try:
            job.future.set_result(self._result(job))
        except CancelledError as error:
            job.future.set_exception(error)
        except Exception as error:  # a bug in this module: without it the caller would wait for ever
            self._drop_worker()
            job.future.set_exception(error)

    def _result(self, job: _Job) -> Result:
        start = time.monotonic()
        failure = ""
        for _ in range(ATTEMPTS):
            try:
                if self._worker is None:
                    self._worker = _Worker(self._stop_reader)
                return _read_result(self._worker.ask(job.frame, job.deadline_seconds))
            except DeadlineExceeded:
                self._drop_worker()
                detail = f"no answer within {job.deadline_seconds:g} s"
                return Result(Verdict.TIMEOUT, None, time.monotonic() - start, detail)
            except (WorkerFailed, frames.BrokenFrame, OSError) as error:
                self._drop_worker()
                failure = f"{error}" or type(error).__name__
        return Result(Verdict.INFRA_ERROR, None, time.monotonic() - start, failure)

    def _drop_worker(self) -> None:
        if self._worker is not None:
            self._worker.kill()
            self._worker = None


class _Worker:
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


def _read_result(answer: dict[str, Any]) -> Result:
    """Raises WorkerFailed for a reported bug or an answer of another form."""
    if "error" in answer:
        raise WorkerFailed(str(answer["error"]))
    try:
        return Result(Verdict(answer["verdict"]), answer["extracted"], float(answer["seconds"]), answer["detail"])
    except (KeyError, ValueError, TypeError) as error:
        raise WorkerFailed("a verifier worker sent an unreadable answer") from error
