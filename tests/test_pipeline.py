"""Pipelines: what every stage is given, and what is refused."""

import json
import re
import signal
from pathlib import Path
from typing import Any

import pytest
import yaml

from megatron_rl import pipeline, preemption
from megatron_rl.config.schema import TrainConfig
from megatron_rl.errors import InputError
from megatron_rl.pipeline import load_pipeline, run_pipeline
from megatron_rl.run_folder import RunFolder, write_json

STAGE = {
    "algorithm": "grpo",
    "name": "own_name",
    "output_dir": "own_dir",
    "cluster": {"gpus_per_node": 2},
    "generation": {"max_new_tokens": 8},
    "grpo": {"max_num_steps": 4},
    "policy": {"model_name": "own_model", "from_checkpoint": "own_checkpoint", "max_total_sequence_length": 64},
    "data": {"path": "data.jsonl"},
}
SCRATCH = {
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "vocab_size": 300,
    "max_position_embeddings": 64,
}


@pytest.fixture
def write(tmp_path: Path) -> Any:
    def write_pipeline(first_policy: dict[str, Any] | None = None, **pipeline: Any) -> Path:
        first_policy = first_policy or {"model_name": "first_model"}
        first = STAGE | {"policy": {"max_total_sequence_length": 64} | first_policy}
        (tmp_path / "first.yaml").write_text(yaml.safe_dump(first))
        (tmp_path / "later.yaml").write_text(yaml.safe_dump(STAGE))
        stages = [
            {"name": "sft", "recipe": "first.yaml"},
            {"name": "math", "recipe": "later.yaml"},
            {"name": "code", "recipe": "later.yaml"},
        ]
        path = tmp_path / "pipeline.yaml"
        path.write_text(yaml.safe_dump({"name": "demo", "stages": stages} | pipeline))
        return path

    return write_pipeline


def test_every_stage_lies_in_the_pipelines_folder_under_its_own_name(write: Any) -> None:
    _, stages = load_pipeline(write(output_dir="out"), [])
    assert [stage.run_dir for stage in stages] == ["out/demo/sft", "out/demo/math", "out/demo/code"]


def test_every_stage_has_the_pipelines_seed(write: Any) -> None:
    assert {stage.seed for stage in load_pipeline(write(seed=5), [])[1]} == {5}
    assert {stage.seed for stage in load_pipeline(write(seed=5), ["seed=6"])[1]} == {6}


def test_each_stage_starts_from_the_one_before_it(write: Any) -> None:
    _, (sft, math, code) = load_pipeline(write(), [])
    assert sft.policy.from_checkpoint is None
    assert math.policy.from_checkpoint == sft.run_dir
    assert code.policy.from_checkpoint == math.run_dir
    assert {stage.policy.model_name for stage in (sft, math, code)} == {"first_model"}


def test_a_model_made_from_scratch_is_handed_on_as_a_folder(write: Any) -> None:
    _, (sft, math, code) = load_pipeline(write({"from_scratch": SCRATCH}), [])
    assert sft.policy.from_scratch is not None
    assert sft.policy.model_name is None
    for stage in (math, code):
        assert stage.policy.from_scratch is None
        assert stage.policy.model_name == f"{sft.run_dir}/model"


def test_overrides_by_stage_win_over_those_of_all_stages(write: Any) -> None:
    stages = [
        {"name": "sft", "recipe": "first.yaml"},
        {"name": "math", "recipe": "later.yaml", "overrides": {"policy.optimizer.lr": 0.5, "grpo.max_num_steps": 9}},
    ]
    path = write(stages=stages, overrides={"policy.optimizer.lr": 0.25})
    _, (sft, math) = load_pipeline(path, ["math.grpo.max_num_steps=2", "math.generation.temperature=0.9"])
    assert (sft.policy.optimizer.lr, sft.max_num_steps) == (0.25, 4)
    assert (math.policy.optimizer.lr, math.max_num_steps) == (0.5, 2)
    assert sft.generation is not None
    assert math.generation is not None
    assert (sft.generation.temperature, math.generation.temperature) == (1.0, 0.9)


@pytest.mark.parametrize(
    ("pipeline", "overrides", "message"),
    [
        ({"stages": []}, [], "stages is empty"),
        ({"stages": [{"name": "a", "recipe": "first.yaml"}] * 2}, [], "two stages share a name"),
        ({"stages": [{"name": "a", "recipe": "gone.yaml"}]}, [], "gone.yaml: no such recipe"),
        ({"stages": [{"name": "a"}]}, [], "recipe"),
        ({"stages": [{"recipe": "first.yaml"}]}, [], "name"),
        ({"stages": [{"name": "a", "recipe": "first.yaml", "overides": {}}]}, [], "overides"),
        ({"unknown": 1}, [], "unknown"),
        ({}, ["sead=2"], "sead"),
        ({}, ["math.grpo.max_steps=2"], "stage 'math': unknown key 'grpo.max_steps'; did you mean"),
        ({}, ["math.generation.top_p=0.9"], "generation.top_p=0.9"),
        ({}, ["math=3"], "math"),
        ({"overrides": {"grpo.max_steps": 1}}, [], "unknown key 'grpo.max_steps'"),
        ({"stages": "first.yaml"}, [], "stages"),
        ({"stages": ["first.yaml"]}, [], "stages"),
    ],
    ids=repr,
)
def test_a_bad_pipeline_is_refused_in_one_line(
    write: Any, pipeline: dict[str, Any], overrides: list[str], message: str
) -> None:
    with pytest.raises(InputError, match=re.escape(message)) as caught:
        load_pipeline(write(**pipeline), overrides)
    assert "\n" not in str(caught.value)


def test_finished_stages_are_skipped_and_summed_up(write: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With every stage's `summary.json` in place nothing runs, and the pipeline's own is written from them."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data.jsonl").write_text('{"prompt": "1+1=", "answer": "2"}\n')
    config, stages = load_pipeline(write(), [])
    for stage in stages:
        folder = Path(stage.run_dir)
        folder.mkdir(parents=True)
        (folder / "summary.json").write_text(json.dumps({"name": stage.name, "backend": {"device": "cpu"}}))
        (folder / "metrics.jsonl").write_text(json.dumps({"step": 1, "train/reward": 0.5}) + "\n")
    assert run_pipeline(config, stages) == 0
    summary = json.loads((tmp_path / "runs" / "demo" / "summary.json").read_text())
    assert [stage["name"] for stage in summary["stages"]] == ["sft", "math", "code"]
    assert summary["backend"] == {"device": "cpu"}
    assert summary["seconds"] >= 0
    assert (tmp_path / "runs" / "demo" / "report.html").is_file()


@pytest.mark.parametrize(("told_in", "status"), [("math", 75), ("code", 0)])
def test_told_to_stop_in_a_stages_last_step_it_does_not_start_the_next(
    write: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told_in: str, status: int
) -> None:
    """Ranks that have ended well know nothing of it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data.jsonl").write_text('{"prompt": "1+1=", "answer": "2"}\n')
    ran = []

    def ends_well(config: TrainConfig, arguments: list[str]) -> int:
        ran.append(config.name)
        folder = RunFolder(Path(config.run_dir))
        write_json(folder.summary, {"name": config.name, "backend": {"device": "cpu"}})
        folder.metrics.write_text(json.dumps({"step": 1, "train/reward": 0.5}) + "\n")
        if config.name == told_in:
            preemption.note(signal.SIGTERM, None)
        return 0

    monkeypatch.setattr(pipeline, "run_ranks", ends_well)
    monkeypatch.setattr(pipeline, "preflight", lambda config: None)
    monkeypatch.setattr(preemption, "_terminated", False)
    assert run_pipeline(*load_pipeline(write(), [])) == status
    assert ran == ["sft", "math", "code"][: 2 if status else 3]


def test_the_first_stages_files_are_checked_before_anything_runs(
    write: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config, stages = load_pipeline(write(), [])
    with pytest.raises(InputError, match=r"data\.jsonl: no such file"):
        run_pipeline(config, stages)
