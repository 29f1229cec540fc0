"""`megatron-rl eval`: a real engine that loads a folder's weights, killed and started again; and what is refused."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import free_port
from test_cli import ROOT, megatron_rl, refused
from transformers import AutoModelForCausalLM
from waiting import eventually

from megatron_rl.config.schema import DataConfig
from megatron_rl.data.problems import load_problems
from megatron_rl.data.prompts import encode_prompt, load_tokenizer
from megatron_rl.errors import INTERRUPTED_EXIT_CODE, InputError
from megatron_rl.evaluation.evaluate import load_evaluation, model_folder

SMALL = ["generation.max_new_tokens=12", "max_total_sequence_length=200", "precision=fp32", "verifier.num_workers=1"]
SAMPLES = 8


@pytest.fixture
def benchmark(tmp_path: Path) -> Path:
    path = tmp_path / "sums.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"{i}+1=", "answer": str(i + 1)}) + "\n" for i in range(3)))
    return path


def kept(out: Path, benchmark: str = "sums") -> int:
    """How many samples there are of an evaluation that is under way."""
    files = out.glob(f"{benchmark}/journal/rank_*.jsonl")
    return sum(len(path.read_text().split("\n")[1:-1]) for path in files)


def test_killed_and_started_again_it_has_each_sample_once(
    model_folders: dict[str, Path], benchmark: Path, tmp_path: Path
) -> None:
    """Greedily the engine writes what transformers does with the folder's weights."""
    (tmp_path / "aime24.jsonl").write_text(json.dumps({"problem": "2+2=", "expected_answer": "4", "id": "a"}) + "\n")
    folder, out = model_folders["untied"], tmp_path / "out"
    settings = [*SMALL, "generation.temperature=0", f"num_generations_per_prompt={SAMPLES}"]
    settings += ["generation.enforce_eager=true", "generation.max_num_seqs=1"]
    command = ["eval", folder, "--benchmark", "aime24", "--benchmark", benchmark, "--data", tmp_path, "--out", out]
    command += settings
    process = subprocess.Popen(
        [sys.executable, "-m", "megatron_rl", *map(str, command)], env=os.environ | {"PYTHONPATH": str(ROOT)}
    )
    assert eventually(lambda: kept(out) >= 3 or process.poll() is not None, seconds=180)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = kept(out)
    assert 3 <= before < 3 * SAMPLES

    done = megatron_rl(*command)
    assert done.returncode == 0, done.stderr
    assert f"sums: {before} samples are there from an earlier start" in done.stderr
    assert f"aime24: {SAMPLES} samples are there from an earlier start" in done.stderr
    summary: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    assert summary == json.loads((out / "summary.json").read_text())
    figures = summary["benchmarks"]["sums"]
    assert (figures["prompts"], figures["samples_per_prompt"]) == (3, SAMPLES)
    assert (figures["accuracy"], figures["accuracy_error"]) == (0.0, 0.0)  # random weights
    assert figures["pass_at"] == {"1": 0.0, "2": 0.0, "4": 0.0, "8": 0.0}
    assert sum(figures["verdicts"].values()) == 3 * SAMPLES
    assert summary["benchmarks"]["aime24"]["prompts"] == 1
    assert f"| model | AIME24 avg@{SAMPLES} | sums avg@{SAMPLES} |" in (out / "table.md").read_text()
    assert kept(out, "*") == 0
    scores = [json.loads(line) for line in (out / "sums" / "problems.jsonl").read_text().splitlines()]
    assert [(score["id"], score["samples"], score["pass_rate"]) for score in scores] == [
        (str(number), SAMPLES, 0.0) for number in (1, 2, 3)
    ]

    records = [json.loads(line) for line in (out / "sums" / "samples.jsonl").read_text().splitlines()]
    places = [(record["id"], record["sample"]) for record in records]
    assert places == [(str(1 + i), sample) for i in range(3) for sample in range(SAMPLES)]
    model: Any = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = load_tokenizer(folder)
    for number, problem in enumerate(load_problems(DataConfig(path=str(benchmark)))):
        prompt = torch.tensor([encode_prompt(tokenizer, problem)])
        tokens: torch.Tensor = model.generate(prompt, do_sample=False, max_new_tokens=12)
        written = tokenizer.decode(tokens[0, prompt.shape[1] :], skip_special_tokens=True)
        own = records[number * SAMPLES :][:SAMPLES]
        assert [record["response"] for record in own] == [written] * SAMPLES
        assert [record["response_tokens"] for record in own] == [tokens.shape[1] - prompt.shape[1]] * SAMPLES


@pytest.mark.long
def test_a_process_that_freezes_is_named_and_its_job_ends_and_goes_on_when_started_again(
    model_folders: dict[str, Path], benchmark: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    settings = [*SMALL, f"num_generations_per_prompt={SAMPLES}", "generation.max_num_seqs=1", "cluster.device=cpu"]
    settings += ["generation.enforce_eager=true", "cluster.heartbeat_timeout_seconds=6"]
    command = ["eval", model_folders["untied"], "--benchmark", benchmark, "--out", out, *settings]

    def job() -> list["subprocess.Popen[str]"]:
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2"}
        return [
            subprocess.Popen(
                [sys.executable, "-m", "megatron_rl", *map(str, command)],
                env=os.environ | {"PYTHONPATH": str(ROOT), "RANK": rank, "LOCAL_RANK": rank} | place,
                stderr=subprocess.PIPE,
                text=True,
            )
            for rank in "01"
        ]

    main, other = job()
    try:
        assert eventually(lambda: kept(out) >= 2 or main.poll() is not None, seconds=240)
        other.send_signal(signal.SIGSTOP)
        _, said = main.communicate(timeout=120)
    finally:
        other.kill()
    other.communicate()
    assert main.returncode == INTERRUPTED_EXIT_CODE
    assert "megatron-rl: no sign of rank 1 for " in said
    assert (out / "logs" / "stacks" / "verdict.txt").read_text() in said
    assert "evaluate.py" in (out / "logs" / "stacks" / "rank_0.txt").read_text()

    before = kept(out)
    main, other = job()
    _, said = main.communicate(timeout=240)
    other.communicate(timeout=60)
    assert (main.returncode, other.returncode) == (0, 0), said
    assert f"sums: {before} samples are there from an earlier start" in said
    assert json.loads((out / "summary.json").read_text())["benchmarks"]["sums"]["prompts"] == 3


def test_the_defaults_are_the_papers() -> None:
    config = load_evaluation([])
    generation = config.generation
    assert (generation.temperature, generation.top_p, generation.max_new_tokens) == (0.6, 0.95, 32768)
    assert config.context == 32768 + 2048


def test_bad_input_is_refused_in_one_line(model_folders: dict[str, Path], benchmark: Path, tmp_path: Path) -> None:
    model, gone = model_folders["untied"], tmp_path / "gone.jsonl"
    refused("eval: num_generation", "eval", model, "--benchmark", benchmark, "num_generation=2")
    refused("gone.jsonl: no such file", "eval", model, "--benchmark", gone, *SMALL)
    refused("aime26: no such benchmark; there are aime24, ", "eval", model, "--benchmark", "aime26", *SMALL)
    refused("max_position_embeddings=256, and 34816 tokens are asked", "eval", model, "--benchmark", benchmark)
    with pytest.raises(InputError, match=r"no weights of a Hugging Face model there or in its hf/; .*megatron-to-hf"):
        model_folder(tmp_path)
