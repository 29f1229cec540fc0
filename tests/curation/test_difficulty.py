"""The sets of the paper's stages, by what an evaluation has found."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from megatron_rl.config.schema import DataConfig
from megatron_rl.curation.build import build
from megatron_rl.curation.difficulty import Difficulty
from megatron_rl.curation.recipe import load_recipe
from megatron_rl.curation.sources import Candidate, read_source
from megatron_rl.data.problems import load_problems
from megatron_rl.errors import InputError

RECIPES = Path(__file__).parents[2] / "recipes" / "data"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """`math.jsonl`, and its evaluation: problem N passed in N of 16 attempts, the last one was not asked."""
    rows = [{"id": f"raw/{n}", "problem": f"Find the number {n}.", "answer": str(n)} for n in range(18)]
    write(tmp_path / "math.jsonl", rows)
    (tmp_path / "scores/math").mkdir(parents=True)
    write(tmp_path / "scores/math/problems.jsonl", [score(n) for n in range(17)])
    return tmp_path


def score(passes: int, **changes: Any) -> dict[str, Any]:
    found = {
        "id": f"raw/{passes}",
        "pass_rate": passes / 16,
        "majority": float(passes > 8),
        "length_mean": 500.0 * passes,
    }
    return found | changes


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.mark.parametrize(("band", "most"), [("easy", 14), ("medium", 10), ("hard", 6)])
def test_the_papers_sets(band: str, most: int, folder: Path) -> None:
    recipe = load_recipe(RECIPES / f"math_{band}.yaml", [f"folder={folder}", f"output_dir={folder}"])
    report = build(recipe)
    path = folder / f"math_{band}.jsonl"
    problems = load_problems(DataConfig(path=str(path), prompt_key="problem"))
    assert [problem.id for problem in problems] == [f"math/raw/{n}" for n in range(most + 1)]
    assert report["steps"][-1]["in"] == 18


def reasons(folder: Path, **settings: Any) -> dict[str, str | None]:
    recipe = load_recipe(RECIPES / "math_band.yaml", [f"folder={folder}", f"output_dir={folder}"])
    step = Difficulty(scores=str(folder / "scores/math/problems.jsonl"), **settings)
    rows = read_source("math", recipe.sources["math"], recipe.domain)
    return {row.problem.id: step.why_not(row) for row in rows if isinstance(row, Candidate)}


def test_what_else_is_told_by_attempts(folder: Path) -> None:
    found = reasons(folder, min_pass_rate=2 / 16, right_majority=True, min_tokens=5000.0)
    assert found["math/raw/1"] == "passed in 6.2% of the attempts"
    assert found["math/raw/8"] == "the majority does not answer so"
    assert found["math/raw/9"] == "4500 tokens"
    assert found["math/raw/10"] is None
    assert found["math/raw/17"] == "not scored"


def test_short_ones_are_thinned_out(folder: Path) -> None:
    rows = [{"id": f"raw/{n}", "problem": "?", "answer": "1"} for n in range(400)]
    write(folder / "math.jsonl", rows)
    scores = [score(8, id=row["id"], length_mean=3000.0 if n % 2 else 5000.0) for n, row in enumerate(rows)]
    write(folder / "scores/math/problems.jsonl", scores)
    found = reasons(folder, thinned_below_tokens=4000.0, thinned_share=0.25)
    counts = Counter(found.values())
    assert set(counts) == {None, "3000 tokens, thinned"}
    assert counts[None] - 200 == pytest.approx(50, abs=5 * 6.1)  # five standard deviations
    assert reasons(folder, thinned_below_tokens=4000.0, thinned_share=0.25) == found


def test_another_file_is_refused(folder: Path) -> None:
    with pytest.raises(InputError, match=r"math.jsonl:1: no id, pass_rate and length_mean; eval --out writes them"):
        Difficulty(scores=str(folder / "math.jsonl"))
    with pytest.raises(InputError, match=r"difficulty: min_pass_rate=0\.0, max_pass_rate=87\.5; they are shares"):
        Difficulty(scores=str(folder / "scores/math/problems.jsonl"), max_pass_rate=87.5)
