"""Response lengths: a lognormal, cut at the maximum, drawn with a seed."""

import math
import random
from statistics import NormalDist

from megatron_rl.plan.assumptions import Assumptions

_NORMAL = NormalDist()


def log_median(mean_share: float, sigma: float) -> float:
    """Logarithm of the uncut lognormal's median, so that lengths cut at 1 have the mean `mean_share` (0 to 1)."""
    low, high = -20.0, 20.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _cut_mean(middle, sigma) < mean_share else (low, middle)
    return low


def draw_lengths(
    prompts: int, samples_per_prompt: int, max_tokens: int, assumptions: Assumptions, seed: int
) -> tuple[tuple[int, ...], ...]:
    """Tokens of every response, per prompt; a longer one than `max_tokens` is cut there."""
    source = random.Random(f"lengths/{seed}")
    common = math.sqrt(assumptions.same_prompt_correlation)
    own = math.sqrt(1 - assumptions.same_prompt_correlation)
    log_of = log_median(assumptions.mean_response_share, assumptions.response_sigma)

    def draw(prompt: float) -> int:
        deviation = common * prompt + own * source.gauss(0, 1)
        return _tokens(log_of + assumptions.response_sigma * deviation, max_tokens)

    groups = []
    for _ in range(prompts):
        prompt = source.gauss(0, 1)
        groups.append(tuple(draw(prompt) for _ in range(samples_per_prompt)))
    return tuple(groups)


def _tokens(log_share: float, max_tokens: int) -> int:
    return max(1, min(max_tokens, round(max_tokens * math.exp(min(0.0, log_share)))))


def _cut_mean(log_of_median: float, sigma: float) -> float:
    below = math.exp(log_of_median + sigma**2 / 2) * _NORMAL.cdf(-log_of_median / sigma - sigma)
    return below + _NORMAL.cdf(log_of_median / sigma)
