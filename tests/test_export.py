"""Exports beside the training: their model card, and that none fails unseen."""

import json
import re
from pathlib import Path

import psutil
import pytest
import yaml
from tiny import train_config
from waiting import eventually

from megatron_rl.errors import RunStopped
from megatron_rl.export import BackgroundExport
from megatron_rl.model_card import model_card
from megatron_rl.run_folder import RunFolder


def test_a_failed_export_stops_the_run_and_names_its_log(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    exporter = BackgroundExport(run, pytest.fail)
    exporter.start(3, tmp_path / "out")
    with pytest.raises(RunStopped, match=r"ended with status 2; see .*export\.log"):
        exporter.wait()
    assert "step_3: holds no hf/ with config" in (run.logs / "export.log").read_text()
    exporter.wait()  # it is over: nothing more to say


def test_of_an_export_that_failed_before_the_last_one_people_are_told(tmp_path: Path) -> None:
    said: list[str] = []
    exporter = BackgroundExport(RunFolder(tmp_path / "run"), said.append)
    exporter.start(3, tmp_path / "out")
    exporter.start(5, tmp_path / "out")
    assert re.match(r"step 3: the export to Hugging Face ended with status 2; see .*export\.log", said.pop())
    assert eventually(lambda: not exporter.is_busy())
    assert said.pop().startswith("step 5: ")


def test_an_export_does_not_heed_sigterm(tmp_path: Path) -> None:
    exporter = BackgroundExport(RunFolder(tmp_path / "run"), pytest.fail)
    exporter.start(3, tmp_path / "out")
    assert exporter._process is not None
    process = psutil.Process(exporter._process.pid)
    assert eventually(lambda: "megatron_rl" in process.cmdline() and process.name() != "sh")
    process.terminate()
    with pytest.raises(RunStopped, match="status 2"):  # of a step that is not there
        exporter.wait()


def test_the_model_card_tells_recipe_step_and_the_latest_metrics(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    lines = [
        {"step": 0, "time": 1.0, "validation/accuracy": 0.25},
        {"step": 4, "time": 2.0, "train/reward": 0.5, "train/entropy": None, "timing/generation": 3.0},
        {"step": 8, "time": 3.0, "train/reward": 0.75, "validation/accuracy": 0.625},
    ]
    run.metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
    config = train_config("model", grpo__max_num_steps=8)
    card = model_card(config, run, 4)
    assert "# test, step 4 of 8" in card
    assert "| train/reward | 0.5 |" in card
    assert "| validation/accuracy | 0.25 |" in card
    assert "timing/" not in card.partition("## Recipe")[0]
    front, _, rest = card.removeprefix("---\n").partition("---\n")
    assert yaml.safe_load(front)["tags"] == ["grpo", "math", "megatron_rl"]
    recipe = yaml.safe_load(rest.partition("```yaml\n")[2].removesuffix("```\n"))
    assert recipe["grpo"]["max_num_steps"] == 8
