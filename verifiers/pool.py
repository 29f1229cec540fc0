"""Verification in worker processes that are killed from outside when their time is up.

    submit -> queue -> one thread per worker -> worker process -> Result

A worker is a fresh interpreter, never a fork of the caller, and leads a process group of its own. At a task's
deadline the group is killed, the sample gets `timeout`, and the next task gets a new worker. A worker that dies, or
a verifier that raises, costs one retry on a fresh worker, then the sample gets `infra_error`. Neither signals nor
the caller's main thread are involved, so a pool may be made and used from any thread.

What waits in the queue is taken by expected cost, the dearest first, so that no worker is left with a long task
when the others have run out of work.
"""

import contextlib
import socket
import threading
import time
from abc import ABC, abstractmethod
from concurrent.futures import CancelledError, Future
from types import TracebackType
from typing import Any, Self

from verifiers import frames
from verifiers.job_queue import Job, JobQueue
from verifiers.metrics import Meter, PoolMetrics
from verifiers.process import DeadlineExceeded, WorkerFailed, WorkerProcess
from verifiers.tasks import Task
from verifiers.verdict import Result, Verdict

ATTEMPTS = 2


class Pool(ABC):
    """What both pools offer: this one, and `remote.RemotePool`, whose workers are on another machine.

    A context manager; leaving it closes the pool.
    """

    workers: int

    @abstractmethod
    def submit(self, task: Task) -> "Future[Result]":
        """Start one verification. The future holds a `Result`; it raises `CancelledError` if the pool is closed first.

        Raises RuntimeError if the pool is closed.
        """

    @abstractmethod
    def metrics(self) -> PoolMetrics:
        """What happened since the last call."""

    @abstractmethod
    def close(self) -> None:
        """Cancel what is not finished and let go of all processes and connections. May be called again."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class VerifierPool(Pool):
    """Up to `workers` processes that verify tasks. They start when there is work for them."""

    def __init__(self, workers: int) -> None:
        if workers < 1:
            raise ValueError(f"a verifier pool needs at least 1 worker, got {workers}")
        self.workers = workers
        self._meter = Meter(workers)
        self._jobs = JobQueue()
        self._lock = threading.Lock()
        self._threads: list[_WorkerThread] = []
        self._unfinished = 0

    def submit(self, task: Task) -> "Future[Result]":
        job = Job(task)
        with self._lock:
            self._jobs.put(job)
            self._meter.submitted()
            self._unfinished += 1
            job.future.add_done_callback(self._finished)
            if len(self._threads) < min(self.workers, self._unfinished):
                thread = _WorkerThread(self._jobs, self._meter)
                self._threads.append(thread)
                thread.start()
        return job.future

    def metrics(self) -> PoolMetrics:
        return self._meter.read()

    def close(self) -> None:
        with self._lock:
            waiting = self._jobs.close()
            threads = list(self._threads)
        for job in waiting:
            job.cancel()
        for thread in threads:
            thread.stop()
        for thread in threads:
            thread.join()

    def _finished(self, _: "Future[Result]") -> None:
        with self._lock:
            self._unfinished -= 1


class _WorkerThread(threading.Thread):
    """Feeds one worker process at a time with jobs. The process starts in this thread and so dies with it."""

    def __init__(self, jobs: JobQueue, meter: Meter) -> None:
        super().__init__(name="verifier-worker", daemon=True)
        self._jobs, self._meter = jobs, meter
        self._stop_reader, self._stop_writer = socket.socketpair()
        self._worker: WorkerProcess | None = None

    def stop(self) -> None:
        """End the job in progress; from any thread, after the queue was closed."""
        with contextlib.suppress(OSError):  # already ended
            self._stop_writer.send(b"x")

    def run(self) -> None:
        try:
            while (job := self._jobs.get()) is not None:
                if job.future.set_running_or_notify_cancel():
                    self._serve(job)
                else:
                    self._meter.started()
        finally:
            self._drop_worker()
            self._stop_reader.close()
            self._stop_writer.close()

    def _serve(self, job: Job) -> None:
        begin = time.monotonic()
        self._meter.started()
        try:
            result = self._result(job.task)
            now = time.monotonic()
            self._meter.finished(result, busy=now - begin, latency=now - job.submitted)
            job.future.set_result(result)
        except CancelledError as error:
            job.future.set_exception(error)
        except Exception as error:  # a bug in this module: without it the caller would wait for ever
            self._drop_worker()
            job.future.set_exception(error)

    def _result(self, task: Task) -> Result:
        start = time.monotonic()
        failure = ""
        for _ in range(ATTEMPTS):
            try:
                if self._worker is None:
                    self._worker = WorkerProcess(self._stop_reader)
                    start = time.monotonic()  # that took its own time, not the task's
                return _read_result(self._worker.ask(frames.pack_task(task), task.deadline_seconds))
            except DeadlineExceeded:
                self._drop_worker()
                detail = f"no answer within {task.deadline_seconds:g} s"
                return Result(Verdict.TIMEOUT, None, time.monotonic() - start, detail)
            except (WorkerFailed, frames.BrokenFrame, OSError) as error:
                self._drop_worker()
                failure = f"{error}" or type(error).__name__
        return Result(Verdict.INFRA_ERROR, None, time.monotonic() - start, failure)

    def _drop_worker(self) -> None:
        if self._worker is not None:
            self._worker.kill()
            self._worker = None


def _read_result(answer: dict[str, Any]) -> Result:
    """Raises WorkerFailed for a reported bug or an answer of another form."""
    if "error" in answer:
        raise WorkerFailed(str(answer["error"]))
    try:
        return Result.from_record(answer)
    except (KeyError, ValueError, TypeError) as error:
        raise WorkerFailed("a verifier worker sent an unreadable answer") from error
