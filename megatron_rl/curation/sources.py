"""Rows of raw datasets, from files or from the Hugging Face hub, as problems."""

import glob
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any

from megatron_rl.config.schema import DataConfig, Domain
from megatron_rl.curation.code_tests import UnreadableTests, read_tests
from megatron_rl.curation.recipe import SourceConfig
from megatron_rl.data.problems import Problem, read_jsonl, read_problem
from megatron_rl.errors import InputError
from verifiers.math import extract_answer

_PYTHON_3 = 3
"""CodeContests' number."""

Row = dict[str, Any]
Adapt = Callable[[Row], Row | None]
"""Makes a row one with the columns that a source names; None passes over it. InputError: it cannot be read."""


def as_it_is(row: Row) -> Row:
    """The `Adapt` of files that have the columns that their source names."""
    return row


@dataclass(frozen=True, slots=True)
class Candidate:
    """A problem that may come into the dataset. Its id begins with the name of its source."""

    problem: Problem
    source: str
    meta: dict[str, Any]
    solutions: tuple[str, ...] = ()
    """Code: programs that their authors hold to be right."""


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A row that is no problem, and why."""

    id: str
    source: str
    reason: str


def read_source(
    name: str, config: SourceConfig, domain: Domain, adapt: Adapt = as_it_is
) -> Iterator[Candidate | Unreadable]:
    """The rows of a source in their order.

    Raises:
        InputError: the file or dataset cannot be read.
    """
    columns = DataConfig(
        path=config.path or config.hub or "",
        domain=domain,
        prompt_key=config.prompt_key,
        answer_key=config.answer_key,
        answer_marker=config.answer_marker,
    )
    seen: set[str] = set()
    for count, (number, row) in enumerate(read_rows(config)):
        if count == config.max_rows:
            return
        place = f"{columns.path}:{number}"
        try:
            adapted = adapt(row)
            if adapted is None:
                continue
            row = adapted
            own = {key: value for key, value in row.items() if key != "domain"}  # the recipe says which
            if domain is Domain.CODE:
                own |= _code_columns(row, config, place)
            problem = read_problem(own, place, columns, str(number))
            if problem.id in seen:
                raise InputError(f"{place}: id {problem.id!r} is also an earlier row's")
            seen.add(problem.id)
            problem = replace(problem, id=f"{name}/{problem.id}", answer=_reference(problem.answer, config, place))
            candidate = Candidate(problem, name, _meta(row, config, place), _solutions(row, config))
        except InputError as error:
            yield Unreadable(f"{name}/{number}", name, str(error).removeprefix(f"{place}: "))
            continue
        yield candidate


def _reference(answer: str | None, config: SourceConfig, place: str) -> str | None:
    if answer is None or not config.answer_is_boxed:
        return answer
    found = extract_answer(f"</think>{answer}")
    if found is None:
        raise InputError(f"{place}: column {config.answer_key!r} holds no \\boxed{{}}")
    return found


def _meta(row: dict[str, Any], config: SourceConfig, place: str) -> dict[str, Any]:
    """The columns to keep, a day as YYYY-MM-DD; such as JSON can hold."""
    found = {key: row[key] for key in config.meta_keys if key in row}
    found = {key: value.isoformat() if isinstance(value, date) else value for key, value in found.items()}
    try:
        json.dumps(found, ensure_ascii=False, allow_nan=False).encode()
    except (TypeError, ValueError) as error:
        raise InputError(f"{place}: columns {list(found)} cannot be kept: {error}") from error
    return found


def _code_columns(row: dict[str, Any], config: SourceConfig, place: str) -> dict[str, Any]:
    """The columns of a code problem by our names."""
    fn_name = _at(row, config.fn_name_key)
    if not any(key in row for key in config.tests_keys):
        raise InputError(f"{place}: no column {' or '.join(config.tests_keys)}; the line has {sorted(row)}")
    try:
        tests = [test for key in config.tests_keys for test in read_tests(row.get(key), fn_name)]
    except UnreadableTests as error:
        raise InputError(f"{place}: columns {list(config.tests_keys)}: {error}") from error
    return {"tests": tests, "fn_name": fn_name, "starter_code": _at(row, config.starter_code_key)}


def _at(row: dict[str, Any], key: str) -> Any:
    """The column `key`, or with dots what is in one, which may be an object as JSON; None if it is not there."""
    value: Any = row
    for part in key.split("."):
        if isinstance(value, str):
            try:
                value = json.loads(value)
            except (ValueError, RecursionError):
                return None
        value = value.get(part) if isinstance(value, dict) else None
    return value or None


def _solutions(row: dict[str, Any], config: SourceConfig) -> tuple[str, ...]:
    """One, a list of them, the same as JSON (APPS, TACO), or lists of them and of their languages (CodeContests)."""
    found = None if config.solution_key is None else _at(row, config.solution_key)
    if isinstance(found, str):
        try:
            found = json.loads(found)
        except (ValueError, RecursionError):
            found = [found]
    if isinstance(found, dict):
        languages, texts = (found.get(key) for key in ("language", "solution"))
        if not isinstance(languages, list) or not isinstance(texts, list):
            return ()
        found = [text for text, language in zip(texts, languages, strict=False) if language == _PYTHON_3]
    return tuple(text for text in found if isinstance(text, str)) if isinstance(found, list) else ()


def read_rows(config: SourceConfig) -> Iterator[tuple[int, dict[str, Any]]]:
    """`(number from 1, columns)` of every row, a file's by line.

    Raises:
        InputError: the file or dataset cannot be read.
    """
    if (config.path is None) == (config.hub is None):
        raise InputError(f"a source with path={config.path}, hub={config.hub}; give it one of them")
    if config.path is None:
        yield from enumerate(_of_library(str(config.hub), config.hub_config, split=config.split), start=1)
        return
    path = Path(config.path)
    match path.suffix:
        case ".jsonl":
            yield from read_jsonl(path)
        case ".json":
            yield from enumerate(_objects(path), start=1)
        case ".parquet":
            if not path.is_file():
                raise InputError(f"{path}: no such file; correct the path")
            yield from enumerate(_of_library("parquet", data_files=glob.escape(str(path)), split="train"), start=1)
        case suffix:
            raise InputError(f"{path}: {suffix or 'no suffix'}; it must be .jsonl, .json or .parquet")


def _objects(path: Path) -> list[dict[str, Any]]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: not to be read as JSON: {error}") from error
    if isinstance(found, dict):  # of rows by their names
        found = list(found.values())
    if not isinstance(found, list) or not all(isinstance(row, dict) for row in found):
        raise InputError(f"{path}: a list of JSON objects is expected")
    return found


def _of_library(name: str, config: str | None = None, **settings: Any) -> Iterator[dict[str, Any]]:
    """A dataset as it streams in."""
    from datasets import load_dataset
    from datasets.exceptions import DatasetsError
    from datasets.utils.logging import CRITICAL, set_verbosity

    set_verbosity(CRITICAL)  # what goes wrong is raised, too
    try:
        yield from load_dataset(name, config, streaming=True, **settings)
    except (DatasetsError, OSError, ValueError) as error:
        reason = (str(error).strip() or repr(error)).splitlines()[0]
        raise InputError(f"{settings.get('data_files', name)}: cannot be read: {reason}") from error
