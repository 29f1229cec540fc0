"""How a model did on problems: from one command's file to another's."""

from pathlib import Path

import pytest

from megatron_rl.config.schema import DataConfig
from megatron_rl.curation.difficulty import Difficulty
from megatron_rl.curation.sources import Candidate
from megatron_rl.data.problems import Problem, load_problems
from megatron_rl.data.scores import Score, read_scores, scores_of, write_scores
from megatron_rl.errors import InputError


def problems_of(folder: Path, *ids: str) -> list[Problem]:
    path = folder / "problems.jsonl"
    path.write_text("".join(f'{{"id": "{name}", "prompt": "?", "answer": "1"}}\n' for name in ids))
    return load_problems(DataConfig(path=str(path)))


def test_a_run_writes_what_the_next_one_and_a_dataset_read(tmp_path: Path) -> None:
    problems, path = problems_of(tmp_path, "b", "a", "never", "unverified"), tmp_path / "scores.jsonl"
    write_scores(path, problems, {1: 0.25, 0: 1.0}, {0: 10.0, 1: 20.5, 3: 7.0})
    assert [*read_scores(path)] == ["b", "a"]
    assert scores_of(problems, path) == {0: Score(1.0, 10.0), 1: Score(0.25, 20.5)}
    step = Difficulty(scores=str(path), max_pass_rate=0.5)
    assert [step.why_not(Candidate(problem, "math", {}, None)) for problem in problems] == [
        "passed in 100.0% of the attempts",
        None,
        "not scored",
        "not scored",
    ]
    asks = Difficulty(scores=str(path), right_majority=True)
    assert asks.why_not(Candidate(problems[1], "math", {}, None)) == "no majority is known"


def test_the_source_before_an_id_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "scores.jsonl"
    rates = {0: 0.1, 1: 0.2, 2: 0.3}
    write_scores(path, problems_of(tmp_path, "raw/1", "raw/2", "math/raw/2"), rates, dict.fromkeys(rates, 9.0))
    found = scores_of(problems_of(tmp_path, "math/raw/1", "math/raw/2", "1"), path)
    assert {place: score.pass_rate for place, score in found.items()} == {0: 0.1, 1: 0.3}


def test_scores_of_other_problems_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "scores.jsonl"
    write_scores(path, problems_of(tmp_path, "a"), {0: 0.5}, {0: 9.0})
    with pytest.raises(InputError, match=r"scores.jsonl: of none of the problems that there are, such as 'b'; give"):
        scores_of(problems_of(tmp_path, "b"), path)
    path.write_text('{"id": "b", "pass_rate": "half", "length_mean": 3}\n')
    with pytest.raises(InputError, match=r"scores.jsonl:1: no id, pass_rate and length_mean; eval --out writes them"):
        scores_of(problems_of(tmp_path, "b"), path)
