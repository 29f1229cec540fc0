"""The rollout model against times that others published: one figure fits the one unknown, the others are predicted.

Skywork-OR1 (arXiv 2505.22312, section 5) lets 1,024 responses be generated on 32 to 256 GPUs. What it ran on is known
from its repository (vLLM 0.6.3 without CUDA graphs, XFORMERS attention, 80% of the memory, the 7B model on engines of
one GPU, H800). That the figures are the 7B model's at 16,384 tokens is our reading: 64 prompts x 16 samples is the
report's setting for that model, and the 32B model reads its weights too slowly for 205 s.

Fitted: how often that kernel reads the key-value cache in a step. By its source it is once per query head, that is 7
times per key-value head, less what the L2 cache catches. It shows most on 32 GPUs, where most sequences share one, so
that figure fits it. All else is as `Assumptions` has it. The predictions move by some 3 points with other draws of
lengths, and by up to 9 with other lengths, overheads and efficiencies that one could defend, the kernel fitted anew.
"""

import statistics
from dataclasses import dataclass, replace
from functools import cache

from converters.hf_config import ModelShape
from megatron_rl.config.schema import GenerationConfig
from megatron_rl.plan import roofline
from megatron_rl.plan.assumptions import ASSUMPTIONS, Assumptions
from megatron_rl.plan.generation import generate, requests
from megatron_rl.plan.hardware import H800
from megatron_rl.plan.lengths import draw_lengths

SKYWORK_SECONDS = {32: 375.0, 64: 270.0, 128: 225.0, 256: 205.0}
"""GPUs to the seconds that 1,024 responses took."""
FITTED_ON = 32
_QWEN_7B = ModelShape(
    num_layers=28,
    hidden_size=3584,
    ffn_hidden_size=18944,
    num_attention_heads=28,
    num_key_value_heads=4,
    head_dim=128,
    vocab_size=152064,
    padded_vocab_size=152064,
    tied=False,
)
_GENERATION = GenerationConfig(max_new_tokens=16384, gpu_memory_utilization=0.8, enforce_eager=True)
_SEEDS = (1, 2, 3)


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What was fitted, and the seconds predicted for each number of GPUs."""

    kv_reads_per_step: float
    seconds: dict[int, float]

    @property
    def errors(self) -> dict[int, float]:
        """Relative error of each prediction; the fitted figure is left out."""
        return {
            gpus: self.seconds[gpus] / published - 1 for gpus, published in SKYWORK_SECONDS.items() if gpus != FITTED_ON
        }


@cache
def compare_with_skywork() -> Comparison:
    """Fit on one figure, predict the others."""
    # A prompt's samples lay on different engines: what they have in common does not matter.
    start = replace(ASSUMPTIONS, same_prompt_correlation=0.0)
    reads = _fit(start, 1.0, 7.0)
    fitted = replace(start, kv_reads_per_step=reads)
    return Comparison(kv_reads_per_step=reads, seconds={gpus: _seconds(gpus, fitted) for gpus in SKYWORK_SECONDS})


def comparison_line(comparison: Comparison) -> str:
    """The comparison in one sentence."""
    rows = ", ".join(
        f"{comparison.seconds[gpus]:.0f} s for {SKYWORK_SECONDS[gpus]:.0f} on {gpus} ({error:+.0%})"
        for gpus, error in comparison.errors.items()
    )
    return f"Rollout model against Skywork-OR1's 1,024 responses, fitted on {FITTED_ON} GPUs: {rows}."


def _fit(assumptions: Assumptions, low: float, high: float) -> float:
    """The reads per step that give the fitted figure: the secant through two trials, closed in on."""
    target = SKYWORK_SECONDS[FITTED_ON]

    def miss(reads: float) -> float:
        return _seconds(FITTED_ON, replace(assumptions, kv_reads_per_step=reads)) - target

    below, above = miss(low), miss(high)
    for _ in range(6):
        middle = low - below * (high - low) / (above - below)
        found = miss(middle)
        if abs(found) < 0.001 * target:
            break
        if found < 0:
            low, below = middle, found
        else:
            high, above = middle, found
    return middle


def _seconds(engines: int, assumptions: Assumptions) -> float:
    """Mean over a few draws of 1,024 lengths, spread evenly over engines of one GPU."""
    cost = roofline.decode_cost(_GENERATION, _QWEN_7B, H800, assumptions)
    room = roofline.kv_cache_tokens(_GENERATION, _QWEN_7B, H800, assumptions)
    draws = (draw_lengths(1024, 1, _GENERATION.max_new_tokens, assumptions, seed) for seed in _SEEDS)
    return statistics.fmean(
        generate(requests(groups, assumptions.prompt_tokens), engines, cost, _GENERATION.max_num_seqs, room).seconds
        for groups in draws
    )
