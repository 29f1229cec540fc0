"""Rows of the published code benchmarks, with the columns of a code problem."""

import ast
import builtins
from datetime import date

from megatron_rl.curation.sources import Row
from megatron_rl.errors import InputError

_HUMANEVAL_QUESTION = "Complete the function, so that it does what its docstring says."
_MBPP_TESTS = "Your code should pass these tests:"
_MBPP_TEST_SPLIT = range(11, 511)
# EvalPlus's file holds a check that no program passes, of HumanEval/32; its own evaluator asks this.
_BROKEN_CHECK, _MENDED_CHECK = "_poly(*candidate(*inp), inp)", "abs(_poly(*inp, candidate(*inp)))"


def livecodebench(row: Row, first: str, before: str) -> Row | None:
    """LiveCodeBench's code_generation_lite, contests from the day `first` up to the day `before`.

    Raises:
        InputError: a row without a day.
    """
    day = str(row.get("contest_date"))[:10]
    try:
        date.fromisoformat(day)
    except ValueError as error:
        raise InputError(f"column 'contest_date' is {row.get('contest_date')!r:.40}, not YYYY-MM-DD") from error
    return {**row, "id": row.get("question_id")} if first <= day < before else None


def humaneval(row: Row) -> Row:
    """HumanEval, and EvalPlus's HumanEval+: a prompt that ends with a docstring, and `check`.

    Raises:
        InputError: a column is missing or of another type.
    """
    name = _text(row, "entry_point")
    check = f"{_text(row, 'test').replace(_BROKEN_CHECK, _MENDED_CHECK)}\n\ncheck({name})\n"
    return _problem(row, _HUMANEVAL_QUESTION, check, name) | {"starter_code": _text(row, "prompt").strip()}


def mbpp(row: Row) -> Row | None:
    """MBPP's test split: a sentence and three assertions.

    Raises:
        InputError: a column is missing or of another type.
    """
    if row.get("task_id") not in _MBPP_TEST_SPLIT:
        return None
    assertions = _texts(row, "test_list", least=1)
    check = "\n".join([_text(row, "test_setup_code"), *assertions])
    return _problem(row, _with_tests(_text(row, "text"), assertions), check, _called(assertions[0]))


def mbpp_plus(row: Row) -> Row:
    """EvalPlus's MBPP+: MBPP's sentence and assertions, and a program of many more.

    Raises:
        InputError: a column is missing or of another type.
    """
    assertions = _texts(row, "test_list", least=1)
    check = "\n".join([*_texts(row, "test_imports"), _text(row, "test")])
    return _problem(row, _with_tests(_text(row, "prompt"), assertions), check, _called(assertions[0]))


def _problem(row: Row, question: str, check: str, fn_name: str | None) -> Row:
    tests = [{"input": check, "output": "", "testtype": "check"}]
    return {"id": row.get("task_id"), "prompt": question, "tests": tests, "fn_name": fn_name}


def _with_tests(sentence: str, assertions: list[str]) -> str:
    return "\n".join([f"{sentence.strip()} {_MBPP_TESTS}", "", *map(str.strip, assertions)])


def _called(assertion: str) -> str | None:
    """The function that it is about: the first that it calls and that is no built-in, or else the first."""
    try:
        nodes = list(ast.walk(ast.parse(assertion)))
    except SyntaxError:  # the check, of which it is a part, will be refused
        return None
    names = [node.func.id for node in nodes if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)]
    return next((name for name in names if not hasattr(builtins, name)), next(iter(names), None))


def _text(row: Row, key: str) -> str:
    value = row.get(key)
    if not isinstance(value, str):
        raise InputError(f"column {key!r} is {value!r:.40}, not text; the line has {sorted(row)}")
    return value


def _texts(row: Row, key: str, least: int = 0) -> list[str]:
    value = row.get(key)
    if not isinstance(value, list) or len(value) < least or not all(isinstance(text, str) for text in value):
        raise InputError(f"column {key!r} is {value!r:.40}, not a list of texts; the line has {sorted(row)}")
    return value
