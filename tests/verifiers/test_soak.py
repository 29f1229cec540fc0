"""A step's worth of programs, honest and hostile, through one pool: bounded time, flat memory, nothing lost."""

import os
import random
import signal
import threading
import time
from collections import Counter
from concurrent.futures import Future
from pathlib import Path

import pytest

from verifiers.code.protocol import MEMORY_BYTES
from verifiers.pool import VerifierPool
from verifiers.tasks import CodeTask
from verifiers.verdict import Result, Verdict

SAMPLES = 1024
TESTS = 20
LIMIT = 0.5
WORKERS = 2
HOSTILE = {
    "loop": "while True: pass",
    "sleep": "import time\ntime.sleep(1000)",
    "memory": "x = []\nwhile True: x.append(bytearray(1 << 24))",
    "flood": "while True: print('x' * 100000)",
    "fork": "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass",
    "threads": "import threading, time\nwhile True: threading.Thread(target=time.sleep, args=(60,)).start()",
    "orphan": "import os, time\nif os.fork() == 0:\n    os.setsid()\n    time.sleep(600)",
    "killer": "import os, signal\nos.kill(os.getppid(), signal.SIGKILL)\nos.kill(-1, signal.SIGKILL)",
    "exit": "import os\nos._exit(0)",
    "files": "i = 0\nwhile True:\n    open(str(i), 'w').write('x' * 4096)\n    i += 1",
}


def sample(number: int) -> tuple[CodeTask, set[Verdict]]:
    """One of five is hostile, one of five wrong on some test; the verdicts that it may get."""
    tests = [{"input": f"{k}\n", "output": f"{k * number}\n", "testtype": "stdin"} for k in range(TESTS)]
    program, verdicts = f"print(int(input()) * {number})", {Verdict.PASS}
    if number % 5 == 1:
        program, verdicts = f"k = int(input())\nprint(k * {number} + (k == {number % TESTS}))", {Verdict.WRONG}
    if number % 5 == 2:
        program = HOSTILE[sorted(HOSTILE)[number // 5 % len(HOSTILE)]]
        verdicts = {Verdict.WRONG, Verdict.RUNTIME_ERROR, Verdict.TIMEOUT}
    response = f"<think>{number}</think>\n```python\n{program}  # {number}\n```"
    return CodeTask(response, tests, timeout=LIMIT), verdicts


def tree(pid: int) -> list[int]:
    """The process and all below it."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        threads = [int(name) for name in os.listdir(f"/proc/{pid}/task") if int(name) != pid]
        for thread in threads:
            children += Path(f"/proc/{pid}/task/{thread}/children").read_text().split()
    except OSError:
        return [pid]
    return [pid, *(below for child in children for below in tree(int(child)))]


def memory_bytes() -> int:
    """Of this process and all below it, what is shared counted once."""
    total = 0
    for pid in tree(os.getpid()):
        try:
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        except OSError:
            continue
        total += sum(int(line.split()[1]) << 10 for line in lines if line.startswith("Pss:"))
    return total


def workers() -> list[int]:
    found = []
    for pid in tree(os.getpid()):
        try:
            if b"verifiers.worker" in Path(f"/proc/{pid}/cmdline").read_bytes():
                found.append(pid)
        except OSError:
            pass
    return found


def expect(results: list[Result], wanted: list[set[Verdict]]) -> None:
    for number, (result, verdicts) in enumerate(zip(results, wanted, strict=True)):
        assert result.verdict in verdicts, (number, result)
        if result.verdict is not Verdict.INFRA_ERROR:
            assert result.extracted is not None
            assert result.extracted.endswith(f"# {number}")


@pytest.mark.long
@pytest.mark.rare
def test_a_step_of_mixed_programs_in_bounded_time_and_flat_memory() -> None:
    tasks, wanted = zip(*map(sample, range(SAMPLES)), strict=True)
    seen: list[list[int]] = [[], [], [], []]
    start = time.monotonic()
    with VerifierPool(WORKERS) as pool:
        futures = [pool.submit(task) for task in tasks]
        while (done := sum(future.done() for future in futures)) < SAMPLES:
            seen[4 * done // SAMPLES].append(memory_bytes())
            time.sleep(0.1)
        expect([future.result() for future in futures], list(wanted))
    seconds = time.monotonic() - start
    hostile = sum(len(verdicts) > 1 for verdicts in wanted)
    assert seconds < (SAMPLES * TESTS * 0.02 + hostile * 2 * LIMIT) / WORKERS, seconds  # alone, a third of it
    # what a memory bomb holds comes and goes; a leak would raise the floor as well
    assert min(seen[3]) < min(seen[1]) + (16 << 20), [min(quarter) >> 20 for quarter in seen]
    assert max(map(max, seen)) < min(seen[1]) + WORKERS * MEMORY_BYTES


@pytest.mark.long
def test_workers_killed_at_random_lose_and_double_nothing() -> None:
    tasks, wanted = zip(*map(sample, range(SAMPLES // 4)), strict=True)
    answers: Counter[int] = Counter()
    kills = 0
    chance = random.Random()
    with VerifierPool(WORKERS) as pool:
        futures: list[Future[Result]] = []
        lock = threading.Lock()

        def count(number: int) -> None:
            with lock:
                answers[number] += 1

        for number, task in enumerate(tasks):
            futures.append(pool.submit(task))
            futures[-1].add_done_callback(lambda _, number=number: count(number))
        while not all(future.done() for future in futures):
            time.sleep(chance.uniform(0.5, 1.5))
            if alive := workers():
                os.kill(chance.choice(alive), signal.SIGKILL)
                kills += 1
        results = [future.result() for future in futures]
    assert kills > 3
    assert answers == dict.fromkeys(range(len(tasks)), 1)
    # a sample that met two kills in a row is reported as such, never as wrong
    expect(results, [verdicts | {Verdict.INFRA_ERROR} for verdicts in wanted])
    assert sum(result.verdict is Verdict.INFRA_ERROR for result in results) <= kills // 2
