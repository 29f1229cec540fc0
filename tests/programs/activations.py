"""The most memory that the policy's forward and backward pass take on one rank, measured.

Arguments: `model` (folder), `tokens` (positions of the one sequence), `tp`, `cases` (name to changed keys).
Rank 0's result: name to bytes above what the policy holds between steps.
"""

import random
from pathlib import Path

from peak_memory import PeakMemory
from ranks import read_arguments, write_result
from tiny import train_config

from megatron_rl.algorithms.losses import sft_loss
from megatron_rl.parallel import setup_parallel
from megatron_rl.policy.batch import TrainSequence
from megatron_rl.policy.model import Architecture
from megatron_rl.policy.policy import Policy


def main() -> None:
    """All cases, one after the other."""
    arguments, folder = read_arguments()
    model, tokens, tp = Path(arguments["model"]), arguments["tokens"], arguments["tp"]
    configs = {
        name: train_config(
            model,
            cluster__gpus_per_node=tp,
            policy__tensor_model_parallel_size=tp,
            policy__max_total_sequence_length=tokens,
            policy__micro_batch_tokens=tokens,
            **changes,
        )
        for name, changes in arguments["cases"].items()
    }
    parallel = setup_parallel(next(iter(configs.values())))
    rng = random.Random(1)
    sequence = TrainSequence(tuple(rng.randrange(400) for _ in range(tokens + 1)), 1, 1.0 / tokens)
    found = {}
    for name, config in configs.items():
        policy = Policy(config.policy, Architecture.of_folder(model, config.policy), parallel)
        policy.train_step([sequence], sft_loss)  # the first step makes the optimizer's state
        with PeakMemory() as memory:
            policy.train_step([sequence], sft_loss)
        found[name] = memory.peak
    if parallel.is_main:
        write_result(folder, found)


if __name__ == "__main__":
    main()
