"""Group-relative advantages (GRPO; AceReason-Nemotron, arXiv 2505.16400, section 3.1)."""

import statistics
from collections.abc import Sequence

from megatron_rl.config.schema import RewardStd

_EPSILON = 1e-6
"""Added to the standard deviation, as in the stack the paper trained with."""


def group_advantages(rewards: Sequence[float], std: RewardStd = RewardStd.UNBIASED) -> list[float]:
    """A_i = (S_i - mean(S)) / (std(S) + 1e-6) over one prompt's samples; with `RewardStd.NONE` the difference alone
    (Dr. GRPO, arXiv 2503.20783).

    A group whose rewards are all equal, or of fewer than two samples, has nothing to learn from: all zeros.
    """
    if len(rewards) < 2 or len(set(rewards)) == 1:
        return [0.0] * len(rewards)
    mean = statistics.fmean(rewards)
    if std is RewardStd.NONE:
        return [reward - mean for reward in rewards]
    spread = statistics.stdev(rewards) if std is RewardStd.UNBIASED else statistics.pstdev(rewards)
    return [(reward - mean) / (spread + _EPSILON) for reward in rewards]
