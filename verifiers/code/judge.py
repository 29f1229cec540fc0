"""Judge a response to a coding problem: extract its program, run every test in the sandbox, compare here."""

import math
import re
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from verifiers.code.compare import TEST_TYPES, check_test, same_output, same_value
from verifiers.code.extract import extract_program
from verifiers.code.protocol import SEPARATOR
from verifiers.code.sandbox import Isolation, Outcome, Program, SandboxDied, SandboxError, current_sandbox
from verifiers.isolation import IsolationLevel
from verifiers.verdict import Result, Verdict

_SOURCE_CHARACTERS = 1 << 20  # contests allow 64 KiB; compiling much more costs more than a test may
_SIGXCPU = 24
# Functional tests run in groups, within the time of one test: the first by itself, as most wrong programs fail there.
_GROWTH, _LARGEST_GROUP = 4, 64
_FAILED_ASSERTION = "exit status 1: AssertionError"
_METHOD = re.compile(r"^[ \t]*(?:async[ \t]+)?def[ \t]+(\w+)", re.MULTILINE)

Test = Mapping[str, str]


def isolation() -> Isolation:
    """What isolation programs get on this machine, found out by starting the sandbox.

    Raises:
        SandboxError: it cannot start at all.
    """
    with current_sandbox() as sandbox:
        return sandbox.isolation


def require_isolation(minimum: IsolationLevel) -> None:
    """Refuse a machine that gives programs less than `minimum`.

    Raises:
        SandboxError: says what it gives, and why not more.
    """
    _check_isolation(isolation(), minimum)


def verify_code(
    response: str,
    tests: Sequence[Test],
    *,
    fn_name: str | None = None,
    starter_code: str | None = None,
    timeout: float = 6.0,
    budget: float = 300.0,
    longest_first: bool = False,
    min_isolation: IsolationLevel = IsolationLevel.LIMITS,
) -> Result:
    """Verdict on the program in `response`: `pass` only if it passes every test within its time.

    The first call starts this process's sandbox, which later calls reuse; threads of one process take turns.

    Args:
        response: what the model wrote; see `extract` for where its program is.
        tests: in LiveCodeBench's form, at least one: `input`, `output`, and `testtype` `stdin` or `functional`
            (input: one JSON value per line and argument; output: one JSON value); or `check`, whose input is Python
            that is run after the program and must not raise (output: unused). Run in order, up to the first that
            fails.
        fn_name: the function that functional tests call, plain or a method of `class Solution`, and that checks are
            about; by default the last one that `starter_code` defines.
        starter_code: the problem's function header; where there is a check it is run before the program.
        timeout: wall-clock seconds for each test.
        budget: wall-clock seconds for all tests together.
        longest_first: run the tests with the longest inputs first; a slow program fails sooner.
        min_isolation: the weakest isolation to run programs with.

    Raises:
        ValueError: the tests, the function's name or a time are unusable (nothing a response can cause).
        SandboxError: the sandbox failed, or this machine gives less isolation (our fault, never the program's).
    """
    start = time.monotonic()
    _check_seconds(timeout=timeout, budget=budget)
    _check_tests(tests)
    function = function_name(tests, fn_name, starter_code)
    program = extract_program(response)
    if program is None or not program.strip():
        return Result(Verdict.NO_ANSWER, None, time.monotonic() - start)
    if len(program) > _SOURCE_CHARACTERS:
        verdict, detail = Verdict.RUNTIME_ERROR, f"source longer than {_SOURCE_CHARACTERS} characters"
    else:
        plan = _Plan(tests, function, starter_code or "", timeout, budget, longest_first, min_isolation)
        verdict, detail = _judge(program, plan)
    return Result(verdict, program, time.monotonic() - start, detail)


@dataclass(frozen=True, slots=True)
class _Plan:
    """What a program has to do; the fields are arguments of `verify_code`."""

    tests: Sequence[Test]
    function: str | None
    starter: str
    timeout: float
    budget: float
    longest_first: bool
    min_isolation: IsolationLevel

    def order(self) -> list[int]:
        """Positions of the tests, in the order in which they are run."""
        places = range(len(self.tests))
        return sorted(places, key=lambda i: -len(self.tests[i]["input"])) if self.longest_first else list(places)


def _check_isolation(found: Isolation, minimum: IsolationLevel) -> None:
    if not found.level.reaches(minimum):
        raise SandboxError(
            f"programs would be isolated by {found.level} only, and {minimum} is demanded; this machine refuses: "
            f"{', '.join(found.missing)}"
        )


def _check_seconds(**seconds: float) -> None:
    for name, value in seconds.items():
        if not 0 < value < math.inf:
            raise ValueError(f"{name} must be a positive number of seconds, got {value}")


def _check_tests(tests: Sequence[Test]) -> None:
    if not tests:
        raise ValueError("no tests: nothing could be verified")
    for number, test in enumerate(tests, 1):
        for key in ("input", "output", "testtype"):
            if not isinstance(test.get(key), str):
                raise ValueError(f"test {number}: {key!r} must be a string, got {test.get(key)!r:.80}")
        if test["testtype"] not in TEST_TYPES:
            raise ValueError(
                f"test {number}: testtype must be one of {', '.join(TEST_TYPES)}, got {test['testtype']!r:.80}"
            )
        try:
            check_test(test)
        except ValueError as error:
            raise ValueError(f"test {number}: {error}") from error


def function_name(tests: Sequence[Test], fn_name: str | None, starter_code: str | None) -> str | None:
    """The function that functional tests call, or that checks are about; None where nothing needs it.

    Raises:
        ValueError: neither argument names it.
    """
    if all(test["testtype"] == "stdin" for test in tests):
        return None
    names = _METHOD.findall(starter_code or "")
    name = fn_name or (names[-1] if names else None)
    if name is None and any(test["testtype"] == "functional" for test in tests):
        raise ValueError(
            "functional tests need key 'fn_name', or 'starter_code' that defines the function; add one of them"
        )
    return name


def _judge(program: str, plan: _Plan) -> tuple[Verdict, str]:
    """Verdict and detail. A sandbox that dies is replaced once; if it dies again, whose fault that is depends on
    whether programs can reach it."""
    try:
        return _judge_once(program, plan)
    except SandboxDied:
        try:
            return _judge_once(program, plan)
        except SandboxDied as error:
            if isolation().fenced:
                raise
            return Verdict.RUNTIME_ERROR, f"twice in a row: {error}"


def _judge_once(program: str, plan: _Plan) -> tuple[Verdict, str]:
    with current_sandbox() as sandbox:
        _check_isolation(sandbox.isolation, plan.min_isolation)
        cpu_seconds = min(plan.budget, plan.timeout * len(plan.tests))
        with sandbox.program(program, plan.function, cpu_seconds) as running:
            return _run_tests(running, plan)


def _run_tests(running: Program, plan: _Plan) -> tuple[Verdict, str]:
    """Run the tests up to the first that fails, and return that one's verdict and detail.

    A failure counts if it is a test's own: it ran by itself, in a process that no other test had used, or with all of
    its time. Any other is run again so.
    """
    end = time.monotonic() + plan.budget
    order = plan.order()
    tests = [_with_word(plan.tests[place]) for place in order]
    done, size, largest, alone = 0, 1, _LARGEST_GROUP, False
    while done < len(tests):
        group = _group(tests[done:], size)
        left = end - time.monotonic()
        if left <= 0:
            why = f"not reached within the {plan.budget:g} s of all tests together"
            return Verdict.TIMEOUT, f"test {order[done] + 1} of {len(tests)}: {why}"
        kind, inputs = group[0]["testtype"], [test["input"] for test in group]
        outcome = running.run(
            [plan.starter, *inputs] if kind == "check" else inputs, kind, min(plan.timeout, left), alone
        )
        passed, verdict, why = _verdict(outcome, group)
        done += passed
        if verdict is Verdict.PASS:
            size = min(size * _GROWTH, largest)
            continue
        if len(group) == 1 and (outcome.first or verdict is Verdict.TIMEOUT):
            return verdict, f"test {order[done] + 1} of {len(tests)}: {why}"
        size = largest = 1
        alone = verdict is not Verdict.TIMEOUT
    return Verdict.PASS, ""


def _with_word(test: Test) -> Test:
    """A check with a word that it has to give back at its end, which no program can guess; other tests as they are."""
    if test["testtype"] != "check":
        return test
    word = secrets.token_hex(16)
    return {"testtype": "check", "input": f"{word}{SEPARATOR}{test['input']}", "output": f'"{word}"'}


def _group(tests: Sequence[Test], size: int) -> Sequence[Test]:
    """The next tests to run in one go: functional ones, or one of another kind."""
    count = next((place for place, test in enumerate(tests) if test["testtype"] != "functional"), len(tests))
    return tests[: max(1, min(count, size))]


def _verdict(outcome: Outcome, group: Sequence[Test]) -> tuple[int, Verdict, str]:
    """How many tests of a group passed before one did not, and the verdict on that one with a few words on why."""
    if group[0]["testtype"] == "stdin":
        verdict, why = _bad_end(outcome)
        if verdict is Verdict.PASS and not same_output(group[0]["output"], outcome.output):
            verdict, why = Verdict.WRONG, "the output differs"
        return int(verdict is Verdict.PASS), verdict, why
    *frames, _ = outcome.output.split(b"\n")
    for place, (test, frame) in enumerate(zip(group, frames, strict=False)):
        if not (frame.startswith(b"=") and same_value(test["output"], frame[1:])):
            return place, Verdict.WRONG, "the returned value differs"
    if len(frames) >= len(group):
        return len(group), Verdict.PASS, ""
    verdict, why = _bad_end(outcome)
    is_check = group[0]["testtype"] == "check"
    if verdict is Verdict.PASS:
        missing = "before its check did" if is_check else "without returning a value"
        verdict, why = Verdict.RUNTIME_ERROR, f"ended {missing}"
    if is_check and why.startswith(_FAILED_ASSERTION):
        verdict = Verdict.WRONG
    return len(frames), verdict, why


def _bad_end(outcome: Outcome) -> tuple[Verdict, str]:
    """What the end of a test's process says against it."""
    if outcome.failure:
        return Verdict.RUNTIME_ERROR, outcome.failure
    if outcome.status is None or outcome.status == -_SIGXCPU:
        return Verdict.TIMEOUT, f"stopped after {outcome.seconds:.1f} s"
    if outcome.status < 0:
        return Verdict.RUNTIME_ERROR, f"killed by signal {-outcome.status}"
    if outcome.status > 0:
        last_line = outcome.errors.strip().rpartition("\n")[2]
        return Verdict.RUNTIME_ERROR, f"exit status {outcome.status}: {last_line:.200}"
    return Verdict.PASS, ""
