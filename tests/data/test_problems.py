"""JSONL to problems: every refusal names its line. The order of training: each epoch whole, any step from nothing."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from megatron_rl.config.schema import DataConfig, Domain
from megatron_rl.data.problems import Problem, load_problems, read_jsonl
from megatron_rl.errors import InputError

TEST = {"input": "4\n", "output": "8\n", "testtype": "stdin"}
CALL = {"input": "4\n5", "output": "9", "testtype": "functional"}
CHECK = {"input": "assert f(4) == 8", "output": "", "testtype": "check"}
MATH = {"prompt": "What is 2 + 2?", "answer": "4"}
CODE = {"domain": "code", "prompt": "Double it.", "tests": [TEST]}
SFT = {"domain": "code", "prompt": "Double it.", "response": "</think> x"}
GSM8K = {"prompt": "What is 2 + 2?", "answer": "2 + 2 = 4\n#### 4"}

Load = Callable[..., list[Problem]]


@pytest.fixture
def load(tmp_path: Path) -> Load:
    """Load a file of the given lines (text, bytes or objects), as `data.jsonl`, with settings of `DataConfig`."""

    def load_lines(*lines: Any, need_response: bool = False, **settings: Any) -> list[Problem]:
        path = tmp_path / "data.jsonl"
        parts = [line if isinstance(line, str | bytes) else json.dumps(line) for line in lines]
        path.write_bytes(b"".join((part if isinstance(part, bytes) else part.encode()) + b"\n" for part in parts))
        return load_problems(DataConfig(path=str(path), **settings), need_response)

    return load_lines


def refused(load: Load, message: str, *lines: Any, **settings: Any) -> None:
    """One line that holds `message`."""
    with pytest.raises(InputError, match=re.escape(message)) as caught:
        load(*lines, **settings)
    assert "\n" not in str(caught.value)


# Loading -----------------------------------------------------------------------------------------------------


def test_a_math_line_becomes_a_problem(load: Load) -> None:
    (problem,) = load(MATH | {"id": "a", "tests": "not looked at", "response": 7, "fn_name": "f", "other": None})
    assert problem == Problem("a", "What is 2 + 2?", Domain.MATH, "4", None, None, None, None)


def test_a_code_line_becomes_a_problem(load: Load) -> None:
    line = CODE | {
        "id": "c",
        "tests": [TEST, CALL, CHECK],
        "fn_name": "f",
        "starter_code": "def f(a, b):",
        "answer": ["no"],
    }
    (problem,) = load(line)
    assert problem == Problem("c", "Double it.", Domain.CODE, None, (TEST, CALL, CHECK), "f", "def f(a, b):", None)


def test_problems_keep_the_order_of_the_file_and_take_line_numbers_for_ids(load: Load) -> None:
    problems = load("", MATH, "  \t", MATH | {"id": 17}, b"\r", MATH | {"answer": 5})
    assert [(problem.id, problem.answer) for problem in problems] == [("2", "4"), ("17", "4"), ("6", "5")]


def test_lines_end_only_where_a_line_break_is(load: Load) -> None:
    unusual = "a\u2028b\x85c\u2029d"
    (problem,) = load(json.dumps(MATH | {"prompt": unusual}, ensure_ascii=False) + "\r")
    assert problem.question == unusual


def test_a_file_without_a_last_line_break_loses_nothing(tmp_path: Path) -> None:
    (tmp_path / "data.jsonl").write_text(f"{json.dumps(MATH)}\n{json.dumps(MATH)}")
    assert [problem.id for problem in load_problems(DataConfig(path=str(tmp_path / "data.jsonl")))] == ["1", "2"]


def test_a_line_says_its_own_domain(load: Load) -> None:
    problems = load(MATH, CODE, MATH | CODE | {"domain": "math"}, domain=Domain.MATH)
    assert [problem.domain for problem in problems] == [Domain.MATH, Domain.CODE, Domain.MATH]
    for unsaid in ({}, {"domain": None}):
        (problem,) = load({"prompt": "Double it.", "tests": [TEST]} | unsaid, domain=Domain.CODE)
        assert problem.domain is Domain.CODE


def test_columns_are_named_by_the_configuration(load: Load) -> None:
    line = {"q": "Q", "a": "A", "r": "R", "prompt": 0, "answer": 0, "response": 0}
    (problem,) = load(line, need_response=True, prompt_key="q", answer_key="a", response_key="r")
    assert (problem.question, problem.answer, problem.response) == ("Q", "A", "R")


@pytest.mark.parametrize(
    ("answer", "expected"), [(4, "4"), (-0.5, "-0.5"), (" 4 \n", "4"), (10**400, "1" + "0" * 400), ("x, y", "x, y")]
)
def test_an_answer_may_be_text_or_a_number(load: Load, answer: Any, expected: str) -> None:
    assert load(MATH | {"answer": answer})[0].answer == expected


def test_the_answer_follows_the_last_marker_and_the_reasoning_stands_before_it(load: Load) -> None:
    line = GSM8K | {"answer": "so #### is no answer\n#### 4 "}
    (problem,) = load(line, need_response=True, answer_marker="####", response_key="answer")
    assert (problem.answer, problem.response) == ("4", "so #### is no answer")
    (problem,) = load(line | {"response": "say ####"}, need_response=True, answer_marker="####")
    assert (problem.answer, problem.response) == ("4", "say ####")


def test_blank_optional_columns_count_as_absent(load: Load) -> None:
    for blank in (None, "", " \n"):
        (problem,) = load(CODE | {"fn_name": blank, "starter_code": blank})
        assert (problem.fn_name, problem.starter_code) == (None, None)


def test_sft_needs_no_reward_where_the_response_is_whole(load: Load) -> None:
    whole = {"prompt": "Q", "response": "easy\n</think>\n\n4"}
    math, code = load(whole, whole | {"domain": "code"}, need_response=True)
    assert (math.answer, math.response) == (None, whole["response"])
    assert (code.tests, code.response) == (None, whole["response"])


def test_grpo_does_not_carry_responses(load: Load) -> None:
    assert load(MATH | {"response": "easy"})[0].response is None


# Refusals ----------------------------------------------------------------------------------------------------

REFUSED: list[tuple[Any, dict[str, Any], str]] = [
    (b'{"prompt": "\xff"}', {}, "byte 13 of the line, 0xff, is not UTF-8; save the file as UTF-8"),
    ('{"prompt": ', {}, "broken JSON at column 12: Expecting value"),
    (json.dumps(MATH) * 2, {}, "broken JSON at column 44: Extra data"),
    ("\ufeff" + json.dumps(MATH), {}, "broken JSON at column 1: Unexpected UTF-8 BOM"),
    ("[" * 100_000, {}, "unreadable JSON: maximum recursion depth exceeded"),
    ('{"answer": ' + "9" * 5000 + "}", {}, "unreadable JSON: Exceeds the limit (4300 digits)"),
    ("[1]", {}, "a list, not a JSON object"),
    ("null", {}, "a NoneType, not a JSON object"),
    (MATH | {"domain": "maths"}, {}, "column 'domain' is 'maths'; it must be 'math' or 'code'"),
    (MATH | {"domain": ["code"]}, {}, "column 'domain' is ['code']; it must be"),
    ({"answer": "4"}, {}, "no column 'prompt'; the line has ['answer']"),
    (MATH | {"prompt": " \n"}, {}, "column 'prompt' is empty; fill it or drop the line"),
    (MATH | {"prompt": 5}, {}, "column 'prompt' is 5 (int); it must be a string"),
    (MATH | {"prompt": None}, {}, "column 'prompt' is None (NoneType); it must be a string"),
    (MATH | {"prompt": ["long " * 50]}, {}, f"column 'prompt' is {str(['long ' * 50])[:57]}... (list)"),
    (
        MATH | {"prompt": "half \ud83d"},
        {},
        r"column 'prompt' holds half a surrogate pair, '\ud83d'; correct the escape",
    ),
    (MATH, {"prompt_key": "question"}, "no column 'question'; the line has ['answer', 'prompt']"),
    ({"prompt": "Q"}, {}, "no column 'answer'; the line has ['prompt']"),
    (MATH | {"answer": " "}, {}, "column 'answer' is empty; fill it or drop the line"),
    (MATH | {"answer": True}, {}, "column 'answer' is True (bool); it must be a string"),
    (MATH | {"answer": {"x": 1}}, {}, "column 'answer' is {'x': 1} (dict); it must be a string"),
    ('{"prompt": "Q", "answer": NaN}', {}, "column 'answer' is nan (float); it must be a string"),
    ('{"prompt": "Q", "answer": -1e999}', {}, "column 'answer' is -inf (float); it must be a string"),
    (MATH, {"answer_marker": "####"}, "column 'answer' does not hold data.answer_marker='####'; correct the line or"),
    (MATH | {"answer": "hm ####\n"}, {"answer_marker": "####"}, "column 'answer' holds no answer; give one or drop"),
    (MATH | {"id": None}, {}, "column 'id' is None (NoneType); it must be a string"),
    (MATH | {"id": ""}, {}, "column 'id' is empty"),
    (MATH | {"id": [1]}, {}, "column 'id' is [1] (list); it must be a string"),
    ({"domain": "code", "prompt": "Q"}, {}, "column 'tests' is None (NoneType); it must be a list of"),
    (CODE | {"tests": []}, {}, "column 'tests' is [] (list); it must be a list of"),
    (CODE | {"tests": TEST}, {}, f"column 'tests' is {TEST} (dict); it must be a list of"),
    (CODE | {"tests": [TEST, "4"]}, {}, "tests[1] is '4' (str); it must be an object with input, output, testtype"),
    (CODE | {"tests": [TEST | {"input": 4}]}, {}, "tests[0].input is 4 (int); it must be a string"),
    (CODE | {"tests": [TEST | {"output": None}]}, {}, "tests[0].output is None (NoneType); it must be a string"),
    (CODE | {"tests": [TEST | {"testtype": "call"}]}, {}, "tests[0].testtype is 'call' (str); it must be one of ['std"),
    (CODE | {"tests": [TEST | {"testtype": ["x"]}]}, {}, "tests[0].testtype is ['x'] (list); it must be one of"),
    (CODE | {"tests": [CALL]}, {}, "tests[0].testtype is 'functional' but there is no column 'fn_name'; name it"),
    (CODE | {"tests": [CHECK | {"input": "assert"}]}, {}, "tests[0]: its input is not Python: SyntaxError: invalid"),
    (CODE | {"fn_name": 5}, {}, "column 'fn_name' is 5 (int); it must be a string"),
    (CODE | {"starter_code": ["def f():"]}, {}, "column 'starter_code' is ['def f():'] (list); it must be a string"),
    (MATH, {"need_response": True}, "no column 'response'; the line has ['answer', 'prompt']"),
    (MATH | {"response": ""}, {"need_response": True}, "column 'response' is empty"),
    ({"prompt": "Q", "response": "no think"}, {"need_response": True}, "no column 'answer'; the line has"),
    (SFT | {"response": "x"}, {"need_response": True}, "column 'response' holds no </think>; the program must follow"),
    (
        MATH | {"response": "easy"},
        {"need_response": True, "answer_marker": "####"},
        "column 'answer' does not hold data.answer_marker='####'",
    ),
]


# A line that loads with any of the settings above, so that a refusal is about the other one.
GOOD = {"prompt": "Q", "question": "Q", "answer": "#### 4", "response": "easy"}


@pytest.mark.parametrize(("line", "settings", "message"), REFUSED, ids=[message for _, _, message in REFUSED])
def test_a_bad_line_is_refused_with_its_place(load: Load, line: Any, settings: dict[str, Any], message: str) -> None:
    assert len(load(GOOD, **settings)) == 1
    refused(load, f"data.jsonl:3: {message}", GOOD, "", line, **settings)


@pytest.mark.parametrize("same", [("a", "a"), (7, "7"), ("2", None)], ids=repr)
def test_two_equal_ids_are_refused_with_both_lines(load: Load, same: tuple[Any, Any]) -> None:
    lines = [MATH if identity is None else MATH | {"id": identity} for identity in same]
    refused(load, f"data.jsonl:2: id '{same[0]}' is also on line 1; make the ids unique", *lines)


def test_an_empty_and_a_missing_file_are_refused(load: Load, tmp_path: Path) -> None:
    refused(load, "data.jsonl: holds no problem; give it one JSON object per line")
    refused(load, "data.jsonl: holds no problem", "", " ")
    for path in (tmp_path / "gone.jsonl", tmp_path):
        with pytest.raises(InputError, match=re.escape(f"{path}: no such file; correct the path")):
            load_problems(DataConfig(path=str(path)))


def test_lines_before_a_broken_one_are_still_read(tmp_path: Path) -> None:
    (tmp_path / "data.jsonl").write_text('{"a": 1}\n\n{"b": [2]}\n{')
    rows = read_jsonl(tmp_path / "data.jsonl")
    assert [next(rows), next(rows)] == [(1, {"a": 1}), (3, {"b": [2]})]
    with pytest.raises(InputError, match=r"data\.jsonl:4: broken JSON"):
        next(rows)


# The order of training ---------------------------------------------------------------------------------------
