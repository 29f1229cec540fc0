"""A stage with everything that is off by default, on a real engine: resumed, it has the metrics of one left alone."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from chaos import without_times
from ranks import run_job
from test_gate import SETTINGS, data

from megatron_rl.data.scores import Score, read_scores
from megatron_rl.run_folder import RunFolder

__all__ = ["data"]
STEPS, CUT = 4, 2
OPTIONS = {
    "grpo__max_num_steps": STEPS,
    "grpo__loss_normalizer": "group_tokens",
    "grpo__reward_std": "none",
    "grpo__dynamic_sampling_max_batches": 3,
    "grpo__epoch_filter": True,
    "grpo__epoch_filter_keep_hard": 0.5,
    "grpo__overlong_buffer_length": 8,
    "grpo__updates_per_batch": 2,
    "grpo__ratio_clip_max": 0.28,
    "grpo__ratio_clip_c": 3.0,
    "grpo__reference_policy_kl_penalty": 0.05,
    "grpo__entropy_bonus": 0.01,
    "grpo__rollout_correction": "sequence",
    "policy__optimizer": {"lr": 3e-4, "lr_warmup_steps": 0},
}


EASY = "p7"
"""A problem that all samples had passed before the stage began."""


def launch(model: Path, problems: Path, folder: Path) -> list[dict[str, Any]]:
    scores = folder / "scores.jsonl"
    ids = [f"p{number}" for number in range(8)]
    rows = [{"id": name, "pass_rate": 1.0 if name == EASY else 0.5, "length_mean": 99.0} for name in ids]
    scores.write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = SETTINGS | OPTIONS | {"grpo__problem_scores": str(scores)}
    given = {"model": str(model), "data": str(problems), "case": "train", "sparse": True, "wrong": []}
    message = run_job("gate.py", given | {"settings": settings}, 1, folder, seconds=900)
    assert message == ""
    return without_times(RunFolder(folder / "run").metric_lines())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("options")


@pytest.fixture(scope="module")
def lines(model_folders: dict[str, Path], data: Path, folder: Path) -> list[dict[str, Any]]:
    return launch(model_folders["untied"], data, folder)


def test_the_run_says_whose_kernels_it_uses(lines: list[dict[str, Any]], folder: Path) -> None:
    said = (folder / "rank_0.log").read_text()
    assert "kernels: attention torch, norms torch, linear layers torch, optimizer torch, gradient clipping" in said


def test_a_step_has_as_many_batches_as_it_takes(lines: list[dict[str, Any]]) -> None:
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    assert [line["generation/batches"] for line in lines] == [2.0] * STEPS
    assert all(line["train/zero_advantage_fraction"] == 0.5 for line in lines)


def test_what_is_known_of_problems_is_heeded_and_kept(lines: list[dict[str, Any]], folder: Path) -> None:
    run = RunFolder(folder / "run")
    records = [json.loads(line) for step in range(STEPS) for line in run.samples(f"step_{step + 1}").open()]
    assert {record["id"] for record in records} == {f"p{number}" for number in range(7)}
    found = read_scores(run.problems)
    assert found.pop(EASY) == Score(1.0, 99.0)
    assert {score.pass_rate for score in found.values()} == {0.0}  # of a random model
    assert all(0 < score.length_mean <= 16 for score in found.values())
    assert len(found) == 7


def test_the_policy_leaves_its_reference(lines: list[dict[str, Any]]) -> None:
    assert abs(lines[0]["train/reference_kl"]) < lines[-1]["train/reference_kl"]
    assert all(line["train/correction_weight"] == pytest.approx(1, abs=1e-2) for line in lines)


def test_long_responses_cost_reward(lines: list[dict[str, Any]]) -> None:
    assert all(line["train/shaped_reward"] < line["train/reward"] for line in lines)


def test_a_resumed_stage_has_the_metrics_of_one_left_alone(
    lines: list[dict[str, Any]], model_folders: dict[str, Path], data: Path, folder: Path, tmp_path: Path
) -> None:
    """The order of filtered problems, pass rates, lengths and the reference policy come back."""
    shutil.copytree(folder / "run", tmp_path / "run")
    for checkpoint in RunFolder(tmp_path / "run").checkpoints()[CUT:]:
        shutil.rmtree(checkpoint)
    assert launch(model_folders["untied"], data, tmp_path) == lines
