"""`megatron-rl plan` as a user types it."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf
from planned import PARAMETERS_14B, write_recipe
from typer.testing import CliRunner

from megatron_rl import cli
from megatron_rl.errors import InputError
from megatron_rl.plan.show import stdout_console

EXIT_DOES_NOT_FIT, EXIT_BAD_INPUT = 1, 2
ROOT = Path(__file__).parents[2]


def plan(*arguments: object) -> Any:
    return CliRunner().invoke(cli.app, ["plan", *map(str, arguments)])


def test_json_has_everything(tmp_path: Path) -> None:
    done = plan(write_recipe(tmp_path), "--json", "--simulate")
    assert done.exit_code == 0, done.output
    (line,) = done.stdout.splitlines()
    told = json.loads(line)
    assert list(told) == [
        *("name", "gpu", "gpus", "memory_gib", "parameters", "fits", "problems", "ranks", "engine", "step", "flops"),
        *("assumptions", "suggestions", "simulation"),
    ]
    assert (told["parameters"], told["gpus"], told["fits"]) == (PARAMETERS_14B, 128, True)
    assert list(told["ranks"][0]) == [
        *("shard", "resident", "activations", "layer_work", "log_prob_work", "fragmentation", "idle"),
        *("engine_asleep", "engine_awake", "sync_buffers", "parameters", "training", "generation"),
    ]
    assert list(told["engine"]) == [
        *("budget", "weights", "reserve", "kv_cache", "kv_bytes_per_token", "kv_cache_tokens", "full_sequences"),
    ]
    step = told["step"]
    assert step["total"] == pytest.approx(sum(step[p] for p in ("generation", "verification_wait", "training", "sync")))
    flops = told["flops"]
    assert flops["recomputation"] == pytest.approx(flops["training"] / 3)
    # Six operations per parameter and token, and attention.
    assert 1 < flops["training"] / (6 * PARAMETERS_14B * step["train_tokens"]) < 1.5
    assert len(told["suggestions"]) == 5
    assert [row["gpus"] for row in told["simulation"]][-1] == 1024


def test_tables_are_readable_at_100_columns(tmp_path: Path) -> None:
    done = plan(write_recipe(tmp_path), "policy.pipeline_model_parallel_size=4")
    assert done.exit_code == 0
    lines = done.stdout.splitlines()
    for words in ("gradients (fp32)", "stage 3", "generation in all", "sequences of full length", "weight sync",
                  "mean_response_share", "engine_asleep_gib", "vLLM TP", "fits"):  # fmt: skip
        assert any(words in line for line in lines), words
    commands = [line for line in lines if "policy." in line]
    assert commands
    assert all(len(line) <= 100 for line in lines if line not in commands)
    assert "…" not in done.stdout


def test_a_recipe_that_does_not_fit_ends_with_status_1_and_names_the_key(tmp_path: Path) -> None:
    done = plan(write_recipe(tmp_path), "--nodes", 1, "generation.gpu_memory_utilization=0.9")
    assert done.exit_code == EXIT_DOES_NOT_FIT
    assert "does not fit: generation needs" in done.stdout
    assert "generation.gpu_memory_utilization=0.9" in done.stdout.replace("\n", " ")
    assert "fits\n" not in done.stdout
    assert "on 1 x 8 H100 SXM" in done.stdout
    assert plan(write_recipe(tmp_path), "generation.gpu_memory_utilization=0.8", "--gpu", "h200").exit_code == 0


def test_a_stage_of_a_pipeline(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path)
    stages = [{"name": name, "recipe": recipe.name} for name in ("math", "code")]
    pipeline = recipe.with_name("pipeline.yaml")
    OmegaConf.save(OmegaConf.create({"name": "both", "stages": stages}), pipeline)
    done = plan(pipeline, "--stage", "code", "--nodes", 8, "--json", "grpo.num_prompts_per_step=64")
    told = json.loads(done.stdout)
    assert (told["name"], told["gpus"], told["parameters"]) == ("code", 64, PARAMETERS_14B)


def test_a_model_from_scratch_needs_no_config_file() -> None:
    done = plan(ROOT / "recipes" / "tiny" / "pipeline.yaml", "--stage", "code", "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["parameters"] > 1e5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["policy.model_name=elsewhere/None-7B"], r"elsewhere/None-7B/config.json nor .*recipes/models/None-7B/config"),
        (["--stage", "code"], r"--stage code: the recipe is of one stage"),
        (["policy.tensor_model_parallel_size=16"], r"tensor_model_parallel_size=16 does not divide .* 40 attention"),
        (["policy.nonsense=1"], r"unknown key 'policy.nonsense'"),
    ],
)
def test_bad_input_is_one_line_and_status_2(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("sys.argv", ["megatron-rl", "plan", str(write_recipe(tmp_path)), *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == EXIT_BAD_INPUT
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(message, line), line


def test_an_sft_recipe_has_no_engine_and_nothing_to_simulate(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, algorithm="sft", sft={"max_num_steps": 1}, generation=None, grpo=None)
    done = plan(recipe)
    assert done.exit_code == 0
    assert "vLLM awake" not in done.stdout
    simulated = plan(recipe, "--simulate")
    assert isinstance(simulated.exception, InputError)
    assert "--simulate is of generation" in str(simulated.exception)


def test_a_pipeline_is_planned_by_stage() -> None:
    done = plan(ROOT / "recipes" / "tiny" / "pipeline.yaml")
    assert isinstance(done.exception, InputError)
    assert "name one of ['sft', 'math', 'code']" in str(done.exception)


def test_without_torch_one_line_says_where_to_plan(tmp_path: Path) -> None:
    """The launcher's environment: torch cannot be found."""
    code = (
        "import sys\n"
        "sys.modules['torch'] = sys.modules['megatron'] = None\n"
        f"sys.argv = ['megatron-rl', 'plan', {str(write_recipe(tmp_path))!r}]\n"
        "from megatron_rl.cli import main\n"
        "main()\n"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == EXIT_BAD_INPUT
    assert "torch and megatron-core must be installed" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_standard_output_that_is_no_terminal_gets_100_columns() -> None:
    assert stdout_console().width == 100
