"""The speed model against published times, and a recipe's step from 8 to 1,024 GPUs.

    python benchmarks/simulate.py [--recipe recipes/14b/code_32k.yaml] [--stage NAME] [--gpu h100]

Fits the rollout model on one of Skywork-OR1's four published times and predicts the others (each ratio is predicted
over published), then simulates one step of the recipe on every number of GPUs and takes the time that needs. Nothing
runs on a GPU: the scales are what a roofline says. The last line on standard output is JSON.
"""

import argparse
import json
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console

from converters.hf_config import model_shape
from megatron_rl.errors import InputError
from megatron_rl.plan.assumptions import ASSUMPTIONS, assumption_lines
from megatron_rl.plan.hardware import GPUS
from megatron_rl.plan.published import FITTED_ON, SKYWORK_SECONDS, compare_with_skywork
from megatron_rl.plan.recipe import load_stage
from megatron_rl.plan.simulate import GPU_COUNTS, simulate_scales
from megatron_rl.plan.simulate_show import show_simulation, simulation_json

MAX_ERROR, MAX_SECONDS = 0.15, 5.0


def against_published() -> dict[str, Any]:
    """Seconds and ratios for Skywork-OR1's rollout."""
    comparison = compare_with_skywork()
    return {
        "fitted": {"on_gpus": FITTED_ON, "kv_reads_per_step": round(comparison.kv_reads_per_step, 3)},
        "published_seconds": SKYWORK_SECONDS,
        "predicted_seconds": {gpus: round(seconds, 1) for gpus, seconds in comparison.seconds.items()},
        "ratio_to_published": {gpus: round(1 + error, 3) for gpus, error in comparison.errors.items()},
    }


def scales(recipe: Path, stage: str | None, gpu: str) -> dict[str, Any]:
    """The recipe's step on every number of GPUs, printed as a table too."""
    config, hf_config = load_stage(recipe, [], stage, None)
    shape = model_shape(hf_config, vocab_divisor=1)
    begin = time.monotonic()
    steps = simulate_scales(config, shape, GPUS[gpu])
    seconds = time.monotonic() - begin
    show_simulation(steps, Console(stderr=True))
    return {
        "recipe": str(recipe),
        "gpu": GPUS[gpu].name,
        "assumptions": dict(assumption_lines(ASSUMPTIONS)),
        "simulation_seconds": round(seconds, 2),
        "scales": simulation_json(steps),
    }


def targets(result: dict[str, Any]) -> list[dict[str, Any]]:
    """What the planner promises, against what was found."""
    rows: list[dict[str, Any]] = []
    for gpus, ratio in result["skywork_or1"]["ratio_to_published"].items():
        name = f"rollout on {gpus} GPUs: predicted over published"
        rows.append(
            {"name": name, "target": f"1 +- {MAX_ERROR}", "measured": ratio, "met": abs(ratio - 1) <= MAX_ERROR}
        )
    seconds = result["simulation_seconds"]
    name = f"seconds to simulate {GPU_COUNTS[0]} to {GPU_COUNTS[-1]:,} GPUs"
    rows.append({"name": name, "target": f"< {MAX_SECONDS}", "measured": seconds, "met": seconds < MAX_SECONDS})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", type=Path, default=Path("recipes/14b/code_32k.yaml"))
    parser.add_argument("--stage", help="of a pipeline")
    parser.add_argument("--gpu", choices=GPUS, default="h100")
    arguments = parser.parse_args()
    try:
        result = {"skywork_or1": against_published()} | scales(arguments.recipe, arguments.stage, arguments.gpu)
    except InputError as error:
        sys.exit(str(error))
    rows = targets(result)
    report = {"benchmark": "simulate", "versions": {"megatron-rl": version("megatron-rl")}, **result}
    print(json.dumps(report | {"targets": rows, "targets_met": all(row["met"] for row in rows)}))


if __name__ == "__main__":
    main()
