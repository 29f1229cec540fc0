"""Runs a program of `tests/programs` once per rank, as processes of their own with a launcher's environment.

Importing what a rank needs takes it ten to twenty seconds. So ranks are forked from one server process of the session
which has imported it and done nothing else.
"""

import atexit
import json
import multiprocessing
import os
import runpy
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from multiprocessing import forkserver
from pathlib import Path
from typing import Any
from unittest.mock import patch

TESTS = Path(__file__).parent
ROOT = TESTS.parent
_SHOWN_CHARACTERS = 4000
_IMPORTED = ["transformers", "megatron_rl.train", "megatron_rl.rollout.engine"]
_FOR_ALL = {
    "PYTHONPATH": f"{ROOT}{os.pathsep}{TESTS}",
    "PYTHONWARNINGS": "ignore",
    "VLLM_LOGGING_LEVEL": "ERROR",
}


class Rank:
    """A process, with what of `subprocess.Popen` a job uses."""

    def __init__(self, program: str, folder: Path, environment: Mapping[str, str], log: Path) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(_IMPORTED)
        with patch.dict(os.environ, _FOR_ALL):
            forkserver.ensure_running()
        arguments = (str(TESTS / "programs" / program), str(folder), dict(environment), str(log))
        self._process = context.Process(target=_be_rank, args=arguments)
        self._process.start()
        assert self._process.pid is not None
        self.pid = self._process.pid

    @property
    def returncode(self) -> int | None:
        """The exit status, negative for a signal; None while it runs."""
        return self._process.exitcode

    def poll(self) -> int | None:
        """`returncode`."""
        return self._process.exitcode

    def wait(self) -> None:
        """Until it has ended."""
        self._process.join()


def _be_rank(program: str, folder: str, environment: Mapping[str, str], log: str) -> None:
    os.setsid()
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(descriptor, stream)
    os.environ.clear()
    os.environ.update(environment)
    sys.path[:0] = [str(ROOT), str(TESTS)]
    sys.argv = [program, folder]
    try:
        runpy.run_path(program, run_name="__main__")
    finally:
        atexit._run_exitfuncs()


class Job:
    """The ranks of one run; their output goes to `folder/rank_N.log`, rank 0's result to `folder/result.json`.

    Args:
        prefix: of each rank's command.
    """

    def __init__(
        self, program: str, arguments: dict[str, Any], ranks: int, folder: Path, prefix: Sequence[str] = ()
    ) -> None:
        self.folder, self._prefix = folder, prefix
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "arguments.json").write_text(json.dumps(arguments), encoding="utf-8")
        port = free_port()
        self.processes = [self._start(program, rank, ranks, port) for rank in range(ranks)]

    def _start(self, program: str, rank: int, ranks: int, port: int) -> "Rank | subprocess.Popen[bytes]":
        own = {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(ranks),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }
        environment = os.environ | _FOR_ALL | own
        if not self._prefix:
            return Rank(program, self.folder, environment, self._log(rank))
        with open(self._log(rank), "wb") as log:
            return subprocess.Popen(
                [*self._prefix, sys.executable, str(TESTS / "programs" / program), str(self.folder)],
                env=environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def wait(self, seconds: float) -> None:
        """Until every rank has ended well; a failed or late one fails the test and shows the logs."""
        limit = time.monotonic() + seconds
        while any(process.poll() is None for process in self.processes):
            self._raise_for_failure()
            if time.monotonic() > limit:
                raise AssertionError(f"ranks still running after {seconds} s\n{self._logs()}")
            time.sleep(0.05)
        self._raise_for_failure()

    def wait_for_result(self, seconds: float) -> Any:
        """What rank 0 hands over, while the ranks may go on running."""
        result = self.folder / "result.json"
        limit = time.monotonic() + seconds
        while not result.is_file():
            self._raise_for_failure()
            if time.monotonic() > limit or all(process.poll() is not None for process in self.processes):
                raise AssertionError(f"no result of rank 0 (waited up to {seconds} s)\n{self._logs()}")
            time.sleep(0.05)
        return json.loads(result.read_text(encoding="utf-8"))

    def kill(self) -> None:
        """End whatever still runs, with everything it has started in its own session."""
        for process in self.processes:
            if process.poll() is None:
                try:
                    os.killpg(process.pid, signal.SIGKILL)
                except ProcessLookupError:  # it has only just been forked
                    os.kill(process.pid, signal.SIGKILL)
            process.wait()

    def _log(self, rank: int) -> Path:
        return self.folder / f"rank_{rank}.log"

    def _raise_for_failure(self) -> None:
        statuses = [process.poll() for process in self.processes]
        if any(status not in (None, 0) for status in statuses):
            raise AssertionError(f"exit statuses of the ranks: {statuses}\n{self._logs()}")

    def _logs(self) -> str:
        texts = (self._log(rank).read_text(errors="replace") for rank in range(len(self.processes)))
        return "\n".join(f"--- rank {rank}\n{text[-_SHOWN_CHARACTERS:]}" for rank, text in enumerate(texts))


@contextmanager
def started_job(
    program: str, arguments: dict[str, Any], ranks: int, folder: Path, prefix: Sequence[str] = ()
) -> Iterator[Job]:
    """A running job, of which nothing is left at the end of the block."""
    job = Job(program, arguments, ranks, folder, prefix)
    try:
        yield job
    finally:
        job.kill()


def run_job(
    program: str,
    arguments: dict[str, Any],
    ranks: int,
    folder: Path,
    seconds: float = 240,
    prefix: Sequence[str] = (),
) -> Any:
    """Rank 0's result of a job that runs to its end."""
    with started_job(program, arguments, ranks, folder, prefix) as job:
        job.wait(seconds)
        return job.wait_for_result(0)


def read_arguments() -> tuple[dict[str, Any], Path]:
    """In a program: its arguments and the folder of the job."""
    folder = Path(sys.argv[1])
    return json.loads((folder / "arguments.json").read_text(encoding="utf-8")), folder


def write_result(folder: Path, result: Any) -> None:
    """In a program, on rank 0: hand over the result, whole or not at all."""
    temporary = folder / ".result.json"
    temporary.write_text(json.dumps(result), encoding="utf-8")
    temporary.rename(folder / "result.json")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
