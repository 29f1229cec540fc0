"""A plan as tables, and as data."""

from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from megatron_rl.config.schema import PolicyConfig, RecomputeGranularity
from megatron_rl.plan.assumptions import Assumptions, assumption_lines
from megatron_rl.plan.layouts import Candidate
from megatron_rl.plan.memory import MEMORY_ASSUMPTIONS, EngineMemory, RankMemory, longest_micro_batch
from megatron_rl.plan.speed import StepEstimate

if TYPE_CHECKING:  # the planner brings Megatron-Core
    from megatron_rl.plan.planner import Plan

_WIDTH = 100
"""Columns where standard output is not a terminal."""
_PETA = 1e15
_KEPT = {
    None: "activations",
    RecomputeGranularity.SELECTIVE: "activations but MLPs'",
    RecomputeGranularity.FULL: "layers' inputs",
}


def stdout_console() -> Console:
    """Standard output at the terminal's width, else 100 columns."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=_WIDTH)


def show_plan(plan: "Plan", assumptions: Assumptions, console: Console) -> None:
    """Print memory, time, assumptions, better layouts, and last whether it fits."""
    console.print(_headline(plan), soft_wrap=True)
    console.print("\nMemory", style="bold")
    console.print(_memory_table(plan))
    if plan.engine is not None:
        console.print(_engine_line(plan, plan.engine), style="dim")
    console.print("\nTime", style="bold")
    console.print(_step_table(plan.step))
    console.print(_flops_line(plan), style="dim")
    console.print("\nAssumptions", style="bold")
    console.print(_assumption_table(assumptions))
    if plan.suggestions:
        console.print("\nThe fastest layouts that fit; of those within 1%, the least cut model first", style="bold")
        console.print(_suggestion_table(plan))
        for number, candidate in enumerate(plan.suggestions, 1):
            console.print(
                f"{number}: {' '.join(candidate.settings) or 'the recipe as it is'}", style="dim", soft_wrap=True
            )
    console.print()
    for problem in plan.problems:
        console.print(f"does not fit: {problem}", style="red", markup=False)
    if not plan.problems:
        console.print("fits", style="green")


def plan_json(plan: "Plan", assumptions: Assumptions) -> dict[str, Any]:
    """The plan as plain data; memory in GiB, times in seconds."""
    return {
        "name": plan.config.name,
        "gpu": plan.gpu.name,
        "gpus": plan.config.world_size,
        "memory_gib": plan.gpu.memory_gib,
        "parameters": plan.parameters,
        "fits": not plan.problems,
        "problems": plan.problems,
        "ranks": [_rank_json(rank) for rank in plan.ranks],
        "engine": None if plan.engine is None else asdict(plan.engine),
        "step": _step_json(plan.step),
        "flops": asdict(plan.flops),
        "assumptions": asdict(assumptions) | asdict(MEMORY_ASSUMPTIONS),
        "suggestions": [_candidate_json(candidate) for candidate in plan.suggestions],
    }


def _headline(plan: "Plan") -> str:
    config, policy = plan.config, plan.config.policy
    model_ranks = policy.tensor_model_parallel_size * policy.pipeline_model_parallel_size * policy.context_parallel_size
    return (
        f"[bold]{config.name}[/]: {plan.parameters / 1e9:.2f}B parameters, TP {policy.tensor_model_parallel_size} x "
        f"PP {_stages(policy)} x CP {policy.context_parallel_size} x "
        f"DP {config.world_size // model_ranks} on {config.cluster.num_nodes} x {config.cluster.gpus_per_node} "
        f"{plan.gpu.name} with {plan.gpu.memory_gib} GiB each"
    )


def _stages(policy: PolicyConfig) -> str:
    vpp = policy.virtual_pipeline_model_parallel_size
    return f"{policy.pipeline_model_parallel_size}" + (f" of {vpp} chunks" if vpp else "")


def _memory_table(plan: "Plan") -> Table:
    table = Table("GiB on every GPU", box=None, pad_edge=False)
    for rank in plan.ranks:
        table.add_column("every rank" if len(plan.ranks) == 1 else f"stage {rank.shard.stage}", justify="right")
    for name, value, is_sum in _memory_rows(plan):
        style = "bold" if is_sum else ""
        table.add_row(name, *(value(rank) for rank in plan.ranks), style=style, end_section=is_sum)
    return table


def _memory_rows(plan: "Plan") -> Iterator[tuple[str, Callable[[RankMemory], str], bool]]:
    """Label, cell, and whether the row is a sum."""
    policy = plan.config.policy
    kept = _KEPT[policy.recompute_granularity]
    tokens = longest_micro_batch(policy)

    def gib(of: Callable[[RankMemory], float]) -> Callable[[RankMemory], str]:
        return lambda rank: f"{of(rank):.1f}"

    yield "parameters held", lambda rank: f"{rank.shard.parameters / 1e9:.2f}B", False
    yield f"weights ({policy.precision.value})", gib(lambda rank: rank.resident.weights), False
    yield f"gradients ({'fp32' if policy.grad_reduce_in_fp32 else 'bf16'})", gib(lambda r: r.resident.gradients), False
    where = "in the host's memory" if policy.optimizer.optimizer_cpu_offload else "over DP x CP"
    yield f"optimizer ({where})", gib(lambda rank: rank.resident.optimizer), False
    yield "CUDA and NCCL", gib(lambda rank: rank.resident.context), False
    yield "held all the time", gib(lambda rank: rank.resident.total), True
    yield f"{kept} of {tokens:,} tokens", gib(lambda rank: rank.activations), False
    yield "one layer's backward pass", gib(lambda rank: rank.layer_work), False
    yield "or log-probs (the larger counts)", gib(lambda rank: rank.log_prob_work), False
    yield "fragmentation", gib(lambda rank: rank.fragmentation), False
    yield "vLLM asleep", gib(lambda rank: rank.engine_asleep), False
    yield "training in all", gib(lambda rank: rank.training), True
    if plan.engine is not None:
        if policy.offload_during_generation:
            yield "held while vLLM is awake", gib(lambda rank: rank.idle), False
        yield "weight sync's buffers", gib(lambda rank: rank.sync_buffers), False
        yield "vLLM awake", gib(lambda rank: rank.engine_awake), False
        yield "generation in all", gib(lambda rank: rank.generation), True


def _engine_line(plan: "Plan", engine: EngineMemory) -> str:
    assert plan.config.generation is not None
    return (
        f"vLLM at TP {plan.config.generation.tensor_parallel_size}: {engine.weights:.1f} GiB of weights, "
        f"{engine.reserve:.1f} reserve, {engine.kv_cache:.1f} key-value cache at {engine.kv_bytes_per_token:,} bytes a "
        f"token: {engine.kv_cache_tokens:,} tokens, {engine.full_sequences} sequences of full length "
        f"({plan.config.policy.max_total_sequence_length:,})"
    )


def _step_table(step: StepEstimate) -> Table:
    table = Table("One step", box=None, pad_edge=False)
    table.add_column("seconds", justify="right")
    table.add_column("share", justify="right")
    for name, seconds in (
        ("generation", step.generation),
        ("verification, after generation", step.verification_wait),
        ("training", step.training),
        ("weight sync", step.sync),
        ("in all", step.total),
    ):
        table.add_row(name, f"{seconds:,.1f}", f"{seconds / step.total:.0%}", style="bold" if name == "in all" else "")
    return table


def _flops_line(plan: "Plan") -> str:
    step, flops = plan.step, plan.flops
    return (
        f"PFLOP: generation {flops.generation / _PETA:,.0f}, training {flops.training / _PETA:,.0f}, recomputation "
        f"{flops.recomputation / _PETA:,.0f}. {step.response_tokens:,} response tokens, {step.train_tokens:,} trained "
        f"on; {step.tokens_per_second_per_gpu:,.0f} tokens/s/GPU, MFU in training {step.mfu:.0%}, idle "
        f"{step.idle_share:.0%}"
    )


def _assumption_table(assumptions: Assumptions) -> Table:
    lines = [
        *assumption_lines(assumptions),
        *((key, f"{value:g}") for key, value in asdict(MEMORY_ASSUMPTIONS).items()),
    ]
    table = Table.grid(padding=(0, 2), pad_edge=False)
    half = -(-len(lines) // 2)
    for row in range(half):
        cells = [cell for line in lines[row::half] for cell in line]
        table.add_row(*cells, style="dim")
    return table


def _suggestion_table(plan: "Plan") -> Table:
    table = Table(box=None, pad_edge=False)
    results = ("", "step s", "train s", "train GiB", "gen. GiB", "sequences")
    layout = ("TP", "PP", "CP", "micro-batch", "recompute", "vLLM TP")
    for name in (*results, *layout):
        table.add_column(name, justify="right", no_wrap=True)
    for number, candidate in enumerate(plan.suggestions, 1):
        policy, generation = candidate.config.policy, candidate.config.generation
        table.add_row(
            f"{number}",
            f"{candidate.step.total:,.1f}",
            f"{candidate.step.training:,.1f}",
            f"{max(rank.training for rank in candidate.ranks):.1f}",
            f"{max(rank.generation for rank in candidate.ranks):.1f}",
            f"{candidate.engine.full_sequences}" if candidate.engine is not None else "-",
            f"{policy.tensor_model_parallel_size}",
            _stages(policy),
            f"{policy.context_parallel_size}",
            f"{policy.micro_batch_tokens:,}",
            policy.recompute_granularity or "none",
            f"{generation.tensor_parallel_size}" if generation is not None else "-",
        )
    return table


def _rank_json(rank: RankMemory) -> dict[str, Any]:
    return asdict(rank) | {
        "parameters": rank.shard.parameters,
        "training": rank.training,
        "generation": rank.generation,
    }


def _step_json(step: StepEstimate) -> dict[str, float | int]:
    names = ("generation", "verification_wait", "training", "sync", "total", "idle_share", "response_tokens")
    return {name: getattr(step, name) for name in (*names, "train_tokens", "mfu", "tokens_per_second_per_gpu")}


def _candidate_json(candidate: Candidate) -> dict[str, Any]:
    return {
        "settings": list(candidate.settings),
        "training_gib": max(rank.training for rank in candidate.ranks),
        "generation_gib": max(rank.generation for rank in candidate.ranks),
        "full_sequences": candidate.engine.full_sequences if candidate.engine is not None else None,
        "step": _step_json(candidate.step),
    }
