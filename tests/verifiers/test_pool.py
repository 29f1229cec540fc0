import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import CancelledError, wait
from pathlib import Path

import pytest
from waiting import eventually

from verifiers.pool import VerifierPool
from verifiers.tasks import CodeTask, MathTask
from verifiers.verdict import Verdict

HERE = str(Path(__file__).parent)
ROOT = str(Path(__file__).parents[2])
PATIENCE = 20.0


@pytest.fixture(autouse=True)
def importable_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(HERE)
    monkeypatch.setenv("PYTHONPATH", HERE)


@pytest.fixture(autouse=True)
def nothing_left_behind() -> Iterator[None]:
    yield
    assert worker_pids(os.getpid()) == []
    assert [t for t in threading.enumerate() if t.name == "verifier-worker"] == []


def worker_pids(parent: int) -> list[int]:
    """Processes that are workers of a pool in process `parent`, zombies included."""
    found = []
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            command = (folder / "cmdline").read_bytes().split(b"\0")
            parent_now = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
        except (FileNotFoundError, ProcessLookupError):
            continue
        if b"verifiers.worker" in command and (str(parent).encode() in command or parent_now == parent):
            found.append(int(folder.name))
    return found


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    except FileNotFoundError:
        return False


def boxed(answer: object) -> str:
    return rf"</think> \boxed{{{answer}}}"


def test_every_future_holds_the_result_of_its_own_task() -> None:
    with VerifierPool(2) as pool:
        futures = [pool.submit(MathTask(boxed(i), str(i if i % 3 else i + 1))) for i in range(300)]
        results = [future.result(PATIENCE) for future in futures]
    assert [r.extracted for r in results] == [str(i) for i in range(300)]
    assert [r.verdict for r in results] == [Verdict.PASS if i % 3 else Verdict.WRONG for i in range(300)]


def test_code_runs_in_the_pool_too() -> None:
    tests = [{"input": "4\n", "output": "8\n", "testtype": "stdin"}]
    with VerifierPool(1) as pool:
        good = pool.submit(CodeTask("</think>\n```python\nprint(int(input()) * 2)\n```", tests))
        bad = pool.submit(CodeTask("</think>\n```python\nprint(int(input()) * 3)\n```", tests))
        assert good.result(PATIENCE).verdict is Verdict.PASS
        assert bad.result(PATIENCE).verdict is Verdict.WRONG


def test_the_dearest_waiting_task_is_taken_first(tmp_path: Path) -> None:
    import pool_tasks

    log = tmp_path / "log"
    with VerifierPool(1) as pool:
        first = pool.submit(pool_tasks.Append(file=str(log), word="first", seconds=0.5))
        assert eventually(log.exists)
        costs = [0.2, 3.0, 1.0, 3.0, 0.1]
        futures = [
            pool.submit(pool_tasks.Append(file=str(log), word=f"{cost} {at}", expected_seconds=cost))
            for at, cost in enumerate(costs)
        ]
        for future in [first, *futures]:
            assert future.result(PATIENCE).verdict is Verdict.PASS
    assert log.read_text().splitlines() == ["first", "3.0 1", "3.0 3", "1.0 2", "0.2 0", "0.1 4"]


def test_tasks_with_more_to_do_are_expected_to_take_longer() -> None:
    short, long = ({"input": "1" * size, "output": "", "testtype": "stdin"} for size in (1, 10_000_000))
    costs = [CodeTask("", tests).expected_seconds for tests in ([short], [short] * 20, [long], [long] * 2)]
    assert costs == sorted(costs)
    assert MathTask("", "").expected_seconds < costs[0]


def test_metrics_since_they_were_last_read() -> None:
    import pool_tasks

    with VerifierPool(2) as pool:
        for future in [pool.submit(pool_tasks.Task()) for _ in range(2)]:
            future.result(PATIENCE)
        pool.metrics()
        start = time.monotonic()
        tasks = [pool_tasks.Sleep(seconds=0.2) for _ in range(6)]
        for future in [*map(pool.submit, tasks), pool.submit(MathTask(boxed(5), "6"))]:
            future.result(PATIENCE)
        took = time.monotonic() - start
        metrics = pool.metrics()
        assert {verdict: count for verdict, count in metrics.verdicts.items() if count} == {
            Verdict.PASS: 6,
            Verdict.WRONG: 1,
        }
        assert 0.2 <= metrics.seconds_p50 <= metrics.seconds_p99 <= took
        assert 0.4 <= metrics.latency_p50 <= metrics.latency_p99 <= took
        assert 1.2 / (2 * took) <= metrics.utilization <= 1
        assert 4 <= metrics.max_queue_length <= 7
        assert pool.metrics().max_queue_length == 0
        assert list(metrics.as_dict())[:2] == ["pass", "wrong"]


def test_pool_made_and_used_away_from_the_main_thread() -> None:
    verdicts = []

    def work() -> None:
        with VerifierPool(1) as pool:
            verdicts.append(pool.submit(MathTask(boxed(r"\sqrt{8}"), r"2\sqrt2")).result(PATIENCE).verdict)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(PATIENCE)
    assert verdicts == [Verdict.PASS]


def test_a_worker_outlives_the_thread_that_submitted_to_it() -> None:
    import pool_tasks

    with VerifierPool(1) as pool:
        seen = []
        for _ in range(2):
            thread = threading.Thread(
                target=lambda: seen.append(pool.submit(pool_tasks.Task()).result(PATIENCE).detail)
            )
            thread.start()
            thread.join(PATIENCE)
        assert seen[0] == seen[1]


def test_a_hanging_task_times_out_and_its_whole_process_group_is_gone(tmp_path: Path) -> None:
    import pool_tasks

    pids = tmp_path / "pids"
    with VerifierPool(1) as pool:
        pool.submit(pool_tasks.Task()).result(PATIENCE)
        start = time.monotonic()
        result = pool.submit(pool_tasks.Hang(deadline_seconds=1.0, pids=str(pids))).result(PATIENCE)
        took = time.monotonic() - start
        assert result.verdict is Verdict.TIMEOUT
        assert 1.0 <= took < 2.0
        assert result.seconds == pytest.approx(took, abs=0.2)
        worker, child = map(int, pids.read_text().split())
        assert eventually(lambda: not is_alive(worker) and not is_alive(child))
        assert pool.submit(MathTask(boxed(5), "5")).result(PATIENCE).verdict is Verdict.PASS


def test_a_task_that_no_worker_reads_in_time_times_out() -> None:
    import pool_tasks

    with VerifierPool(1) as pool:
        pid = int(pool.submit(pool_tasks.Task()).result(PATIENCE).detail)
        os.kill(pid, signal.SIGSTOP)
        big = pool_tasks.Task(deadline_seconds=1.0, payload="x" * (8 << 20))
        start = time.monotonic()
        assert pool.submit(big).result(PATIENCE).verdict is Verdict.TIMEOUT
        assert time.monotonic() - start < big.deadline_seconds + 1.0
        assert pool.submit(big).result(PATIENCE).verdict is Verdict.PASS


@pytest.mark.parametrize("how", ["die", "exit", "raise"])
def test_one_failure_of_a_worker_is_retried(how: str, tmp_path: Path) -> None:
    import pool_tasks

    with VerifierPool(1) as pool:
        task = pool_tasks.Once(flag=str(tmp_path / "flag"), how=how)
        assert pool.submit(task).result(PATIENCE).verdict is Verdict.PASS


def test_a_worker_killed_from_outside_is_replaced(tmp_path: Path) -> None:
    import pool_tasks

    flag = tmp_path / "flag"
    with VerifierPool(1) as pool:
        future = pool.submit(pool_tasks.Once(flag=str(flag), how="sleep"))
        assert eventually(lambda: flag.exists() and flag.read_text() != "")
        os.kill(int(flag.read_text()), signal.SIGKILL)
        result = future.result(PATIENCE)
        assert result.verdict is Verdict.PASS
        assert result.detail != flag.read_text()


@pytest.mark.parametrize(("how", "detail"), [("die", "status -9"), ("exit", "status 3"), ("raise", "KeyError")])
def test_a_failure_that_lasts_is_an_infra_error(how: str, detail: str) -> None:
    import pool_tasks

    with VerifierPool(1) as pool:
        result = pool.submit(pool_tasks.Always(how=how)).result(PATIENCE)
        assert result.verdict is Verdict.INFRA_ERROR
        assert result.reward == 0.0
        assert detail in result.detail
        assert "\n" not in result.detail
        assert pool.submit(MathTask(boxed(5), "5")).result(PATIENCE).verdict is Verdict.PASS


def test_memory_is_bounded_where_a_task_says_so() -> None:
    import pool_tasks

    with VerifierPool(1) as pool:
        result = pool.submit(pool_tasks.Always(how="memory", memory_bytes=1 << 30)).result(PATIENCE)
        assert (result.verdict, result.detail) == (Verdict.TIMEOUT, "over the memory limit")
        assert pool.submit(MathTask(boxed(5), "5")).result(PATIENCE).verdict is Verdict.PASS


def test_what_a_verifier_prints_does_not_reach_the_pool() -> None:
    import pool_tasks

    with VerifierPool(1) as pool:
        assert pool.submit(pool_tasks.Always(how="chatter")).result(PATIENCE).verdict is Verdict.PASS


def test_closing_cancels_pending_and_running_work_at_once(tmp_path: Path) -> None:
    import pool_tasks

    pids = tmp_path / "pids"
    pool = VerifierPool(1)
    running = pool.submit(pool_tasks.Hang(pids=str(pids)))
    pending = [pool.submit(MathTask(boxed(i), str(i))) for i in range(50)]
    assert eventually(lambda: pids.exists() and pids.read_text() != "")
    start = time.monotonic()
    pool.close()
    assert time.monotonic() - start < 2.0
    done, _ = wait([running, *pending], 0)
    assert len(done) == 51
    for future in done:
        with pytest.raises(CancelledError):
            future.result()
    assert eventually(lambda: not any(is_alive(int(pid)) for pid in pids.read_text().split()))
    pool.close()
    with pytest.raises(RuntimeError, match="closed"):
        pool.submit(MathTask(boxed(1), "1"))


def test_a_pool_without_workers_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1 worker, got 0"):
        VerifierPool(0)


def test_an_unused_pool_starts_nothing() -> None:
    with VerifierPool(8):
        assert worker_pids(os.getpid()) == []


SCRIPT = """
import sys, time
print("imported", flush=True)
from verifiers.pool import VerifierPool
import pool_tasks
pool = VerifierPool(2)
if len(sys.argv) > 1:
    for name in sys.argv[1:]:
        pool.submit(pool_tasks.Hang(pids=name, deadline_seconds=600.0))
    time.sleep(600)
print(pool.submit(pool_tasks.Task()).result().verdict)
"""


def script(*arguments: str) -> "subprocess.Popen[str]":
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([ROOT, HERE])}
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, *arguments], stdout=subprocess.PIPE, text=True, env=environment
    )


def test_a_script_without_main_guard_runs_once_and_ends_without_closing() -> None:
    with script() as process:
        output, _ = process.communicate(timeout=PATIENCE)
        assert output.split() == ["imported", "pass"]
        assert process.returncode == 0
        assert eventually(lambda: worker_pids(process.pid) == [])


def test_workers_die_with_a_killed_parent(tmp_path: Path) -> None:
    files = [tmp_path / "a", tmp_path / "b"]
    with script(*map(str, files)) as process:
        assert eventually(lambda: all(f.exists() and f.read_text() for f in files))
        workers = [int(f.read_text().split()[0]) for f in files]
        assert all(is_alive(pid) for pid in workers)
        process.kill()
        assert eventually(lambda: not any(is_alive(pid) for pid in workers), 5.0)
    for file in files:
        os.kill(int(file.read_text().split()[1]), signal.SIGKILL)
