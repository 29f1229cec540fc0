"""The main job from end to end: what `make demo` promises, why it learns, and that a killed run loses nothing."""

import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from chaos import RECIPES, STAGES, Pipeline, chaos, finish, table_of
from launching import launcher, plain_environment
from ranks import run_job, started_job
from rich.console import Console

from megatron_rl.config.loader import load_config
from megatron_rl.data.problems import load_problems
from megatron_rl.data.prompts import encode_prompt, load_tokenizer
from megatron_rl.run_folder import RunFolder

pytestmark = pytest.mark.long

ROOT = Path(__file__).parents[1]
RUN_SECONDS = 1800.0
KILLS = 2


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which `make demo` has run: `runs/tiny_world`, `runs/demo`."""
    folder = tmp_path_factory.mktemp("demo")
    finish(folder, "data", "tiny", "runs/tiny_world")
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("VLLM_CACHE_ROOT", str(folder / "vllm"))  # as on a machine on which it has never run
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


# Killed at random ---------------------------------------------------------------------------------------------------


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


def test_a_run_killed_at_random_moments_ends_with_the_bits_of_one_left_alone(demo: Path) -> None:
    """The one left alone is started by NeMo-Run."""
    sft = demo / "runs/demo/sft"
    whole = Pipeline(demo, "whole", sft)
    finish_by_nemo_run(demo, *whole.arguments[1:])
    assert any(line.get("train/grad_norm", 0) > 0 for line in whole.run("code").metric_lines())
    console = Console()
    kills = chaos(demo, whole, sft, KILLS, random.SystemRandom().randrange(10**6), console)
    console.print(table_of(kills))
    assert len(kills) == KILLS
