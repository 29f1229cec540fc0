"""The client of a pool that runs elsewhere (`megatron-rl verify serve`), with the pool's own interface.

A server that goes away and comes back costs nothing but time: what had no verdict yet is sent again. Without a server
for `patience` seconds all that waits gets `infra_error`, as does a task that the third server in a row dies with.
"""

import contextlib
import heapq
import socket
import threading
import time
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from verifiers import frames
from verifiers.connection import Refused, connect, read_secret
from verifiers.isolation import IsolationLevel
from verifiers.job_queue import Job
from verifiers.metrics import Meter, PoolMetrics
from verifiers.pool import Pool, VerifierPool
from verifiers.tasks import Task, to_record
from verifiers.verdict import Result, Verdict

ATTEMPTS = 3
IN_FLIGHT_PER_WORKER = 4  # sent ahead; the rest waits here, so that a server holds little of many clients
_CONNECT_SECONDS = 10.0
_RETRY_SECONDS = 0.5


class RemotePool(Pool):
    """A connection to a verifier server.

    Args:
        address: see `verifiers.connection`.
        secret: the server's.
        min_isolation: the weakest isolation that the server may give programs.
        patience: seconds to wait for a server, now and when it has gone away.

    Raises:
        ValueError: the address is unusable, or the server gives less isolation.
        ConnectionError: no server within `patience`, or one that knows another secret.
    """

    def __init__(
        self,
        address: str,
        secret: bytes,
        min_isolation: IsolationLevel = IsolationLevel.LIMITS,
        patience: float = 120.0,
    ) -> None:
        self._address, self._secret, self._patience = address, secret, patience
        self._min_isolation = min_isolation
        self._changed = threading.Condition()
        self._waiting: list[tuple[float, int, Job]] = []  # a heap
        self._sent: dict[int, Job] = {}
        self._serial = 0
        self._closed = False
        self._socket: socket.socket | None = None
        self._reader: threading.Thread | None = None
        self.workers = self._connect()
        self._meter = Meter(self.workers)
        self._sender = threading.Thread(target=self._send, name="verifier-sender", daemon=True)
        self._sender.start()

    def submit(self, task: Task) -> "Future[Result]":
        job = Job(task)
        with self._changed:
            if self._closed:
                raise RuntimeError("the verifier pool is closed")
            self._serial += 1
            self._queue(self._serial, job)
        return job.future

    def metrics(self) -> PoolMetrics:
        """What happened since the last call; `utilization` is this client's share of the server's workers."""
        return self._meter.read()

    def close(self) -> None:
        with self._changed:
            self._closed = True
            unfinished = [*self._take_waiting(), *self._sent.values()]
            self._sent.clear()
            self._hang_up()
            self._changed.notify_all()
        for job in unfinished:
            job.cancel()
        self._sender.join()
        if self._reader is not None:
            self._reader.join()

    # With the lock held ----------------------------------------------------------------------------------------

    def _queue(self, serial: int, job: Job) -> None:
        heapq.heappush(self._waiting, (-job.task.expected_seconds, serial, job))
        self._meter.submitted()
        self._changed.notify_all()

    def _take_waiting(self) -> list[Job]:
        jobs = [job for _, _, job in self._waiting]
        self._waiting.clear()
        for _ in jobs:
            self._meter.started()
        return jobs

    def _hang_up(self) -> None:
        if self._socket is not None:
            with contextlib.suppress(OSError):  # its reader wakes up and closes it
                self._socket.shutdown(socket.SHUT_RDWR)
            self._socket = None

    def _has_work(self) -> bool:
        return bool(self._waiting) and (self._socket is None or len(self._sent) < self.workers * IN_FLIGHT_PER_WORKER)

    # Threads ---------------------------------------------------------------------------------------------------

    def _send(self) -> None:
        """Send what waits, and connect anew where that fails."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closed or self._has_work())
                if self._closed:
                    return
                connected = self._socket
                if connected is not None:
                    _, serial, job = heapq.heappop(self._waiting)
                    self._meter.started()
                    self._sent[serial] = job
            if connected is None:
                self._reconnect()
                continue
            try:
                connected.sendall(frames.pack_record({"id": serial, "task": to_record(job.task)}))
            except OSError:
                self._lost(connected)
            except ValueError as error:  # too large for a frame
                self._settle(serial, Result(Verdict.INFRA_ERROR, None, 0.0, str(error)))

    def _receive(self, connected: socket.socket) -> None:
        """Take the verdicts that arrive on one connection, until it ends."""
        try:
            while (record := frames.receive_record(connected)) is not None:
                self._settle(record["id"], _result(record))
        except (OSError, frames.BrokenFrame, KeyError, TypeError, ValueError):
            pass
        self._lost(connected)
        connected.close()

    def _settle(self, serial: int, result: Result) -> None:
        with self._changed:
            job = self._sent.pop(serial, None)
            self._changed.notify_all()
        if job is not None:
            self._finish(job, result)

    def _finish(self, job: Job, result: Result) -> None:
        self._meter.finished(result, busy=result.seconds, latency=time.monotonic() - job.submitted)
        if job.future.set_running_or_notify_cancel():
            job.future.set_result(result)

    def _lost(self, connected: socket.socket) -> None:
        """A connection has ended: queue again what it still owed."""
        given_up: list[Job] = []
        with self._changed:
            if self._socket is not connected:
                return
            self._hang_up()
            for serial, job in self._sent.items():
                job.attempts += 1
                if job.attempts < ATTEMPTS:
                    self._queue(serial, job)
                else:
                    given_up.append(job)
            self._sent.clear()
            self._changed.notify_all()
        for job in given_up:
            self._finish(job, _lost_result(f"{ATTEMPTS} connections to {self._address} ended before the verdict came"))

    def _reconnect(self) -> None:
        try:
            self._connect()
        except (OSError, ValueError) as error:
            with self._changed:
                jobs = self._take_waiting()
            for job in jobs:
                self._finish(job, _lost_result(str(error)))

    def _connect(self) -> int:
        """Connect, waiting for a server if need be, and start the reader; the server's number of workers."""
        deadline = time.monotonic() + self._patience
        while True:
            try:
                connected, greeting = connect(self._address, self._secret, _CONNECT_SECONDS)
                break
            except Refused:
                raise
            except OSError as error:
                if self._closed:
                    raise
                if time.monotonic() > deadline:
                    why = f"no verifier server at {self._address} within {self._patience:g} s: {error}"
                    raise ConnectionError(why) from error
                time.sleep(_RETRY_SECONDS)
        try:
            level = IsolationLevel(greeting["isolation"])
            if not level.reaches(self._min_isolation):
                raise ValueError(
                    f"{self._address} isolates programs by {level} only, {self._min_isolation} is demanded"
                )
            workers = int(greeting["workers"])
        except BaseException:
            connected.close()
            raise
        with self._changed:
            if self._closed:
                connected.close()
                raise ConnectionError("the verifier pool is closed")
            self._socket = connected
            self._reader = threading.Thread(
                target=self._receive, args=(connected,), name="verifier-reader", daemon=True
            )
            self._reader.start()
        return workers


def open_pool(workers: int, address: str | None, secret_file: Path | None, min_isolation: IsolationLevel) -> Pool:
    """A pool of `workers` processes here or, with an address, a server's; `min_isolation` is demanded of the server.

    Raises:
        ValueError: the address or the secret file is unusable, or the server gives less isolation.
        OSError: there is no secret file, or no server.
    """
    if address is None:
        return VerifierPool(workers)
    return RemotePool(address, b"" if secret_file is None else read_secret(secret_file), min_isolation)


def _result(answer: dict[str, Any]) -> Result:
    if "error" in answer:
        return _lost_result(str(answer["error"]))
    return Result.from_record(answer)


def _lost_result(why: str) -> Result:
    return Result(Verdict.INFRA_ERROR, None, 0.0, why)
