"""Deadlines that end a process, and processes that end with their parent."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from megatron_rl.errors import INTERRUPTED_EXIT_CODE
from megatron_rl.processes import LAUNCHER_VARIABLE, deadline
from megatron_rl.rollout.vllm_plugin import ENGINE_VARIABLE

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
from megatron_rl.processes import LAUNCHER_VARIABLE, deadline
from megatron_rl.rollout.vllm_plugin import ENGINE_VARIABLE
lock = threading.Lock()
lock.acquire()
with deadline(0.5, "rank 3: weight sync 7"):
    {wait}
"""
    begin = time.monotonic()
    process = python(code)
    _, stderr = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == INTERRUPTED_EXIT_CODE == 76
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


LATE = """
import multiprocessing, os, sys, time
from megatron_rl.processes import die_with_parent

def late(parent=None):
    os.write({out}, str(os.getpid()).encode() + b"\\n")
    os.read({go}, 1)
    die_with_parent(parent)
    os.write({out}, b"lives\\n")
    time.sleep(60)
"""
SPAWNED = """
if __name__ == "__main__":
    multiprocessing.get_context("fork").Process(target=late).start()
    time.sleep(60)
"""
LAUNCHED = """
import subprocess
if len(sys.argv) == 1:
    subprocess.Popen([sys.executable, __file__, str(os.getpid())], pass_fds=({out}, {go}))
    time.sleep(60)
late(int(sys.argv[1]))
"""


@pytest.mark.parametrize("start", [SPAWNED, LAUNCHED], ids=["spawned", "launched"])
@pytest.mark.parametrize("dies", [True, False], ids=["orphan", "child"])
def test_a_child_whose_parent_has_died_before_ends_at_once(start: str, dies: bool, tmp_path: Path) -> None:
    (says, out), (go, goes) = os.pipe(), os.pipe()
    program = tmp_path / "program.py"
    program.write_text((LATE + start).format(out=out, go=go))
    parent = subprocess.Popen(
        [sys.executable, str(program)], env=os.environ | {"PYTHONPATH": str(ROOT)}, pass_fds=(out, go)
    )
    os.close(out)
    assert int(os.read(says, 100)) > 0
    if dies:
        parent.kill()
        parent.wait()
    os.write(goes, b"!")
    assert os.read(says, 100) == (b"" if dies else b"lives\n")
    parent.kill()
    parent.wait()
    for descriptor in (says, go, goes):
        os.close(descriptor)


def test_what_an_engine_starts_by_itself_lives() -> None:
    """vLLM looks at a model that it has not met yet in a process of its own, which loads its plugins."""
    code = "from megatron_rl.rollout.vllm_plugin import register; register()"
    ours = {"PYTHONPATH": str(ROOT), ENGINE_VARIABLE: "1", LAUNCHER_VARIABLE: str(os.getppid())}
    subprocess.run([sys.executable, "-c", code], env=os.environ | ours, check=True)


def runs(pid: int) -> bool:
    """The process exists and is no zombie."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False
    return status.rpartition(")")[2].split()[0] != "Z"
