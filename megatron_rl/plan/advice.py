"""Whether a recipe fits, and which key to change where it does not."""

from collections.abc import Iterator, Sequence

from megatron_rl.config.schema import RecomputeGranularity, TrainConfig
from megatron_rl.plan.hardware import GPU
from megatron_rl.plan.memory import EngineMemory, RankMemory


def problems(config: TrainConfig, ranks: Sequence[RankMemory], engine: EngineMemory | None, gpu: GPU) -> Iterator[str]:
    """One line per moment that does not fit: by how much, its largest part, and a key to change; none if all fits."""
    fullest = max(ranks, key=lambda rank: rank.training)
    if fullest.training > gpu.memory_gib:
        yield _training(config, fullest, gpu)
    fullest = max(ranks, key=lambda rank: rank.generation)
    if fullest.generation > gpu.memory_gib:
        yield _generation(config, fullest, gpu)
    if engine is not None and engine.full_sequences < 1:
        yield _cache(config, engine)


def _training(config: TrainConfig, rank: RankMemory, gpu: GPU) -> str:
    name, size, remedy = max(_training_parts(config, rank), key=lambda part: part[1])
    return (
        f"training needs {rank.training:.1f} GiB of the {gpu.name}'s {gpu.memory_gib:.1f} on stage "
        f"{rank.shard.stage}; the largest part are the {name} with {size:.1f} GiB: {remedy}"
    )


def _training_parts(config: TrainConfig, rank: RankMemory) -> list[tuple[str, float, str]]:
    policy = config.policy
    more_ranks = (
        f"raise policy.tensor_model_parallel_size={policy.tensor_model_parallel_size} or "
        f"policy.pipeline_model_parallel_size={policy.pipeline_model_parallel_size}"
    )
    return [
        ("activations and working memory", _layer_part(rank), _less_activations(config)),
        ("log-probs", rank.log_prob_work, f"lower policy.logprob_chunk_tokens={policy.logprob_chunk_tokens}"),
        ("weights and gradients", rank.resident.weights + rank.resident.gradients, more_ranks),
        (
            "optimizer's state",
            rank.resident.optimizer,
            f"raise cluster.num_nodes={config.cluster.num_nodes} or set policy.optimizer.optimizer_cpu_offload=true",
        ),
    ]


def _layer_part(rank: RankMemory) -> float:
    own_work = rank.layer_work if rank.layer_work >= rank.log_prob_work else 0.0
    return rank.activations + own_work + rank.fragmentation


def _less_activations(config: TrainConfig) -> str:
    policy = config.policy
    if policy.recompute_granularity is not RecomputeGranularity.FULL:
        return "set policy.recompute_granularity=full"
    if policy.micro_batch_tokens > policy.max_total_sequence_length:
        return f"lower policy.micro_batch_tokens={policy.micro_batch_tokens}"
    if policy.tensor_model_parallel_size > 1 and not policy.sequence_parallel:
        return "set policy.sequence_parallel=true"
    return f"raise policy.context_parallel_size={policy.context_parallel_size}"


def _generation(config: TrainConfig, rank: RankMemory, gpu: GPU) -> str:
    assert config.generation is not None
    room = gpu.memory_gib - rank.idle - rank.sync_buffers
    share = int(100 * room / gpu.memory_gib) / 100
    remedy = (
        f"set it to {share} at most"
        if share > 0
        else f"raise policy.tensor_model_parallel_size={config.policy.tensor_model_parallel_size} first"
    )
    return (
        f"generation needs {rank.generation:.1f} GiB of the {gpu.name}'s {gpu.memory_gib:.1f} on stage "
        f"{rank.shard.stage}: the trainer keeps {rank.idle:.1f}, weight sync takes {rank.sync_buffers:.1f}, "
        f"generation.gpu_memory_utilization={config.generation.gpu_memory_utilization} asks for "
        f"{rank.engine_awake:.1f}; {remedy}"
    )


def _cache(config: TrainConfig, engine: EngineMemory) -> str:
    generation = config.generation
    assert generation is not None
    return (
        f"the engine's cache holds {engine.kv_cache_tokens:,} tokens, less than one sequence of "
        f"policy.max_total_sequence_length={config.policy.max_total_sequence_length}: raise "
        f"generation.gpu_memory_utilization={generation.gpu_memory_utilization} or "
        f"generation.tensor_parallel_size={generation.tensor_parallel_size}"
    )
