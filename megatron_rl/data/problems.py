"""JSONL files to `Problem`s, and the order in which training visits them."""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_rl.config.schema import DataConfig, Domain
from megatron_rl.errors import InputError
from verifiers.code.compare import TEST_TYPES, check_test

THINK_END = "</think>"


@dataclass(frozen=True, slots=True)
class Problem:
    """One line of a data file. A column that the domain does not use, or that SFT does not need, is None."""

    id: str
    question: str
    domain: Domain
    answer: str | None
    """Math: the reference answer."""
    tests: tuple[dict[str, Any], ...] | None
    """Code: `{input, output, testtype: "stdin" | "functional" | "check"}`; functional inputs are one JSON value per
    line, that of a check is Python which follows the program and must not raise."""
    fn_name: str | None
    starter_code: str | None
    response: str | None
    """SFT: the text to imitate."""


def load_problems(config: DataConfig, need_response: bool = False) -> list[Problem]:
    """Every problem of `config.path`, in file order; blank lines are skipped.

    A line's own `domain` column, where it has one, goes before `config.domain`, so that one file can mix both.
    With `need_response` (SFT) a response is required of every line, and whatever stands in for a reward is not: tests,
    and the answer of a response that already holds `</think>`.

    Raises:
        InputError: a missing, empty or undecodable file; a broken line; a missing, empty or mistyped column; two equal
            ids. The message names the file and the line.
    """
    path = Path(config.path)
    problems: list[Problem] = []
    line_of: dict[str, int] = {}
    for number, row in read_jsonl(path):
        problem = read_problem(row, f"{path}:{number}", config, str(number), need_response)
        if problem.id in line_of:
            raise InputError(
                f"{path}:{number}: id {problem.id!r} is also on line {line_of[problem.id]}; make the ids unique"
            )
        line_of[problem.id] = number
        problems.append(problem)
    if not problems:
        raise InputError(f"{path}: holds no problem; give it one JSON object per line")
    return problems


def read_problem(
    row: dict[str, Any], place: str, config: DataConfig, default_id: str, need_response: bool = False
) -> Problem:
    """One line of a data file, which stands at `place`, as `load_problems` says.

    Raises:
        InputError: a missing, empty or mistyped column.
    """
    return _Row(row, place).problem(config, need_response, default_id)


def read_jsonl(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """`(line number from 1, object)` of each line that is not blank.

    Raises:
        InputError: no such file, bytes that are not UTF-8, or a line that is not a JSON object.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file; correct the path")
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line.decode("utf-8").rstrip("\r\n"))
            except UnicodeDecodeError as error:
                raise InputError(
                    f"{path}:{number}: byte {error.start + 1} of the line, 0x{line[error.start]:02x}, is not UTF-8; "
                    "save the file as UTF-8"
                ) from error
            except json.JSONDecodeError as error:
                raise InputError(
                    f"{path}:{number}: broken JSON at column {error.colno}: {error.msg}; write one object per line"
                ) from error
            except (RecursionError, ValueError) as error:  # nested too deeply, or an integer of thousands of digits
                raise InputError(f"{path}:{number}: unreadable JSON: {error}; correct the line") from error
            if not isinstance(row, dict):
                raise InputError(f"{path}:{number}: a {type(row).__name__}, not a JSON object; write one per line")
            yield number, row


class _Row:
    """One JSON object and its place in the file, for messages."""

    def __init__(self, row: dict[str, Any], place: str) -> None:
        self.row = row
        self.place = place

    def problem(self, config: DataConfig, need_response: bool, default_id: str) -> Problem:
        domain = self.domain(config.domain)
        response = self.response(config) if need_response else None
        rewarded = not need_response or (domain is Domain.MATH and THINK_END not in (response or ""))
        if domain is Domain.CODE and response is not None and THINK_END not in response:
            raise InputError(
                f"{self.place}: column {config.response_key!r} holds no {THINK_END}; the program must follow it"
            )
        is_code = domain is Domain.CODE
        fn_name = self.text("fn_name", required=False) if is_code else None
        return Problem(
            id=self.scalar("id") if "id" in self.row else default_id,
            question=self.required_text(config.prompt_key),
            domain=domain,
            answer=self.answer(config) if rewarded and not is_code else None,
            tests=self.tests(fn_name) if rewarded and is_code else None,
            fn_name=fn_name,
            starter_code=self.text("starter_code", required=False) if is_code else None,
            response=response,
        )

    def domain(self, default: Domain) -> Domain:
        value = self.row.get("domain")
        if value is None:
            return default
        if value not in [domain.value for domain in Domain]:
            raise InputError(f"{self.place}: column 'domain' is {value!r}; it must be 'math' or 'code'")
        return Domain(value)

    def answer(self, config: DataConfig) -> str:
        value = self.scalar(config.answer_key)
        if config.answer_marker is not None:
            value = self.split_at_marker(value, config.answer_key, config.answer_marker)[1]
        if not value.strip():
            raise InputError(f"{self.place}: column {config.answer_key!r} holds no answer; give one or drop the line")
        return value.strip()

    def response(self, config: DataConfig) -> str:
        value = self.required_text(config.response_key)
        if config.answer_marker is not None and config.response_key == config.answer_key:
            return self.split_at_marker(value, config.response_key, config.answer_marker)[0].strip()
        return value

    def split_at_marker(self, value: str, key: str, marker: str) -> tuple[str, str]:
        before, found, after = value.rpartition(marker)
        if not found:
            raise InputError(
                f"{self.place}: column {key!r} does not hold data.answer_marker={marker!r}; correct the line or the key"
            )
        return before, after

    def tests(self, fn_name: str | None) -> tuple[dict[str, Any], ...]:
        tests = self.row.get("tests")
        if not isinstance(tests, list) or not tests:
            raise InputError(
                f"{self.place}: column 'tests' is {_shown(tests)}; it must be a list of "
                "{input, output, testtype} with at least one test"
            )
        for index, test in enumerate(tests):
            self.check_test(test, f"tests[{index}]", fn_name)
        return tuple(tests)

    def check_test(self, test: object, name: str, fn_name: str | None) -> None:
        if not isinstance(test, dict):
            raise InputError(
                f"{self.place}: {name} is {_shown(test)}; it must be an object with input, output, testtype"
            )
        for key in ("input", "output"):
            if not isinstance(test.get(key), str):
                raise InputError(f"{self.place}: {name}.{key} is {_shown(test.get(key))}; it must be a string")
        kind = test.get("testtype")
        if kind not in TEST_TYPES:
            raise InputError(f"{self.place}: {name}.testtype is {_shown(kind)}; it must be one of {list(TEST_TYPES)}")
        if kind == "functional" and fn_name is None:
            raise InputError(f"{self.place}: {name}.testtype is 'functional' but there is no column 'fn_name'; name it")
        try:
            check_test(test)
        except ValueError as error:
            raise InputError(f"{self.place}: {name}: {error}; correct it or drop the line") from error

    def scalar(self, key: str) -> str:
        value = self.row.get(key)
        # `json` reads NaN and Infinity, too: no reference that an answer could equal.
        if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < math.inf:
            return str(value)
        return self.required_text(key)

    def required_text(self, key: str) -> str:
        value = self.text(key, required=True)
        assert value is not None
        return value

    def text(self, key: str, required: bool) -> str | None:
        value = self.row.get(key)
        if value is None and not required:
            return None
        if key not in self.row:
            raise InputError(f"{self.place}: no column {key!r}; the line has {sorted(self.row)}")
        if not isinstance(value, str):
            raise InputError(f"{self.place}: column {key!r} is {_shown(value)}; it must be a string")
        if not value.strip():
            if required:
                raise InputError(f"{self.place}: column {key!r} is empty; fill it or drop the line")
            return None
        try:
            value.encode("utf-8")
        except UnicodeEncodeError as error:
            raise InputError(
                f"{self.place}: column {key!r} holds half a surrogate pair, {value[error.start]!a}; correct the escape"
            ) from error
        return value


def _shown(value: object) -> str:
    """`value` and its type, short enough for one line."""
    text = repr(value)
    return f"{text if len(text) <= 60 else text[:57] + '...'} ({type(value).__name__})"
