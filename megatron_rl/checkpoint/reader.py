"""Loading: the newest checkpoint that is what was written, into whatever layout the run has now."""

import json
import os
import socket
import sys
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import torch.distributed as dist
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.core import CheckpointingException

from converters.manifest import DamagedCheckpoint, UnreadableCheckpoint, check_files, read_manifest
from converters.megatron_folder import read_metadata
from megatron_rl.errors import InputError, RunInterrupted
from megatron_rl.parallel import broadcast_object
from megatron_rl.policy.policy import Policy
from megatron_rl.run_folder import RunFolder

HISTORY = "history.json"
_SET_ASIDE = "damaged_"


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


def resume(run: RunFolder, policy: Policy, updates_per_step: int = 1) -> int:
    """Load the newest checkpoint of the run, if there is one; the number of steps it has made. Called by all ranks.

    One that is damaged is set aside, with a warning, and the one before it taken. Where the run has changed to FP8's
    delayed scaling since, that starts anew.

    Raises:
        InputError: all are damaged.
        RunInterrupted: one cannot be read.
    """
    damage = None
    # One rank lists them: of a network's file system another may see what has been renamed.
    while found := broadcast_object(run.checkpoints()):
        damage = find_damage(found[-1])
        if damage is None:
            return _load(found[-1], policy, updates_per_step)
        if dist.get_rank() == 0:
            aside = _set_aside(found[-1])
            before = found[-2] if len(found) > 1 else "none"
            print(f"megatron-rl: {damage}; set aside as {aside.name}, taken instead: {before}", file=sys.stderr)
        dist.barrier()
    if damage is not None:
        raise InputError(
            f"{damage}, and there is no checkpoint before it; copy one to {run.path / 'checkpoints'}, or remove that "
            "folder to start anew"
        )
    return 0


def _set_aside(checkpoint: Path) -> Path:
    """Under a name that is free."""
    names = (f"{_SET_ASIDE}{checkpoint.name}{f'_{number}' if number else ''}" for number in count())
    aside = next(path for path in map(checkpoint.with_name, names) if not path.exists())
    return checkpoint.rename(aside)


def find_damage(checkpoint: Path) -> str | None:
    """Compare a checkpoint with its checksums, each rank a part of the files; what is wrong with it, on all ranks.

    Raises:
        RunInterrupted: on all ranks, if one cannot read it, or finds it damaged where the main rank does not: that may
            be its own trouble.
    """
    rank, ranks = dist.get_rank(), dist.get_world_size()
    everyone: list[_Finding | None] = [None] * ranks
    dist.all_gather_object(everyone, _examine(checkpoint, rank, ranks))
    # Where one cannot read, what it and others find counts for nothing.
    found = min((one for one in everyone if one is not None), key=lambda one: one.is_damage, default=None)
    if found is None:
        return None
    if found.is_damage:
        (main,) = broadcast_object((_examine(checkpoint, 0, 1) if rank == 0 else None,))
        if main is not None and main.is_damage:
            return main.reason
    raise RunInterrupted(
        f"{found.finder}: {found.reason}; see to the file system of that host, and start the same command again"
    )


@dataclass(frozen=True, slots=True)
class _Finding:
    """What is wrong with a checkpoint, or with who looks at it."""

    finder: str
    reason: str
    is_damage: bool


def _examine(checkpoint: Path, part: int, parts: int) -> _Finding | None:
    """One of so many parts of the files."""
    finder = f"rank {dist.get_rank()} on {socket.gethostname()}"
    try:
        manifest = read_manifest(checkpoint)
        if not isinstance(manifest.get("step"), int):
            raise DamagedCheckpoint(f"{checkpoint / 'manifest.json'}: says no step")
        files = sorted(manifest.get("files", {}).items())
        check_files(checkpoint, dict(files[part::parts]))
    except DamagedCheckpoint as error:
        return _Finding(finder, str(error), is_damage=True)
    except (UnreadableCheckpoint, OSError) as error:
        return _Finding(finder, f"{checkpoint}: {error}", is_damage=False)
    return None


def _load(checkpoint: Path, policy: Policy, updates_per_step: int) -> int:
    manifest = read_manifest(checkpoint)
    with_scaling = policy.has_scaling and manifest.get("fp8_scaling", False)
    if with_scaling:
        # Transformer Engine unpickles it, where it is told that the source is trusted: it is this run itself.
        os.environ["NVTE_ALLOW_UNSAFE_PICKLE_EXTRA_STATE"] = "1"
    wanted = policy.sharded_state(with_optimizer=True, is_loading=True, with_scaling=with_scaling)
    step = int(manifest["step"])
    policy.load_state(dist_checkpointing.load(wanted, str(checkpoint)), step * updates_per_step)
    return step


def load_history(checkpoint: Path) -> dict[str, Any]:
    """The history that was saved with a checkpoint; nothing with one of an older version."""
    path = checkpoint / HISTORY
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return found


def load_weights(checkpoint: Path, policy: Policy) -> None:
    """Start from the weights of a checkpoint, whatever layout wrote it; the optimizer starts anew. Called by all ranks.

    Raises:
        InputError: the checkpoint is damaged, or of a model of other sizes.
        ConversionError: its `.metadata` holds what has no place there.
    """
    damage = find_damage(checkpoint)
    if damage is not None:
        raise InputError(f"{damage}; set policy.from_checkpoint to another checkpoint, or copy this one anew")
    read_metadata(checkpoint)  # Megatron unpickles it, whatever it holds: it may be a stranger's
    try:
        state = dist_checkpointing.load(policy.sharded_state(with_optimizer=False), str(checkpoint))
    except (CheckpointingException, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{checkpoint}: does not fit the model of policy.model_name: {reason}") from error
    policy.load_state({"model": state["model"]}, step=0)
