"""Agreement of the code verifier with LiveCodeBench's checker on honest programs, right and wrong.

    python benchmarks/agree_code.py --livecodebench CHECKOUT [--data FOLDER] [--mutants 2] [--seed 1] [--quick]

Judges every program twice. Programs come from the idiom table of the tests and, with `--data`, from the files there:
labelled programs (apps_stdio), references called on their own tests (mbpp, humaneval, cruxeval), contest outputs
printed as they are and in other spellings (gcj_kickstart). Wrong ones are made of them: other expected outputs,
another problem's program, and mutants (a constant, a comparison or an operator changed).

Where the two differ, Python itself runs the program on its tests and decides who is right; then the difference gets its
kind. The last line on standard output is JSON; the exit status is 1 if a difference has no known reason or ours is at
fault. The checkout is of LiveCodeBench's repository, commit 28fef95; its checker gets an environment of its own.
"""

import argparse
import json
import os
import random
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from agree_code_kinds import KINDS, STATE, UNKNOWN, Difference, kind_of
from code_cases import Case, apps, contest_outputs, cruxeval, humaneval, idioms, mbpp, variants
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from verify_code_peer import LIVECODEBENCH_COMMIT, Peer, commit_of, livecodebench_python

from verifiers.pool import VerifierPool
from verifiers.verdict import Verdict

TIMEOUT, LONG_TIMEOUT = 2.0, 12.0  # seconds for each test; the long one where a timeout may be the whole difference


class Bench:
    """Both judges, and Python to decide between them."""

    def __init__(self, stack: ExitStack, checkout: Path, python: Path, workers: int) -> None:
        self._pool = stack.enter_context(VerifierPool(workers))
        self._free: SimpleQueue[tuple[Peer, Peer]] = SimpleQueue()
        for _ in range(workers):
            peers = Peer("livecodebench", python, checkout), Peer("contest")
            for peer in peers:
                stack.enter_context(peer)
            self._free.put(peers)

    def judge(self, case: Case) -> Difference | bool:
        """What both say, or how they differ."""
        checker, contest = self._free.get()
        try:
            for timeout in (TIMEOUT, LONG_TIMEOUT):
                future = self._pool.submit(case.task(timeout))
                theirs = checker.judge(case.code, case.tests, case.fn_name, timeout)
                ours = future.result()
                if ours.verdict in (Verdict.INFRA_ERROR, Verdict.NO_ANSWER):
                    raise SystemExit(f"{case.source}, {case.name}: {ours.verdict}, {ours.detail}")
                if (ours.verdict is Verdict.PASS) == theirs["passed"]:
                    return theirs["passed"]
                if ours.verdict is not Verdict.TIMEOUT and "Time Limit" not in theirs["detail"]:
                    break
            truth = contest.judge(case.code, case.tests, case.fn_name, LONG_TIMEOUT)["passed"]
            difference = Difference(case, ours, theirs["detail"], truth, STATE)
            if not difference.passed or not self._passes_apart(checker, case):
                difference = replace(difference, kind=kind_of(difference))
            return difference
        finally:
            self._free.put((checker, contest))

    def _passes_apart(self, checker: Peer, case: Case) -> bool:
        """Whether LiveCodeBench accepts every test when it is the only one."""
        apart = len(case.tests) > 1
        return apart and all(checker.judge(case.code, [t], case.fn_name, TIMEOUT)["passed"] for t in case.tests)


def gather(arguments: argparse.Namespace, left_out: Counter[str]) -> list[Case]:
    """All cases, in an order that the seed decides."""
    generator = random.Random(arguments.seed)
    sources = [list(idioms())]
    if arguments.data is not None:
        data = arguments.data
        sources += [list(apps(data)), list(mbpp(data, left_out)), list(cruxeval(data, left_out))]
        sources += [list(humaneval(data, left_out)), list(contest_outputs(data))]
    if arguments.quick:
        sources = [generator.sample(source, min(12, len(source))) for source in sources]
    return [case for source in sources for case in variants(source, arguments.mutants, generator)]


def report(cases: Sequence[Case], verdicts: Sequence[Difference | bool]) -> dict[str, Any]:
    """Counts by source and variant, and every difference by kind."""
    counts: dict[str, dict[str, Counter[str]]] = {}
    kinds: dict[str, list[Difference]] = {}
    unlike_label = 0
    for case, verdict in zip(cases, verdicts, strict=True):
        variant = "another spelling" if case.source == "gcj_kickstart" and case.variant != "as given" else case.variant
        count = counts.setdefault(case.source, {}).setdefault(variant, Counter(both_pass=0, both_fail=0, differ=0))
        if isinstance(verdict, Difference):
            count["differ"] += 1
            kinds.setdefault(verdict.kind, []).append(verdict)
        else:
            count["both_pass" if verdict else "both_fail"] += 1
        passed = verdict.passed if isinstance(verdict, Difference) else verdict
        unlike_label += case.right is not None and case.right is not passed
    found = [difference for differences in kinds.values() for difference in differences]
    return {
        "programs": len(cases),
        "counts": counts,
        "unlike_label": unlike_label,
        "right_rejected": sum(d.python and not d.passed for d in found),
        "wrong_accepted": sum(d.passed and not d.python for d in found),
        "unexplained": len(kinds.get(UNKNOWN, [])),
        "kinds": {
            name: {
                "count": len(differences),
                "reason": KINDS[name].reason if name in KINDS else "",
                "ours_passes": differences[0].passed,
                "python_agrees_with_ours": sum(d.python is d.passed for d in differences),
                "sources": Counter(f"{d.case.source}, {d.case.variant}" for d in differences),
                "programs": [
                    {
                        "program": f"{d.case.source}, {d.case.variant}, {d.case.name}",
                        "ours": f"{d.ours.verdict} {d.ours.detail}",
                        "theirs": d.theirs or "pass",
                        "python": d.python,
                    }
                    for d in differences
                ],
            }
            for name, differences in sorted(kinds.items(), key=lambda item: -len(item[1]))
        },
    }


def show(result: dict[str, Any], console: Console) -> None:
    table = Table("programs", "variant", "both accept", "both reject", "differ", title="ours and LiveCodeBench's")
    for source, by_variant in result["counts"].items():
        for variant, count in by_variant.items():
            table.add_row(source, variant, *(str(count[key]) for key in ("both_pass", "both_fail", "differ")))
    console.print(table)
    table = Table("kind", "count", "who accepts", "Python agrees with ours", title="differences")
    for name, kind in result["kinds"].items():
        who = "ours" if kind["ours_passes"] else "LiveCodeBench's"
        table.add_row(name, str(kind["count"]), who, str(kind["python_agrees_with_ours"]))
    console.print(table)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--livecodebench", type=Path, required=True, help=f"a checkout of its repository, at {LIVECODEBENCH_COMMIT}"
    )
    parser.add_argument("--environment", type=Path, help="where its environment is kept; default: nowhere")
    parser.add_argument("--data", type=Path, help="the folder with the data files; default: only the idiom table")
    parser.add_argument("--mutants", type=int, default=2, help="of each program")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--quick", action="store_true", help="a few programs of each source")
    arguments = parser.parse_args()
    console = Console(stderr=True)
    left_out: Counter[str] = Counter()
    cases = gather(arguments, left_out)
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack, Progress(console=console) as progress:
        python = livecodebench_python(arguments.environment or Path(folder) / "environment")
        bench = Bench(stack, arguments.livecodebench, python, arguments.workers)
        threads = stack.enter_context(ThreadPoolExecutor(arguments.workers))
        verdicts = list(progress.track(threads.map(bench.judge, cases), total=len(cases), description="judging"))
    result = report(cases, verdicts) | {"left_out": left_out, "livecodebench": commit_of(arguments.livecodebench)}
    show(result, console)
    print(json.dumps({"benchmark": "agree_code", "seed": arguments.seed, **result}))
    return 1 if result["unexplained"] or result["right_rejected"] or result["wrong_accepted"] else 0


if __name__ == "__main__":
    sys.exit(main())
