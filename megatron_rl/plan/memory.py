"""What lies on a GPU at its fullest moments: training with the engine asleep, generation with the trainer idle."""

from collections.abc import Sequence
from dataclasses import dataclass

from converters.hf_config import ModelShape
from megatron_rl.config.schema import GenerationConfig, PolicyConfig, Precision, TrainConfig
from megatron_rl.plan.activations import Activations, Spec, activations, element_bytes
from megatron_rl.plan.assumptions import Assumptions
from megatron_rl.plan.hardware import GPU
from megatron_rl.plan.roofline import gradient_bytes, kv_bytes_per_token, kv_cache_tokens, weight_parameters
from megatron_rl.plan.shards import Shard

GIB = 2**30
_BYTES = {Precision.FP32: 4, Precision.BF16: 2}


@dataclass(frozen=True, kw_only=True)
class MemoryAssumptions:
    """What no size of model or layout tells."""

    trainer_context_gib: float = 2.5
    """CUDA context, NCCL's and cuBLAS' buffers of the trainer; ours."""
    engine_asleep_gib: float = 5.0
    """What a sleeping engine keeps: its CUDA context, graphs, NCCL's buffers. vLLM's own log at sleep level 2 says 4.75
    (vLLM issue 17117)."""
    fragmentation_share: float = 0.1
    """Of activations and working memory: what torch's allocator holds and cannot use; ours."""


MEMORY_ASSUMPTIONS = MemoryAssumptions()


@dataclass(frozen=True, kw_only=True)
class Resident:
    """What the trainer holds all the time, in GiB. The optimizer's state, with main weights where the weights are not
    in fp32 themselves, is spread over the DP x CP ranks; 0 where it lies in the host's memory."""

    weights: float
    gradients: float
    optimizer: float
    context: float

    @property
    def total(self) -> float:
        """GiB."""
        return self.weights + self.gradients + self.optimizer + self.context


@dataclass(frozen=True, kw_only=True)
class EngineMemory:
    """One GPU of a vLLM engine, in GiB, and the cache of the whole engine, in tokens.

    Attributes:
        budget: its share of the GPU: `generation.gpu_memory_utilization`.
        reserve: activations, CUDA graphs and communication.
        kv_bytes_per_token: on this GPU.
        full_sequences: of `policy.max_total_sequence_length`, at once.
    """

    budget: float
    weights: float
    reserve: float
    kv_cache: float
    kv_bytes_per_token: int
    kv_cache_tokens: int
    full_sequences: int


@dataclass(frozen=True, kw_only=True)
class RankMemory:
    """One kind of rank, in GiB.

    Attributes:
        activations: kept from forward to backward pass.
        layer_work, log_prob_work: on top of them, one or the other.
        fragmentation: of activations and the larger work.
        idle: what the trainer holds while the engine is awake.
        engine_asleep, engine_awake: 0 where nothing is generated.
        sync_buffers: while weights are gathered and sent to the engine.
    """

    shard: Shard
    resident: Resident
    activations: float
    layer_work: float
    log_prob_work: float
    fragmentation: float
    idle: float
    engine_asleep: float
    engine_awake: float
    sync_buffers: float

    @property
    def work(self) -> float:
        """The larger of the two kinds."""
        return max(self.layer_work, self.log_prob_work)

    @property
    def training(self) -> float:
        """GiB while the policy trains."""
        return self.resident.total + self.activations + self.work + self.fragmentation + self.engine_asleep

    @property
    def generation(self) -> float:
        """GiB while the engine is awake; 0 where nothing is generated."""
        return self.idle + self.engine_awake + self.sync_buffers if self.engine_awake else 0.0


def spec_of(config: TrainConfig) -> Spec:
    """The layer spec of the machine that the recipe is for."""
    return Spec.LOCAL if config.cluster.device == "cpu" else Spec.TRANSFORMER_ENGINE


def rank_memory(
    config: TrainConfig,
    shape: ModelShape,
    shards: Sequence[Shard],
    gpu: GPU,
    assumptions: MemoryAssumptions = MEMORY_ASSUMPTIONS,
) -> list[RankMemory]:
    """One entry per shard, at the longest micro-batch."""
    policy = config.policy
    generates = config.generation is not None
    awake = gpu.memory_gib * config.generation.gpu_memory_utilization if config.generation is not None else 0.0
    found = []
    for shard in shards:
        tokens = longest_micro_batch(policy)
        needed = activations(policy, shape, spec_of(config), shard.stage, shard.layers, tokens)
        resident = _resident(config, shard, assumptions)
        away = resident.gradients + resident.optimizer if policy.offload_during_generation else 0.0
        found.append(
            RankMemory(
                shard=shard,
                resident=resident,
                **_working(needed, assumptions),
                idle=resident.total - away,
                engine_asleep=assumptions.engine_asleep_gib if generates else 0.0,
                engine_awake=awake,
                sync_buffers=_sync_buffers(policy, config.generation, shape) / GIB,
            )
        )
    return found


def longest_micro_batch(policy: PolicyConfig) -> int:
    """Tokens: the budget, or one sequence of full length where that is longer."""
    return max(policy.micro_batch_tokens, policy.max_total_sequence_length)


def engine_memory(
    generation: GenerationConfig, policy: PolicyConfig, shape: ModelShape, gpu: GPU, assumptions: Assumptions
) -> EngineMemory:
    """What an engine's share of its GPUs is spent on."""
    tp = generation.tensor_parallel_size
    tokens = kv_cache_tokens(generation, shape, gpu, assumptions)
    per_token = kv_bytes_per_token(shape, tp)
    return EngineMemory(
        budget=gpu.memory_gib * generation.gpu_memory_utilization,
        weights=2 * weight_parameters(shape) / tp / GIB,
        reserve=assumptions.engine_reserve_gib,
        kv_cache=tokens * per_token / GIB,
        kv_bytes_per_token=per_token,
        kv_cache_tokens=tokens,
        full_sequences=tokens // policy.max_total_sequence_length,
    )


def _resident(config: TrainConfig, shard: Shard, assumptions: MemoryAssumptions) -> Resident:
    policy = config.policy
    copies = config.world_size // (policy.tensor_model_parallel_size * policy.pipeline_model_parallel_size)
    optimizer = policy.optimizer
    state = _BYTES[optimizer.exp_avg_dtype] + _BYTES[optimizer.exp_avg_sq_dtype]
    # In fp32 Megatron's distributed optimizer updates the weights themselves.
    state += 0 if policy.precision is Precision.FP32 else _BYTES[Precision.FP32]
    return Resident(
        weights=shard.weight_bytes / GIB,
        gradients=shard.parameters * gradient_bytes(policy) / GIB,
        optimizer=0.0 if optimizer.optimizer_cpu_offload else shard.parameters * state / copies / GIB,
        context=assumptions.trainer_context_gib,
    )


def _working(needed: Activations, assumptions: MemoryAssumptions) -> dict[str, float]:
    return {
        "activations": needed.kept / GIB,
        "layer_work": needed.layer_work / GIB,
        "log_prob_work": needed.log_prob_work / GIB,
        "fragmentation": assumptions.fragmentation_share * needed.peak / GIB,
    }


def _sync_buffers(policy: PolicyConfig, generation: GenerationConfig | None, shape: ModelShape) -> float:
    """Bytes: the largest weight whole, its parts as they are gathered, and the bucket that they are sent in."""
    if generation is None:
        return 0.0
    largest = shape.padded_vocab_size * shape.hidden_size * element_bytes(policy)
    tp = policy.tensor_model_parallel_size
    gathered = 1 + 1 / tp if tp > 1 else 0.0
    return largest * (1 + gathered) + generation.sync_bucket_mib * 2**20
