"""A checkpoint saved and waited for, by all ranks of a job."""

from pathlib import Path

from megatron_rl.checkpoint.writer import CheckpointWriter
from megatron_rl.parallel import Parallel
from megatron_rl.policy.policy import Policy
from megatron_rl.run_folder import RunFolder


def save_checkpoint(run: RunFolder, policy: Policy, parallel: Parallel, step: int, model: Path) -> None:
    """Of `step`, with the config and tokenizer of `model`."""
    writer = CheckpointWriter(run, parallel)
    writer.start(policy, step, seed=1, model=model)
    writer.finish()
