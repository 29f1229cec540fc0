"""The simulation of scale as a table and as data."""

from collections.abc import Sequence
from itertools import pairwise

from rich.console import Console
from rich.table import Table

from megatron_rl.plan.published import compare_with_skywork, comparison_line
from megatron_rl.plan.speed import StepEstimate

_MIN_GAIN = 0.1
"""A doubling of GPUs that shortens the step by less is not worth it."""


def show_simulation(steps: Sequence[StepEstimate], console: Console) -> None:
    """Print how the step and its parts change with the number of GPUs, and how far to trust it."""
    table = Table(title="One step in seconds, the same batch on more GPUs", box=None, pad_edge=False)
    for name in ("GPUs", "engines", "step", "generate", "verify", "train", "sync", "idle", "tok/s/GPU", "faster"):
        table.add_column(name, justify="right")
    for step in steps:
        parts = (step.total, step.generation, step.verification_wait, step.training, step.sync)
        table.add_row(
            f"{step.num_gpus:,}",
            f"{step.rollout.engines:,}",
            *(f"{seconds:,.1f}" for seconds in parts),
            f"{step.idle_share:.0%}",
            f"{step.tokens_per_second_per_gpu:,.0f}",
            f"{steps[0].total / step.total:.1f}",
        )
    console.print(table)
    for line in footnotes(steps):
        console.print(line, style="dim", highlight=False)


def footnotes(steps: Sequence[StepEstimate]) -> list[str]:
    """What bounds the step, from where on more GPUs hardly help, and how the model did against published times."""
    lines = [
        f"The longest sample alone takes {steps[0].rollout.longest_sample_seconds:,.0f} s: no number of GPUs generates "
        "faster.",
        "verify: wait for the last verdict after generation. idle: share of GPU time with nothing to do.",
        "Memory is not looked at here: what is sharded over data-parallel ranks may not fit on few.",
    ]
    enough = next((a.num_gpus for a, b in pairwise(steps) if b.total > (1 - _MIN_GAIN) * a.total), None)
    if enough is not None:
        lines.append(f"Beyond {enough:,} GPUs the next step up shortens the step by less than {_MIN_GAIN:.0%}.")
    return [*lines, comparison_line(compare_with_skywork())]


def simulation_json(steps: Sequence[StepEstimate]) -> list[dict[str, float | int]]:
    """One row per number of GPUs."""
    return [
        {
            "gpus": step.num_gpus,
            "engines": step.rollout.engines,
            "step_seconds": round(step.total, 2),
            "generation_seconds": round(step.generation, 2),
            "verification_wait_seconds": round(step.verification_wait, 2),
            "training_seconds": round(step.training, 2),
            "sync_seconds": round(step.sync, 2),
            "idle_share": round(step.idle_share, 4),
            "mfu": round(step.mfu, 4),
            "tokens_per_second_per_gpu": round(step.tokens_per_second_per_gpu, 1),
            "packing_efficiency": round(step.train.packing_efficiency, 4),
            "longest_sample_seconds": round(step.rollout.longest_sample_seconds, 2),
        }
        for step in steps
    ]
