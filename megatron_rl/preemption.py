"""A request to save and stop: SIGUSR1 (Slurm's warning before the time limit) or SIGTERM (preemption, `scancel`)."""

import signal

_terminated = False


def listen() -> None:
    """Take note of both signals from now on; call first in a rank, before anything starts a thread or a process.

    SIGUSR1 is blocked and stays pending. Slurm sends it to every process of the job, engines and verifiers included:
    they inherit the mask, where a handler would be lost and the signal deadly.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    signal.signal(signal.SIGTERM, note)


def is_requested() -> bool:
    """This process was told to stop; other ranks may not know it yet."""
    return _terminated or signal.SIGUSR1 in signal.sigpending()


def note(number: int, frame: object) -> None:
    """Handler of a signal that tells to stop."""
    global _terminated
    _terminated = True
