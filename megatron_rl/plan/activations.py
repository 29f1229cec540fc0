"""Bytes that forward and backward pass of one micro-batch need on one rank, from sizes.

`LOCAL` is Megatron's local layer spec as the CPU runs it; a test measures it. `TRANSFORMER_ENGINE` follows what
Transformer Engine's modules keep for the backward pass (`ctx.save_for_backward` in `LayerNormLinear`, `Linear` and the
fused attention), Megatron's `SwiGLUFunction` and its unfused RoPE.

Letters: T a rank's tokens, S those of them that it holds between tensor-parallel regions (T / TP with sequence
parallelism), H hidden size, A query size, K key-value size, D head dimension, F feed-forward size, C a chunk's tokens,
V vocabulary; A, K, F and V are this rank's parts.
"""

from dataclasses import dataclass, replace
from enum import StrEnum

from converters.hf_config import ModelShape
from megatron_rl.config.schema import PolicyConfig, Precision, RecomputeGranularity

_FP32 = 4


class Spec(StrEnum):
    TRANSFORMER_ENGINE = "transformer_engine"
    LOCAL = "local"


@dataclass(frozen=True, slots=True)
class Activations:
    """Of one pipeline stage, in bytes.

    Attributes:
        kept: held from the forward to the backward pass, for all micro-batches in flight.
        layer_work: on top of it while one layer's backward pass runs.
        log_prob_work: on top of it while log-probs are computed or their backward pass runs; 0 but on the last stage.
    """

    kept: float
    layer_work: float
    log_prob_work: float

    @property
    def peak(self) -> float:
        """Most at any moment."""
        return self.kept + max(self.layer_work, self.log_prob_work)


@dataclass(frozen=True, slots=True)
class _Sizes:
    """This rank's sizes, by the letters above; `e`: bytes per element, `linear_e`: of what linear layers read."""

    T: float
    S: float
    H: int
    A: float
    K: float
    D: int
    F: float
    heads: float
    e: int
    linear_e: int


def activations(
    policy: PolicyConfig, shape: ModelShape, spec: Spec, stage: int, layers: int, tokens: int
) -> Activations:
    """What stage `stage` of the pipeline, with `layers` decoder layers, needs for micro-batches of `tokens` tokens."""
    sizes = _sizes(policy, shape, tokens)
    pp, vpp = policy.pipeline_model_parallel_size, policy.virtual_pipeline_model_parallel_size or 1
    last = stage == pp - 1
    plain = _layers_in_bf16(policy, stage) / layers
    layers //= vpp  # of a chunk
    hidden = sizes.S * sizes.H * sizes.e
    in_bf16 = replace(sizes, linear_e=sizes.e)
    layer, mlp = (
        plain * kept(in_bf16, spec) + (1 - plain) * kept(sizes, spec) for kept in (_attention_kept, _mlp_kept)
    )
    work = _layer_work(sizes, spec, policy.sequence_parallel)
    match policy.recompute_granularity:
        case None:
            layer += mlp
        case RecomputeGranularity.SELECTIVE:
            work += mlp  # one MLP again
        case RecomputeGranularity.FULL:
            layer, work = hidden, layer + mlp + work  # every layer's input; one layer again
    kept = layers * layer + hidden  # with the chunk's output
    # The schedule starts this many forward passes of chunks before the stage's first backward pass.
    in_flight = pp - stage if vpp == 1 else 2 * (pp - stage - 1) + (vpp - 1) * pp + 1
    log_probs = 0.0
    if last:
        # Only while log-probs are computed: the final norm's output, gathered where it was cut.
        log_probs = _final_norm(sizes, spec, policy) + log_prob_bytes(policy, shape, sizes.T)
    return Activations(in_flight * kept, work, log_probs)


def log_prob_bytes(policy: PolicyConfig, shape: ModelShape, tokens: float) -> float:
    """Peak of `policy/log_probs.py` above its inputs and outputs, for `tokens` tokens.

    Both passes reuse one chunk's memory: of [C, V] the logits in fp32 and their product in the policy's precision, and
    forward the weights of the softmax, whose memory the backward pass takes over for its logits. Backward adds, of
    [V, H], the gradient's sum in fp32 and in the end its copy in the policy's precision; of [T, H] the hidden states'
    gradient.
    """
    element = element_bytes(policy)
    cast = 0 if element == _FP32 else element  # in fp32 a cast makes no copy
    vocabulary = shape.padded_vocab_size / policy.tensor_model_parallel_size
    logits = min(policy.logprob_chunk_tokens, tokens) * vocabulary
    weight, hidden = vocabulary * shape.hidden_size, tokens * shape.hidden_size
    forward = logits * (2 * _FP32 + cast)
    backward = logits * (_FP32 + cast) + weight * (_FP32 + cast) + hidden * element
    return max(forward, backward)


def _layers_in_bf16(policy: PolicyConfig, stage: int) -> int:
    """Of a stage's layers those that are spared FP8."""
    if policy.fp8 is None:
        return 0
    first, last = stage == 0, stage == policy.pipeline_model_parallel_size - 1
    return first * policy.fp8.num_layers_at_start_in_bf16 + last * policy.fp8.num_layers_at_end_in_bf16


def element_bytes(policy: PolicyConfig) -> int:
    """Of one weight or activation."""
    return 2 if policy.precision is Precision.BF16 else 4


def _sizes(policy: PolicyConfig, shape: ModelShape, tokens: int) -> _Sizes:
    tp = policy.tensor_model_parallel_size
    own = tokens / policy.context_parallel_size
    element = element_bytes(policy)
    return _Sizes(
        T=own,
        S=own / tp if policy.sequence_parallel else own,
        H=shape.hidden_size,
        A=shape.query_size / tp,
        K=shape.key_value_size / tp,
        D=shape.head_dim,
        F=shape.ffn_hidden_size / tp,
        heads=shape.num_attention_heads / tp,
        e=element,
        linear_e=1 if policy.fp8 is not None else element,
    )


def _attention_kept(x: _Sizes, spec: Spec) -> float:
    """What one layer's backward pass reads where its MLP is computed again: the MLP's input is part of it."""
    rope = 4 * x.T * x.D * x.e  # cosine and sine, for queries and keys
    softmax = x.T * x.heads * _FP32
    norm = x.S * _FP32
    if spec is Spec.TRANSFORMER_ENGINE:
        # Input of both norms, and output of one as linear layers read it.
        hidden = x.S * x.H * (2 * x.e + x.linear_e)
        # Queries, keys, values, and the output, which FP8's linear layer reads from a copy.
        attention = x.T * (2 * x.A + 2 * x.K) * x.e + (x.T * x.A if x.linear_e != x.e else 0)
        return hidden + norm + attention + rope + softmax
    hidden = 2 * x.S * x.H * 3 * x.e  # of both norms: input, normed, times the weight
    # Queries, keys and values laid side by side, the latter two repeated for every query head; the output before and
    # after that is undone.
    attention = 5 * x.T * x.A * x.e
    return hidden + 2 * norm + attention + rope + softmax


def _mlp_kept(x: _Sizes, spec: Spec) -> float:
    """What the backward pass of one MLP reads besides; Transformer Engine's has its norm in it."""
    if spec is Spec.TRANSFORMER_ENGINE:
        # The norm's output as the linear layer reads it; before and after SwiGLU.
        return x.S * x.H * x.linear_e + x.S * _FP32 + 2 * x.T * x.F * x.e + x.T * x.F * x.linear_e
    return 5 * x.T * x.F * x.e  # both halves, SiLU of one, the other plus its offset 0, the product


def _layer_work(x: _Sizes, spec: Spec, sequence_parallel: bool) -> float:
    """Gradients and gathered inputs while the MLP's backward pass runs, which is a layer's largest."""
    if spec is Spec.TRANSFORMER_ENGINE:
        # Gradients of SwiGLU's output and input; the layer's own and, under sequence parallelism, whole: the input
        # gathered again and its gradient before it is scattered.
        return 3 * x.T * x.F * x.e + (x.S + (2 * x.T if sequence_parallel else x.T)) * x.H * x.e
    return 2 * x.T * x.F * x.e + x.S * x.H * x.e


def _final_norm(x: _Sizes, spec: Spec, policy: PolicyConfig) -> float:
    own = x.S * x.H * x.e * (2 if spec is Spec.LOCAL else 1)
    return own + (x.T * x.H * x.e if policy.sequence_parallel else 0)
