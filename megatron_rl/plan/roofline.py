"""Seconds from bytes, operations and rates: each part of a step is bound by memory, arithmetic or a link.

Weights, activations and the key-value cache are bfloat16: 2 bytes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from converters.hf_config import ModelShape
from megatron_rl.config.schema import ClusterConfig, GenerationConfig, PolicyConfig, RecomputeGranularity
from megatron_rl.plan.assumptions import Assumptions
from megatron_rl.plan.hardware import GPU
from megatron_rl.policy.flops import forward_flops, matmul_parameters

_GIB = 1 << 30


def mlp_parameters(shape: ModelShape) -> int:
    """Of these, those of the MLPs."""
    return shape.num_layers * 3 * shape.hidden_size * shape.ffn_hidden_size


def weight_parameters(shape: ModelShape) -> int:
    """All parameters but biases and query-key norms, which are less than one in a thousand."""
    norms = (2 * shape.num_layers + 1) * shape.hidden_size
    table = 0 if shape.tied else shape.vocab_size * shape.hidden_size
    return matmul_parameters(shape) + table + norms


def gradient_bytes(policy: PolicyConfig) -> int:
    """Of one parameter's gradient."""
    return 4 if policy.grad_reduce_in_fp32 else 2


def kv_bytes_per_token(shape: ModelShape, tp: int = 1) -> int:
    """Key-value cache of one token on one of `tp` GPUs; a key-value head is not divided."""
    heads = max(1, shape.num_key_value_heads // tp)
    return shape.num_layers * 2 * heads * shape.head_dim * 2


def kv_cache_tokens(generation: GenerationConfig, shape: ModelShape, gpu: GPU, assumptions: Assumptions) -> int:
    """Tokens that one engine's key-value cache holds."""
    tp = generation.tensor_parallel_size
    budget = (gpu.memory_gib * generation.gpu_memory_utilization - assumptions.engine_reserve_gib) * _GIB
    free = budget - 2 * weight_parameters(shape) / tp
    return max(0, int(free / kv_bytes_per_token(shape, tp)))


@dataclass(frozen=True, kw_only=True)
class DecodeCost:
    """Coefficients of one engine's decode step and prefill, in seconds."""

    weights: float
    kv_per_token: float
    compute_per_sequence: float
    compute_per_token: float
    """Attention over one token of context."""
    fixed: float
    """Overheads and the latency of communication."""
    per_sequence: float
    """Overhead and communication."""
    prefill_per_token: float

    def step_seconds(self, batch: int, context: float) -> float:
        """One token for each of `batch` sequences with `context` tokens in all: the slower of memory and arithmetic."""
        memory = self.weights + self.kv_per_token * context
        compute = self.compute_per_sequence * batch + self.compute_per_token * context
        return max(memory, compute) + self.fixed + self.per_sequence * batch


def decode_cost(generation: GenerationConfig, shape: ModelShape, gpu: GPU, assumptions: Assumptions) -> DecodeCost:
    """The roofline of one engine."""
    tp = generation.tensor_parallel_size
    hbm = gpu.hbm_gbps * 1e9 * assumptions.hbm_efficiency
    flops = tp * gpu.bf16_tflops * 1e12 * assumptions.decode_compute_efficiency
    eager = assumptions.eager_launch_seconds_per_layer * shape.num_layers if generation.enforce_eager else 0.0
    reduces = 2 * shape.num_layers if tp > 1 else 0
    reduced = reduces * 2 * shape.hidden_size * 2 * (tp - 1) / tp
    return DecodeCost(
        weights=2 * matmul_parameters(shape) / tp / hbm,
        kv_per_token=kv_bytes_per_token(shape, tp) * assumptions.kv_reads_per_step / hbm,
        compute_per_sequence=2 * matmul_parameters(shape) / flops,
        compute_per_token=4 * shape.num_layers * shape.query_size / flops,
        fixed=assumptions.decode_overhead_seconds + eager + reduces * assumptions.allreduce_latency_seconds,
        per_sequence=assumptions.decode_overhead_per_sequence_seconds
        + reduced / (gpu.nvlink_gbps * 1e9 * assumptions.link_efficiency),
        prefill_per_token=2 * matmul_parameters(shape) / flops,
    )


def train_flops(shape: ModelShape, lengths: Sequence[int]) -> float:
    """Forward and backward pass (twice the forward), recomputation not counted."""
    forward = forward_flops(shape)
    return 3.0 * sum(forward.of(length) for length in lengths)


def recomputed_flops(policy: PolicyConfig, shape: ModelShape, forward: float, tokens: int) -> float:
    """What the backward pass does again of a forward pass of `forward` operations on `tokens` tokens."""
    match policy.recompute_granularity:
        case None:
            return 0.0
        case RecomputeGranularity.SELECTIVE:
            return 2.0 * mlp_parameters(shape) * tokens
        case RecomputeGranularity.FULL:
            return forward


@dataclass(frozen=True, kw_only=True)
class TrainCost:
    """Coefficients of one pipeline stage's work on a micro-batch, in seconds."""

    per_token: float
    """Linear layers and the exchange of activations."""
    per_squared_token: float
    """Attention; of each sequence by itself."""
    update: float
    """Reduction of gradients and gathering of weights over the data-parallel ranks, once per optimizer step."""

    def micro_batch_seconds(self, lengths: Sequence[int]) -> float:
        """Forward and backward pass of one packed micro-batch."""
        return self.per_token * sum(lengths) + self.per_squared_token * sum(length**2 for length in lengths)


def train_cost(
    policy: PolicyConfig, cluster: ClusterConfig, shape: ModelShape, gpu: GPU, assumptions: Assumptions
) -> TrainCost:
    """The roofline of one pipeline stage: TP, then CP, then DP lie closest together, as Megatron orders ranks."""
    tp, pp, cp = _layout(policy)
    full = policy.recompute_granularity is RecomputeGranularity.FULL
    passes = 4 if full else 3  # forward, (again,) backward with its two products
    bf16 = gpu.bf16_tflops * 1e12 * assumptions.training_efficiency
    linear = 1 / bf16  # seconds of an operation, on average over the layers
    if policy.fp8 is not None:
        plain = policy.fp8.num_layers_at_start_in_bf16 + policy.fp8.num_layers_at_end_in_bf16
        fp8 = 1 - plain / shape.num_layers
        linear = fp8 / (gpu.fp8_tflops * 1e12 * assumptions.fp8_efficiency) + (1 - fp8) / bf16
    head = shape.vocab_size * shape.hidden_size  # never in FP8
    layers = passes * (matmul_parameters(shape) - head)
    if policy.recompute_granularity is RecomputeGranularity.SELECTIVE:
        layers += mlp_parameters(shape)
    shared = tp * cp * pp
    exchange = _exchange_seconds_per_token(policy, cluster, shape, gpu, assumptions)
    world = cluster.num_nodes * cluster.gpus_per_node
    copies = world // (tp * pp)
    link = _link(gpu, assumptions, within_node=world <= cluster.gpus_per_node)
    moved = (gradient_bytes(policy) + 2) * weight_parameters(shape) / (tp * pp) * (copies - 1) / copies
    return TrainCost(
        per_token=2 * (layers * linear + passes * head / bf16) / shared + exchange / pp,
        per_squared_token=passes * 2 * shape.num_layers * shape.query_size / bf16 / shared,
        update=moved / link,
    )


def _exchange_seconds_per_token(
    policy: PolicyConfig, cluster: ClusterConfig, shape: ModelShape, gpu: GPU, assumptions: Assumptions
) -> float:
    """Activations over TP (four gatherings or scatterings a layer in each direction) and keys and values over CP, for
    all layers, not hidden behind arithmetic."""
    tp, _, cp = _layout(policy)
    again = policy.recompute_granularity
    attention = 3 if again is RecomputeGranularity.FULL else 2  # forward, (again,) backward
    mlp = 2 if again is None else 3
    over_tp = (attention + mlp) * 2 * shape.hidden_size * 2 * (tp - 1) / tp / cp
    over_cp = attention * 2 * shape.key_value_size / tp * 2 * (cp - 1) / cp
    tp_link = _link(gpu, assumptions, within_node=tp <= cluster.gpus_per_node)
    cp_link = _link(gpu, assumptions, within_node=tp * cp <= cluster.gpus_per_node)
    return shape.num_layers * (over_tp / tp_link + over_cp / cp_link)


def sync_seconds(
    policy: PolicyConfig,
    generation: GenerationConfig,
    cluster: ClusterConfig,
    shape: ModelShape,
    gpu: GPU,
    assumptions: Assumptions,
) -> float:
    """Weights gathered over TP and PP on every rank, then copied into the engine on the same GPU."""
    tp, pp, cp = _layout(policy)
    size = 2 * weight_parameters(shape)
    over_tp = size * (tp - 1) / tp / _link(gpu, assumptions, within_node=tp <= cluster.gpus_per_node)
    # Megatron places pipeline stages farthest apart.
    stages_in_node = cluster.num_nodes == 1 and tp * pp * cp <= cluster.gpus_per_node
    over_pp = size * (pp - 1) / pp / _link(gpu, assumptions, within_node=stages_in_node)
    copied = 2 * size / generation.tensor_parallel_size / (gpu.hbm_gbps * 1e9 * assumptions.hbm_efficiency)
    return assumptions.sync_fixed_seconds + over_tp + over_pp + copied


def _layout(policy: PolicyConfig) -> tuple[int, int, int]:
    return policy.tensor_model_parallel_size, policy.pipeline_model_parallel_size, policy.context_parallel_size


def _link(gpu: GPU, assumptions: Assumptions, within_node: bool) -> float:
    """Bytes per second and GPU."""
    gbps = gpu.nvlink_gbps if within_node else gpu.network_gbps_per_gpu
    return gbps * 1e9 * assumptions.link_efficiency
