import json
import os
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from verifiers import jsonl
from verifiers.jsonl import verify_file
from verifiers.pool import VerifierPool
from verifiers.records import code_reader, math_reader

STDIN_TEST = {"input": "4\n", "output": "8\n", "testtype": "stdin"}
CHECK = {"input": "assert twice(4) == 8", "output": "", "testtype": "check"}


def write(path: Path, *lines: Any) -> Path:
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return path


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def judge(source: Path, domain: str, out: Path | None, workers: int = 1, **options: Any) -> dict[str, float]:
    progress = options.pop("progress", None)
    reader = {"math": math_reader, "code": code_reader}[domain]
    with VerifierPool(workers) as pool:
        return verify_file(source, reader(**options), pool, out, progress)


def math(identity: Any, boxed: Any, answer: Any) -> dict[str, Any]:
    return {"id": identity, "response": rf"</think> \boxed{{{boxed}}}", "answer": answer}


def test_math_lines_come_back_in_order_with_their_verdicts(tmp_path: Path) -> None:
    source = write(
        tmp_path / "in.jsonl",
        math(1, 42, 42),
        math("two", "1/2", 0.5),
        math(None, 5, "6"),
        {**math([4], 5, "5"), "response": r"<think>\boxed{5}", "extra": {"kept": True}},
    )
    seen: list[int] = []
    out = tmp_path / "out.jsonl"
    summary = judge(source, "math", out, workers=2, progress=seen.append)
    lines = read(out)
    assert [line["id"] for line in lines] == [1, "two", None, [4]]
    assert [line["verdict"] for line in lines] == ["pass", "pass", "wrong", "no_answer"]
    assert [line["reward"] for line in lines] == [1.0, 1.0, 0.0, 0.0]
    assert [line["extracted"] for line in lines] == ["42", "1/2", "5", None]
    assert lines[1]["answer"] == 0.5
    assert lines[3]["extra"] == {"kept": True}
    assert all(line["seconds"] >= 0 for line in lines)
    assert seen == [1, 2, 3, 4]
    assert summary["samples"] == 4
    counts = {key: summary[key] for key in ("pass", "wrong", "no_answer", "timeout", "runtime_error", "infra_error")}
    assert counts == {"pass": 2, "wrong": 1, "no_answer": 1, "timeout": 0, "runtime_error": 0, "infra_error": 0}
    assert 0 <= summary["p50"] <= summary["p99"] <= summary["seconds"]
    assert sorted(os.listdir(tmp_path)) == ["in.jsonl", "out.jsonl"]


def test_extraction_anywhere(tmp_path: Path) -> None:
    source = write(tmp_path / "in.jsonl", {"id": 1, "response": "The answer is 7.", "answer": "7"})
    assert judge(source, "math", tmp_path / "a")["no_answer"] == 1
    assert judge(source, "math", tmp_path / "b", extract="anywhere")["pass"] == 1


def test_code_lines(tmp_path: Path) -> None:
    def program(text: str) -> str:
        return f"</think>\n```python\n{text}\n```"

    functional = {"input": "4", "output": "8", "testtype": "functional"}
    source = write(
        tmp_path / "in.jsonl",
        {"id": 1, "response": program("print(int(input()) * 2)"), "tests": [STDIN_TEST]},
        {"id": 2, "response": program("print(1)"), "tests": [STDIN_TEST]},
        {"id": 3, "response": program("def twice(x): return 2 * x"), "tests": [functional], "fn_name": "twice"},
        {"id": 4, "response": program("while True: pass"), "tests": [STDIN_TEST], "starter_code": None},
        {"id": 5, "response": program("1 / 0"), "tests": [STDIN_TEST]},
        {"id": 6, "response": program("def twice(x): return 2 * x"), "tests": [CHECK]},
        {"id": 7, "response": program("def twice(x): return x"), "tests": [STDIN_TEST, CHECK]},
        {"id": 8, "response": program("def twice(x): return x"), "tests": [CHECK]},
    )
    out = tmp_path / "out.jsonl"
    judge(source, "code", out, workers=2, timeout=1.0)
    assert [line["verdict"] for line in read(out)] == [
        *("pass", "wrong", "pass", "timeout", "runtime_error", "pass", "wrong", "wrong")
    ]


def test_standard_output(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write(tmp_path / "in.jsonl", math(1, 5, "5"), "", math(2, 5, "6"))
    summary = judge(source, "math", None)
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(line["id"], line["verdict"]) for line in lines] == [(1, "pass"), (2, "wrong")]
    assert summary["samples"] == 2


def test_an_empty_file_has_an_empty_result(tmp_path: Path) -> None:
    source = write(tmp_path / "in.jsonl")
    summary = judge(source, "math", tmp_path / "out.jsonl")
    assert (summary["samples"], summary["p50"], summary["p99"]) == (0, 0.0, 0.0)
    assert (tmp_path / "out.jsonl").read_text() == ""


def test_lone_surrogates_survive(tmp_path: Path) -> None:
    source = write(tmp_path / "in.jsonl", r'{"id": 1, "response": "</think> \\boxed{\ud800}", "answer": "5"}')
    judge(source, "math", tmp_path / "out.jsonl")
    assert read(tmp_path / "out.jsonl")[0]["extracted"] == "\ud800"


@pytest.mark.parametrize("limit", [("IN_FLIGHT_PER_WORKER", 8), ("IN_FLIGHT_BYTES", 800_000)])
def test_few_lines_are_in_memory_at_a_time_and_their_order_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: tuple[str, int]
) -> None:
    source = tmp_path / "in.jsonl"
    lines = [{**math(at, 5, "5"), "padding": "x" * 100_000} for at in range(300)]
    write(source, *lines)
    monkeypatch.setattr(jsonl, *limit)
    tracemalloc.start()
    judge(source, "math", tmp_path / "out.jsonl")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert [line["id"] for line in read(tmp_path / "out.jsonl")] == list(range(300))
    assert peak < 6 * 8 * 100_000 < source.stat().st_size


@pytest.mark.parametrize(
    ("domain", "line", "message"),
    [
        ("math", '{"id": 1', "broken JSON"),
        ("math", "[1]", "expected a JSON object, got a list"),
        ("math", "[" * 100_000, "JSON"),
        ("math", {"response": "", "answer": ""}, "key 'id' is missing"),
        ("math", {"id": 1, "answer": ""}, "key 'response' is missing; add it"),
        ("math", {"id": 1, "response": 5, "answer": ""}, "key 'response' must be a string, got a number"),
        ("math", {"id": 1, "response": ""}, "key 'answer' is missing"),
        ("math", {"id": 1, "response": "", "answer": None}, "must be a string or a number, got null"),
        ("math", {"id": 1, "response": "", "answer": True}, "must be a string or a number, got a boolean"),
        ("math", {"id": 1, "response": "", "answer": ["5"]}, "must be a string or a number, got a list"),
        ("code", {"id": 1, "response": ""}, "key 'tests' is missing"),
        ("code", {"id": 1, "response": "", "tests": []}, "at least one"),
        ("code", {"id": 1, "response": "", "tests": "x"}, "must be a list"),
        ("code", {"id": 1, "response": "", "tests": [5]}, "test 1 must be an object"),
        (
            "code",
            {"id": 1, "response": "", "tests": [STDIN_TEST, {**STDIN_TEST, "testtype": "x"}]},
            "test 2: testtype 'x' is unknown; use one of stdin, functional, check",
        ),
        (
            "code",
            {"id": 1, "response": "", "tests": [CHECK, {**CHECK, "input": "assert f(:\n"}]},
            "test 2: its input is not Python: SyntaxError: invalid syntax (check, line 1); correct it or drop the line",
        ),
        ("code", {"id": 1, "response": "", "tests": [{**CHECK, "input": 5}]}, "key 'input' must be a string"),
        ("code", {"id": 1, "response": "", "tests": [{"input": "", "testtype": "stdin"}]}, "key 'output' must be"),
        (
            "code",
            {"id": 1, "response": "", "tests": [{**STDIN_TEST, "testtype": "functional"}]},
            "need key 'fn_name', or",
        ),
        ("code", {"id": 1, "response": "", "tests": [STDIN_TEST], "fn_name": 5}, "key 'fn_name' must be a string"),
    ],
)
def test_bad_lines_are_named(tmp_path: Path, domain: Any, line: Any, message: str) -> None:
    good = math(0, 5, "5") if domain == "math" else {"id": 0, "response": "", "tests": [STDIN_TEST]}
    source = write(tmp_path / "in.jsonl", good, line)
    with pytest.raises(ValueError) as caught:
        judge(source, domain, tmp_path / "out.jsonl")
    assert str(caught.value).startswith(f"{source}, line 2: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert sorted(os.listdir(tmp_path)) == ["in.jsonl"]


def test_bad_bytes_are_named(tmp_path: Path) -> None:
    source = tmp_path / "in.jsonl"
    source.write_bytes(b'{"id": "\xff"}\n')
    with pytest.raises(ValueError, match="line 1: not UTF-8 at byte 8"):
        judge(source, "math", None)


def test_missing_files_and_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"none\.jsonl: no such file"):
        judge(tmp_path / "none.jsonl", "math", None)
    source = write(tmp_path / "in.jsonl")
    with pytest.raises(FileNotFoundError, match="no such folder"):
        judge(source, "math", tmp_path / "none" / "out.jsonl")


@pytest.mark.parametrize(
    ("reader", "arguments", "message"),
    [
        (math_reader, {"extract": "lenient"}, "'strict' or 'anywhere'"),
        (code_reader, {"timeout": 0.0}, "timeout must be a positive"),
        (code_reader, {"budget": -1.0}, "budget must be a positive"),
        (code_reader, {"timeout": float("nan")}, "timeout must be a positive"),
    ],
)
def test_bad_arguments_are_refused(reader: Any, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        reader(**arguments)


def test_an_old_output_stays_until_the_new_one_is_whole(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    out.write_text("old")
    with pytest.raises(ValueError, match="broken JSON"):
        judge(write(tmp_path / "in.jsonl", math(1, 5, "5"), "{"), "math", out)
    assert out.read_text() == "old"
    judge(write(tmp_path / "in.jsonl", math(1, 5, "5")), "math", out)
    assert read(out)[0]["verdict"] == "pass"
