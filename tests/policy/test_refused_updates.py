"""Updates that guards refuse, on real ranks: all of them refuse together, and nothing has changed by a bit."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from chaos import without_times
from ranks import run_job

from megatron_rl.run_folder import RunFolder

LAYOUTS = {"tp2": 2, "dp2": 1}
PRECISIONS = ["fp32", "bf16", "small_gradients"]
WRONG = {
    ("tp2", "nan_loss"): "not_finite: train/grad_norm=nan ",  # of a tensor-parallel group one rank tells the loss
    ("dp2", "nan_loss"): "not_finite: train/loss=nan ",
    ("tp2", "nan_gradient"): "not_finite: train/grad_norm=nan ",
    ("dp2", "nan_gradient"): "not_finite: train/grad_norm=nan ",
    ("tp2", "spike"): "grad_norm: train/grad_norm=",
    ("dp2", "spike"): "grad_norm: train/grad_norm=",
}


RARE = [pytest.mark.long, pytest.mark.rare]


@pytest.fixture(scope="module", params=["dp2", pytest.param("tp2", marks=RARE)])
def layout(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def refused(layout: str, model_folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    arguments = {"model": str(model_folders["untied"]), "ranks": 2, "tp": LAYOUTS[layout], "case": "policy"}
    found: dict[str, Any] = run_job("guards.py", arguments, 2, tmp_path_factory.mktemp(layout), seconds=600)
    return found


@pytest.mark.parametrize("when", ["first", "later"])
@pytest.mark.parametrize("way", ["nan_loss", "nan_gradient", "spike"])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_all_ranks_refuse_together_and_not_one_bit_has_changed(
    refused: dict[str, Any], layout: str, precision: str, way: str, when: str
) -> None:
    if (way, when) == ("spike", "first"):
        assert way not in refused[precision][when]  # there is no norm yet to compare with
        return
    found = refused[precision][when][way]
    assert found["messages"][0].startswith(WRONG[layout, way])
    assert found["messages"] == found["messages"][:1] * 2
    assert found["unchanged"] == [True, True]


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_policy_goes_on_as_if_the_refused_updates_had_not_been(refused: dict[str, Any], precision: str) -> None:
    assert refused[precision]["goes_on_the_same"] == [True, True]


@pytest.mark.parametrize("clip_grad", ["0.0", "0.01"])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_step_in_its_parts_is_megatrons_own_to_the_bit(
    refused: dict[str, Any], precision: str, clip_grad: str
) -> None:
    assert refused[precision]["steps_are_megatrons"][clip_grad] == [True, True]


# A whole stage of SFT --------------------------------------------------------------------------------------------

SPOILT = {"2": "nan_loss", "4": "nan_gradient", "8": "spike", "9": "nan_loss"}
SETTINGS = {
    "algorithm": "sft",
    "sft": {"global_batch_size": 4, "max_num_steps": 12},
    "grpo": None,
    "generation": None,
    "cluster__gpus_per_node": 2,
    "guards": {"on_trip": "skip", "max_consecutive_skips": 1, "max_grad_norm_ratio": 50.0},
    "policy__optimizer": {"lr": 1e-3, "lr_warmup_steps": 12},
    "checkpointing__save_period": 1,
    "checkpointing__keep_last": 12,
    "logger__tensorboard_enabled": False,
}


class Stage:
    """A stage that was spoilt until a guard stopped it."""

    def __init__(self, model: Path, data: Path, folder: Path) -> None:
        self.run = RunFolder(folder / "run")
        given = {"model": str(model), "data": str(data), "case": "sft", "settings": SETTINGS, "spoilt": SPOILT}
        run_job("guards.py", given, 2, folder, seconds=600)
        self.lines = without_times(self.run.metric_lines())
        self.stopped = [(folder / f"stopped_{rank}.txt").read_text() for rank in range(2)]
        log = (folder / "rank_0.log").read_text().splitlines()
        self.warnings = [line for line in log if line.startswith("warning: ")]


@pytest.fixture(scope="module")
def examples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "examples.jsonl"
    lines = [
        {"id": f"e{i}", "prompt": f"{i} + {i} =", "answer": f"{2 * i}", "response": f"twice {i}"} for i in range(8)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture(scope="module")
def whole(model_folders: dict[str, Path], examples: Path, tmp_path_factory: pytest.TempPathFactory) -> Stage:
    return Stage(model_folders["untied"], examples, tmp_path_factory.mktemp("whole"))


def test_a_stage_skips_what_is_spoilt_and_logs_it(whole: Stage) -> None:
    skipped = {line["step"]: line["train/skipped_update"] for line in whole.lines}
    assert skipped == {step: 1.0 if step in (3, 5, 9) else 0.0 for step in range(1, 10)}
    by_step = {line["step"]: line for line in whole.lines}
    assert by_step[3]["train/loss"] is None
    assert by_step[5]["train/grad_norm"] is None
    assert by_step[9]["train/grad_norm"] > 50 * by_step[8]["train/grad_norm"]
    for step, line in by_step.items():
        assert line.get("train/lr") == (None if skipped[step] else pytest.approx(1e-3 * (step - 1) / 12))


def test_people_are_warned_of_each_and_find_the_examples(whole: Stage) -> None:
    loss, gradient, norm = whole.warnings
    assert loss.startswith("warning: step 3: train/loss=nan is no finite number; batch skipped (1 in a row, at most 1)")
    assert "; worst: example 'e" in loss
    assert gradient.startswith("warning: step 5: train/grad_norm=nan is no finite number; batch skipped")
    assert norm.startswith("warning: step 9: train/grad_norm=")
    assert "the median of the last 6 updates, above guards.max_grad_norm_ratio=50.0; batch skipped" in norm
    for name in ("not_finite_step_3", "not_finite_step_5", "grad_norm_step_9", "not_finite_step_10"):
        records = [json.loads(line) for line in whole.run.samples(name).read_text().splitlines()]
        assert len({record["id"] for record in records}) == 4
        means = [record["mean_log_prob"] for record in records]
        assert means == sorted(means)


def test_a_stage_that_is_spoilt_again_and_again_stops_on_all_ranks(whole: Stage) -> None:
    message, other = whole.stopped
    print(message)
    assert message == other
    assert "\n" not in message
    assert message.startswith("step 10: train/loss=nan is no finite number; worst: example 'e")
    assert f"all samples: {whole.run.samples('not_finite_step_10')}. " in message
    assert "The update was not made, after 1 skipped in a row; if the same step does it again" in message


def test_a_stage_that_was_killed_decides_alike(
    whole: Stage, model_folders: dict[str, Path], examples: Path, tmp_path: Path
) -> None:
    """From the checkpoint before the spike, whose norm is compared with those of steps before the kill."""
    shutil.copytree(whole.run.path, tmp_path / "run")
    for checkpoint in RunFolder(tmp_path / "run").checkpoints()[8:]:
        shutil.rmtree(checkpoint)
    resumed = Stage(model_folders["untied"], examples, tmp_path)
    assert resumed.lines == whole.lines
    assert len(resumed.warnings) == 1
    assert [text.replace(str(tmp_path), str(whole.run.path.parent)) for text in resumed.stopped] == whole.stopped
