"""Systems that are measured in turns: each its own process, which makes a step when it is told to."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self


class System:
    """A program that calls `serve`; a context manager, at whose end it ends.

    Args:
        log: file for whatever else the program says.
    """

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], log: Path) -> None:
        self._log = log
        with log.open("wb") as errors:
            self._process = subprocess.Popen(
                command,
                env=os.environ | environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                start_new_session=True,
            )

    def step(self) -> dict[str, Any]:
        """What the program answers to one call of its step.

        Raises:
            SystemExit: it has ended.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write("step\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass
        answer = self._process.stdout.readline()
        if not answer:
            raise SystemExit(f"a system ended; see {self._log}:\n{self._log.read_text()[-2000:]}")
        found: dict[str, Any] = json.loads(answer)
        return found

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """End it, with all that it has started: it stops when nobody asks any more."""
        with suppress(subprocess.TimeoutExpired):
            self._process.communicate(timeout=60 if error is None else 1)
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)


def serve() -> Callable[[Mapping[str, Any] | None], bool]:
    """Called once at the start of a program, before it prints anything.

    Returns:
        A function that first hands over what the last step gave, if there was one, then waits; False: no more steps.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer

    def next_turn(found: Mapping[str, Any] | None) -> bool:
        if found is not None:
            answers.write(json.dumps(found) + "\n")
            answers.flush()
        return bool(sys.stdin.readline())

    return next_turn
