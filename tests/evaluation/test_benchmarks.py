"""Every benchmark can be met: right answers score 1, and those of the next problem 0."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from megatron_rl.config.schema import DataConfig
from megatron_rl.data.problems import Problem
from megatron_rl.errors import InputError
from megatron_rl.evaluation.benchmarks import BENCHMARKS, find_benchmarks
from megatron_rl.evaluation.figures import figures_of, problem_figures
from megatron_rl.evaluation.journal import EvaluationJournal
from megatron_rl.evaluation.table import markdown_table
from megatron_rl.experience import Experience, ScoredSample
from megatron_rl.rollout.samples import Sample, SampleRequest
from verifiers.math import verify_math
from verifiers.verdict import Result, Verdict

PUBLIC = Path(__file__).parents[3] / "shared/data"
"""Where the files that the authors publish may be."""
ANSWERS = ["7", "12", "105"]
ROWS: dict[str, list[dict[str, Any]]] = {
    "aime24": [{"id": f"x-{a}", "problem": f"Find {a}.", "expected_answer": a} for a in ANSWERS],
    "aime25": [{"id": f"y-{a}", "problem": f"Find {a}.", "expected_answer": a} for a in ANSWERS],
    "amc23": [{"id": i, "problem": f"Find {a}.", "answer": float(a)} for i, a in enumerate(ANSWERS)],
    "math500": [{"problem": f"Find {a}.", "answer": rf"\frac{{{a}}}{{11}}"} for a in ANSWERS],
    "math": [{"problem": f"Find {a}.", "solution": rf"It is $\boxed{{{a}}}$."} for a in ANSWERS],
    "gsm8k": [{"question": f"Find {a}.", "answer": f"It is <<{a}={a}>>{a}.\n#### {a}"} for a in ANSWERS],
}


@pytest.fixture(params=["made", "public"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Of the benchmarks' files."""
    if request.param == "public":
        if not PUBLIC.is_dir():
            pytest.skip(f"the published files are not in {PUBLIC}")
        return PUBLIC
    for name, rows in ROWS.items():
        source: Any = BENCHMARKS[name].source
        (tmp_path / source.path).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def sample_of(index: int, answer: str, reference: str) -> ScoredSample:
    response = f"so it is</think> \\boxed{{{answer}}}"
    sample = Sample(SampleRequest(index, 0, (1, 2), seed=index), (3, 4), (), response, False, 0)
    return ScoredSample(sample, verify_math(response, reference))


def score(problems: list[Problem], answers: list[str]) -> float:
    pairs = zip(problems, answers, strict=True)
    samples = [sample_of(index, answer, problem.answer or "") for index, (problem, answer) in enumerate(pairs)]
    return float(figures_of(Experience(samples, [], 1.0, 1.0, 0, 0.0), problems)["accuracy"])


@pytest.mark.parametrize("name", BENCHMARKS)
def test_right_answers_score_1_and_those_of_another_problem_0(name: str, folder: Path) -> None:
    (benchmark,) = find_benchmarks([name], folder, DataConfig(path=""), samples=1)
    problems = benchmark.problems()
    answers = [problem.answer or "" for problem in problems]
    assert score(problems, answers) == 1.0
    wrong = [f"{answer} + 1" for answer in answers]
    assert score(problems, wrong) < 0.01 if folder == PUBLIC else score(problems, wrong) == 0.0


def test_every_problem_has_its_own_figures(tmp_path: Path) -> None:
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps({"prompt": "?", "answer": a}) + "\n" for a in ANSWERS))
    (benchmark,) = find_benchmarks([str(tmp_path / "mine.jsonl")], tmp_path, DataConfig(path=""), 3)
    answers = [["7", "7", "8"], ["7", "7.0", "12"], ["", "", ""]]
    samples = [sample_of(i, answer, ANSWERS[i]) for i, group in enumerate(answers) for answer in group]
    samples[-1] = replace(samples[-1], result=Result(Verdict.INFRA_ERROR, None, 0.0))
    found = problem_figures(Experience(samples, [], 1.0, 1.0, 0, 0.0), benchmark.problems())
    assert [(one["id"], one["samples"], one["majority"], one["length_mean"]) for one in found] == [
        ("1", 3, 1.0, 2),
        ("2", 3, 0.0, 2),
        ("3", 2, 0.0, 2),
    ]
    assert [one["pass_rate"] for one in found] == pytest.approx([2 / 3, 1 / 3, 0])


def test_the_samples_are_the_papers_unless_told(tmp_path: Path) -> None:
    names = ["aime24", "math500", "mine.jsonl"]
    assert [one.samples for one in find_benchmarks(names, tmp_path, DataConfig(path=""), None)] == [64, 4, 1]
    assert [one.samples for one in find_benchmarks(names, tmp_path, DataConfig(path=""), 2)] == [2, 2, 2]
    with pytest.raises(InputError, match="--benchmark: two of the name aime24; give each once"):
        find_benchmarks(["aime24", "aime24"], tmp_path, DataConfig(path=""), None)


def test_the_table_has_the_papers_rows_below() -> None:
    figures = {
        "aime24": {"samples_per_prompt": 64, "accuracy": 0.6914, "accuracy_error": 0.0712},
        "mine": {"samples_per_prompt": 1, "accuracy": 1.0, "accuracy_error": 0.0},
    }
    lines = markdown_table("my-7b", figures).splitlines()
    assert lines[0] == "| model | AIME24 avg@64 | mine avg@1 |"
    assert lines[2] == "| my-7b | 69.1 ± 7.1 | 100.0 ± 0.0 |"
    assert "| AceReason-Nemotron-7B (paper) | 69.0 |  |" in lines


# The journal --------------------------------------------------------------------------------------------------------

PROMPTS = [[1, 2], [1, 2]]


def test_what_is_kept_comes_back(tmp_path: Path) -> None:
    first, second = sample_of(0, "7", "7"), sample_of(1, "8", "7")
    lost = replace(second, result=Result(Verdict.INFRA_ERROR, None, 0.0))
    for rank, sample in enumerate((first, lost, second)):
        journal = EvaluationJournal(tmp_path / "journal", "asked", rank)
        journal.keep(sample)
        journal.close()
        journal.keep(lost)  # nothing any more
    (torn,) = (tmp_path / "journal").glob("rank_2_*")
    torn.write_text(torn.read_text() + '{"prompt_index": 0, "samp')
    (tmp_path / "journal" / "rank_7_empty.jsonl").touch()
    assert sorted(journal.read(PROMPTS), key=lambda sample: sample.prompt_index) == [first, second]
    with pytest.raises(InputError, match="holds samples of another model, benchmark or setting; remove "):
        EvaluationJournal(tmp_path / "journal", "asked otherwise", 0).read(PROMPTS)
    torn.write_text(torn.read_text() + "\n")
    with pytest.raises(InputError, match=r"rank_2_\w+.jsonl: damaged \(JSONDecodeError.*; remove it"):
        journal.read(PROMPTS)
    journal.remove()
    assert journal.read(PROMPTS) == []
