"""Checkpoints that are written while training goes on, and such as were damaged since.

Arguments: `model`, `tp`, `pp`. Rank 0's result, by case.
"""

import errno
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch.distributed as dist
from ranks import read_arguments, write_result
from saving import save_checkpoint
from tiny import step_sequences, train_config

from converters.manifest import MANIFEST, DamagedCheckpoint
from megatron_rl.algorithms.losses import sft_loss
from megatron_rl.checkpoint import background, reader
from megatron_rl.checkpoint.reader import resume
from megatron_rl.checkpoint.writer import CheckpointWriter
from megatron_rl.errors import InputError, RunInterrupted, RunStopped
from megatron_rl.parallel import setup_parallel
from megatron_rl.policy.model import Architecture
from megatron_rl.policy.policy import Policy
from megatron_rl.run_folder import RunFolder

FIRST, SECOND, LAST = 2, 4, 6


class Cases:
    def __init__(self, folder: Path, model: str, tp: int, pp: int) -> None:
        self.folder, self.model = folder, Path(model)
        self.config = train_config(
            model,
            cluster__gpus_per_node=tp * pp,
            policy__tensor_model_parallel_size=tp,
            policy__pipeline_model_parallel_size=pp,
        )
        self.parallel = setup_parallel(self.config)
        self.saved = RunFolder(folder / "saved")

    def policy(self) -> Policy:
        return Policy(self.config.policy, Architecture.of_folder(self.model, self.config.policy), self.parallel)

    def steps(self, policy: Policy, first: int, end: int) -> list[float]:
        return [policy.train_step(step_sequences(step, sft=True), sft_loss)["loss"] for step in range(first, end)]

    def carried_on(self, run: RunFolder) -> dict[str, Any]:
        policy = self.policy()
        step = resume(run, policy)
        return {"step": step, "losses": self.steps(policy, step, LAST), "left": names(run)}

    def trained_on_meanwhile(self) -> dict[str, Any]:
        """Two checkpoints are begun; training goes on before they are finished."""
        policy = self.policy()
        policy.load_hf(self.model)
        losses = self.steps(policy, 0, FIRST)
        writer = CheckpointWriter(self.saved, self.parallel)
        before = [writer.is_writing(), writer.finish()]
        writer.start(policy, FIRST, 1, self.model)
        at_once = names(self.saved)
        losses += self.steps(policy, FIRST, SECOND)
        writer.start(policy, SECOND, 1, self.model)
        after_first = names(self.saved)
        losses += self.steps(policy, SECOND, LAST)
        finished = [writer.finish(), writer.finish()]
        found = {"losses": losses, "before": before, "at_once": at_once, "after_first": after_first}
        return found | {"finished": finished} | self.carried_on(self.saved) | {"losses": losses}

    def damaged(self, name: str, damage: Callable[[Path], None], also_first: bool = False) -> dict[str, Any]:
        run = RunFolder(self.folder / name)
        if self.parallel.is_main:
            shutil.copytree(self.saved.path, run.path)
            for step in (SECOND, FIRST) if also_first else (SECOND,):
                damage(run.checkpoint(step))
        dist.barrier()
        try:
            return self.carried_on(run)
        except InputError as error:
            return {"error": str(error)}

    def unwritable(self) -> str:
        """The place of the next checkpoint is taken by a file."""
        run = RunFolder(self.folder / "unwritable")
        policy = self.policy()
        policy.load_hf(self.model)
        save_checkpoint(run, policy, self.parallel, FIRST, self.model)
        if self.parallel.is_main:
            run.checkpoint(SECOND).with_name(f".step_{SECOND}.tmp").write_text("")
        try:
            save_checkpoint(run, policy, self.parallel, SECOND, self.model)
        except RunStopped as error:
            return str(error)
        return ""

    def writer_killed(self) -> dict[str, Any]:
        """That of one rank, for the second checkpoint."""
        run = RunFolder(self.folder / "writer_killed")
        policy = self.policy()
        policy.load_hf(self.model)
        save_checkpoint(run, policy, self.parallel, FIRST, self.model)
        write = background._write
        if self.parallel.is_main:
            background._write = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
        try:
            save_checkpoint(run, policy, self.parallel, SECOND, self.model)
        except RunInterrupted as error:
            return {"error": str(error), "left": names(run)}
        finally:
            background._write = write
        return {}

    def for_one_rank(self, name: str, error: Exception) -> dict[str, Any]:
        """Looking at the files it has this error."""
        run = RunFolder(self.folder / name)
        if self.parallel.is_main:
            shutil.copytree(self.saved.path, run.path)
        dist.barrier()
        check_files = reader.check_files

        def fail(*_: Any) -> None:
            raise error

        if not self.parallel.is_main:
            reader.check_files = fail
        try:
            return self.carried_on(run)
        except RunInterrupted as interrupted:
            return {"error": str(interrupted), "left": names(run)}
        finally:
            reader.check_files = check_files


def names(run: RunFolder) -> list[str]:
    """What lies beside the checkpoints is listed, too."""
    dist.barrier()
    found = sorted(path.name for path in (run.path / "checkpoints").iterdir())
    dist.barrier()
    return found


def flip_a_byte(checkpoint: Path) -> None:
    path = max(checkpoint.glob("*.distcp"), key=lambda path: path.stat().st_size)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut_short(checkpoint: Path) -> None:
    path = min(checkpoint.glob("*.distcp"))
    path.write_bytes(path.read_bytes()[:-1])


def empty_but_for_the_manifest(checkpoint: Path) -> None:
    for path in checkpoint.iterdir():
        if path.is_file() and path.name != MANIFEST:
            path.unlink()


def damage_a_second_time(checkpoint: Path) -> None:
    shutil.copytree(checkpoint, checkpoint.with_name(f"damaged_{checkpoint.name}"))
    flip_a_byte(checkpoint)


def tear_manifest(checkpoint: Path) -> None:
    text = (checkpoint / MANIFEST).read_text()
    (checkpoint / MANIFEST).write_text(text[: len(text) // 2])


def remove_manifest(checkpoint: Path) -> None:
    (checkpoint / MANIFEST).unlink()


def main() -> None:
    arguments, folder = read_arguments()
    cases = Cases(folder, arguments["model"], arguments["tp"], arguments["pp"])
    result: dict[str, Any] = {"trained on meanwhile": cases.trained_on_meanwhile()}
    damages = flip_a_byte, cut_short, empty_but_for_the_manifest, tear_manifest, damage_a_second_time, remove_manifest
    for damage in damages:
        result[damage.__name__] = cases.damaged(damage.__name__, damage)
    result["all damaged"] = cases.damaged("all_damaged", flip_a_byte, also_first=True)
    result["unwritable"] = cases.unwritable()
    result["unreadable"] = cases.for_one_rank("unreadable", OSError(errno.EIO, "Input/output error"))
    result["stale"] = cases.for_one_rank("stale", DamagedCheckpoint("step_4/x.distcp: is missing"))
    result["writer killed"] = cases.writer_killed()
    if cases.parallel.is_main:
        write_result(folder, result)
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
