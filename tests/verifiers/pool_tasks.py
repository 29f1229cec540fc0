"""Tasks that misbehave inside a worker, for the tests of the pool."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from verifiers.verdict import Result, Verdict


@dataclass(frozen=True)
class Task:
    """Passes, and tells its worker's process id."""

    deadline_seconds: float = 20.0
    expected_seconds: float = 0.01
    memory_bytes: int | None = None
    payload: str = ""

    def run(self) -> Result:
        self.act()
        return Result(Verdict.PASS, None, 0.0, str(os.getpid()))

    def act(self) -> None:
        """What the task does before it passes."""


@dataclass(frozen=True)
class Sleep(Task):
    """Takes `seconds`."""

    seconds: float = 0.0

    def act(self) -> None:
        time.sleep(self.seconds)


@dataclass(frozen=True)
class Append(Sleep):
    """Writes a line at the end of a file, then sleeps."""

    file: str = ""
    word: str = ""

    def act(self) -> None:
        with open(self.file, "a") as file:
            file.write(self.word + "\n")
        super().act()


@dataclass(frozen=True)
class Hang(Task):
    """Never ends, blocks every signal that can be blocked, and leaves its process ids in a file."""

    pids: str = ""

    def act(self) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        Path(self.pids).write_text(f"{os.getpid()} {child.pid}")
        while True:
            time.sleep(1)


@dataclass(frozen=True)
class Once(Task):
    """At its first run misbehaves in the way `how`; later it passes."""

    flag: str = ""
    how: str = ""

    def act(self) -> None:
        flag = Path(self.flag)
        if flag.exists():
            return
        flag.write_text(str(os.getpid()))
        misbehave(self.how)


@dataclass(frozen=True)
class Always(Task):
    """Misbehaves in the way `how` at every run."""

    how: str = ""

    def act(self) -> None:
        misbehave(self.how)


def misbehave(how: str) -> None:
    match how:
        case "die":
            os.kill(os.getpid(), signal.SIGKILL)
        case "exit":
            os._exit(3)
        case "raise":
            raise KeyError("a bug\nin two lines")
        case "sleep":
            time.sleep(600)
        case "memory":
            bytearray(4 << 30)
        case "chatter":
            print("noise", flush=True)
            os.write(0, b"noise")
            os.write(1, b"noise")
        case _:
            raise AssertionError(how)
