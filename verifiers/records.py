"""Lines of a JSONL file to tasks, with refusals that name the key and the remedy."""

import json
from collections.abc import Callable
from typing import Any

from verifiers.code.compare import TEST_TYPES, check_test
from verifiers.code.judge import function_name
from verifiers.isolation import IsolationLevel
from verifiers.math import Extract
from verifiers.tasks import CODE_BUDGET_SECONDS, CodeTask, MathTask, Task

ReadTask = Callable[[dict[str, Any]], Task]
"""Raises ValueError for a record that is not usable."""


def math_reader(extract: Extract = "strict") -> ReadTask:
    """How to read `{id, response, answer}`. `extract` says where answers are looked for; see `extract_answer`.

    Raises:
        ValueError: an unknown `extract`.
    """
    if extract not in ("strict", "anywhere"):
        raise ValueError(f"extract must be 'strict' or 'anywhere', not {extract!r}")
    return lambda record: MathTask(_text(record, "response"), _answer(record), extract)


def code_reader(
    timeout: float = 6.0,
    budget: float = CODE_BUDGET_SECONDS,
    longest_first: bool = False,
    min_isolation: IsolationLevel = IsolationLevel.LIMITS,
) -> ReadTask:
    """How to read `{id, response, tests, fn_name?, starter_code?}`; for the arguments see `verify_code`.

    Raises:
        ValueError: a time that is not positive.
    """
    for name, value in (("timeout", timeout), ("budget", budget)):
        if not value > 0:
            raise ValueError(f"{name} must be a positive number of seconds, got {value}")

    def read(record: dict[str, Any]) -> CodeTask:
        tests = _tests(record)
        function, starter = _optional_text(record, "fn_name"), _optional_text(record, "starter_code")
        function_name(tests, function, starter)
        response = _text(record, "response")
        return CodeTask(response, tests, function, starter, timeout, budget, longest_first, min_isolation)

    return read


def parse_line(line: bytes) -> dict[str, Any]:
    """The record in a line.

    Raises:
        ValueError: it is not UTF-8, not one JSON object, or has no id.
    """
    try:
        record = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 at byte {error.start}; convert the file to UTF-8") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"broken JSON ({error.msg} at column {error.colno}); write one JSON object per line") from None
    except RecursionError:
        raise ValueError("JSON nested too deeply; write one flat JSON object per line") from None
    if not isinstance(record, dict):
        raise ValueError(f"expected a JSON object, got {_kind(record)}; write one JSON object per line")
    if "id" not in record:
        raise ValueError("key 'id' is missing; give every line an id")
    return record


def _tests(record: dict[str, Any]) -> list[dict[str, str]]:
    tests = _required(record, "tests")
    if not isinstance(tests, list) or not tests:
        raise ValueError("key 'tests' must be a list of at least one {input, output, testtype}")
    for at, test in enumerate(tests, 1):
        if not isinstance(test, dict):
            raise ValueError(f"test {at} must be an object {{input, output, testtype}}, got {_kind(test)}")
        for key in ("input", "output"):
            if not isinstance(test.get(key), str):
                raise ValueError(f"test {at}: key {key!r} must be a string, got {_kind(test.get(key))}")
        if test.get("testtype") not in TEST_TYPES:
            raise ValueError(
                f"test {at}: testtype {test.get('testtype')!r:.40} is unknown; use one of {', '.join(TEST_TYPES)}"
            )
        try:
            check_test(test)
        except ValueError as error:
            raise ValueError(f"test {at}: {error}; correct it or drop the line") from error
    return tests


def _required(record: dict[str, Any], key: str) -> Any:
    if key not in record:
        raise ValueError(f"key {key!r} is missing; add it to the line")
    return record[key]


def _text(record: dict[str, Any], key: str) -> str:
    value = _required(record, key)
    if not isinstance(value, str):
        raise ValueError(f"key {key!r} must be a string, got {_kind(value)}")
    return value


def _optional_text(record: dict[str, Any], key: str) -> str | None:
    return None if record.get(key) is None else _text(record, key)


def _answer(record: dict[str, Any]) -> str:
    value = _required(record, "answer")
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError(f"key 'answer' must be a string or a number, got {_kind(value)}")
    return str(value)


def _kind(value: object) -> str:
    """JSON's name for a value's type."""
    match value:
        case None:
            return "null"
        case bool():
            return "a boolean"
        case str():
            return "a string"
        case int() | float():
            return "a number"
        case list():
            return "a list"
        case _:
            return "an object"
