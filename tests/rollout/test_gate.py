"""The gate between engine and policy, with a real engine: batches that the policy would not have sampled do nothing,
nor does a policy that is broken.

One rank and an engine that is left behind; then whole stages on two ranks, with weight syncs that bring wrong weights.
"""

import json
import math
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from chaos import without_times
from ranks import run_job

from megatron_rl.run_folder import RunFolder

FP32_BOUND = 1.001
STEPS = 10
SETTINGS = {
    "grpo__num_prompts_per_step": 4,
    "grpo__num_generations_per_prompt": 4,
    "grpo__max_num_steps": STEPS,
    "generation__max_new_tokens": 16,
    "policy__optimizer": {"lr": 3e-3, "lr_warmup_steps": 3},
    "checkpointing__save_period": 1,
    "checkpointing__keep_last": STEPS,
    "logger__tensorboard_enabled": False,
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "problems.jsonl"
    problems = [{"id": f"p{i}", "prompt": f"{i} + {i} =", "answer": str(2 * i)} for i in range(8)]
    path.write_text("".join(json.dumps(problem) + "\n" for problem in problems))
    return path


def launch(model: Path, data: Path, folder: Path, case: str, ranks: int = 1, **arguments: Any) -> Any:
    settings = SETTINGS | {"cluster__gpus_per_node": ranks} | arguments.pop("settings", {})
    given = {"model": str(model), "data": str(data), "case": case, "settings": settings, **arguments}
    return run_job("gate.py", given, ranks, folder, seconds=900)


# One batch at a time ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def gate_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("gate")


@pytest.fixture(scope="module")
def gate(model_folders: dict[str, Path], data: Path, gate_folder: Path) -> dict[str, Any]:
    result: dict[str, Any] = launch(
        model_folders["untied"], data, gate_folder, "gate", settings={"policy__optimizer": {"lr_warmup_steps": 0}}
    )
    return result


@pytest.mark.parametrize("name", ["healthy", "synced_again"])
def test_a_batch_of_the_engines_own_policy_is_trained_on(gate: dict[str, Any], name: str) -> None:
    assert gate[name]["train/token_mult_prob_error"] == pytest.approx(1, abs=1e-4)
    assert gate[name]["train/skipped_update"] == 0.0
    assert gate[name]["train/grad_norm"] > 0


@pytest.mark.parametrize("name", ["behind", "stale", "perturbed", "nan"])
def test_a_batch_of_another_policy_changes_not_one_bit(gate: dict[str, Any], name: str) -> None:
    """Behind: by one update. Stale: that too, with the right version. Perturbed: every weight off by 1%."""
    assert gate[name]["message"]
    assert gate[name]["unchanged"]


def test_an_engine_that_missed_a_sync_is_named_by_its_version(gate: dict[str, Any]) -> None:
    message = gate["behind"]["message"]
    assert message.startswith("step 2: 16 of 16 samples are of policy version 0 and not of version 1, which is trained")
    assert "prompt 0, sample 0" in message


@pytest.mark.parametrize(
    ("name", "step", "guard"), [("stale", 2, "mismatch"), ("perturbed", 3, "mismatch"), ("nan", 5, "not_finite")]
)
def test_the_message_tells_the_error_and_the_worst_tokens(
    gate: dict[str, Any], gate_folder: Path, name: str, step: int, guard: str
) -> None:
    message = gate[name]["message"]
    print(message)
    assert message.count(": rollout -") == 3
    assert "\n" not in message
    path = RunFolder(gate_folder / "run").samples(f"{guard}_step_{step}")
    assert f"all samples: {path}. The update was not made; " in message
    records = [json.loads(line) for line in path.read_text().splitlines()]
    assert len(records) == 16
    assert {record["policy_version"] for record in records} == {step - 1}
    assert {record["advantage"] for record in records} == {1.0, -0.5}
    if name == "nan":
        assert message.startswith(f"step {step}: train/loss=nan is no finite number; worst: problem ")
        return
    assert message.startswith(f"step {step}: train/token_mult_prob_error=")
    assert f"is not within grpo.max_token_mult_prob_error={FP32_BOUND}: the engine does not sample" in message
    errors = [record["token_mult_prob_error"] for record in records]
    assert errors == sorted(errors, reverse=True)
    mean = sum(r["token_mult_prob_error"] * r["response_tokens"] for r in records) / sum(
        r["response_tokens"] for r in records
    )
    assert f"token_mult_prob_error={mean:.6g} " in message
    worst = max((token | record for record in records for token in record["worst_tokens"]), key=difference_of)
    assert f"worst: problem '{worst['id']}' sample {worst['sample']} token {worst['position']} " in message


def difference_of(token: dict[str, Any]) -> float:
    return abs(float(token["policy_log_prob"]) - float(token["rollout_log_prob"]))


def test_an_update_after_a_refused_one_is_as_if_that_had_not_been(gate: dict[str, Any]) -> None:
    assert gate["update_after_refusal"] == {"unchanged": True, "same": True, "moved": True}


def test_where_a_batchs_second_update_is_refused_the_learning_rate_still_goes_by_batch(gate: dict[str, Any]) -> None:
    found = gate["second_update_is_nan"]
    assert found == {"made": 1, "skipped": 1.0, "updates": 5 * 2}  # the fifth step ends there


# Whole stages ----------------------------------------------------------------------------------------------------

WRONG = [0, 1, 3, 5, 6, 7]  # weight syncs, each before the batch of the next step
SKIPPED, TRAINED, STOPPED = [1, 2, 4, 6, 7], [3, 5], 8


@dataclass
class Run:
    """A stage that skips what it cannot train on, until that is too much."""

    folder: Path
    message: str

    @property
    def lines(self) -> list[dict[str, Any]]:
        return without_times(RunFolder(self.folder / "run").metric_lines())

    @property
    def warnings(self) -> list[str]:
        return [line for line in (self.folder / "rank_0.log").read_text().splitlines() if line.startswith("warning: ")]


def run_and_skip(models: dict[str, Path], data: Path, folder: Path) -> Run:
    settings = {"guards": {"on_trip": "skip", "max_consecutive_skips": 2}}
    return Run(folder, launch(models["untied"], data, folder, "train", ranks=2, settings=settings, wrong=WRONG))


@pytest.fixture(scope="module")
def skipping(model_folders: dict[str, Path], data: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return run_and_skip(model_folders, data, tmp_path_factory.mktemp("skipping"))


@pytest.fixture(scope="module")
def resumed(skipping: Run, model_folders: dict[str, Path], data: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The run from the checkpoint of its first step: one that was skipped, and the next one will be."""
    folder = tmp_path_factory.mktemp("resumed")
    shutil.copytree(skipping.folder / "run", folder / "run")
    for checkpoint in RunFolder(folder / "run").checkpoints()[1:]:
        shutil.rmtree(checkpoint)
    return run_and_skip(model_folders, data, folder)


def test_a_skipped_step_is_a_step_and_the_run_goes_on(skipping: Run) -> None:
    skipped = {line["step"]: line["train/skipped_update"] for line in skipping.lines}
    assert skipped == {step: 0.0 if step in TRAINED else 1.0 for step in range(1, STOPPED)}
    for line in skipping.lines:
        is_trained = line["step"] in TRAINED
        assert (line["train/token_mult_prob_error"] < FP32_BOUND) == is_trained
        assert ("train/lr" in line) == is_trained


def test_the_learning_rate_goes_by_batch(skipping: Run) -> None:
    rates = {line["step"]: line["train/lr"] for line in skipping.lines if "train/lr" in line}
    assert rates == pytest.approx({3: 2e-3, 5: 3e-3})  # warmed up after three


def test_people_are_warned_of_each_in_one_line(skipping: Run) -> None:
    in_a_row = dict(zip(SKIPPED, [1, 2, 1, 1, 2], strict=True))
    assert len(skipping.warnings) == len(SKIPPED)
    for warning, (step, count) in zip(skipping.warnings, in_a_row.items(), strict=True):
        assert warning.startswith(f"warning: step {step}: train/token_mult_prob_error=")
        assert f"batch skipped ({count} in a row, at most 2); worst: problem " in warning


def test_a_run_does_not_skip_for_ever(skipping: Run) -> None:
    print(skipping.message)
    assert skipping.message.startswith(f"step {STOPPED}: train/token_mult_prob_error=")
    assert "The update was not made, after 2 skipped in a row; mend the cause and start the" in skipping.message


def test_a_resumed_run_has_the_metrics_of_one_left_alone(skipping: Run, resumed: Run) -> None:
    assert resumed.lines == skipping.lines
    assert resumed.message.replace(str(resumed.folder), str(skipping.folder)) == skipping.message


def test_a_resumed_run_counts_what_was_skipped_before(resumed: Run) -> None:
    assert "step 2: " in resumed.warnings[0]
    assert "batch skipped (2 in a row, " in resumed.warnings[0]


@pytest.mark.long
@pytest.mark.rare
def test_200_steps_without_a_false_alarm(model_folders: dict[str, Path], data: Path, tmp_path: Path) -> None:
    settings = {
        "grpo__max_num_steps": 200,
        "checkpointing__save_period": 1000,
        "policy__optimizer": {"lr": 1e-4},
    }
    run = Run(tmp_path, launch(model_folders["untied"], data, tmp_path, "train", settings=settings, wrong=[]))
    assert run.message == ""
    errors = [line["train/token_mult_prob_error"] for line in run.lines]
    print(f"largest of {len(errors)} token_mult_prob_errors: 1 + {max(errors) - 1:.2e}")
    assert len(errors) == 200
    assert max(errors) < 1 + (FP32_BOUND - 1) / 10
    assert all(math.isfinite(error) for error in errors)
