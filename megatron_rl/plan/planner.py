"""One recipe's plan: memory of each kind of rank, the step's time, what does not fit, and better layouts."""

from dataclasses import dataclass
from typing import Any

from converters.families import family_of
from converters.hf_config import ModelShape, model_shape
from megatron_rl.config.schema import TrainConfig
from megatron_rl.plan.advice import problems
from megatron_rl.plan.assumptions import ASSUMPTIONS, Assumptions
from megatron_rl.plan.count import count_shards
from megatron_rl.plan.hardware import GPU
from megatron_rl.plan.layouts import Candidate, Search, padded_for
from megatron_rl.plan.memory import EngineMemory, RankMemory, engine_memory, rank_memory
from megatron_rl.plan.roofline import recomputed_flops
from megatron_rl.plan.shards import whole_model
from megatron_rl.plan.speed import StepEstimate, estimate_step
from megatron_rl.policy.model import Architecture
from megatron_rl.preflight import check_division


@dataclass(frozen=True, kw_only=True)
class Flops:
    """Of the whole job and one step.

    Attributes:
        training: forward and backward pass.
        recomputation: what of the forward pass is done again.
        generation: one forward pass over every response token.
    """

    training: float
    recomputation: float
    generation: float


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is known of a recipe before it runs.

    Attributes:
        parameters: of the whole model, counted.
        ranks: one per pipeline stage.
        engine: None where nothing is generated.
        problems: one line per thing that does not fit.
    """

    config: TrainConfig
    gpu: GPU
    shape: ModelShape
    parameters: int
    ranks: list[RankMemory]
    engine: EngineMemory | None
    step: StepEstimate
    flops: Flops
    problems: list[str]
    suggestions: list[Candidate]


def make_plan(
    config: TrainConfig,
    hf_config: dict[str, Any],
    gpu: GPU,
    assumptions: Assumptions = ASSUMPTIONS,
    suggestions: int = 5,
) -> Plan:
    """Count, estimate and, for that many `suggestions`, search.

    Raises:
        InputError: the layout does not divide the model; a mixture of experts.
        ConversionError: a model that is not supported.
    """
    whole = model_shape(hf_config, vocab_divisor=1)
    check_division(config.policy, whole)
    shape = padded_for(whole, config.policy)
    family = family_of(hf_config)
    counted = count_shards(config.policy, Architecture(family, shape, hf_config))
    ranks = rank_memory(config, shape, counted, gpu)
    engine = None
    if config.generation is not None:
        engine = engine_memory(config.generation, config.policy, shape, gpu, assumptions)
    step = estimate_step(config, shape, gpu, assumptions, engine.kv_cache_tokens if engine is not None else None)
    search = Search(config=config, family=family, shape=whole, gpu=gpu, assumptions=assumptions)
    return Plan(
        config=config,
        gpu=gpu,
        shape=shape,
        parameters=whole_model(counted, shape, config.policy.tensor_model_parallel_size),
        ranks=ranks,
        engine=engine,
        step=step,
        flops=_flops(config, shape, step),
        problems=list(problems(config, ranks, engine, gpu)),
        suggestions=search.best(suggestions) if suggestions else [],
    )


def _flops(config: TrainConfig, shape: ModelShape, step: StepEstimate) -> Flops:
    forward = step.train_flops / 3
    return Flops(
        training=step.train_flops,
        recomputation=recomputed_flops(config.policy, shape, forward, step.train_tokens),
        generation=forward / step.train_tokens * step.response_tokens if config.grpo is not None else 0.0,
    )
