"""The command line as a user meets it: bad input gives one line on standard error, no traceback, and status 2."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny import HF_CONFIG

ROOT = Path(__file__).parents[1]
DATA = [{"prompt": f"What is {i} + 1?", "answer": str(i + 1), "response": "easy"} for i in range(4)]


def megatron_rl(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    inherited = {key: value for key, value in os.environ.items() if key not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    return subprocess.run(
        [sys.executable, "-m", "megatron_rl", *map(str, arguments)],
        env=inherited | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )


def refused(message: str, *arguments: str | Path) -> None:
    """One line, which holds `message`, and exit code 2."""
    done = megatron_rl(*arguments)
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    lines = done.stderr.splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("megatron-rl: ")


@pytest.fixture
def recipe(model_folders: dict[str, Path], tmp_path: Path) -> Path:
    """A GRPO recipe that could run, with a model folder and data of its own."""
    shutil.copytree(model_folders["untied"], tmp_path / "model")
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(line) + "\n" for line in DATA))
    config = {
        "algorithm": "grpo",
        "name": "run",
        "output_dir": str(tmp_path / "runs"),
        "cluster": {"gpus_per_node": 1},
        "policy": {
            "model_name": str(tmp_path / "model"),
            "max_total_sequence_length": 256,
            "precision": "fp32",
        },
        "generation": {"max_new_tokens": 64},
        "grpo": {"max_num_steps": 1},
        "data": {"path": str(tmp_path / "data.jsonl")},
    }
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("policy.tensor_model_paralel_size=2", "did you mean 'policy.tensor_model_parallel_size'?"),
        ("generation.top_p=0.95", "generation.top_p=0.95"),
        ("data.path=gone.jsonl", "gone.jsonl: no such file"),
        ("policy.model_name=gone", "gone/config.json: missing"),
        ("seed", "override 'seed': write it as key=value"),
        ("seed=one", "seed: Value 'one'"),
        ("policy.max_total_sequence_length=1000", "above the model's context of 256 tokens"),
    ],
)
def test_bad_settings_are_refused(recipe: Path, override: str, message: str) -> None:
    refused(message, "train", recipe, override)


def test_tp_that_does_not_divide_the_heads_is_refused(recipe: Path) -> None:
    message = "policy.tensor_model_parallel_size=3 does not divide the model's 4 attention heads"
    refused(message, "train", recipe, "policy.tensor_model_parallel_size=3", "cluster.gpus_per_node=3")


def test_a_broken_line_of_data_is_named_by_its_number(recipe: Path, tmp_path: Path) -> None:
    with open(tmp_path / "data.jsonl", "a") as file:
        file.write('\n{"prompt": "cut sho\n')
    refused("data.jsonl:6: broken JSON", "train", recipe)


def test_a_model_folder_without_weights_is_refused(recipe: Path, tmp_path: Path) -> None:
    (tmp_path / "model" / "model.safetensors").unlink()
    refused("no *.safetensors weights", "train", recipe)


@pytest.mark.parametrize("command", ["train", "pipeline"])
def test_a_missing_recipe_is_refused(command: str) -> None:
    refused("gone.yaml: no such recipe", command, "gone.yaml")


@pytest.mark.parametrize("domain", ["math", "code"])
def test_verify_refuses_a_missing_file_and_a_broken_line(tmp_path: Path, domain: str) -> None:
    refused("gone.jsonl", "verify", domain, "gone.jsonl")
    (tmp_path / "broken.jsonl").write_text('{"id": 1\n')
    refused("broken.jsonl, line 1: broken JSON", "verify", domain, tmp_path / "broken.jsonl")


def test_report_refuses_a_folder_without_a_run(tmp_path: Path) -> None:
    refused(str(tmp_path), "report", tmp_path)


def test_several_nodes_need_a_launcher(recipe: Path) -> None:
    refused("cluster.num_nodes=2: start a run over several nodes", "train", recipe, "cluster.num_nodes=2")


@pytest.mark.parametrize("arguments", [["frobnicate"], ["train"], ["verify", "poetry", "x"], ["train", "--fast", "x"]])
def test_a_wrong_command_is_status_2_without_a_traceback(arguments: list[str]) -> None:
    done = megatron_rl(*arguments)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "command", [[], ["train"], ["pipeline"], ["verify", "math"], ["data", "tiny"], ["data", "check"], ["doctor"]]
)
def test_every_command_has_help(command: list[str]) -> None:
    done = megatron_rl(*command, "--help")
    assert done.returncode == 0
    assert "Usage" in done.stdout


def test_a_prompt_longer_than_the_context_is_refused(recipe: Path, tmp_path: Path) -> None:
    (tmp_path / "data.jsonl").write_text(json.dumps(DATA[0] | {"prompt": "1 + " * 50}) + "\n")
    refused("tokens, the context leaves 192", "train", recipe)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "rope type='yarn'"),
        ({"model_type": "mamba"}, "model_type 'mamba' is not supported"),
        ({"intermediate_size": 190}, "190"),
    ],
    ids=repr,
)
def test_a_model_that_does_not_fit_is_refused(
    recipe: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    (tmp_path / "model" / "config.json").write_text(json.dumps(HF_CONFIG | changes))
    refused(message, "train", recipe)


def test_data_check_lists_references_that_cannot_be_read(tmp_path: Path) -> None:
    file = tmp_path / "data.jsonl"
    answers = ["\\frac{1}{2}", "Evelyn", "\\int_0^1 x dx", "(1, 2]"]
    rows = [{"question": "?", "answer": answer} for answer in answers]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = megatron_rl("data", "check", file, "prompt_key=question")
    assert done.returncode == 2
    assert [line.split(":")[0] for line in done.stdout.splitlines()] == ["3"]
    assert done.stderr.strip() == f"megatron-rl: {file}: 1 of 4 references cannot be read; correct or drop them"
    file.write_text("".join(json.dumps(row) + "\n" for row in (rows[0], rows[1], rows[3])))
    done = megatron_rl("data", "check", file, "prompt_key=question")
    assert (done.returncode, done.stdout) == (0, f"{file}: 3 problems, every reference can be read\n")
    refused("unknown key 'answerkey'; did you mean 'answer_key'?", "data", "check", file, "answerkey=x")
    refused("no column 'prompt'", "data", "check", file)
