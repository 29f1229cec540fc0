"""`megatron-rl train`, but the advantages of a step are dealt out to its samples at random.

Arguments: `recipe`, `overrides`.
"""

import random
from collections.abc import Sequence

from ranks import read_arguments

import megatron_rl.grpo
from megatron_rl.config.loader import load_config
from megatron_rl.experience import ScoredSample
from megatron_rl.train import train

advantages_in_order = megatron_rl.grpo.sample_advantages


def shuffled_advantages(samples: Sequence[ScoredSample]) -> list[float]:
    """The same on every rank: the samples are."""
    advantages = advantages_in_order(samples)
    random.Random(f"{samples[0].sample.tokens}").shuffle(advantages)
    return advantages


if __name__ == "__main__":
    arguments, _ = read_arguments()
    megatron_rl.grpo.sample_advantages = shuffled_advantages
    train(load_config(arguments["recipe"], arguments["overrides"]))
