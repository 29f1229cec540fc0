"""Which checkpoints stay."""

import shutil
import threading
import uuid
from pathlib import Path

from megatron_rl.config.schema import CheckpointingConfig
from megatron_rl.run_folder import RunFolder

_REMOVED = ".removed"


def remove_old_checkpoints(run: RunFolder, config: CheckpointingConfig, exported: int | None = None) -> None:
    """Remove all but the newest and the best, and the one of step `exported`, which is being read.

    They are gone at once; their room is given back beside the training, for a large one takes a file system its time.
    """
    kept = {*run.checkpoints()[-config.keep_last :], *map(run.checkpoint, best_steps(run, config))}
    if exported is not None:
        kept.add(run.checkpoint(exported))
    superfluous = [old for old in run.checkpoints() if old not in kept]
    for old in superfluous:
        old.rename(old.with_name(f".{old.name}.{uuid.uuid4().hex}{_REMOVED}"))
    if superfluous:
        threading.Thread(target=_give_back, args=(superfluous[0].parent,)).start()


def _give_back(folder: Path) -> None:
    """The room of all that was removed, by an earlier start too."""
    for removed in folder.glob(f".*{_REMOVED}"):
        shutil.rmtree(removed, ignore_errors=True)


def best_steps(run: RunFolder, config: CheckpointingConfig) -> list[int]:
    """Steps of the checkpoints with the best metric, the best first, of equals the later; none where it was not
    measured at theirs."""
    measured = {line["step"]: line.get(config.metric_name) for line in run.metric_lines()}
    steps = [run.step_of(checkpoint) for checkpoint in run.checkpoints()]
    scored = sorted(((measured[step], step) for step in steps if measured.get(step) is not None), reverse=True)
    return [step for _, step in scored[: config.keep_top_k]]
