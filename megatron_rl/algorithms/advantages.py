"""Group-relative advantages (GRPO; AceReason-Nemotron, arXiv 2505.16400, section 3.1)."""

import statistics
from collections.abc import Sequence

_EPSILON = 1e-6
"""Added to the standard deviation, as in the stack the paper trained with."""


def group_advantages(rewards: Sequence[float]) -> list[float]:
    """A_i = (S_i - mean(S)) / (std(S) + 1e-6) over one prompt's samples, with the unbiased std.

    A group whose rewards are all equal, or of fewer than two samples, has nothing to learn from: all zeros.
    """
    if len(rewards) < 2 or len(set(rewards)) == 1:
        return [0.0] * len(rewards)
    mean, std = statistics.fmean(rewards), statistics.stdev(rewards)
    return [(reward - mean) / (std + _EPSILON) for reward in rewards]
