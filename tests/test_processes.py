"""Deadlines that end a process, and processes that end with their parent."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from megatron_rl.errors import RESTART_EXIT_CODE
from megatron_rl.processes import deadline

ROOT = Path(__file__).parents[1]
PATIENCE_SECONDS = 20.0


def python(code: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("wait", ["time.sleep(60)", "lock.acquire()"])
def test_a_wait_that_takes_too_long_ends_the_process_with_one_clear_line(wait: str) -> None:
    code = f"""
import threading, time
from megatron_rl.processes import deadline
lock = threading.Lock()
lock.acquire()
with deadline(0.5, "rank 3: weight sync 7"):
    {wait}
"""
    begin = time.monotonic()
    process = python(code)
    _, stderr = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == RESTART_EXIT_CODE == 75
    assert stderr.splitlines()[0].startswith("megatron-rl: gave up after ")
    assert "rank 3: weight sync 7" in stderr.splitlines()[0]
    assert "Traceback" not in stderr.splitlines()[0]
    assert "most recent call first" in stderr, "the stacks tell where it hung"
    assert time.monotonic() - begin < PATIENCE_SECONDS


def test_a_block_that_ends_in_time_is_left_alone() -> None:
    with deadline(0.2, "nothing"):
        pass
    time.sleep(0.4)


def test_a_block_that_raises_disarms_its_deadline() -> None:
    with pytest.raises(KeyError), deadline(0.2, "nothing"):
        raise KeyError
    time.sleep(0.4)


def test_a_child_that_asked_for_it_dies_with_its_parent() -> None:
    child_code = """
import time
from megatron_rl.processes import die_with_parent
die_with_parent()
print("up", flush=True)
time.sleep(60)
"""
    parent = python(
        f"""
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", {child_code!r}], stdout=subprocess.PIPE, text=True)
child.stdout.readline()
print(child.pid, flush=True)
time.sleep(60)
"""
    )
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    limit = time.monotonic() + PATIENCE_SECONDS
    while runs(child):
        assert time.monotonic() < limit, f"process {child} outlived its parent"
        time.sleep(0.05)


def runs(pid: int) -> bool:
    """The process exists and is no zombie."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False
    return status.rpartition(")")[2].split()[0] != "Z"
