"""How long one step of a recipe takes, by part: its schedule as discrete events, their lengths from the roofline.

prompts -> [one queue] -> engines -> samples -> verifier processes -> verdicts -> split, pack, train -> sync
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from converters.hf_config import ModelShape
from megatron_rl.config.schema import Domain, TrainConfig
from megatron_rl.errors import InputError
from megatron_rl.plan import roofline
from megatron_rl.plan.assumptions import ASSUMPTIONS, Assumptions
from megatron_rl.plan.engine import EngineModel, Request
from megatron_rl.plan.generation import Generated, generate, requests
from megatron_rl.plan.hardware import GPU, H100
from megatron_rl.plan.lengths import draw_lengths
from megatron_rl.plan.roofline import DecodeCost
from megatron_rl.plan.verdicts import last_verdict
from megatron_rl.policy.flops import forward_flops
from megatron_rl.policy.packing import pack, packing_metrics


@dataclass(frozen=True, kw_only=True)
class Rollout:
    """Generation and verification of one step; all zero when nothing is generated.

    Attributes:
        seconds: until the last sample ended.
        verification_wait: from there to the last verdict.
        longest_sample_seconds: the longest response alone in an engine; `seconds` cannot be less.
        idle_gpu_seconds: of GPUs whose engine has run dry, or that have none, until `seconds`.
        max_waiting: most samples that waited at once, in one engine, for a place or for cache.
        tokens: of all responses.
    """

    seconds: float = 0.0
    verification_wait: float = 0.0
    longest_sample_seconds: float = 0.0
    idle_gpu_seconds: float = 0.0
    engines: int = 0
    max_waiting: int = 0
    tokens: int = 0


@dataclass(frozen=True, kw_only=True)
class Training:
    """The policy's update.

    Attributes:
        idle_gpu_seconds: of ranks with less to do than the slowest, and of pipeline stages that wait for others.
        packing_efficiency: as `packing_metrics` has it.
        tokens: trained on, prompts included.
        flops: of the whole job, recomputation not counted.
    """

    seconds: float
    idle_gpu_seconds: float
    packing_efficiency: float
    tokens: int
    flops: float


@dataclass(frozen=True, kw_only=True)
class StepEstimate:
    """One step on `num_gpus` GPUs; seconds."""

    num_gpus: int
    rollout: Rollout
    train: Training
    sync: float
    peak_flops: float
    """Of one GPU in bfloat16."""

    @property
    def generation(self) -> float:
        """Until the last sample ended."""
        return self.rollout.seconds

    @property
    def verification_wait(self) -> float:
        """From the last sample's end to the last verdict."""
        return self.rollout.verification_wait

    @property
    def training(self) -> float:
        """The policy's update."""
        return self.train.seconds

    @property
    def total(self) -> float:
        """The whole step."""
        return self.generation + self.verification_wait + self.training + self.sync

    @property
    def idle_share(self) -> float:
        """Of all GPU time, that in which a GPU has nothing to do."""
        waiting = self.verification_wait * self.num_gpus
        idle = self.rollout.idle_gpu_seconds + waiting + self.train.idle_gpu_seconds
        return idle / (self.total * self.num_gpus)

    @property
    def response_tokens(self) -> int:
        """Generated per step."""
        return self.rollout.tokens

    @property
    def train_tokens(self) -> int:
        """Trained on per step, prompts included."""
        return self.train.tokens

    @property
    def train_flops(self) -> float:
        """Of the whole job per step, recomputation not counted."""
        return self.train.flops

    @property
    def mfu(self) -> float:
        """`train_flops` over what the GPUs could do at most in `training` seconds."""
        return self.train.flops / (self.num_gpus * self.peak_flops * self.training)

    @property
    def tokens_per_second_per_gpu(self) -> float:
        """Response tokens over the whole step."""
        return self.rollout.tokens / self.total / self.num_gpus


def estimate_step(
    config: TrainConfig,
    shape: ModelShape,
    gpu: GPU = H100,
    assumptions: Assumptions = ASSUMPTIONS,
    kv_cache_tokens: int | None = None,
) -> StepEstimate:
    """One step on `config.world_size` GPUs, with response lengths drawn from `config.seed`.

    Args:
        kv_cache_tokens: of one engine; default: what its share of the GPU's memory leaves.

    Raises:
        InputError: a mixture of experts.
    """
    if shape.num_experts:
        raise InputError(
            f"policy.model_name: a mixture of {shape.num_experts} experts; the speed model knows dense models only"
        )
    groups = _response_lengths(config, assumptions)
    rollout, sync = Rollout(), 0.0
    if config.grpo is not None and config.generation is not None:
        given = roofline.kv_cache_tokens(config.generation, shape, gpu, assumptions)
        cache = max(given if kv_cache_tokens is None else kv_cache_tokens, config.policy.max_total_sequence_length)
        rollout = roll_out(
            groups, config, roofline.decode_cost(config.generation, shape, gpu, assumptions), cache, assumptions
        )
        sync = roofline.sync_seconds(config.policy, config.generation, config.cluster, shape, gpu, assumptions)
    return StepEstimate(
        num_gpus=config.world_size,
        rollout=rollout,
        train=train_on(trained_lengths(groups, config, assumptions), config, shape, gpu, assumptions),
        sync=sync,
        peak_flops=gpu.bf16_tflops * 1e12,
    )


Groups = tuple[tuple[int, ...], ...]
"""Response tokens of every sample, per prompt."""


def _response_lengths(config: TrainConfig, assumptions: Assumptions) -> Groups:
    """Drawn for GRPO; for SFT every example is as long as it may be."""
    if config.grpo is None or config.generation is None:
        assert config.sft is not None  # checked when the config is loaded
        longest = config.policy.max_total_sequence_length - assumptions.prompt_tokens
        return ((max(1, longest),),) * config.sft.global_batch_size
    prompts, samples = config.grpo.num_prompts_per_step, config.grpo.num_generations_per_prompt
    return _drawn(prompts, samples, config.generation.max_new_tokens, assumptions, config.seed)


@lru_cache(maxsize=8)
def _drawn(prompts: int, samples: int, max_tokens: int, assumptions: Assumptions, seed: int) -> Groups:
    return draw_lengths(prompts, samples, max_tokens, assumptions, seed)


@lru_cache(maxsize=256)
def _generated(
    groups: Groups, prompt_tokens: int, engines: int, cost: DecodeCost, max_num_seqs: int, cache: int
) -> Generated:
    """Kept: layouts that differ only in how they train generate alike."""
    return generate(requests(groups, prompt_tokens), engines, cost, max_num_seqs, cache)


def roll_out(
    groups: Groups, config: TrainConfig, cost: DecodeCost, kv_cache_tokens: int, assumptions: Assumptions
) -> Rollout:
    """Generate and verify a GRPO step's samples.

    Args:
        kv_cache_tokens: of one engine.
    """
    generation = config.generation
    assert generation is not None
    tp = generation.tensor_parallel_size
    engines = generation.num_engines or max(1, config.world_size // tp)
    generated = _generated(groups, assumptions.prompt_tokens, engines, cost, generation.max_num_seqs, kv_cache_tokens)
    lengths = [length for group in groups for length in group]
    truncated = {i for i, length in enumerate(lengths) if length == generation.max_new_tokens}
    math = config.data.domain is Domain.MATH
    each = assumptions.math_verification_seconds if math else assumptions.code_verification_seconds
    verified = last_verdict(generated.ends, truncated, config.verifier.num_workers, each)
    longest = EngineModel(cost, 1, kv_cache_tokens)
    longest.add(Request(0, assumptions.prompt_tokens, max(lengths)))
    longest.advance()
    return Rollout(
        seconds=generated.seconds,
        verification_wait=verified - generated.seconds,
        longest_sample_seconds=longest.clock,
        idle_gpu_seconds=max(0.0, config.world_size * generated.seconds - tp * sum(generated.engine_seconds)),
        engines=engines,
        max_waiting=generated.max_waiting,
        tokens=generated.tokens,
    )


def trained_lengths(groups: Groups, config: TrainConfig, assumptions: Assumptions) -> list[int]:
    """Tokens, prompts included, of the sequences with an advantage; of GRPO's prompts `zero_advantage_share`, chosen by
    `config.seed`, have none."""
    kept: Sequence[int] = range(len(groups))
    if config.grpo is not None:
        count = max(1, round(len(groups) * (1 - assumptions.zero_advantage_share)))
        kept = random.Random(f"advantages/{config.seed}").sample(kept, count)
    lengths = [length for prompt in kept for length in groups[prompt]]
    if config.grpo is not None and config.generation is not None and config.grpo.overlong_filtering:
        lengths = [length for length in lengths if length < config.generation.max_new_tokens] or lengths[:1]
    return [length + assumptions.prompt_tokens for length in lengths]


def train_on(
    lengths: Sequence[int], config: TrainConfig, shape: ModelShape, gpu: GPU, assumptions: Assumptions
) -> Training:
    """Pack for the data-parallel ranks as training does, then time the slowest of them.

    Args:
        lengths: tokens of every sequence, prompts included.
    """
    policy = config.policy
    cost = roofline.train_cost(policy, config.cluster, shape, gpu, assumptions)
    pp, vpp = policy.pipeline_model_parallel_size, policy.virtual_pipeline_model_parallel_size or 1
    replica = policy.tensor_model_parallel_size * pp * policy.context_parallel_size
    dp = config.world_size // replica
    budget, forward = policy.micro_batch_tokens, forward_flops(shape)
    packing = pack(tuple(lengths), budget, dp, pp if vpp > 1 else 1, forward)
    busy, spans = [], []
    for part in packing:
        seconds = [cost.micro_batch_seconds([lengths[i] for i in batch]) for batch in part]
        busy.append(sum(seconds))
        # Stages wait while the first micro-batch comes to the last of them: (pp - 1) / m of the work of m equal ones,
        # and as many times less as an interleaved stage has chunks.
        spans.append(sum(seconds) + (pp - 1) / vpp * max(seconds, default=0.0))
    slowest = max(spans)
    updates = config.grpo.updates_per_batch if config.grpo is not None else 1
    return Training(
        seconds=slowest + updates * cost.update,
        idle_gpu_seconds=replica * sum(slowest - seconds for seconds in busy),
        packing_efficiency=packing_metrics(packing, lengths, budget, forward)["packing_efficiency"],
        tokens=sum(lengths),
        flops=roofline.train_flops(shape, lengths),
    )
