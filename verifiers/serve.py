"""A pool in a process of its own, on a machine with processors to spare, for trainers on any number of nodes.

    client: task 7, task 8, ...  ->  server: one VerifierPool  ->  verdict 8, verdict 7, ...

Tasks of all clients share one queue. A client that goes away takes its waiting tasks with it.
"""

import contextlib
import dataclasses
import queue
import socket
import threading
from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from pathlib import Path
from typing import Any

from verifiers import connection, frames
from verifiers.code import close_sandbox, isolation
from verifiers.metrics import PoolMetrics
from verifiers.pool import VerifierPool
from verifiers.tasks import from_record
from verifiers.verdict import Result


class VerifierServer:
    """Serves a pool of `workers` at `address`; a context manager.

    Args:
        address: see `verifiers.connection`.
        secret: what clients have to know; may be empty at a local socket, which only its owner can reach.

    Raises:
        ValueError: the address or the secret is unusable.
        OSError: the address cannot be had.
        SandboxError: code cannot be verified on this machine.
    """

    def __init__(self, address: str, secret: bytes, workers: int, log: Callable[[str], None] = lambda _: None) -> None:
        if not secret and not address.startswith("unix:"):
            raise ValueError(f"address {address}: needs a secret, since anybody may connect; give a secret file")
        self._secret, self._log = secret, log
        self.workers = workers
        self.isolation = isolation().level
        close_sandbox()  # it was for the question only; the workers have their own
        self._pool = VerifierPool(workers)
        self._listener = connection.listen(address)
        self._address = address
        self._lock = threading.Lock()
        self._clients: set[_Client] = set()

    @property
    def address(self) -> str:
        """Where it listens, with the port that was chosen if 0 was asked for."""
        if self._listener.family == socket.AF_UNIX:
            return self._address
        return f"{self._address.rpartition(':')[0]}:{self._listener.getsockname()[1]}"

    def run(self) -> None:
        """Accept clients until `close` is called, from a signal handler or another thread."""
        while True:
            try:
                accepted, _ = self._listener.accept()
            except OSError:  # closed
                return
            threading.Thread(target=self._welcome, args=(accepted,), name="verifier-client", daemon=True).start()

    def metrics(self) -> PoolMetrics:
        """What happened since the last call."""
        return self._pool.metrics()

    def clients(self) -> int:
        """How many are connected."""
        with self._lock:
            return len(self._clients)

    def close(self) -> None:
        """Turn all clients away and end the pool."""
        with contextlib.suppress(OSError):  # wakes `accept`
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        if self._address.startswith("unix:"):
            Path(self._address.removeprefix("unix:")).unlink(missing_ok=True)
        with self._lock:
            clients = list(self._clients)
        for client in clients:
            client.hang_up()
        self._pool.close()

    def _welcome(self, accepted: socket.socket) -> None:
        try:
            connection.greet(accepted, self._secret, {"workers": self.workers, "isolation": self.isolation})
        except OSError as error:
            self._log(f"turned a client away: {error}")
            accepted.close()
            return
        client = _Client(accepted, self._pool)
        with self._lock:
            self._clients.add(client)
        self._log(f"{self.clients()} clients")
        try:
            client.serve()
        finally:
            with self._lock:
                self._clients.discard(client)
            self._log(f"{self.clients()} clients")


class _Client:
    """One connection: a thread that reads its tasks, and one that writes its verdicts."""

    def __init__(self, accepted: socket.socket, pool: VerifierPool) -> None:
        self._socket, self._pool = accepted, pool
        self._answers: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        self._unfinished: set[Future[Result]] = set()
        self._lock = threading.Lock()

    def serve(self) -> None:
        """Until the client is gone."""
        writer = threading.Thread(target=self._write, name="verifier-client-answers", daemon=True)
        writer.start()
        try:
            while (record := frames.receive_record(self._socket)) is not None:
                self._submit(record)
        except (OSError, frames.BrokenFrame, RuntimeError):  # gone, or the pool is closed
            pass
        finally:
            with self._lock:
                unfinished = list(self._unfinished)
            for future in unfinished:
                future.cancel()
            self._answers.put(None)
            self.hang_up()
            writer.join()
            self._socket.close()

    def hang_up(self) -> None:
        """End the connection; from any thread."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def _submit(self, record: dict[str, Any]) -> None:
        serial = record.get("id")
        try:
            future = self._pool.submit(from_record(record["task"]))
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            self._answers.put({"id": serial, "error": f"unusable task: {error}"})
            return
        with self._lock:
            self._unfinished.add(future)
        future.add_done_callback(lambda done: self._answer(serial, done))

    def _answer(self, serial: Any, done: "Future[Result]") -> None:
        with self._lock:
            self._unfinished.discard(done)
        try:
            self._answers.put({"id": serial, **dataclasses.asdict(done.result())})
        except CancelledError:  # nobody waits for it any more
            pass
        except Exception as error:
            self._answers.put({"id": serial, "error": f"{type(error).__name__}: {error}"})

    def _write(self) -> None:
        try:
            while (answer := self._answers.get()) is not None:
                self._socket.sendall(frames.pack_record(answer))
        except OSError:
            self.hang_up()
