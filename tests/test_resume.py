"""A run that is started again is as one that never stopped, wherever it had stopped, and makes nothing twice."""

import json
from pathlib import Path
from typing import Any

import pytest
from chaos import without_times
from ranks import run_job


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "problems.jsonl"
    lines = [{"prompt": f"{i} + 1 =", "answer": str(i + 1), "response": f"It is {i + 1}."} for i in range(12)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def started_again(case: str, models: dict[str, Path], data: Path, folder: Path) -> dict[str, Any]:
    arguments = {"model": str(models["untied"]), "data": str(data), "case": case}
    result: dict[str, Any] = run_job("resume.py", arguments, 1, folder)
    return result


def test_from_the_start_an_epoch_border_and_the_end(model_folders: dict[str, Path], data: Path, tmp_path: Path) -> None:
    runs = started_again("edges", model_folders, data, tmp_path)
    whole = runs.pop("-1")
    assert whole["updates"] == 6
    assert [line["step"] for line in whole["lines"]] == [1, 2, 3, 4, 5, 6]
    for step, run in runs.items():
        assert run["updates"] == 6 - int(step)
        assert run["weights"] == whole["weights"]
        assert without_times(run["lines"]) == without_times(whole["lines"])
        assert run["is_finished"]
        assert run["lines"][: int(step)] == whole["lines"][: int(step)], "what was done is not logged anew"


def test_a_stop_in_a_validation_is_heeded_and_the_validation_made_up_for(
    model_folders: dict[str, Path], data: Path, tmp_path: Path
) -> None:
    """Two sets are validated on before and after each of two steps; told to stop in one or the other set at the start,
    after the first step, and at the end."""
    found = started_again("stopped", model_folders, data, tmp_path)
    after = "told to stop after step {}, which is saved; start the same command again"
    assert found["said"] == ["told to stop; start the same command again", 1, after.format(1), 3, after.format(2), 4, 2]
    whole, stopped = found["whole"], found["stopped"]
    assert stopped["updates"] == 2
    assert stopped["weights"] == whole["weights"]
    assert stopped["is_finished"]
    assert without_times(stopped["lines"]) == without_times(whole["lines"])
    assert all("validation/again/accuracy" in line for line in whole["lines"])


@pytest.mark.long
def test_a_crash_in_an_update_does_not_cost_the_generation(
    model_folders: dict[str, Path], data: Path, tmp_path: Path
) -> None:
    """After step 1 there was a checkpoint, of step 2 and 3 the samples."""
    found = started_again("crash", model_folders, data, tmp_path)
    updates, generations = zip(*found["counts"], strict=True)
    assert updates == (3, 3)
    assert generations == (3, 1)
    assert found["steps"] == [1, 2, 3, 4]
