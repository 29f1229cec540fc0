"""Speed of the code verifier, against LiveCodeBench's checker, Python started per test, and a bare fork per test.

    python benchmarks/verify_code.py [--livecodebench CHECKOUT] [--data FOLDER] [--turns 20] [--workers 2] [--quick]

All judge the same programs, one after another, in turns: each turn gives every system the same few programs. Of each
set: 1, 10 and 50 tests of a right program, on standard input and as function calls, and, with `--data`, the 187
labelled programs on 16 problems derived from APPS (`apps_stdio_problems.json`, `apps_stdio_programs.jsonl`). Then
programs per second of pools of 1 and more workers. The last line on standard output is JSON; ratios are of medians,
for the real programs of programs per second (one of the 187 never ends, and costs each system its time limit).

Without `--livecodebench` (a checkout of its repository, commit 28fef95) what needs it is left out, and likewise with
`--data`. LiveCodeBench's checker gets an environment of its own.
"""

import argparse
import json
import os
import platform
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from code_cases import Case, apps
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from verify_code_peer import LIVECODEBENCH_COMMIT, Peer, commit_of, livecodebench_python

from verifiers.code import isolation, verify_code
from verifiers.pool import VerifierPool
from verifiers.verdict import Verdict

COUNTS = (1, 10, 50)
TIMEOUT = 6.0  # seconds for each test; LiveCodeBench's own
OURS, POOL, LCB, PYTHON, FLOOR = "ours", "our pool of 1", "LiveCodeBench", "python per test", "fork per test"
MAX_PROGRAM_MS, MAX_FLOOR_RATIO = 6.0, 1.3
MIN_STDIN_RATIO = {1: 4.0, 10: 2.0, 50: 1.7}
MIN_FUNCTION_RATIO, MIN_REAL_RATIO = 3.0, 3.0
MIN_SCALING = 0.85  # of the number of workers
_REAL_BLOCK = 17  # real programs that a system judges before it is the next one's turn
_REAL_TURNS = 3
_SCALING_PROGRAMS = 150


# Programs --------------------------------------------------------------------------------------------------

FUNCTIONS = {
    "longest_climb": """
from bisect import bisect_left

def longest_climb(numbers):
    tails = []
    for number in numbers:
        at = bisect_left(tails, number)
        tails[at:at + 1] = [number]
    return len(tails)
""",
    "fewest_coins": """
def fewest_coins(numbers):
    goal = sum(numbers) % 97
    best = [0] + [10 ** 9] * goal
    for value in range(1, goal + 1):
        for coin in set(numbers):
            if coin <= value and best[value - coin] + 1 < best[value]:
                best[value] = best[value - coin] + 1
    return best[goal] if best[goal] < 10 ** 9 else -1
""",
    "merge_cost": """
import heapq

def merge_cost(numbers):
    heap = list(numbers)
    heapq.heapify(heap)
    total = 0
    while len(heap) > 1:
        pair = heapq.heappop(heap) + heapq.heappop(heap)
        total += pair
        heapq.heappush(heap, pair)
    return total
""",
}
MAIN = """
if __name__ == "__main__":
    n = int(input())
    numbers = list(map(int, input().split()))[:n]
    print({}(numbers))
"""


def made_programs(kind: str, count: int) -> list[Case]:
    """Each function with `count` tests, as a `stdin` or `function` problem."""
    generator = random.Random(1)
    programs = []
    for name, source in FUNCTIONS.items():
        scope: dict[str, Any] = {}
        exec(source, scope)
        tests = []
        for _ in range(count):
            numbers = [generator.randint(1, 60) for _ in range(30)]
            output = str(scope[name](numbers))
            if kind == "stdin":
                text = f"{len(numbers)}\n{' '.join(map(str, numbers))}\n"
                tests.append({"input": text, "output": output + "\n", "testtype": "stdin"})
            else:
                tests.append({"input": json.dumps(numbers), "output": output, "testtype": "functional"})
        stdin = kind == "stdin"
        code = source + MAIN.format(name) if stdin else source
        programs.append(Case("made", kind, name, code, tests, None if stdin else name, right=True))
    return programs


# Systems ---------------------------------------------------------------------------------------------------

Run = Callable[[Case], tuple[bool, float]]
"""Judges a program; whether it passed, and seconds."""


def run_ours(program: Case) -> tuple[bool, float]:
    start = time.perf_counter()
    result = verify_code(program.response, program.tests, fn_name=program.fn_name, timeout=TIMEOUT)
    return result.verdict is Verdict.PASS, time.perf_counter() - start


def run_pool(pool: VerifierPool) -> Run:
    def run(program: Case) -> tuple[bool, float]:
        start = time.perf_counter()
        result = pool.submit(program.task(TIMEOUT)).result()
        return result.verdict is Verdict.PASS, time.perf_counter() - start

    return run


def run_peer(peer: Peer) -> Run:
    def run(program: Case) -> tuple[bool, float]:
        answer = peer.judge(program.code, program.tests, program.fn_name, TIMEOUT)
        return answer["passed"], answer["seconds"]

    return run


class Systems:
    """Starts systems, alone or several at once. A context manager, which ends them."""

    def __init__(self, checkout: Path | None, python: Path | None) -> None:
        self._checkout, self._python = checkout, python
        self._stack = ExitStack()

    def __enter__(self) -> "Systems":
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.__exit__(*error)

    def peer(self, name: str) -> Peer:
        arguments = (self._python, self._checkout) if name == "livecodebench" else (None, None)
        return self._stack.enter_context(Peer(name, *arguments))

    def all(self) -> dict[str, Run]:
        """One of each, by name."""
        isolation()  # starts our sandbox
        runs: dict[str, Run] = {OURS: run_ours, POOL: run_pool(self._stack.enter_context(VerifierPool(1)))}
        if self._checkout is not None:
            runs[LCB] = run_peer(self.peer("livecodebench"))
        return runs | {PYTHON: run_peer(self.peer("python")), FLOOR: run_peer(self.peer("fork"))}


# Measuring -------------------------------------------------------------------------------------------------

Advance = Callable[[str], None]


def in_turns(
    runs: Mapping[str, Run], programs: Sequence[Case], turns: int, advance: Advance
) -> tuple[dict[str, list[list[float]]], dict[str, list[bool]]]:
    """Seconds of every system, turn and program, and which programs passed at the last turn."""
    seconds: dict[str, list[list[float]]] = {name: [] for name in runs}
    passed: dict[str, list[bool]] = {}
    names = list(runs)
    for turn in range(turns):
        shift = turn % len(names)  # another one begins each turn
        for name in names[shift:] + names[:shift]:
            results = []
            for program in programs:
                results.append(runs[name](program))
                advance(name)
            seconds[name].append([spent for _, spent in results])
            passed[name] = [good for good, _ in results]
    return seconds, passed


def milliseconds(seconds: Sequence[float]) -> dict[str, float]:
    ordered = sorted(seconds)
    return {
        "mean": round(statistics.fmean(ordered) * 1000, 2),
        "p50": round(statistics.median(ordered) * 1000, 2),
        "p99": round(ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))] * 1000, 2),
    }


def made(runs: Mapping[str, Run], turns: int, advance: Advance) -> dict[str, Any]:
    """Milliseconds per program for each kind and number of tests."""
    found: dict[str, Any] = {}
    for kind in ("stdin", "function"):
        for count in COUNTS:
            programs = made_programs(kind, count)
            seconds, passed = in_turns(runs, programs, turns + 1, advance)
            wrong = [name for name, results in passed.items() if not all(results)]
            if wrong:
                raise SystemExit(f"{kind}, {count} tests: right programs did not pass with {', '.join(wrong)}")
            # the first turn warms up
            found[f"{kind} {count}"] = {
                name: milliseconds([t for row in s[1:] for t in row]) for name, s in seconds.items()
            }
    return found


def real(runs: Mapping[str, Run], programs: Sequence[Case], turns: int, advance: Advance) -> dict[str, Any]:
    """Milliseconds and programs per second, one after another, and how often the verdict is not the label's.

    Also without the programs that never end: there every system waits for its time limit, and for nothing else.
    """
    seconds: dict[str, list[list[float]]] = {name: [] for name in runs}
    missed = dict.fromkeys(runs, 0)
    for at in range(0, len(programs), _REAL_BLOCK):
        block = programs[at : at + _REAL_BLOCK]
        spent, passed = in_turns(runs, block, turns, advance)
        for name in runs:
            seconds[name] += [list(times) for times in zip(*spent[name], strict=True)]
            missed[name] += sum(p != program.right for p, program in zip(passed[name], block, strict=True))
    medians = {name: [statistics.median(times) for times in rows] for name, rows in seconds.items()}
    ended = [place for place in range(len(programs)) if min(times[place] for times in medians.values()) < TIMEOUT]
    return {
        name: milliseconds(times)
        | {
            "programs_per_second": round(len(times) / sum(times), 2),
            "programs_per_second_of_those_that_end": round(len(ended) / sum(times[place] for place in ended), 2),
            "verdicts_unlike_label": missed[name],
        }
        for name, times in medians.items()
    }


def throughput(
    systems: Systems, programs: Sequence[Case], workers: int, with_peer: bool, turns: int, advance: Advance
) -> dict[str, dict[str, float]]:
    """Programs per second of 1 and of `workers` workers, in turns; the median."""
    ours = {n: VerifierPool(n) for n in (1, workers)}
    names = {FLOOR: "fork"} | ({LCB: "livecodebench"} if with_peer else {})
    peers = {name: [systems.peer(word) for _ in range(workers)] for name, word in names.items()}
    rates: dict[str, dict[str, list[float]]] = {name: {} for name in (OURS, *names)}
    try:
        for turn in range(turns + 1):
            for n in (1, workers):
                timed = {OURS: _seconds(lambda n=n: _drain_pool(ours[n], programs))}  # type: ignore[misc]
                for name, group in peers.items():
                    timed[name] = _seconds(lambda group=group, n=n: _drain_peers(group[:n], programs))  # type: ignore[misc]
                for name, seconds in timed.items():
                    advance(f"{name}, {n} at once")
                    if turn:  # the first warms up
                        rates[name].setdefault(str(n), []).append(len(programs) / seconds)
    finally:
        for pool in ours.values():
            pool.close()
    return {name: {n: round(statistics.median(r), 1) for n, r in found.items()} for name, found in rates.items()}


def _seconds(work: Callable[[], None]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _drain_pool(pool: VerifierPool, programs: Sequence[Case]) -> None:
    for future in [pool.submit(program.task(TIMEOUT)) for program in programs]:
        future.result()


def _drain_peers(peers: Sequence[Peer], programs: Sequence[Case]) -> None:
    """Every peer takes the next program as it gets free."""
    queue: Iterator[Case] = iter(list(programs))

    def work(peer: Peer) -> None:
        for program in queue:  # a list's iterator may be shared by threads
            peer.judge(program.code, program.tests, program.fn_name, TIMEOUT)

    with ThreadPoolExecutor(len(peers)) as threads:
        list(threads.map(work, peers))


# Reporting -------------------------------------------------------------------------------------------------


def targets(result: Mapping[str, Any], workers: int) -> list[dict[str, Any]]:
    """What was promised, against what was measured."""
    rows = []

    def row(name: str, measured: float, at_least: float | None = None, at_most: float | None = None) -> None:
        met = measured >= at_least if at_least is not None else measured <= (at_most or 0.0)
        target = f">= {at_least:g}" if at_least is not None else f"<= {at_most:g}"
        rows.append({"name": name, "target": target, "measured": round(measured, 2), "met": met})

    found = result["milliseconds"]
    for count in COUNTS:
        per_set = found[f"stdin {count}"]
        limit = MAX_PROGRAM_MS + MAX_FLOOR_RATIO * per_set[FLOOR]["p50"]
        row(f"{count} stdin tests: ms, against 6 + 1.3 x floor", per_set[OURS]["p50"], at_most=round(limit, 2))
    for name, per_set in found.items():
        if LCB in per_set:
            kind, count = name.split()
            least = MIN_STDIN_RATIO[int(count)] if kind == "stdin" else MIN_FUNCTION_RATIO
            row(f"{count} {kind} tests: times as fast as {LCB}", per_set[LCB]["p50"] / per_set[OURS]["p50"], least)
    rates = result.get("real", {})
    if LCB in rates:
        for key, which in (("", ""), ("_of_those_that_end", " that end")):
            ours, theirs = (rates[name][f"programs_per_second{key}"] for name in (OURS, LCB))
            row(f"real programs{which}: programs/s over {LCB}'s", ours / theirs, MIN_REAL_RATIO)
    if OURS in rates:
        row("real programs: verdicts unlike the label", rates[OURS]["verdicts_unlike_label"], at_most=0)
    scaling = result["throughput"]["made"][OURS]
    ratio = scaling[str(workers)] / scaling["1"]
    row(f"programs/s of {workers} workers over those of 1", ratio, MIN_SCALING * workers)
    return rows


def show(result: Mapping[str, Any], console: Console) -> None:
    """The figures as tables."""
    names = list(result["milliseconds"]["stdin 1"])
    table = Table(title="milliseconds per program: median (99th percentile)")
    for column in ("", *names):
        table.add_column(column, justify="left" if column == "" else "right")
    for label, per_set in [*result["milliseconds"].items(), *([("real", result["real"])] if "real" in result else [])]:
        cells = (per_set[name] for name in names)
        table.add_row(label, *(f"{cell['p50']:.1f} ({cell['p99']:.0f})" for cell in cells))
    console.print(table)
    table = Table(title="programs per second")
    for column in ("", "workers", OURS, LCB, FLOOR):
        table.add_column(column, justify="left" if column == "" else "right")
    for label, rates in result["throughput"].items():
        for n in rates[OURS]:
            table.add_row(label, n, *(f"{rates[name][n]:.1f}" if name in rates else "" for name in (OURS, LCB, FLOOR)))
    console.print(table)
    table = Table(title="targets")
    for column in ("", "target", "measured", "met"):
        table.add_column(column, justify="left" if column == "" else "right")
    for row in result["targets"]:
        met = "[green]yes" if row["met"] else "[red]no"
        table.add_row(row["name"], row["target"], f"{row['measured']:g}", met)
    console.print(table)
    for reason in result["left_out"]:
        console.print(f"left out: {reason}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--livecodebench", type=Path, help=f"a checkout of its repository, at {LIVECODEBENCH_COMMIT}")
    parser.add_argument("--environment", type=Path, help="where its environment is kept; default: nowhere")
    parser.add_argument("--data", type=Path, help="the folder with the labelled programs")
    parser.add_argument("--turns", type=int, default=20)
    parser.add_argument("--workers", type=int, default=min(2, os.cpu_count() or 1), help="of the larger pool")
    parser.add_argument("--quick", action="store_true", help="few turns, few real programs: does it run?")
    arguments = parser.parse_args()
    console = Console(stderr=True)
    turns, real_turns = (1, 1) if arguments.quick else (arguments.turns, _REAL_TURNS)
    pool_turns = {"made": real_turns, "real": 1}
    programs = list(apps(arguments.data)) if arguments.data else []
    programs = programs[::20] if arguments.quick else programs
    scaling = made_programs("stdin", 10) * (_SCALING_PROGRAMS // (15 if arguments.quick else 3))
    left_out = [] if arguments.livecodebench else [f"{LCB} (--livecodebench)"]
    left_out += [] if programs else ["the real programs (--data)"]
    columns = (TextColumn("{task.description:30}"), BarColumn(), MofNCompleteColumn())
    with (
        tempfile.TemporaryDirectory() as folder,
        Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console) as progress,
    ):
        bar = progress.add_task("starting", total=None)
        python = None
        if arguments.livecodebench:
            python = livecodebench_python(arguments.environment or Path(folder) / "environment")
        with Systems(arguments.livecodebench, python) as systems:
            runs = systems.all()
            sets = {"made": scaling} | ({"real": programs} if programs else {})
            both = (OURS, FLOOR, LCB) if python else (OURS, FLOOR)
            total = len(runs) * (2 * len(COUNTS) * len(FUNCTIONS) * (turns + 1) + real_turns * len(programs))
            progress.update(bar, total=total + 2 * len(both) * sum(pool_turns[name] + 1 for name in sets))

            def advance(name: str) -> None:
                progress.update(bar, advance=1, description=name)

            result: dict[str, Any] = {"milliseconds": made(runs, turns, advance)}
            if programs:
                result["real"] = real(runs, programs, real_turns, advance)
            result["throughput"] = {
                name: throughput(systems, chosen, arguments.workers, python is not None, pool_turns[name], advance)
                for name, chosen in sets.items()
            }
    rows = targets(result, arguments.workers)
    report = {
        "benchmark": "verify_code",
        "versions": {"python": platform.python_version(), "kernel": platform.release()}
        | ({"livecodebench": commit_of(arguments.livecodebench)} if python else {}),
        "cores": os.cpu_count(),
        "isolation": isolation().level,
        "turns": turns,
        "left_out": left_out,
        **result,
        "targets": rows,
    }
    show(report, console)
    print(json.dumps(report | {"targets_met": all(row["met"] for row in rows)}))


if __name__ == "__main__":
    main()
