"""Processes that do not outlive their purpose: parent death, and deadlines on every wait."""

import ctypes
import faulthandler
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from megatron_rl.errors import INTERRUPTED_EXIT_CODE
from megatron_rl.pulse import tick

_PR_SET_PDEATHSIG = 1

LAUNCHER_VARIABLE = "MEGATRON_RL_LAUNCHER"
"""Of a rank that our own launcher started: its process id."""


def die_with_parent(parent: int | None = None) -> None:
    """Have the kernel kill this process when its parent dies: an orphan would hold its device for ever.

    A parent that has died before now ends it at once, of which the kernel tells no more.

    Args:
        parent: the process id, of a parent that `multiprocessing` knows nothing of.
    """
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    known = multiprocessing.parent_process()
    if parent not in (None, os.getppid()) or (known is not None and not known.is_alive()):
        os.kill(os.getpid(), signal.SIGKILL)


@contextmanager
def deadline(seconds: float, waiting_for: str) -> Iterator[None]:
    """End this process with one clear line and all stacks if the block takes longer than `seconds`.

    A wait inside native code cannot be interrupted by an exception, so the process exits with `INTERRUPTED_EXIT_CODE`.
    """

    def expire() -> None:
        print(f"megatron-rl: gave up after {seconds:.0f} s: {waiting_for}", file=sys.stderr, flush=True)
        faulthandler.dump_traceback(all_threads=True)
        os._exit(INTERRUPTED_EXIT_CODE)

    timer = threading.Timer(seconds, expire)
    timer.daemon = True
    timer.start()
    tick(allow=seconds)
    try:
        yield
    finally:
        timer.cancel()
        tick()
