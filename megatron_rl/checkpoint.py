"""Checkpoints: Megatron `torch_dist` weights and optimizer, reshardable over TP, PP and DP.

A checkpoint is written under a temporary name, its manifest last, then renamed: a folder `step_N` without a manifest
does not exist. Nothing random is kept: dropout is off, sampling seeds follow from (seed, step), and the order of the
problems from the seed and from the run's history, which is kept.
"""

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch.distributed as dist
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.core import CheckpointingException

from converters.hf_config import HF_FILES, MANIFEST
from converters.hf_folder import copy_other_files
from megatron_rl.errors import InputError
from megatron_rl.parallel import Parallel
from megatron_rl.policy.policy import Policy
from megatron_rl.run_folder import RunFolder, write_json

_HISTORY = "history.json"


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a checkpoint holds.

    Attributes:
        step: steps made, those of skipped batches included.
        seed: of the run; with `step` it gives all sampling seeds.
        layout: the parallel layout that wrote it, for people: any other can read it.
        fp8_scaling: it has the past that FP8's delayed scaling goes by.
    """

    step: int
    seed: int
    layout: dict[str, int]
    fp8_scaling: bool = False


def save_checkpoint(
    run: RunFolder,
    policy: Policy,
    parallel: Parallel,
    step: int,
    seed: int,
    model: Path,
    card: str = "",
    history: Mapping[str, Any] = {},
) -> None:
    """Write `checkpoints/step_N`; called by all ranks together.

    With it go config and tokenizer of the folder `model`, and `card` as README.md: it can be converted by itself.

    Args:
        history: what `load_history` is to give back; JSON.
    """
    final = run.checkpoint(step)
    temporary = final.with_name(f".{final.name}.tmp")
    if parallel.is_main:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
    dist.barrier()
    state = policy.sharded_state(with_optimizer=True, with_scaling=policy.has_scaling)
    dist_checkpointing.save(state, str(temporary))
    dist.barrier()
    if parallel.is_main:
        (temporary / HF_FILES).mkdir()
        copy_other_files(model, temporary / HF_FILES)
        (temporary / "README.md").write_text(card, encoding="utf-8")
        write_json(temporary / _HISTORY, dict(history))
        manifest = Manifest(step, seed, parallel.layout, policy.has_scaling)
        write_json(temporary / MANIFEST, asdict(manifest))
        shutil.rmtree(final, ignore_errors=True)
        temporary.rename(final)
    dist.barrier()


def remove_old_checkpoints(run: RunFolder, keep_last: int, exported: int | None = None) -> None:
    """Remove all but the newest `keep_last`, and the one of step `exported`, which is being read."""
    for old in run.checkpoints()[:-keep_last]:
        if exported is None or old != run.checkpoint(exported):
            shutil.rmtree(old)


def resume(run: RunFolder, policy: Policy, updates_per_step: int = 1) -> int:
    """Load the newest checkpoint of the run, if there is one; the number of steps it has made.

    Where the run has changed to FP8's delayed scaling since, that starts anew.
    """
    found = run.checkpoints()
    if not found:
        return 0
    manifest = Manifest(**json.loads((found[-1] / MANIFEST).read_text(encoding="utf-8")))
    with_scaling = policy.has_scaling and manifest.fp8_scaling
    if with_scaling:
        # Transformer Engine unpickles it, where it is told that the source is trusted: it is this run itself.
        os.environ["NVTE_ALLOW_UNSAFE_PICKLE_EXTRA_STATE"] = "1"
    wanted = policy.sharded_state(with_optimizer=True, is_loading=True, with_scaling=with_scaling)
    policy.load_state(dist_checkpointing.load(wanted, str(found[-1])), manifest.step * updates_per_step)
    return manifest.step


def load_history(checkpoint: Path) -> dict[str, Any]:
    """The history that was saved with a checkpoint; nothing with one of an older version."""
    path = checkpoint / _HISTORY
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return found


def load_weights(checkpoint: Path, policy: Policy) -> None:
    """Start from the weights of a checkpoint, whatever layout wrote it; the optimizer starts anew.

    Raises:
        InputError: the checkpoint is of a model of other sizes.
    """
    try:
        state = dist_checkpointing.load(policy.sharded_state(with_optimizer=False), str(checkpoint))
    except (CheckpointingException, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{checkpoint}: does not fit the model of policy.model_name: {reason}") from error
    policy.load_state({"model": state["model"]}, step=0)
