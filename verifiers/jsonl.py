"""Verification of a file of responses, one JSON object per line, in input order and bounded memory."""

import contextlib
import json
import os
import sys
import time
from array import array
from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Literal, TextIO

from verifiers.math import Extract
from verifiers.pool import VerifierPool
from verifiers.tasks import CodeTask, MathTask, Task
from verifiers.verdict import Result, Verdict

Domain = Literal["math", "code"]

IN_FLIGHT_PER_WORKER = 8
_TEST_TYPES = ("stdin", "functional")


def verify_file(
    path: Path,
    domain: Domain,
    out: Path | None,
    workers: int,
    extract: Extract = "strict",
    timeout: float = 6.0,
    progress: Callable[[int], None] | None = None,
) -> dict[str, float]:
    """Verify every line of a JSONL file.

    Each line comes back with `verdict`, `reward`, `extracted` and `seconds` added, in input order. Blank lines are
    skipped.

    Args:
        path: lines of `{id, response, answer}` (math) or `{id, response, tests, fn_name?, starter_code?}` (code).
        domain: which of the two.
        out: where to write, by way of a temporary file beside it; None for standard output.
        workers: number of worker processes.
        extract: where math answers are looked for; see `extract_answer`.
        timeout: seconds for each test of a program.
        progress: called with the number of finished lines, after each.

    Returns:
        The count of each verdict, `samples`, `seconds` (wall clock) and, over the samples' own seconds, `p50`, `p99`.

    Raises:
        ValueError: a line is not usable; the message names the file, the line and the remedy.
        FileNotFoundError: there is no such file, or no folder to write to.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; expected JSON lines to verify")
    read = _task_reader(domain, extract, timeout)
    start = time.monotonic()
    counts = Counter({verdict.value: 0 for verdict in Verdict})
    seconds = array("d")
    with VerifierPool(workers) as pool, _output(out) as output:
        for record, result in _verified(pool, _tasks(path, read), workers * IN_FLIGHT_PER_WORKER):
            output.write(json.dumps({**record, **_added(result)}) + "\n")
            counts[result.verdict.value] += 1
            seconds.append(result.seconds)
            if progress is not None:
                progress(len(seconds))
    ordered = sorted(seconds)
    return {
        **counts,
        "samples": len(ordered),
        "seconds": round(time.monotonic() - start, 3),
        "p50": _percentile(ordered, 0.50),
        "p99": _percentile(ordered, 0.99),
    }


def _verified(
    pool: VerifierPool, tasks: Iterator[tuple[dict[str, Any], Task]], in_flight: int
) -> Iterator[tuple[dict[str, Any], Result]]:
    """Results in the order of their tasks, with at most `in_flight` of them read ahead."""
    waiting: deque[tuple[dict[str, Any], Future[Result]]] = deque()
    for record, task in tasks:
        waiting.append((record, pool.submit(task)))
        if len(waiting) >= in_flight:
            record, future = waiting.popleft()
            yield record, future.result()
    while waiting:
        record, future = waiting.popleft()
        yield record, future.result()


def _added(result: Result) -> dict[str, Any]:
    return {
        "verdict": result.verdict.value,
        "reward": result.reward,
        "extracted": result.extracted,
        "seconds": round(result.seconds, 6),
    }


def _percentile(ordered: list[float], fraction: float) -> float:
    """Nearest rank; 0 without samples."""
    if not ordered:
        return 0.0
    return round(ordered[min(len(ordered) - 1, int(fraction * len(ordered)))], 6)


@contextlib.contextmanager
def _output(out: Path | None) -> Iterator[TextIO]:
    """Standard output, or a file that appears under its name only when all is written."""
    if out is None:
        yield sys.stdout
        sys.stdout.flush()
        return
    out = Path(out)
    if not out.parent.is_dir():
        raise FileNotFoundError(f"{out.parent}: no such folder to write {out.name} into; create it first")
    temporary = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, out)
    finally:
        temporary.unlink(missing_ok=True)


# Reading lines ---------------------------------------------------------------------------------------------


def _tasks(path: Path, read: Callable[[dict[str, Any]], Task]) -> Iterator[tuple[dict[str, Any], Task]]:
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if line.isspace():
                continue
            try:
                record = _parse_line(line)
                task = read(record)
            except ValueError as error:
                raise ValueError(f"{path}, line {number}: {error}") from None
            yield record, task


def _parse_line(line: bytes) -> dict[str, Any]:
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


def _task_reader(domain: Domain, extract: Extract, timeout: float) -> Callable[[dict[str, Any]], Task]:
    if extract not in ("strict", "anywhere"):
        raise ValueError(f"extract must be 'strict' or 'anywhere', not {extract!r}")
    if not timeout > 0:
        raise ValueError(f"timeout must be a positive number of seconds, got {timeout}")
    if domain == "math":
        return lambda record: MathTask(_text(record, "response"), _answer(record), extract)
    if domain == "code":
        return lambda record: _code_task(record, timeout)
    raise ValueError(f"domain must be 'math' or 'code', not {domain!r}")


def _code_task(record: dict[str, Any], timeout: float) -> CodeTask:
    tests = _required(record, "tests")
    if not isinstance(tests, list) or not tests:
        raise ValueError("key 'tests' must be a list of at least one {input, output, testtype}")
    for at, test in enumerate(tests, 1):
        if not isinstance(test, dict):
            raise ValueError(f"test {at} must be an object {{input, output, testtype}}, got {_kind(test)}")
        for key in ("input", "output"):
            if not isinstance(test.get(key), str):
                raise ValueError(f"test {at}: key {key!r} must be a string, got {_kind(test.get(key))}")
        if test.get("testtype") not in _TEST_TYPES:
            raise ValueError(
                f"test {at}: testtype {test.get('testtype')!r:.40} is unknown; use 'stdin' or 'functional'"
            )
    function, starter = _optional_text(record, "fn_name"), _optional_text(record, "starter_code")
    if function is None and starter is None and any(test["testtype"] == "functional" for test in tests):
        raise ValueError("functional tests need key 'fn_name' or 'starter_code'; add one of them")
    return CodeTask(_text(record, "response"), tests, function, starter, timeout)


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
