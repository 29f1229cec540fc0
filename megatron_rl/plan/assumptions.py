"""What the speed model cannot know from a recipe and a data sheet: every guess by name, with its source."""

from dataclasses import dataclass, fields


@dataclass(frozen=True, kw_only=True)
class Assumptions:
    """Replace a field by what a run measured, where there is one; its metric is named below the field."""

    mean_response_share: float = 0.45
    """Mean response length over `max_new_tokens` (`generation/length_mean`). R1-Distill models average over 10,000
    tokens on AIME24, and training shortens them, from 12,500 to 5,400 in an ablation by Skywork-OR1 (2505.22312)."""
    response_sigma: float = 0.7
    """Spread of the lengths' lognormal, cut at the maximum. With the mean above, 8% of the responses are truncated
    (`generation/truncated_fraction`); ours."""
    same_prompt_correlation: float = 0.5
    """Share of that spread which a prompt's samples have in common: hard prompts have long answers; ours."""
    prompt_tokens: int = 256
    """Mean prompt length; ours."""
    zero_advantage_share: float = 0.3
    """Prompts whose samples are all right or all wrong, which are not trained on (`train/zero_advantage_fraction`);
    ours, between Nemotron-Cascade's 10% on filtered prompts and more than half on unfiltered ones."""

    hbm_efficiency: float = 0.8
    """Reached share of the memory bandwidth in decoding; ours: copies on an H100 reach 0.9, small products less."""
    decode_compute_efficiency: float = 0.6
    """Reached share of the bfloat16 peak in decoding with many sequences, and in prefill; ours."""
    decode_overhead_seconds: float = 0.0015
    """Per decode step beside weights, cache and arithmetic: scheduling, sampling, small kernels; ours. It makes 6.8 ms
    a token of a 7B model alone on an H100."""
    decode_overhead_per_sequence_seconds: float = 1e-5
    """Per sequence and decode step: its share of scheduling and sampling; ours."""
    eager_launch_seconds_per_layer: float = 1e-4
    """Per layer and decode step without CUDA graphs: Llama 3.1 8B on an H100 is said to take 8.4 ms against 5.1 ms with
    them, for 32 layers (cloudai.pt)."""
    kv_reads_per_step: float = 1.0
    """How often a decode step reads the key-value cache: once with FlashAttention; with vLLM's old paged-attention
    kernel (XFORMERS) once per query head, less what the L2 cache catches (vLLM issues 1880 and 15351)."""
    allreduce_latency_seconds: float = 1e-5
    """Of one small all-reduce in a node with vLLM's own kernel; two per layer; ours."""
    engine_reserve_gib: float = 4.0
    """Of the engine's share of GPU memory neither weights nor cache: activations, CUDA graphs, NCCL; ours."""

    math_verification_seconds: float = 3.9 * 64 / 1024
    """One sample, one process: 3.9 s for 1,024 on 64 (AceReason-Nemotron, arXiv 2505.16400)."""
    code_verification_seconds: float = 552.4 * 64 / 1024
    """The same of code: 552.4 s for 1,024 on 64 processes (same paper)."""

    training_efficiency: float = 0.55
    """Reached share of the bfloat16 peak by the training kernels alone, on long packed sequences; communication,
    recomputation and the pipeline's bubble come on top. Megatron-LM's README reports 0.41 to 0.48 with all of them."""
    fp8_efficiency: float = 0.38
    """Likewise of the FP8 peak, in linear layers: 1.4 times bfloat16's speed; ours, after NeMo-RL's 15 to 25% shorter
    steps end to end."""
    link_efficiency: float = 0.8
    """Reached share of NVLink's and the network's bandwidth by large collectives; ours."""
    sync_fixed_seconds: float = 3.0
    """Of a weight sync beside moving bytes: waking the engine, metadata, emptied caches; ours, after the 5 s that
    NeMo-RL reports for an 8B model in all."""


ASSUMPTIONS = Assumptions()


def assumption_lines(assumptions: Assumptions) -> list[tuple[str, str]]:
    """Name and value of every assumption; the names carry the units."""
    return [(field.name, f"{getattr(assumptions, field.name):.4g}") for field in fields(assumptions)]
