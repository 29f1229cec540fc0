"""Rows of raw datasets, from files or from the Hugging Face hub, as problems."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from megatron_rl.config.schema import DataConfig, Domain
from megatron_rl.curation.recipe import SourceConfig
from megatron_rl.data.problems import Problem, read_jsonl, read_problem
from megatron_rl.errors import InputError
from verifiers.math import extract_answer


@dataclass(frozen=True, slots=True)
class Candidate:
    """A problem that may come into the dataset. Its id begins with the name of its source."""

    problem: Problem
    source: str
    meta: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A row that is no problem, and why."""

    id: str
    source: str
    reason: str


def read_source(name: str, config: SourceConfig, domain: Domain) -> Iterator[Candidate | Unreadable]:
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
    for count, (number, row) in enumerate(read_rows(config)):
        if count == config.max_rows:
            return
        place = f"{columns.path}:{number}"
        try:
            problem = read_problem(row, place, columns, str(number))
            problem = replace(problem, id=f"{name}/{problem.id}", answer=_reference(problem.answer, config, place))
        except InputError as error:
            yield Unreadable(f"{name}/{number}", name, str(error).removeprefix(f"{place}: "))
            continue
        yield Candidate(problem, name, {key: row[key] for key in config.meta_keys if key in row})


def _reference(answer: str | None, config: SourceConfig, place: str) -> str | None:
    if answer is None or not config.answer_is_boxed:
        return answer
    found = extract_answer(f"</think>{answer}")
    if found is None:
        raise InputError(f"{place}: column {config.answer_key!r} holds no \\boxed{{}}")
    return found


def read_rows(config: SourceConfig) -> Iterator[tuple[int, dict[str, Any]]]:
    """`(number from 1, columns)` of every row, a file's by line.

    Raises:
        InputError: the file or dataset cannot be read.
    """
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
            yield from enumerate(_of_library("parquet", data_files=str(path), split="train"), start=1)
        case suffix:
            raise InputError(f"{path}: {suffix or 'no suffix'}; it must be .jsonl, .json or .parquet")


def _objects(path: Path) -> list[dict[str, Any]]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: not to be read as JSON: {error}") from error
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
