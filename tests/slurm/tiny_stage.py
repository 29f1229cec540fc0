"""A checkout whose site file makes the 14B recipe's stages tiny: two ranks, a model of a few thousand parameters."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
MODEL = "DeepSeek-R1-Distill-Qwen-14B"
SFT_SECONDS = 300.0

# What makes a stage of recipes/14b tiny.
OVERRIDES = (
    "cluster.device=cpu",
    "policy.tensor_model_parallel_size=2",
    "policy.precision=fp32",
    "policy.max_total_sequence_length=192",
    "policy.make_vocab_size_divisible_by=16",
    "generation.max_new_tokens=24",
    "generation.tensor_parallel_size=1",
    "generation.num_engines=1",
    "generation.enforce_eager=true",
    "verifier.num_workers=1",
    "validation.at_start=false",
    "validation.at_end=false",
    "validation.period=0",
    "checkpointing.export_hf=false",
    "checkpointing.save_period=3",
    "grpo.num_prompts_per_step=4",
    "grpo.num_generations_per_prompt=4",
    "policy.optimizer.lr=1e-4",
)
# The start: a new model that has learnt two answers to every problem, one of them right.
START = f"""
defaults: [{ROOT}/recipes/tiny/base.yaml]
algorithm: sft
name: math_24k
output_dir: runs/14b
cluster: {{gpus_per_node: 1, device: cpu}}
data: {{path: data/sft.jsonl}}
policy:
  from_scratch:
    hidden_size: 64
    intermediate_size: 128
    num_hidden_layers: 2
    num_attention_heads: 2
    num_key_value_heads: 2
    vocab_size: 512
    max_position_embeddings: 256
    tokenizer_data: [data/sft.jsonl]
  optimizer: {{lr: 3e-3, lr_warmup_steps: 5}}
sft: {{max_num_steps: 60, global_batch_size: 16}}
checkpointing: {{export_hf: true}}
"""


def make_checkout(folder: Path) -> Path:
    """Links to the scripts and recipes, data, a model as that of the 14B recipe, and `site.env`; returns that file.

    The model comes from a run in place of the stage math_24k, from which code_24k starts.
    """
    for name in ("slurm", "recipes"):
        (folder / name).mkdir(parents=True)
        for file in (ROOT / name).iterdir():
            (folder / name / file.name).symlink_to(file)
    _write_data(folder / "data")
    (folder / "start.yaml").write_text(START)
    command = [sys.executable, "-m", "megatron_rl", "train", "start.yaml"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    subprocess.run(command, cwd=folder, env=environment, check=True, timeout=SFT_SECONDS)
    (folder / "models").mkdir()
    (folder / "models" / MODEL).symlink_to(folder / "runs/14b/math_24k/hf")
    site = folder / "site.env"
    site.write_text(
        "source slurm/site.env\n"
        f"export ENVIRONMENT={sys.prefix} OMP_NUM_THREADS=1 REQUEUE_AFTER_SECONDS=0\n"
        "export SBATCH_GPUS=2 SBATCH_GPUS_PER_NODE=2 SBATCH_TIMELIMIT=10 SBATCH_SIGNAL=USR1@60\n"
        f'export OVERRIDES="{" ".join(OVERRIDES)}"\n'
    )
    return site


def _write_data(folder: Path) -> None:
    folder.mkdir()
    math: list[dict[str, Any]] = []
    code: list[dict[str, Any]] = []
    sft: list[dict[str, Any]] = []
    for number in range(8):
        prompt = f"What is {number} and nothing?"
        math.append({"id": f"math-{number}", "problem": prompt, "answer": str(number)})
        for answer in (number, number + 1):
            sft.append(
                {"prompt": prompt, "answer": str(answer), "response": f"<think>\n</think>\n\n\\boxed{{{answer}}}"}
            )
        prompt = f"Print {number}."
        tests = [{"input": "", "output": str(number), "testtype": "stdin"}]
        code.append({"id": f"code-{number}", "domain": "code", "prompt": prompt, "tests": tests})
        for answer in (number, number + 1):
            # Idle time: 16 samples make a step take over a second, however fast the machine.
            program = f"import time\ntime.sleep(0.06)\nprint({answer})"
            response = f"<think>\n</think>\n\n```python\n{program}\n```"
            sft.append({"domain": "code", "prompt": prompt, "tests": tests, "response": response})
    files = {"math": math, "math_hard": math, "aime24": math, "code_difficulty_7": code, "livecodebench_v5": code}
    for name, lines in (files | {"sft": sft}).items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
