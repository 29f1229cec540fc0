"""`megatron-rl eval`: a real engine that loads a folder's weights, and what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from test_cli import megatron_rl, refused
from transformers import AutoModelForCausalLM

from megatron_rl.data.problems import load_problems
from megatron_rl.data.prompts import encode_prompt, load_tokenizer
from megatron_rl.errors import InputError
from megatron_rl.evaluate import load_evaluation, model_folder

SMALL = ["generation.max_new_tokens=12", "max_total_sequence_length=200", "precision=fp32", "verifier.num_workers=1"]


@pytest.fixture
def benchmark(tmp_path: Path) -> Path:
    path = tmp_path / "benchmark.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"{i}+1=", "answer": str(i + 1)}) + "\n" for i in range(3)))
    return path


def test_it_samples_the_folders_model_and_reports_its_figures(
    model_folders: dict[str, Path], benchmark: Path, tmp_path: Path
) -> None:
    """Greedily the engine writes what transformers does with the folder's weights."""
    settings = [*SMALL, "generation.temperature=0", "num_generations_per_prompt=2", "generation.enforce_eager=true"]
    folder = model_folders["untied"]
    done = megatron_rl("eval", folder, "--benchmark", benchmark, "--out", tmp_path / "out", *settings)
    assert done.returncode == 0, done.stderr
    summary: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    assert summary == json.loads((tmp_path / "out" / "summary.json").read_text())
    assert (summary["prompts"], summary["samples_per_prompt"]) == (3, 2)
    assert summary["accuracy"] == 0.0  # random weights
    assert sum(summary["verdicts"].values()) == 6
    records = [json.loads(line) for line in (tmp_path / "out" / "samples.jsonl").read_text().splitlines()]
    model: Any = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = load_tokenizer(folder)
    for problem, record in zip(load_problems(load_evaluation(benchmark, []).data), records[::2], strict=True):
        prompt = torch.tensor([encode_prompt(tokenizer, problem)])
        tokens: torch.Tensor = model.generate(prompt, do_sample=False, max_new_tokens=12)
        written = tokens[0, prompt.shape[1] :]
        assert record["response"] == tokenizer.decode(written, skip_special_tokens=True)


def test_the_defaults_are_the_papers(benchmark: Path) -> None:
    config = load_evaluation(benchmark, [])
    generation = config.generation
    assert (generation.temperature, generation.top_p, generation.max_new_tokens) == (0.6, 0.95, 32768)
    assert config.context == 32768 + 2048


def test_bad_input_is_refused_in_one_line(model_folders: dict[str, Path], benchmark: Path, tmp_path: Path) -> None:
    refused("eval: num_generation", "eval", model_folders["untied"], "--benchmark", benchmark, "num_generation=2")
    refused("gone.jsonl: no such file", "eval", model_folders["untied"], "--benchmark", tmp_path / "gone.jsonl", *SMALL)
    with pytest.raises(InputError, match=r"no weights of a Hugging Face model there or in its hf/; .*megatron-to-hf"):
        model_folder(tmp_path)
