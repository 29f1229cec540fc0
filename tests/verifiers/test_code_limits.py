"""What the judge itself bounds and orders: the budget of all tests, their order, the isolation that is demanded."""

import time

import pytest

from verifiers import Verdict
from verifiers.code import Isolation, SandboxError, isolation, require_isolation, sandbox, verify_code
from verifiers.isolation import IsolationLevel
from verifiers.tasks import CodeTask, MathTask, from_record, to_record


def respond(program: str) -> str:
    return f"</think>\n```python\n{program}\n```"


def stdin_test(text: str, output: str = "1") -> dict[str, str]:
    return {"input": text, "output": output, "testtype": "stdin"}


def test_all_tests_together_have_a_budget() -> None:
    program = respond("import time\ntime.sleep(float(input()))\nprint(1)")
    start = time.monotonic()
    result = verify_code(program, [stdin_test("0.3")] * 50, timeout=2.0, budget=1.0)
    assert result.verdict is Verdict.TIMEOUT
    assert time.monotonic() - start < 4
    assert verify_code(program, [stdin_test("0.3")] * 2, timeout=2.0, budget=10.0).verdict is Verdict.PASS
    late = verify_code(program, [stdin_test("0")] * 20_000, budget=0.2)
    assert (late.verdict, late.detail.split(": ")[0].split(" of ")[1]) == (Verdict.TIMEOUT, "20000")


def test_the_longest_inputs_can_come_first() -> None:
    tests = [stdin_test("1"), stdin_test("1000"), stdin_test("10")]
    program = respond("n = int(input())\nprint(1 if n < 5 else 2)")
    assert verify_code(program, tests).detail.startswith("test 2 of 3")
    assert verify_code(program, tests, longest_first=True).detail.startswith("test 2 of 3")
    program = respond("print(1 if int(input()) == 1000 else 2)")
    assert verify_code(program, tests, longest_first=True).detail.startswith("test 3 of 3")
    assert verify_code(program, tests).detail.startswith("test 1 of 3")


@pytest.mark.parametrize("program", ["", "  \n\t\n"])
def test_an_empty_program_is_no_answer(program: str) -> None:
    result = verify_code(respond(program), [stdin_test("", "")])
    assert (result.verdict, result.extracted) == (Verdict.NO_ANSWER, None)


def test_levels_are_ordered() -> None:
    levels = [IsolationLevel(name) for name in ("namespaces", "landlock", "seccomp", "limits")]
    for at, level in enumerate(levels):
        assert [level.reaches(minimum) for minimum in levels] == [False] * at + [True] * (4 - at)


def test_less_isolation_than_demanded_runs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    require_isolation(isolation().level)
    weak = Isolation(IsolationLevel.SECCOMP, ("seccomp", "limits"), ("namespaces (unshare: refused)", "landlock"))
    with sandbox.current_sandbox() as current:
        monkeypatch.setattr(current, "isolation", weak)
    words = (
        r"by seccomp only, and landlock is demanded; this machine refuses: namespaces \(unshare: refused\), landlock"
    )
    with pytest.raises(SandboxError, match=words):
        require_isolation(IsolationLevel.LANDLOCK)
    with pytest.raises(SandboxError, match=words):
        verify_code(respond("print(1)"), [stdin_test("")], min_isolation=IsolationLevel.LANDLOCK)


def test_tasks_travel_as_records() -> None:
    code = CodeTask(respond("x"), [stdin_test("")], "f", None, 2.0, 9.0, True, IsolationLevel.SECCOMP)
    for task in (code, MathTask("a", "b", "anywhere")):
        assert from_record(to_record(task)) == task
    with pytest.raises(ValueError, match="unusable code task"):
        from_record({**to_record(code), "colour": 1})
    with pytest.raises(ValueError, match="unknown kind of task None"):
        from_record({})
