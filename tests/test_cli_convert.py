"""`megatron-rl convert` as a user types it."""

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from tiny import make_model_folder
from typer.testing import CliRunner

from converters.hf_folder import partial_folder
from megatron_rl import cli

EXIT_DIFFERENT, EXIT_BAD_INPUT = 1, 2


@pytest.fixture
def source(tmp_path: Path) -> Path:
    make_model_folder(tmp_path / "source", tied=False)
    return tmp_path / "source"


def convert(*arguments: object) -> Any:
    return CliRunner().invoke(cli.app, ["convert", *map(str, arguments)])


def test_there_and_back_and_the_same(source: Path, tmp_path: Path) -> None:
    there = convert("hf-to-megatron", source, tmp_path / "megatron", "--tp", 2, "--pp", 2, "--vpp", 2)
    assert (there.exit_code, there.stdout) == (0, f"{tmp_path / 'megatron'}\n")
    assert convert("megatron-to-hf", tmp_path / "megatron", tmp_path / "back").exit_code == 0
    for other in ("megatron", "back"):
        done = convert("check", source, tmp_path / other)
        assert (done.exit_code, json.loads(done.stdout)) == (0, {"tensors": 51, "differences": 0})


def test_check_names_what_differs_and_by_how_much(source: Path, tmp_path: Path) -> None:
    convert("hf-to-megatron", source, tmp_path / "megatron")
    convert("megatron-to-hf", tmp_path / "megatron", tmp_path / "other")
    tensors = load_file(tmp_path / "other" / "model.safetensors")
    tensors["model.layers.2.self_attn.k_proj.weight"][5, 7] += 0.25
    tensors["model.norm.weight"] = tensors["model.norm.weight"].bfloat16()
    tensors["more"] = tensors.pop("lm_head.weight")
    save_file(tensors, tmp_path / "other" / "model.safetensors")
    done = convert("check", tmp_path / "megatron", tmp_path / "other")
    assert done.exit_code == EXIT_DIFFERENT
    assert json.loads(done.stdout)["differences"] == 4
    assert "lm_head.weight: only in the first" in done.stderr
    assert "more: only in the second" in done.stderr
    assert "k_proj.weight: 1 of 8192 values differ, by up to 0.25 at [5, 7]" in done.stderr
    assert "model.norm.weight: torch.float32 against torch.bfloat16" in done.stderr


def test_check_compares_the_forward_passes(source: Path, tmp_path: Path) -> None:
    """In a process of its own, which becomes a job of one Megatron rank."""
    convert("hf-to-megatron", source, tmp_path / "megatron")
    tensors = load_file(source / "model.safetensors")
    tensors["model.layers.3.mlp.down_proj.weight"][0] *= 1.5
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    command = [sys.executable, "-m", "megatron_rl", "convert", "check", str(source), str(tmp_path / "megatron")]
    done = subprocess.run([*command, "--logits"], capture_output=True, text=True, check=False)
    assert done.returncode == EXIT_DIFFERENT, done.stderr
    summary = json.loads(done.stdout)
    assert summary["differences"] == 1
    assert 1e-3 < summary["logits_max_difference"] < 10


@pytest.mark.parametrize("direction", ["hf-to-megatron", "megatron-to-hf"])
def test_sigkill_in_mid_conversion_costs_only_the_time(tmp_path: Path, direction: str) -> None:
    source, there = tmp_path / "source", tmp_path / "there"
    make_model_folder(source, tied=False, num_hidden_layers=150)
    if direction == "megatron-to-hf":
        assert convert("hf-to-megatron", source, tmp_path / "megatron").exit_code == 0
    origin = source if direction == "hf-to-megatron" else tmp_path / "megatron"
    command = [sys.executable, "-m", "megatron_rl", "convert", direction, str(origin), str(there), "--workers", "1"]
    command += ["--tp", "2", "--pp", "25"] if direction == "hf-to-megatron" else []  # a file each, the unit of work
    journal = partial_folder(there) / "journal.jsonl"
    killed = subprocess.Popen(command)
    while not journal.is_file() or len(journal.read_text().splitlines()) < 10:
        assert killed.poll() is None, "it ended before it could be killed"
    killed.kill()
    assert killed.wait() == -signal.SIGKILL
    assert not there.exists()
    assert subprocess.run(command, check=False).returncode == 0
    done = convert("check", source, there)
    assert (done.exit_code, json.loads(done.stdout)["differences"]) == (0, 0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["hf-to-megatron", "nowhere", "out"], r"nowhere/config.json: missing; nowhere is not a Hugging Face model"),
        (["megatron-to-hf", "source", "out"], r"source: holds no hf/ with config and tokenizer"),
        (["check", "source", "nowhere"], r"nowhere: no such folder"),
    ],
)
def test_bad_input_is_one_line_and_status_2(
    source: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(source.parent)
    monkeypatch.setattr("sys.argv", ["megatron-rl", "convert", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == EXIT_BAD_INPUT
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert message in lines[0]
