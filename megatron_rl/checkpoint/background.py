"""A process beside the training that writes one rank's files of a checkpoint."""

import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import psutil
import torch
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import ShardedTensor, apply_factories
from megatron.core.dist_checkpointing.strategies.async_utils import AsyncRequest

from converters.manifest import FileEntry, file_entry
from megatron_rl.processes import die_with_parent

_WATCH_SECONDS = 1.0
_BUCKETS, _RESULTS = 1, 2
"""Of the arguments to Megatron's function that writes: what, and the queue for where it has come to lie."""


class WriterLost(OSError):
    """The process that wrote was killed, or takes too long."""


class BackgroundWrite:
    """Carries out what Megatron planned to write, on a snapshot: this process may change its tensors at once.

    The snapshot is a fork's: of tensors on the CPU a page is copied when training changes it, those on a GPU are
    brought to the host's memory first. Not Megatron's own caller, which does not tell when the process was killed.
    """

    def __init__(self, request: AsyncRequest) -> None:
        self._begin, self._request = time.monotonic(), request
        self._process = None
        if request.async_fn is None:  # nothing to write on this rank
            return
        arguments = list(request.async_fn_args)
        if request.preload_fn is not None:
            arguments[_BUCKETS] = request.preload_fn()
        fork = multiprocessing.get_context("fork")
        self._outcome, sending = fork.Pipe(duplex=False)
        self._process = fork.Process(target=_write, args=(request.async_fn, arguments, sending), name="checkpoint")
        self._process.start()
        sending.close()

    def is_done(self) -> bool:
        """It has ended, well or not."""
        return self._process is None or self._outcome.poll()

    def wait(self, timeout_seconds: float) -> dict[str, FileEntry]:
        """Size and checksum of every file written, by name.

        Raises:
            OSError: it was not written.
            WriterLost: it was killed, or takes longer than that from its start.
        """
        if self._process is None:
            return {}
        if not self._outcome.poll(max(0.0, self._begin + timeout_seconds - time.monotonic())):
            self.kill()
            raise WriterLost(f"not written within {timeout_seconds:.0f} s")
        try:
            outcome: tuple[Any, dict[str, FileEntry]] | OSError = self._outcome.recv()
        except EOFError:
            self._process.join()
            status = self._process.exitcode
            raise WriterLost(
                f"the process that wrote it ended with status {status} (-9: killed, for memory?)"
            ) from None
        # Its end is not waited for: that takes its time, for it gives much memory back.
        if isinstance(outcome, OSError):
            raise outcome
        places, entries = outcome
        self._request.async_fn_args[_RESULTS].put(places)  # for Megatron to finish with
        return entries

    def kill(self) -> None:
        """End it; what it wrote is worth nothing."""
        if self._process is not None:
            self._process.kill()
            self._process.join()


def without_clones(state: dict[str, Any]) -> dict[str, Any]:
    """The same sharded state, in the same memory, of which Megatron makes no copies: it would of what is a part of a
    larger storage, but a fork has a snapshot of that, too."""
    apply_factories(state)
    for entry in nested_values(state):
        if isinstance(entry, ShardedTensor) and entry.data.device.type == "cpu" and entry.data.is_contiguous():
            flat = entry.data.detach().view(-1)
            own = torch.from_numpy(flat.view(torch.uint8).numpy())  # a storage of exactly these bytes
            entry.data = own.view(entry.dtype).view(entry.data.shape)
    return state


def _write(write: Callable[..., None], arguments: Sequence[Any], sending: Connection) -> None:
    die_with_parent()
    threading.Thread(target=_watch_children, args=(sending,), daemon=True).start()
    try:
        write(*arguments)
        places = arguments[_RESULTS].get_nowait()
        if isinstance(places, Exception):
            raise places
        paths = [Path(path) for path, *_ in arguments[_BUCKETS]]
        sending.send((places, {path.name: file_entry(path) for path in paths}))
    except Exception as error:
        sending.send(OSError(str(error) or repr(error)))


def _watch_children(sending: Connection) -> None:
    """Megatron has each file written by a process of its own, and waits for ever for one that was killed."""
    while True:
        for child in psutil.Process().children():
            with suppress(ChildProcessError):
                found = os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
                if found is not None and found.si_code in (os.CLD_KILLED, os.CLD_DUMPED):
                    sending.send(WriterLost(f"a process that wrote it was ended by signal {found.si_status}"))
                    os._exit(1)
        time.sleep(_WATCH_SECONDS)
