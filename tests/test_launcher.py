"""A rank's place in a job, as `srun` tells it; what a request to stop does."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import yaml
from waiting import eventually

from megatron_rl.launcher import _wait, take_rank
from megatron_rl.run_folder import RunFolder

ROOT = Path(__file__).parents[1]
PATIENCE_SECONDS = 120.0
TASK = {
    "SLURM_PROCID": "11",
    "SLURM_LOCALID": "3",
    "SLURM_STEP_NUM_TASKS": "16",
    "SLURM_STEP_NODELIST": "gpu7",
    "SLURM_JOB_ID": "4711",
}
OF_TORCHRUN = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@pytest.fixture
def task(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """The environment of a task of `srun`; what is set in a test is undone after it."""
    for key in OF_TORCHRUN:
        monkeypatch.setenv(key, "")  # remembered, and put back
        monkeypatch.delenv(key)
    for key, value in TASK.items():
        monkeypatch.setenv(key, value)
    return monkeypatch


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("gpu7", "gpu7"),
        ("gpu7,gpu9", "gpu7"),
        ("gpu[003-018,021]", "gpu003"),
        ("gpu[12,14]", "gpu12"),
        ("a-b[5-6],c[1-2]", "a-b5"),
        ("login.cluster,gpu[1-2]", "login.cluster"),
    ],
)
def test_a_task_of_srun_is_a_rank_that_meets_the_others_on_the_first_node(
    task: pytest.MonkeyPatch, nodes: str, first: str
) -> None:
    task.setenv("SLURM_STEP_NODELIST", nodes)
    assert take_rank()
    found = [os.environ[key] for key in OF_TORCHRUN]
    assert found == ["11", "3", "16", first, "24711"]


def test_a_given_meeting_place_is_kept(task: pytest.MonkeyPatch) -> None:
    task.setenv("MASTER_ADDR", "10.0.0.1")
    task.setenv("MASTER_PORT", "1234")
    assert take_rank()
    assert (os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"]) == ("10.0.0.1", "1234")


def test_a_step_of_one_task_starts_its_own_ranks(task: pytest.MonkeyPatch) -> None:
    task.setenv("SLURM_STEP_NUM_TASKS", "1")
    assert not take_rank()


def test_a_batch_script_is_no_rank(task: pytest.MonkeyPatch) -> None:
    task.delenv("SLURM_STEP_NUM_TASKS")
    assert not take_rank()


def test_a_rank_that_does_not_end_when_the_others_have_is_not_waited_for(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    ranks = [subprocess.Popen(["sleep", seconds]) for seconds in ("0", "60")]
    try:
        assert _wait(ranks, RunFolder(tmp_path), limit=1.0) == 76
        assert "1 s after others had ended not yet: rank 1" in capfd.readouterr().err
    finally:
        ranks[1].kill()
        ranks[1].wait()


# Preemption ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def recipe(model_folders: dict[str, Path], tmp_path: Path) -> Path:
    """SFT of two ranks, which take all of `PATIENCE_SECONDS` unless they are stopped."""
    lines = [{"prompt": f"{i} + 1 =", "answer": str(i + 1), "response": "easy"} for i in range(40)]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    config = {
        "algorithm": "sft",
        "name": "cut",
        "output_dir": str(tmp_path / "runs"),
        "cluster": {"gpus_per_node": 2},
        "policy": {
            "model_name": str(model_folders["untied"]),
            "max_total_sequence_length": 256,
            "precision": "fp32",
            "tensor_model_parallel_size": 2,
        },
        "sft": {"max_num_steps": 100_000, "global_batch_size": 4},
        "data": {"path": str(tmp_path / "data.jsonl")},
        "checkpointing": {"save_period": 100_000},
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(config))
    return tmp_path / "recipe.yaml"


def train(recipe: Path, *overrides: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "megatron_rl", "train", str(recipe), *overrides],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.long
@pytest.mark.rare
def test_a_run_told_to_stop_saves_and_the_same_command_carries_on(recipe: Path) -> None:
    run = RunFolder(recipe.parent / "runs" / "cut")
    process = train(recipe)
    limit = time.monotonic() + PATIENCE_SECONDS
    while len(run.metric_lines()) < 3:
        assert process.poll() is None
        assert time.monotonic() < limit, "no step within the deadline"
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGUSR1)  # a second one is safe
    _, output = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 75, output
    (saved,) = run.checkpoints()
    steps = len(run.metric_lines())
    assert saved.name == f"step_{steps}"
    assert output.splitlines()[-1] == (
        f"megatron-rl: told to stop after step {steps}, which is saved; start the same command again"
    )
    assert train(recipe, f"sft.max_num_steps={steps + 1}").wait(PATIENCE_SECONDS) == 0
    assert [line["step"] for line in run.metric_lines()] == list(range(1, steps + 2))


def test_a_run_told_to_stop_while_its_ranks_start_does_so(recipe: Path) -> None:
    process = train(recipe)
    assert eventually(lambda: sum("megatron_rl" in one for one in children(process.pid)) == 2, PATIENCE_SECONDS)
    process.send_signal(signal.SIGTERM)
    _, output = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 75, output
    (saved,) = RunFolder(recipe.parent / "runs" / "cut").checkpoints()
    assert saved.name == "step_1"


def children(pid: int) -> list[list[str]]:
    """Their command lines."""
    return [child.cmdline() for child in psutil.Process(pid).children()]


def test_a_rank_that_is_killed_leaves_nothing_running(recipe: Path) -> None:
    """Without a launcher of ours, in the middle of a checkpoint or after it."""
    run, one_rank = (
        RunFolder(recipe.parent / "runs" / "cut"),
        dict(zip(OF_TORCHRUN, ["0", "0", "1", "127.0.0.1", "0"], strict=True)),
    )
    overrides = ("cluster.gpus_per_node=1", "policy.tensor_model_parallel_size=1", "checkpointing.save_period=1")
    command = [sys.executable, "-m", "megatron_rl", "train", str(recipe), *overrides]
    process = subprocess.Popen(command, env=os.environ | one_rank | {"PYTHONPATH": str(ROOT)})
    assert eventually(lambda: len(run.checkpoints()) > 0, PATIENCE_SECONDS)
    started = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.wait()
    assert psutil.wait_procs(started, timeout=PATIENCE_SECONDS)[1] == []
