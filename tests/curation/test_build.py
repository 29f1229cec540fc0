"""From files to a dataset: every problem is accounted for, the same bytes again, nothing half-written."""

import datetime
import json
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
import yaml
from test_cli import megatron_rl, refused

from megatron_rl.config.schema import DataConfig, Domain
from megatron_rl.curation.build import build
from megatron_rl.curation.recipe import SourceConfig, load_recipe
from megatron_rl.curation.sources import Candidate, read_rows, read_source
from megatron_rl.data.problems import load_problems
from megatron_rl.errors import InputError

GOOD = [f"How many numbers below {10 * i} have exactly {i} divisors and are no squares?" for i in range(2, 12)]


def write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """Ten good problems, five that a step each leaves out, and two rows that are none."""
    bad = ["Prove that there is no largest prime.", GOOD[0], "Find x.", "Which of the following is a prime number?"]
    asked = [{"problem": text, "answer": str(i), "level": i} for i, text in enumerate([*GOOD, *bad])]
    write_lines(tmp_path / "asked.jsonl", [*asked, {"problem": "No answer?"}, {"problem": " ", "answer": "1"}])
    solved = [{"id": "s", "problem": GOOD[3] + " Or of cubes?", "solution": r"It is $\boxed{\frac12}$."}]
    (tmp_path / "solved.json").write_text(json.dumps(solved))
    (tmp_path / "empty.jsonl").touch()
    write_lines(tmp_path / "benchmark.jsonl", [{"question": GOOD[9]}])
    config = {
        "name": "made",
        "folder": str(tmp_path),
        "output_dir": str(tmp_path / "out"),
        "sources": {
            "asked": {"path": "${folder}/asked.jsonl", "prompt_key": "problem", "meta_keys": ["level"]},
            "solved": {
                "path": "${folder}/solved.json",
                "prompt_key": "problem",
                "answer_key": "solution",
                "answer_is_boxed": True,
            },
        },
        "steps": {
            "length": {},
            "multiple_choice": {},
            "proof": None,
            "exact_duplicates": {},
            "decontamination": {
                "ngram": 13,
                "benchmarks": {"b": {"path": "${folder}/benchmark.jsonl", "prompt_key": "question"}},
            },
        },
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    return tmp_path / "recipe.yaml"


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_every_problem_is_accounted_for(recipe: Path) -> None:
    report = build(load_recipe(recipe, ["steps.proof={}"]))
    folder = recipe.parent / "out/made_left_out"
    assert json.loads((folder / "report.json").read_text()) == report
    assert {step["name"]: step["in"] - step["out"] for step in report["steps"]} == {
        "read": 2,
        "length": 1,
        "multiple_choice": 1,
        "proof": 1,
        "exact_duplicates": 1,
        "decontamination": 1,
    }
    for step, later in zip(report["steps"], report["steps"][1:], strict=False):
        assert step["out"] == later["in"]
        left_out = (folder / f"{step['name']}.jsonl").read_text().splitlines()
        assert len(left_out) == step["in"] - step["out"] == sum(step["left_out_by_source"].values())
        assert all(json.loads(line)["reason"] for line in left_out)
    assert report["problems"] == report["steps"][-1]["out"] == sum(report["by_source"].values()) == 10
    assert report["by_source"] == {"asked": 9, "solved": 1}


def test_what_is_made_can_be_trained_on(recipe: Path) -> None:
    build(load_recipe(recipe))
    made = recipe.parent / "out/made.jsonl"
    problems = load_problems(DataConfig(path=str(made)))
    assert problems[0].id == "asked/1"
    assert problems[-1].id == "solved/s"
    assert problems[-1].answer == r"\frac12"
    first = json.loads(made.read_text().splitlines()[0])
    assert first == {"id": "asked/1", "prompt": GOOD[0], "answer": "0", "source": "asked", "meta": {"level": 0}}


def test_the_same_recipe_gives_the_same_bytes(recipe: Path) -> None:
    build(load_recipe(recipe))
    once = bytes_of(recipe.parent / "out")
    build(load_recipe(recipe))
    assert bytes_of(recipe.parent / "out") == once


def test_beyond_the_samples_only_the_reason_is_kept(recipe: Path) -> None:
    build(load_recipe(recipe, ["samples_per_step=1", "steps.length.min_words=12", "steps.exact_duplicates=null"]))
    lines = (recipe.parent / "out/made_left_out/length.jsonl").read_text().splitlines()
    assert ["prompt" in json.loads(line) for line in lines] == [True, False, False]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("steps.lenght={}", "steps.lenght: no such step; there are length, language, "),
        ("steps.length.min_word=3", "steps.length: unknown key 'min_word'; did you mean 'min_words'?"),
        ("steps.length.min_words=many", "steps.length: min_words: Value 'many' of type 'str' could not be converted"),
        ("steps.length.min_words=99", "made: no problem is left after length: asked/1: 13 words"),
        ("sources.asked.path=none.jsonl", "none.jsonl: no such file; correct the path"),
        ("sources.asked.path=none.csv", "none.csv: .csv; it must be .jsonl, .json or .parquet"),
        ("sources.asked.prompt_key=text", "sources.asked: none of its 16 rows is a problem; asked/1: no column 'text'"),
        ("sources.asked.hub=a/b", "sources.asked: give it path or hub, and not both"),
        ("steps.decontamination.ngram=0", "decontamination: ngram=0, benchmarks=['b']; give it both"),
        ("name=a/b", "name='a/b': it must be the name of a file, without its folder"),
        ("steps.decontamination.benchmarks.b.path=${folder}/empty.jsonl", "benchmarks.b: "),
        ("steps.decontamination.benchmarks.b.path=null", "a source with path=None, hub=None; give it one of them"),
        ("sources=null", "recipe.yaml: sources: field 'sources' is not Optional"),
    ],
)
def test_bad_input_is_one_line_and_leaves_what_was_there(recipe: Path, override: str, message: str) -> None:
    build(load_recipe(recipe))
    before = bytes_of(recipe.parent / "out")
    with pytest.raises(InputError) as caught:
        build(load_recipe(recipe, [override]))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert bytes_of(recipe.parent / "out") == before


@pytest.mark.parametrize("name", ["made.jsonl", "made_left_out/thesis.txt"])
def test_what_was_not_built_is_not_replaced(recipe: Path, name: str) -> None:
    path = recipe.parent / "out" / name
    path.parent.mkdir(parents=True)
    path.write_text("years of work")
    with pytest.raises(InputError, match="is there, and no dataset was built; remove it, or set another name or out"):
        build(load_recipe(recipe))
    assert path.read_text() == "years of work"


def test_rows_that_cannot_be_kept_are_left_out(recipe: Path) -> None:
    rows = [
        {"id": "a", "problem": GOOD[0], "answer": "1", "domain": "algebra", "level": None},
        {"id": "a", "problem": GOOD[1], "answer": "1"},
        {"id": "b", "problem": GOOD[2], "answer": "1", "level": float("nan")},
        {"id": "c", "problem": GOOD[3], "answer": "1", "level": "\ud800"},
        {"id": "d", "problem": GOOD[4], "answer": None},
    ]
    write_lines(recipe.parent / "asked.jsonl", rows)
    report = build(load_recipe(recipe))
    assert report["by_source"] == {"asked": 1, "solved": 1}
    lines = (recipe.parent / "out/made_left_out/read.jsonl").read_text().splitlines()
    reasons = [json.loads(line)["reason"] for line in lines]
    assert [reason.partition(":")[0] for reason in reasons] == [
        "id 'a' is also an earlier row's",
        "columns ['level'] cannot be kept",
        "columns ['level'] cannot be kept",
        "column 'answer' is None (NoneType); it must be a string",
    ]


def test_days_are_kept_as_such(tmp_path: Path) -> None:
    rows = [{"prompt": "one", "answer": "1", "day": datetime.datetime(2024, 9, 1, 12)}]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "rows[1].parquet")
    source = SourceConfig(path=str(tmp_path / "rows[1].parquet"), meta_keys=("day",))
    (row,) = read_source("s", source, Domain.MATH)
    assert isinstance(row, Candidate)
    assert row.meta == {"day": "2024-09-01T12:00:00"}


def test_parquet_is_read_and_datasets_as_the_hub_has_them(tmp_path: Path) -> None:
    rows = [{"problem": "one", "answer": "1"}, {"problem": "two", "answer": "2"}]
    path = tmp_path / "dataset" / "rows.parquet"
    path.parent.mkdir()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    assert list(read_rows(SourceConfig(path=str(path)))) == list(enumerate(rows, start=1))
    assert list(read_rows(SourceConfig(hub=str(path.parent)))) == list(enumerate(rows, start=1))
    with pytest.raises(InputError, match=r"dataset: cannot be read: .*split"):
        list(read_rows(SourceConfig(hub=str(path.parent), split="other")))
    path.write_bytes(b"PAR1 and nothing more")
    with pytest.raises(InputError, match=r"rows.parquet: cannot be read: "):
        list(read_rows(SourceConfig(path=str(path))))


def test_the_command(recipe: Path) -> None:
    done = megatron_rl("data", "build", recipe)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["problems"] == 11
    assert "exact_duplicates" in done.stderr
    refused("steps.lenght: no such step", "data", "build", recipe, "steps.lenght={}")
