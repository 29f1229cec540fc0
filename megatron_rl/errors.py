"""The exceptions that end a command with one line; each has its exit status."""

from converters.errors import one_line

STOPPED_EXIT_CODE = 3
"""A guard found the run broken: no restart helps before a person has looked."""
PREEMPTED_EXIT_CODE = 75
"""Told to stop, and saved: start the same command again (EX_TEMPFAIL)."""
INTERRUPTED_EXIT_CODE = 76
"""An expired deadline, a machine that failed: the same command carries on, but if it comes to this again and again."""


class InputError(ValueError):
    """Bad input. The message is one line that names the place, both values and the remedy; the CLI exits with 2."""

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message))


class RunStopped(RuntimeError):
    """A guard found the run broken and stopped it; the message is one line that says what, by how much, what to do.
    The CLI exits with 3."""


class RunInterrupted(RuntimeError):
    """The machine failed the run, not what the run does; the message is one line, and the same command carries on. The
    CLI exits with 76."""


class Preempted(RuntimeError):
    """The run was told to stop, and did after saving; the same command carries on. The CLI exits with 75."""


class EngineDied(RuntimeError):
    """A vLLM engine's process has ended."""
