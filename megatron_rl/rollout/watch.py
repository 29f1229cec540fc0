"""Watches an engine's process: a caller is told of its death, and a process that hangs is killed."""

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import wait
from threading import Thread

from vllm.v1.engine.core_client import SyncMPClient
from vllm.v1.engine.exceptions import EngineDeadError
from zmq import ZMQError

from megatron_rl.errors import EngineDied

_PERIOD_SECONDS, _LAST_WORDS_SECONDS = 0.2, 5.0


class EngineWatch:
    """Of one engine's process, until it ends.

    vLLM's synchronous client leaves whoever waits for an answer waiting when the process is killed; here they get
    `EngineDied`.

    Args:
        stall_seconds: a call that takes longer means that the process hangs.
    """

    def __init__(self, client: SyncMPClient, name: str, stall_seconds: float) -> None:
        self._client, self._name, self._stall_seconds = client, name, stall_seconds
        manager = client.resources.engine_manager
        assert manager is not None
        self._processes = manager.processes  # type: ignore[union-attr]
        self._sentinels = [process.sentinel for process in self._processes]
        self._expires: float | None = None
        self._stalled = False
        Thread(target=self._run, name=f"watch of {name}", daemon=True).start()

    @property
    def is_alive(self) -> bool:
        """The process has not ended, as far as is known."""
        return not self._client.resources.engine_dead

    @contextmanager
    def call(self, phase: str) -> Iterator[None]:
        """For the time of a call to the engine.

        Raises:
            EngineDied: the process has ended, or did not answer in time.
        """
        self._expires = time.monotonic() + self._stall_seconds
        try:
            yield
        except Exception as error:
            # An engine that has lost a worker still answers, with some error, before it ends itself.
            if not isinstance(error, EngineDeadError | ZMQError) and not wait(self._sentinels, _LAST_WORDS_SECONDS):
                raise
            reason = f"gave no sign for {self._stall_seconds:.0f} s" if self._stalled else "has ended"
            raise EngineDied(f"vLLM {self._name} {reason} in {phase}") from error
        finally:
            self._expires = None

    def kill(self) -> None:
        """End the process at once; its workers end with it."""
        for process in self._processes:
            with suppress(ProcessLookupError):
                process.kill()

    def _run(self) -> None:
        while not wait(self._sentinels, _PERIOD_SECONDS):
            expires = self._expires
            if expires is not None and time.monotonic() > expires:
                self._stalled = True
                self.kill()
        self._client.resources.engine_dead = True  # from now on vLLM refuses new calls
        self._client.outputs_queue.put_nowait(EngineDeadError())
        for future in list(self._client.utility_results.values()):
            if not future.done():
                future.set_exception(EngineDeadError())
