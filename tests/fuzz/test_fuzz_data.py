"""Problems to train on and responses to judge that are not what they should be."""

import json
import math
import statistics
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from malformed import Reader, damaged, fuzz, malformed_json, mutated, put

from megatron_rl.config.schema import DataConfig, Domain
from megatron_rl.curation.difficulty import Difficulty
from megatron_rl.curation.sources import Candidate
from megatron_rl.data.check import load_checked
from megatron_rl.data.problems import load_problems
from megatron_rl.data.scores import scores_of
from megatron_rl.errors import InputError
from verifiers.isolation import IsolationLevel
from verifiers.jsonl import verify_file
from verifiers.pool import VerifierPool
from verifiers.records import ReadTask, code_reader, math_reader

TESTS = [
    {"input": "1\n", "output": "2\n", "testtype": "stdin"},
    {"input": "[1]", "output": "2", "testtype": "functional"},
    {"input": "assert f([1]) == 2", "output": "", "testtype": "check"},
]
MATH: dict[str, Any] = {"id": "a", "prompt": "1 + 1?", "answer": "2", "response": "It is 2."}
CODE: dict[str, Any] = {
    "id": "b",
    "domain": "code",
    "prompt": "Add 1.",
    "tests": TESTS,
    "fn_name": "f",
    "starter_code": "def f(x):",
    "response": "Easily.</think>```python\ndef f(x): return x + 1\n```",
}


def lines(documents: list[dict[str, Any]]) -> st.SearchStrategy[bytes]:
    """A JSONL file one of whose lines is malformed, or damaged as a whole."""
    texts = [json.dumps(document).encode() for document in documents]
    one = st.one_of(malformed_json(documents[-1]).map(lambda text: text.replace(b"\n", b" ")), damaged(texts[-1]))
    file = one.map(lambda line: b"\n".join([*texts[:-1], line, b""]))
    return st.one_of(file, damaged(b"\n".join(texts)))


@pytest.mark.parametrize("need_response", [False, True])
def test_malformed_problems_are_refused_in_one_line(tmp_path: Path, need_response: bool) -> None:
    path, reader = tmp_path / "data.jsonl", Reader()

    @fuzz(120)
    @given(st.one_of(lines([CODE, MATH]), lines([MATH, CODE]), st.just(None)), st.sampled_from(Domain))
    def reads(content: bytes | None, domain: Domain) -> None:
        put(path, content)
        with reader.reads(path):
            load_problems(DataConfig(path=str(path), domain=domain), need_response)

    reads()
    assert reader.refused > 60
    assert reader.taken > 5


def test_malformed_scores_are_refused_in_one_line_or_gone_by(tmp_path: Path) -> None:
    path, reader, data = tmp_path / "problems.jsonl", Reader(), tmp_path / "data.jsonl"
    data.write_text(json.dumps(MATH) + "\n" + json.dumps(MATH | {"id": "b"}) + "\n")
    problems = load_problems(DataConfig(path=str(data)))
    rows = [{"id": name, "samples": 16, "pass_rate": 0.5, "majority": 1.0, "length_mean": 90.5} for name in "ab"]

    @fuzz(120)
    @given(st.one_of(lines(rows), st.just(None)))
    def reads(content: bytes | None) -> None:
        put(path, content)
        with reader.reads(path):
            step = Difficulty(scores=str(path), max_pass_rate=0.4, min_tokens=80)
            assert all(step.why_not(Candidate(problem, "math", {}, None)) for problem in problems)
            scores = scores_of(problems, path).values()
            assert 0 <= statistics.fmean(score.pass_rate for score in scores) <= 1
            assert math.isfinite(statistics.fmean(score.length_mean for score in scores))

    reads()
    assert min(reader.refused, reader.taken) > 15


def test_whatever_stands_as_an_answer_can_be_checked(tmp_path: Path) -> None:
    path, reader = tmp_path / "data.jsonl", Reader()
    answers = st.one_of(st.text(), st.text("\\{}[]()^_$0123456789fracsqrt,;=<>|+-*/ ", max_size=40), st.floats())

    @fuzz(60)
    @given(
        answers, st.sampled_from(["answer_key=answer", "answer_marker=\ud800", "prompt_keys=x", "domain=x", "path=["])
    )
    def reads(answer: object, override: str) -> None:
        path.write_text(json.dumps(MATH | {"answer": answer}) + "\n")
        with reader.reads(path, override.partition("=")[0]):
            load_checked(path, [override])

    reads()
    assert min(reader.refused, reader.taken) > 10


@pytest.fixture(scope="module")
def pool() -> Any:
    with VerifierPool(1) as pool:
        yield pool


@pytest.mark.parametrize("kind", ["math", "code"])
def test_malformed_responses_are_refused_or_judged_and_no_half_output_stays(
    tmp_path: Path, pool: VerifierPool, kind: str
) -> None:
    path, out, reader = tmp_path / "responses.jsonl", tmp_path / "judged.jsonl", Reader()
    read: ReadTask = math_reader() if kind == "math" else code_reader(0.5, min_isolation=IsolationLevel.LIMITS)
    row = MATH | {"response": "</think>\\boxed{2}"} if kind == "math" else CODE

    @fuzz(60 if kind == "math" else 30)
    @given(lines([row, row | {"id": "c"}]))
    def reads(content: bytes) -> None:
        path.write_bytes(content)
        out.unlink(missing_ok=True)
        with reader.reads(path):
            try:
                summary = verify_file(path, read, pool, out)
            except ValueError as error:
                assert [file.name for file in tmp_path.iterdir()] == [path.name]
                raise InputError(str(error)) from error  # as the command does
            assert len(out.read_text(encoding="utf-8").splitlines()) == summary["samples"]
            assert summary["infra_error"] == 0

    reads()
    assert reader.refused > 10
    assert reader.taken > 3


def test_a_server_address_is_refused_in_one_line() -> None:
    from megatron_rl.config.schema import VerifierConfig
    from megatron_rl.preflight import check_verifier

    reader = Reader()
    texts = st.one_of(
        st.text(max_size=12), st.text(max_size=12).map("tcp:{}".format), mutated(["unix:", "tcp::1"]).map(str)
    )

    @fuzz(40)
    @given(texts, st.one_of(st.none(), st.text(max_size=300)))
    def reads(address: str, secret_file: str | None) -> None:
        with reader.reads("verifier"):
            check_verifier(VerifierConfig(address=address, secret_file=secret_file), runs_code=False)

    reads()
    assert reader.refused > 30
