"""The main job from end to end: what `make demo` promises, why it learns, and that a killed run loses nothing."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest
from launching import launcher, plain_environment
from ranks import run_job, started_job

from megatron_rl.config.loader import load_config
from megatron_rl.data.problems import load_problems
from megatron_rl.data.prompts import encode_prompt, load_tokenizer
from megatron_rl.run_folder import RunFolder

pytestmark = pytest.mark.long

ROOT = Path(__file__).parents[1]
RECIPES = ROOT / "recipes" / "tiny"
STAGES = ("sft", "math", "code")
RUN_SECONDS, PATIENCE_SECONDS = 1800.0, 20.0


def start(folder: Path, *arguments: str | Path) -> subprocess.Popen[bytes]:
    """`megatron-rl ARGUMENTS` in `folder`, its output in `folder/output.log`."""
    with open(folder / "output.log", "ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "megatron_rl", *map(str, arguments)],
            cwd=folder,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stdout=log,
            stderr=subprocess.STDOUT,
        )


def finish(folder: Path, *arguments: str | Path) -> None:
    """Run a command to its end, which must be a good one."""
    status = start(folder, *arguments).wait(RUN_SECONDS)
    assert status == 0, (folder / "output.log").read_text(errors="replace")[-4000:]


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which `make demo` has run: `runs/tiny_world`, `runs/demo`."""
    folder = tmp_path_factory.mktemp("demo")
    finish(folder, "data", "tiny", "runs/tiny_world")
    finish(folder, "pipeline", RECIPES / "pipeline.yaml")
    return folder


@pytest.fixture(scope="module")
def stages(demo: Path) -> dict[str, dict[str, Any]]:
    """The stages of `summary.json` by name."""
    summary = json.loads((demo / "runs/demo/summary.json").read_text())
    return {stage["name"]: stage for stage in summary["stages"]}


# It learns -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["math", "code"])
def test_held_out_accuracy_rises_by_25_points(stages: dict[str, dict[str, Any]], name: str) -> None:
    stage = stages[name]
    assert stage["held_out_accuracy_after"] - stage["held_out_accuracy_before"] >= 0.25


def test_code_costs_no_more_than_10_points_of_math(stages: dict[str, dict[str, Any]]) -> None:
    math = stages["code"]["held_out"]["math"]
    assert math["before"] == stages["math"]["held_out_accuracy_after"]
    assert math["after"] >= math["before"] - 0.10


def test_the_stages_ran_in_the_layouts_they_promise(stages: dict[str, dict[str, Any]]) -> None:
    assert [stages[name]["layout"] for name in STAGES] == [
        {"tp": 1, "pp": 1, "vpp": 1, "cp": 1, "dp": 2},
        {"tp": 2, "pp": 1, "vpp": 1, "cp": 1, "dp": 1},
        {"tp": 1, "pp": 2, "vpp": 1, "cp": 1, "dp": 1},
    ]


@pytest.mark.parametrize("name", ["math", "code"])
def test_the_engine_sampled_the_policy_in_every_step(demo: Path, name: str) -> None:
    lines = RunFolder(demo / "runs/demo" / name).metric_lines()[1:]
    assert lines
    assert all(line["train/token_mult_prob_error"] < 1.01 for line in lines)


def test_the_export_is_the_trained_policy(demo: Path) -> None:
    """transformers, greedily, from the exported folder writes what vLLM wrote with the policy's last weights."""
    summary = json.loads((demo / "runs/demo/summary.json").read_text())
    assert summary["export"] == {"path": "runs/demo/code/hf", "greedy_prompts": 16, "greedy_matches": 16}


def test_vllm_loads_the_export(demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fresh vLLM, greedily, from the exported folder writes what the run's engine wrote with the last weights."""
    monkeypatch.chdir(demo)
    run = RunFolder(Path("runs/demo/code"))
    config = load_config(run.config)
    assert config.generation is not None
    problems = load_problems(config.validation.data["code"])[:16]
    samples = run.samples(f"validation_code_step_{config.max_num_steps}").read_text()
    written = {record["id"]: record["response"] for record in map(json.loads, samples.splitlines())}
    arguments = {
        "model": str(run.hf.resolve()),
        "prompts": [encode_prompt(load_tokenizer(run.hf), problem) for problem in problems],
        "max_tokens": config.generation.max_new_tokens,
    }
    texts = run_job("generate_with_vllm.py", arguments, ranks=1, folder=tmp_path)
    assert texts == [written[problem.id] for problem in problems]


# Because of the policy gradient ------------------------------------------------------------------------------------


def math_again(demo: Path, name: str, **settings: object) -> list[str]:
    """Overrides that repeat the demo's math stage under another name."""
    given = {
        "name": name,
        "output_dir": demo / "runs",
        "data.path": demo / "runs/tiny_world/math_train.jsonl",
        "validation.data.math.path": demo / "runs/tiny_world/math_held_out.jsonl",
        "policy.model_name": demo / "runs/demo/sft/model",
        "policy.from_checkpoint": demo / "runs/demo/sft",
    }
    return [f"{key}={value}" for key, value in (given | settings).items()]


def rise(folder: Path) -> float:
    """Of the held-out accuracy over a stage."""
    summary = json.loads(RunFolder(folder).summary.read_text())
    return float(summary["held_out_accuracy_after"] - summary["held_out_accuracy_before"])


def test_at_learning_rate_0_nothing_is_learnt(demo: Path) -> None:
    settings = {"policy.optimizer.lr": 0, "grpo.max_num_steps": 2}
    finish(demo, "train", RECIPES / "math.yaml", *math_again(demo, "lr_0", **settings))
    assert rise(demo / "runs/lr_0") == 0


@pytest.mark.rare
def test_with_shuffled_advantages_the_rise_is_gone(demo: Path, tmp_path: Path) -> None:
    # Six steps: by then the demo itself has most of its rise.
    overrides = math_again(demo, "shuffled", **{"grpo.max_num_steps": 6})
    arguments = {"recipe": str(RECIPES / "math.yaml"), "overrides": overrides}
    with started_job("train_on_shuffled_advantages.py", arguments, ranks=2, folder=tmp_path) as job:
        job.wait(RUN_SECONDS)
    assert rise(demo / "runs/shuffled") < 0.10


# Killed in every stage -----------------------------------------------------------------------------------------------

MEASURED_BY_THE_CLOCK = (
    *("timing/", "memory/", "performance/", "time"),
    *("verify/seconds", "verify/latency", "verify/utilization", "verify/queue_length"),
)


def short_pipeline(demo: Path, name: str) -> list[str | Path]:
    """Three stages of a few steps; RL starts from the demo's own SFT model, so that it has something to learn."""
    settings: dict[str, object] = {"name": name, "sft.sft.max_num_steps": 4, "sft.checkpointing.save_period": 2}
    for stage in ("math", "code"):
        settings[f"{stage}.grpo.max_num_steps"] = 3
        settings[f"{stage}.grpo.num_prompts_per_step"] = 16
        settings[f"{stage}.checkpointing.save_period"] = 1
    settings |= {f"{stage}.validation.max_prompts": 16 for stage in STAGES}
    settings |= {"math.policy.from_checkpoint": demo / "runs/demo/sft"}
    return ["pipeline", RECIPES / "pipeline.yaml", *(f"{key}={value}" for key, value in settings.items())]


def kill_once(folder: Path, command: Sequence[str | Path], ready: Callable[[], bool]) -> None:
    """Start `command`, SIGKILL it as soon as `ready`, and see all that it started end as well."""
    process = start(folder, *command)
    limit = time.monotonic() + RUN_SECONDS
    while not ready():
        assert process.poll() is None, (folder / "output.log").read_text(errors="replace")[-4000:]
        assert time.monotonic() < limit
        time.sleep(0.02)
    started = psutil.Process(process.pid).children(recursive=True)
    assert len(started) > 2
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert psutil.wait_procs(started, timeout=PATIENCE_SECONDS)[1] == []


def deterministic(run: RunFolder) -> list[dict[str, Any]]:
    """Every metric that a clock does not make."""
    return [
        {key: value for key, value in line.items() if not key.startswith(MEASURED_BY_THE_CLOCK)}
        for line in run.metric_lines()
    ]


def finish_by_nemo_run(folder: Path, *arguments: str | Path) -> None:
    """`megatron-rl launch ARGUMENTS` on this machine, from the launcher's environment."""
    site = folder / "site.env"
    site.write_text(f"source {ROOT}/slurm/site.env\nexport ENVIRONMENT={sys.prefix} OMP_NUM_THREADS=1\n")
    done = subprocess.run(
        [launcher(), "launch", *arguments, "--executor", "local", "--site", site],
        cwd=folder,
        env=plain_environment(NEMORUN_HOME=str(folder / "nemo_home")),
        capture_output=True,
        text=True,
        timeout=RUN_SECONDS,
        check=False,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]


def test_a_run_killed_in_every_stage_gives_the_metrics_of_one_left_alone(demo: Path) -> None:
    """The one left alone is started by NeMo-Run."""
    finish_by_nemo_run(demo, *short_pipeline(demo, "whole")[1:])
    command = short_pipeline(demo, "killed")
    for stage in STAGES:
        run = RunFolder(demo / "runs/killed" / stage)
        kill_once(demo, command, lambda run=run: bool(run.checkpoints()))  # type: ignore[misc]
        assert not run.summary.exists()
    finish(demo, *command)
    for stage in STAGES:
        whole, killed = (deterministic(RunFolder(demo / "runs" / name / stage)) for name in ("whole", "killed"))
        assert len(whole) > 3
        assert killed == whole
    assert any(line.get("train/grad_norm", 0) > 0 for line in deterministic(RunFolder(demo / "runs/whole/code")))
