"""Code problems: their tests in every form that datasets have them in, and the steps that look at them."""

import base64
import json
import pickle
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from megatron_rl.config.schema import Domain
from megatron_rl.curation import code_tests
from megatron_rl.curation.code import DatedAfter, GoldenSolution, Interactive, SpecialJudge, WeakTests
from megatron_rl.curation.code_tests import UnreadableTests, read_tests
from megatron_rl.curation.recipe import SourceConfig
from megatron_rl.curation.sources import Candidate, Unreadable, read_source
from megatron_rl.curation.step import Step
from megatron_rl.data.problems import Problem

DOUBLES = [{"input": f"{i}\n", "output": f"{2 * i}\n", "testtype": "stdin"} for i in range(5)]
PLAIN = [{"input": test["input"], "output": test["output"]} for test in DOUBLES]
APPS = {"inputs": [test["input"] for test in DOUBLES], "outputs": [test["output"] for test in DOUBLES]}
CODE_CONTESTS = {"input": APPS["inputs"], "output": APPS["outputs"]}


def packed(value: Any) -> str:
    """As LiveCodeBench packs its private tests."""
    return base64.b64encode(zlib.compress(pickle.dumps(json.dumps(value)))).decode()


@pytest.mark.parametrize(
    "value",
    [DOUBLES, PLAIN, APPS, CODE_CONTESTS, *map(json.dumps, (DOUBLES, PLAIN, APPS, CODE_CONTESTS)), packed(DOUBLES)],
)
def test_every_form_is_read(value: Any) -> None:
    assert read_tests(value) == DOUBLES


def test_a_function_is_called() -> None:
    called = [{"input": "3", "output": "6", "testtype": "functional"}]
    assert read_tests([{"input": "3", "output": "6"}], fn_name="double") == called
    assert read_tests([{"input": "3", "output": "6", "testtype": "functional"}], fn_name="double") == called
    assert read_tests(None) == read_tests("") == []
    lines = {"inputs": [["1", "2"]], "outputs": [["3"]]}
    assert read_tests(lines) == [{"input": "1\n2", "output": "3", "testtype": "stdin"}]


class Bomb:
    """Runs when it is unpickled."""

    def __reduce__(self) -> Any:
        return (pytest.fail, ("a stranger's pickle was loaded",))


@pytest.mark.parametrize(
    ("value", "fn_name", "message"),
    [
        (7, None, "a int"),
        ([7], None, "a test that is no object with input and output"),
        ([{"input": 1, "output": "1"}], None, "a test of a int"),
        ({"in": [], "out": []}, None, r"an object with \['in', 'out'\]"),
        ({"inputs": ["1"], "outputs": []}, None, "no lists of the same length"),
        ({"inputs": [[1]], "outputs": [[2]], "fn_name": "f"}, None, "calls of a function in the form of APPS"),
        (APPS, "f", "calls of a function in the form of APPS"),
        ([{"type": "function_call", "fn_name": "f", "input": ["a"], "output": ["b"]}], None, "calls of a function in"),
        ("neither", None, "neither JSON nor packed"),
        (base64.b64encode(b"neither").decode(), None, "neither JSON nor packed"),
        (base64.b64encode(zlib.compress(pickle.dumps(Bomb()))).decode(), None, r"a pickle with \d texts"),
        (base64.b64encode(zlib.compress(b"0" * (2 << 20))).decode(), None, "more than 1 MiB of tests"),
    ],
)
def test_what_is_no_test_is_said(
    monkeypatch: pytest.MonkeyPatch, value: Any, fn_name: str | None, message: str
) -> None:
    monkeypatch.setattr(code_tests, "_MAX_BYTES", 1 << 20)
    with pytest.raises(UnreadableTests, match=message):
        read_tests(value, fn_name)


def test_a_source_of_livecodebench(tmp_path: Path) -> None:
    called = [{"input": "3", "output": "6", "testtype": "functional"}]
    rows = [
        {
            "question_content": "Double the number.",
            "question_id": "abc",
            "metadata": json.dumps({"func_name": "double"}),
            "starter_code": "def double(x):",
            "public_test_cases": json.dumps(called),
            "private_test_cases": packed(called * 2),
            "contest_date": "2024-09-01T00:00:00",
        },
        {"question_content": "Nothing to judge by.", "public_test_cases": "[]"},
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = SourceConfig(
        path=str(tmp_path / "rows.jsonl"),
        prompt_key="question_content",
        tests_keys=("public_test_cases", "private_test_cases"),
        fn_name_key="metadata.func_name",
        meta_keys=("contest_date",),
    )
    found, nothing = read_source("lcb", source, Domain.CODE)
    assert isinstance(found, Candidate)
    assert found.problem.tests == tuple(called * 3)
    assert (found.problem.fn_name, found.problem.starter_code) == ("double", "def double(x):")
    assert isinstance(nothing, Unreadable)
    assert "must be a list of" in nothing.reason
    assert DatedAfter(key="contest_date").why_not(found) == "2024-09-01"
    assert DatedAfter(key="contest_date", last="2024-09-01").why_not(found) is None
    assert DatedAfter().why_not(found) == "no date; is it among the source's meta_keys?"
    other = replace(found, meta={"date": "15 Aug 2025"})
    assert DatedAfter().why_not(other) == "date is '15 Aug 2025', not YYYY-MM-DD"


@pytest.mark.parametrize(
    ("value", "solutions"),
    [
        ("print(1)", ("print(1)",)),
        (["print(1)", "print(2)"], ("print(1)", "print(2)")),
        (json.dumps(["print(1)", "print(2)"]), ("print(1)", "print(2)")),  # APPS, TACO
        (
            {"language": [2, 3, 1, 3], "solution": ["int main()", "print(1)", "print 1", "print(2)"]},
            ("print(1)", "print(2)"),
        ),
        ({"language": [2], "solution": ["int main()"]}, ()),
        ({"solution": "print(1)"}, ()),
        (7, ()),
        (None, ()),
    ],
)
def test_solutions_in_every_form(tmp_path: Path, value: Any, solutions: tuple[str, ...]) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"prompt": "Double it.", "tests": DOUBLES, "solutions": value}) + "\n")
    (found,) = read_source("s", SourceConfig(path=str(path), solution_key="solutions"), Domain.CODE)
    assert isinstance(found, Candidate)
    assert found.solutions == solutions


# Steps --------------------------------------------------------------------------------------------------------------


def problem(statement: str = "Double it.", tests: list[Any] = DOUBLES, solutions: tuple[str, ...] = ()) -> Candidate:
    found = Problem("p", statement, Domain.CODE, None, tuple(tests), None, None, None)
    return Candidate(found, "source", {}, solutions)


@pytest.mark.parametrize(
    ("step", "statement", "is_left_out"),
    [
        (SpecialJudge(), "If there are multiple answers, print any of them.", True),
        (SpecialJudge(), "Print the indices in any order.", True),
        (SpecialJudge(), "Answers with a relative or absolute error of at most 1e-6 are right.", True),
        (SpecialJudge(), "In case of multiple answers, print any.", True),
        (SpecialJudge(), "In case there are multiple solutions, any one is accepted.", True),
        (SpecialJudge(), "Any solution will be accepted.", True),
        (SpecialJudge(), "You may print any permutation with these properties.", True),
        (SpecialJudge(), "Answers within $10^{-6}$ of the right one are accepted.", True),
        (SpecialJudge(), "Do not print any spaces.", False),
        (SpecialJudge(), "All are within 10 of the mean.", False),
        (SpecialJudge(), "The coins can be taken in any order. Print their number.", False),
        (SpecialJudge(), "If multiple solutions exist, output the one with the smallest x.", False),
        (SpecialJudge(), "Is there any valid pair? Print YES or NO.", False),
        (Interactive(), "This is an interactive problem. Remember to flush.", True),
        (Interactive(), "Two players play a game; print who wins.", False),
    ],
)
def test_statements(step: Step, statement: str, is_left_out: bool) -> None:
    assert bool(step.why_not(problem(statement))) == is_left_out


def test_weak_tests() -> None:
    assert WeakTests().why_not(problem()) is None
    assert WeakTests(min_tests=6).why_not(problem()) == "5 of 6 tests"
    same = [test | {"output": " 1\n"} for test in DOUBLES]
    assert WeakTests().why_not(problem(tests=same)) == "every test has the same output"


def test_a_solution_must_pass() -> None:
    step = GoldenSolution()
    try:
        right, wrong = "print(2 * int(input()))", "print(3 * int(input()))"
        assert step.why_not(problem(solutions=(right,))) is None
        assert str(step.why_not(problem(solutions=(wrong,)))).startswith("wrong: ")
        assert step.why_not(problem(solutions=(wrong, wrong, right))) is None
        assert str(step.why_not(problem(solutions=(wrong, wrong, wrong, right)))).startswith("wrong: ")
        assert step.why_not(problem()) == "no solution"
    finally:
        step.close()
