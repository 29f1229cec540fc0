"""Search for better layouts: legal ones, of these what fits, of these the fastest."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product

from converters.errors import ConversionError
from converters.families.family import Family
from converters.hf_config import ModelShape
from converters.layout import Layout
from megatron_rl.config.check import check_config
from megatron_rl.config.schema import PolicyConfig, RecomputeGranularity, TrainConfig
from megatron_rl.errors import InputError
from megatron_rl.plan.activations import element_bytes
from megatron_rl.plan.advice import problems
from megatron_rl.plan.assumptions import Assumptions
from megatron_rl.plan.hardware import GPU
from megatron_rl.plan.memory import EngineMemory, RankMemory, engine_memory, rank_memory
from megatron_rl.plan.shards import shards
from megatron_rl.plan.speed import StepEstimate, estimate_step

_SIZES = (1, 2, 4, 8)
_RESOLUTION = 0.01
"""Relative difference of step times below which layouts count as equally fast."""


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A layout that fits.

    Attributes:
        settings: what differs from the recipe, as `key=value`.
    """

    config: TrainConfig
    settings: tuple[str, ...]
    ranks: list[RankMemory]
    engine: EngineMemory | None
    step: StepEstimate


@dataclass(frozen=True, kw_only=True)
class Search:
    """What stays the same over all layouts."""

    config: TrainConfig
    family: Family
    shape: ModelShape
    gpu: GPU
    assumptions: Assumptions

    def best(self, count: int) -> list[Candidate]:
        """The fastest `count` layouts; the recipe's own is among those tried.

        Generation does not depend on how the policy is cut, nor training on the engine's layout: each is chosen alone.
        """
        engine_tp = self._fastest_engine()
        found = [self._candidate(config) for config in self._fitting(engine_tp)]
        return sorted(found, key=_rank)[:count]

    def _fastest_engine(self) -> int | None:
        """vLLM's tensor-parallel size with the shortest generation; None where nothing is generated."""
        if self.config.generation is None:
            return None
        seconds = {}
        for tp in _SIZES:
            config = _with_engine(self.config, tp)
            fits = self._engine_memory(config)
            if self._legal(config) and fits is not None and fits.full_sequences:
                step = self._step(config)
                seconds[tp] = step.generation + step.verification_wait
        return min(seconds, key=lambda tp: seconds[tp], default=self.config.generation.tensor_parallel_size)

    def _fitting(self, engine_tp: int | None) -> Iterator[TrainConfig]:
        """Legal layouts that fit; with as little recomputation as will do."""
        config = self.config if engine_tp is None else _with_engine(self.config, engine_tp)
        longest, budget = config.policy.max_total_sequence_length, config.policy.micro_batch_tokens
        budgets = [budget, *(other for other in (longest, 2 * longest) if not 2 / 3 < other / budget < 3 / 2)]
        chunks = dict.fromkeys((None, config.policy.virtual_pipeline_model_parallel_size))
        for tp, pp, vpp, cp, budget in product(_SIZES, _SIZES, chunks, _SIZES, budgets):
            for recompute in (None, RecomputeGranularity.SELECTIVE, RecomputeGranularity.FULL):
                policy = replace(
                    config.policy,
                    tensor_model_parallel_size=tp,
                    pipeline_model_parallel_size=pp,
                    virtual_pipeline_model_parallel_size=vpp,
                    context_parallel_size=cp,
                    sequence_parallel=tp > 1,
                    recompute_granularity=recompute,
                    micro_batch_tokens=budget,
                )
                candidate = replace(config, policy=policy)
                if self._legal(candidate) and self._fits(candidate):
                    yield candidate
                    break

    def _legal(self, config: TrainConfig) -> bool:
        policy, cluster = config.policy, config.cluster
        tp, cp, pp = (
            policy.tensor_model_parallel_size,
            policy.context_parallel_size,
            policy.pipeline_model_parallel_size,
        )
        engine_tp = config.generation.tensor_parallel_size if config.generation is not None else 1
        if max(tp, engine_tp) > cluster.gpus_per_node or config.world_size % (tp * cp * pp):
            return False
        if self.shape.num_attention_heads % engine_tp or config.world_size % engine_tp:
            return False
        try:
            Layout(tp, pp, vpp=policy.virtual_pipeline_model_parallel_size or 1).check(self.shape)
            check_config(config)
        except (ConversionError, InputError):
            return False
        return True

    def _fits(self, config: TrainConfig) -> bool:
        return not list(problems(config, self._rank_memory(config), self._engine_memory(config), self.gpu))

    def _candidate(self, config: TrainConfig) -> Candidate:
        return Candidate(
            config=config,
            settings=tuple(_differences(self.config, config)),
            ranks=self._rank_memory(config),
            engine=self._engine_memory(config),
            step=self._step(config),
        )

    def _rank_memory(self, config: TrainConfig) -> list[RankMemory]:
        policy = config.policy
        shape = padded_for(self.shape, policy)
        tp, pp = policy.tensor_model_parallel_size, policy.pipeline_model_parallel_size
        parts = shards(self.family, shape, tp, pp, element_bytes(policy))
        return rank_memory(config, shape, parts, self.gpu)

    def _engine_memory(self, config: TrainConfig) -> EngineMemory | None:
        if config.generation is None:
            return None
        return engine_memory(config.generation, config.policy, self.shape, self.gpu, self.assumptions)

    def _step(self, config: TrainConfig) -> StepEstimate:
        engine = self._engine_memory(config)
        cache = engine.kv_cache_tokens if engine is not None else None
        return estimate_step(config, padded_for(self.shape, config.policy), self.gpu, self.assumptions, cache)


def padded_for(shape: ModelShape, policy: PolicyConfig) -> ModelShape:
    """`shape` with the vocabulary padded as `policy` wants it."""
    divisor = policy.make_vocab_size_divisible_by * policy.tensor_model_parallel_size
    return replace(shape, padded_vocab_size=-(-shape.vocab_size // divisor) * divisor)


def _rank(candidate: Candidate) -> tuple[int, int, float]:
    """The faster first; of those that the estimate cannot tell apart, the one with the fewest parts."""
    policy = candidate.config.policy
    parts = policy.pipeline_model_parallel_size * policy.context_parallel_size * policy.tensor_model_parallel_size
    return round(math.log(candidate.step.total) / _RESOLUTION), parts, candidate.step.total


def _with_engine(config: TrainConfig, tp: int) -> TrainConfig:
    assert config.generation is not None
    return replace(config, generation=replace(config.generation, tensor_parallel_size=tp))


_SEARCHED = (
    *("tensor_model_parallel_size", "pipeline_model_parallel_size", "virtual_pipeline_model_parallel_size"),
    *("context_parallel_size", "sequence_parallel", "recompute_granularity", "micro_batch_tokens"),
)


def _differences(before: TrainConfig, after: TrainConfig) -> Iterator[str]:
    for key in _SEARCHED:
        value = getattr(after.policy, key)
        if value != getattr(before.policy, key):
            yield f"policy.{key}={'null' if value is None else str(value).lower()}"
    if before.generation is not None and after.generation is not None:
        tp = after.generation.tensor_parallel_size
        if tp != before.generation.tensor_parallel_size:
            yield f"generation.tensor_parallel_size={tp}"
