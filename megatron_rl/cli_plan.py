"""`megatron-rl plan`: whether a recipe fits, and how long its step takes."""

import json
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from megatron_rl.errors import InputError

_NO_COMPILER = "TORCHDYNAMO_DISABLE"


class Gpu(StrEnum):
    H100 = "h100"
    H200 = "h200"
    H800 = "h800"


def plan(
    recipe: Annotated[Path, typer.Argument(help="YAML recipe; see recipes/.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="Settings as key=value; of the stage.")] = None,
    stage: Annotated[str | None, typer.Option(help="Stage of a pipeline.")] = None,
    nodes: Annotated[int | None, typer.Option(min=1, help="Instead of cluster.num_nodes.")] = None,
    gpu: Annotated[Gpu, typer.Option(help="What the cluster has.")] = Gpu.H100,
    simulate: Annotated[bool, typer.Option("--simulate", help="Also the step on 8 to 1,024 GPUs.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Tell memory, time and better layouts of a recipe; no GPU is used. Exit status 1 if it does not fit."""
    from megatron_rl.plan.recipe import check_installed, load_stage

    check_installed()
    config, hf_config = load_stage(recipe, overrides or [], stage, nodes)
    if simulate and config.grpo is None:
        raise InputError(f"{recipe}: --simulate is of generation, and an SFT recipe generates nothing; leave it out")

    from megatron_rl.plan.assumptions import ASSUMPTIONS
    from megatron_rl.plan.hardware import GPUS
    from megatron_rl.plan.show import plan_json, show_plan, stdout_console
    from megatron_rl.plan.simulate import simulate_scales
    from megatron_rl.plan.simulate_show import show_simulation, simulation_json

    with _light_megatron():
        from megatron_rl.plan.planner import make_plan

        made = make_plan(config, hf_config, GPUS[gpu.value])
    cache = made.engine.kv_cache_tokens if made.engine is not None else None
    scales = simulate_scales(config, made.shape, made.gpu, ASSUMPTIONS, cache) if simulate else []
    if as_json:
        more = {"simulation": simulation_json(scales)} if simulate else {}
        print(json.dumps(plan_json(made, ASSUMPTIONS) | more))
    else:
        console = stdout_console()
        show_plan(made, ASSUMPTIONS, console)
        if simulate:
            console.print()
            show_simulation(scales, console)
    raise SystemExit(1 if made.problems else 0)


@contextmanager
def _light_megatron() -> Iterator[None]:
    """Megatron-Core without its word on every missing optional kernel, which `doctor` has once, and without compiling
    its fused functions, which a plan never runs: that saves a quarter of the import."""
    before = os.environ.get(_NO_COMPILER)
    os.environ[_NO_COMPILER] = "1"
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        del os.environ[_NO_COMPILER]
        if before is not None:
            os.environ[_NO_COMPILER] = before
