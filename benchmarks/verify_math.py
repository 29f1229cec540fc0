"""Accuracy and speed of the math verifier, against Math-Verify.

    python benchmarks/verify_math.py [--data FOLDER] [--environment DIR] [--numbers 1000] [--seed 1]

Both judge the same answers, in turns of a few, one core each:

    pairs      the table of the tests: equal and unequal pairs by kind
    numbers    fractions, decimals, mixed numbers, percentages, powers of ten: equal or not by construction
    unique     each different MATH answer once, against itself (`--data`: deepscaler_train_math.json)
    responses  a solution of MATH-500 after some thousand characters of thinking, against its own answer and against
               another problem's (`--data`: math500_test.jsonl)

Then the pool of a training run, two workers: 1,024 of the responses (without `--data`, of the pairs), one in twenty
with a hostile answer; and verifications that never end, each of which has to cost its own deadline and no more.

The last line on standard output is JSON. False positives are wrong answers accepted, false negatives right ones
rejected. Math-Verify gets an environment of its own.
"""

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

from environments import python_with
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from verifiers.pool import VerifierPool
from verifiers.tasks import MathTask
from verifiers.verdict import Result, Verdict

ROOT = Path(__file__).resolve().parents[1]
_TESTS = str(ROOT / "tests" / "verifiers")
sys.path.append(_TESTS)
os.environ["PYTHONPATH"] = _TESTS  # the workers of the pool read tasks from there
MATH_VERIFY = ["math-verify==0.9.0", "antlr4-python3-runtime==4.13.2"]
OURS, PEER = "ours", "math-verify"
MIN_SPEED = {"responses": 10.0, "unique": 5.0}
MAX_P99_MS = 50.0
MAX_POOL_SECONDS = 2.0
MAX_OVERRUN_SECONDS = 0.1
_POOL_WORKERS, _POOL_RESPONSES, _POOL_HOSTILE = 2, 1024, 51
_HANGS, _HANG_SECONDS = 20, 0.5
_BLOCK = 50  # answers that a grader judges before it is the other's turn
_THINKING = 6000  # characters


class Case(NamedTuple):
    """A response, the reference, and whether they are equal."""

    response: str
    answer: str
    equal: bool


# Cases -----------------------------------------------------------------------------------------------------


def boxed(answer: str) -> str:
    return rf"</think> The answer is \boxed{{{answer}}}."


def pairs() -> list[Case]:
    lines = (ROOT / "tests" / "verifiers" / "math_pairs.txt").read_text().splitlines()
    rows = [(line[0] == "=", *line[2:].split(" || ")) for line in lines if line[:1] in ("=", "!")]
    return [Case(boxed(answer), reference, equal) for equal, answer, reference in rows]


def numbers(count: int, rng: random.Random) -> list[Case]:
    cases = []
    while len(cases) < count:
        value = Fraction(rng.randint(-500, 500), rng.choice((1, 2, 4, 5, 8, 10, 20, 25, 3, 7, 12)))
        equal = rng.random() < 0.5
        other = value if equal else rng.choice((value + Fraction(1, 100), value * 10, -value, value / 10, 1 + value))
        if (other == value) == equal:
            cases.append(Case(boxed(spelling(other, rng)), spelling(value, rng), equal))
    return cases


def spelling(value: Fraction, rng: random.Random) -> str:
    """One of the ways to write a number exactly."""
    sign, size = ("-" if value < 0 else ""), abs(value)
    forms = [rf"{sign}\frac{{{size.numerator}}}{{{size.denominator}}}", f"{sign}{size.numerator}/{size.denominator}"]
    if size.denominator != 1 and size > 1:
        whole, rest = divmod(size.numerator, size.denominator)
        forms.append(rf"{sign}{whole}\frac{{{rest}}}{{{size.denominator}}}")
    if 10**6 % size.denominator == 0:
        decimal = f"{size.numerator * (10**6 // size.denominator) / 10**6:.6f}".rstrip("0").rstrip(".")
        forms += [f"{sign}{decimal}", rf"{sign}{decimal} \times 10^{{0}}"]
        if "." in decimal:
            forms.append(f"{sign}{decimal}0")
    return rng.choice(forms)


def unique(data: Path) -> list[Case]:
    rows = json.loads((data / "deepscaler_train_math.json").read_text())
    answers = dict.fromkeys(str(row["answer"]) for row in rows if str(row["answer"]).strip())
    return [Case(boxed(answer), answer, True) for answer in answers]


def responses(data: Path, rng: random.Random) -> list[Case]:
    rows = [json.loads(line) for line in (data / "math500_test.jsonl").read_text().splitlines()]
    thoughts = "\n\n".join(row["solution"].replace("\\boxed", "") for row in rows)
    cases = []
    for row in rows:
        start = rng.randrange(len(thoughts) - _THINKING)
        response = f"<think>{thoughts[start : start + _THINKING]}</think>\n\n{row['solution']}"
        cases.append(Case(response, row["answer"], True))
        other = rng.choice(rows)["answer"]
        if _letters(other) != _letters(row["answer"]):
            cases.append(Case(response, other, False))
    return cases


def _letters(answer: str) -> str:
    for mark in ("\\left", "\\right", "^\\circ", "^{\\circ}"):
        answer = answer.replace(mark, "")
    return "".join(answer.split()).replace("dfrac", "frac")


# Judging ---------------------------------------------------------------------------------------------------


class Grader:
    """A running grader."""

    def __init__(self, name: str, python: Path) -> None:
        self.name = name
        command = [str(python), str(ROOT / "benchmarks" / "verify_math_peer.py"), name]
        environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def judge(self, case: Case) -> tuple[bool, float]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps({"response": case.response, "answer": case.answer}) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.name} ended with status {self.process.wait()}")
        found = json.loads(line)
        return found["passed"], found["seconds"]


def measure(graders: Sequence[Grader], sets: Mapping[str, Sequence[Case]], progress: Progress) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for label, cases in sets.items():
        found: dict[str, list[tuple[bool, float]]] = {grader.name: [] for grader in graders}
        task = progress.add_task(label, total=len(cases) * len(graders))
        for turn, at in enumerate(range(0, len(cases), _BLOCK)):
            for grader in graders if turn % 2 else reversed(graders):
                for case in cases[at : at + _BLOCK]:
                    found[grader.name].append(grader.judge(case))
                    progress.advance(task)
        result[label] = {name: figures(cases, judged) for name, judged in found.items()}
    return result


def figures(cases: Sequence[Case], judged: Sequence[tuple[bool, float]]) -> dict[str, Any]:
    seconds = sorted(spent for _, spent in judged)
    right = sum(passed == case.equal for case, (passed, _) in zip(cases, judged, strict=True))
    wrong = [(case, passed) for case, (passed, _) in zip(cases, judged, strict=True) if passed != case.equal]
    return {
        "answers": len(cases),
        "accuracy": round(right / len(cases), 4),
        "false_positives": sum(passed for _, passed in wrong),
        "false_negatives": sum(not passed for _, passed in wrong),
        "per_second": round(len(cases) / sum(seconds), 1),
        "p50_ms": round(statistics.median(seconds) * 1000, 3),
        "p99_ms": round(seconds[int(0.99 * len(seconds))] * 1000, 2),
        "max_ms": round(seconds[-1] * 1000, 1),
        "mistakes": [{"response": case.response[-160:], "answer": case.answer[:80]} for case, _ in wrong[:40]],
    }


# The pool --------------------------------------------------------------------------------------------------


def pool_figures(cases: Sequence[Case], rng: random.Random) -> dict[str, float]:
    """Seconds for one batch, for its slowest answer, and the longest that a hanging verification ran over."""
    from math_hostile import HOSTILE
    from pool_tasks import Sleep

    hostile = [rng.choice(list(HOSTILE.values())) for _ in range(_POOL_HOSTILE)]
    tasks = [MathTask(case.response, case.answer) for case in rng.choices(cases, k=_POOL_RESPONSES - _POOL_HOSTILE)]
    tasks += [MathTask(boxed(answer), r"\frac{1}{2}") for answer in hostile]
    rng.shuffle(tasks)
    with VerifierPool(_POOL_WORKERS) as pool:
        _finish(pool, [MathTask(boxed("5"), "5")] * 100)  # both workers are up
        start = time.perf_counter()
        results = _finish(pool, tasks)
        seconds = time.perf_counter() - start
        hangs = _finish(pool, [Sleep(deadline_seconds=_HANG_SECONDS, seconds=600.0)] * _HANGS)
    if any(result.verdict is not Verdict.TIMEOUT for result in hangs):
        raise SystemExit("a verification that never ends did not time out")
    return {
        "responses": len(tasks),
        "seconds": round(seconds, 2),
        "slowest_ms": round(max(result.seconds for result in results) * 1000, 1),
        "timeouts": sum(result.verdict is Verdict.TIMEOUT for result in results),
        "failures": sum(result.verdict is Verdict.INFRA_ERROR for result in results),
        "longest_overrun_ms": round(max(result.seconds - _HANG_SECONDS for result in hangs) * 1000, 1),
    }


def _finish(pool: VerifierPool, tasks: Sequence[Any]) -> list[Result]:
    return [future.result(60.0) for future in [pool.submit(task) for task in tasks]]


def show(result: Mapping[str, Any], console: Console) -> None:
    table = Table(title="math answers")
    columns = ("accuracy", "false_positives", "false_negatives", "per_second", "p50_ms", "p99_ms", "max_ms")
    for name in ("set", "grader", *(column.replace("_", " ") for column in columns)):
        table.add_column(name)
    for label, graders in result.items():
        for name, row in graders.items():
            table.add_row(label, name, *(str(row[column]) for column in columns))
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of the public datasets; without it: pairs and numbers")
    parser.add_argument("--environment", type=Path, help="where Math-Verify's is kept; default: nowhere")
    parser.add_argument("--numbers", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    console = Console(stderr=True)
    rng = random.Random(arguments.seed)
    sets: dict[str, Sequence[Case]] = {"pairs": pairs(), "numbers": numbers(arguments.numbers, rng)}
    if arguments.data is not None:
        sets |= {"responses": responses(arguments.data, rng), "unique": unique(arguments.data)}
    with tempfile.TemporaryDirectory() as folder, Progress(console=console) as progress:
        python = python_with(arguments.environment or Path(folder), MATH_VERIFY)
        graders = [Grader(OURS, Path(sys.executable)), Grader(PEER, python)]
        result = measure(graders, sets, progress)
    show(result, console)
    batch = pool_figures(sets.get("responses", sets["pairs"]), rng)
    console.print(f"pool of {_POOL_WORKERS}: {batch}")
    speed = {label: round(rows[OURS]["per_second"] / rows[PEER]["per_second"], 2) for label, rows in result.items()}
    targets = {
        f"{label}: times as fast as Math-Verify, at least {least:g}": speed[label] >= least
        for label, least in MIN_SPEED.items()
        if label in speed
    } | {f"{label}: p99 below {MAX_P99_MS:g} ms": rows[OURS]["p99_ms"] < MAX_P99_MS for label, rows in result.items()}
    targets |= {
        f"pool: {_POOL_RESPONSES} responses within {MAX_POOL_SECONDS:g} s": batch["seconds"] <= MAX_POOL_SECONDS,
        f"pool: at most {MAX_OVERRUN_SECONDS:g} s past a deadline": batch["longest_overrun_ms"]
        <= MAX_OVERRUN_SECONDS * 1000,
    }
    for name, met in targets.items():
        console.print(f"{'yes' if met else 'NO ':3} {name}")
    print(
        json.dumps(
            {"benchmark": "verify_math", "sets": result, "times_as_fast": speed, "pool": batch, "targets": targets}
        )
    )


if __name__ == "__main__":
    main()
