"""Saving: a snapshot is taken while training stands still, and written while it goes on."""

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch.distributed as dist
from megatron.core import dist_checkpointing, parallel_state
from megatron.core.dist_checkpointing.core import CheckpointingException
from megatron.core.dist_checkpointing.serialization import get_default_save_sharded_strategy
from megatron.core.dist_checkpointing.strategies.async_utils import AsyncRequest
from megatron.core.dist_checkpointing.strategies.fully_parallel import FullyParallelSaveStrategyWrapper
from torch.distributed.checkpoint.api import CheckpointException

from converters.hf_config import HF_FILES
from converters.hf_folder import copy_other_files
from converters.manifest import MANIFEST, FileEntry, file_entries
from megatron_rl import pulse
from megatron_rl.checkpoint.background import BackgroundWrite, WriterLost, without_clones
from megatron_rl.checkpoint.reader import HISTORY, Manifest
from megatron_rl.device import keep_write_results
from megatron_rl.errors import RunInterrupted, RunStopped
from megatron_rl.model_card import MODEL_CARD
from megatron_rl.parallel import Parallel, any_rank
from megatron_rl.policy.policy import Policy
from megatron_rl.run_folder import RunFolder, write_json

_OF_MAIN_RANK = (".metadata", "common.pt", "metadata.json", HISTORY)
"""Files that no process beside the training writes."""
_OF_TORCH_SAVE = "enforce fail at inline_container"
"""In what torch says where others raise OSError. Its other errors are of collectives: another rank has ended."""


@dataclass(frozen=True, slots=True)
class _Pending:
    manifest: Manifest
    request: AsyncRequest
    write: BackgroundWrite


class CheckpointWriter:
    """Writes the checkpoints of a run, one at a time; every method is called by all ranks together.

    Args:
        timeout_seconds: for the files of one checkpoint.
    """

    def __init__(self, run: RunFolder, parallel: Parallel, timeout_seconds: float = 1800.0) -> None:
        self._run, self._parallel, self._timeout_seconds = run, parallel, timeout_seconds
        data_parallel = parallel_state.get_data_parallel_group(with_context_parallel=True)
        # Ranks that hold the same weights share the writing.
        self._strategy = FullyParallelSaveStrategyWrapper(
            get_default_save_sharded_strategy(), data_parallel, do_cache_distribution=True
        )
        self._pending: _Pending | None = None
        keep_write_results()

    def start(
        self,
        policy: Policy,
        step: int,
        seed: int,
        model: Path,
        card: str = "",
        history: Mapping[str, Any] = {},
    ) -> None:
        """Begin `checkpoints/step_N`, after the one before; when this returns, training may go on.

        With it go config and tokenizer of the folder `model`, and `card` as README.md: it can be converted by itself.

        Args:
            history: what `load_history` is to give back; JSON.

        Raises:
            RunStopped: it cannot be written.
        """
        self.finish()
        final = self._run.checkpoint(step)
        folder = _temporary(final)
        with self._refusals(final, together=True):
            if self._parallel.is_main:
                for left_behind in final.parent.glob(".step_*.tmp"):
                    shutil.rmtree(left_behind, ignore_errors=True)
                folder.mkdir(parents=True)
        with self._refusals(final):
            state = policy.sharded_state(with_optimizer=True, with_scaling=policy.has_scaling)
            request = dist_checkpointing.save(
                without_clones(state), str(folder), self._strategy, async_sharded_save=True
            )
            if self._parallel.is_main:
                (folder / HF_FILES).mkdir()
                copy_other_files(model, folder / HF_FILES)
                (folder / MODEL_CARD).write_text(card, encoding="utf-8")
                write_json(folder / HISTORY, dict(history))
        manifest = Manifest(step, seed, self._parallel.layout, policy.has_scaling)
        self._pending = _Pending(manifest, request, BackgroundWrite(request))

    def is_writing(self) -> bool:
        """A checkpoint was begun, and some rank's files are not written yet."""
        return self._pending is not None and any_rank(not self._pending.write.is_done())

    def finish(self) -> int | None:
        """Wait for the checkpoint that was begun and give it its name; its step, None where none was.

        Raises:
            RunStopped: it could not be written; the one before it serves.
            RunInterrupted: the process that wrote it was killed, or takes too long.
        """
        pending, self._pending = self._pending, None
        if pending is None:
            return None
        final = self._run.checkpoint(pending.manifest.step)
        folder = _temporary(final)
        with self._refusals(final, together=True):
            pulse.tick(allow=self._timeout_seconds)
            written = pending.write.wait(self._timeout_seconds)
        with self._refusals(final):
            for finalize in pending.request.finalize_fns:
                finalize()
        everyone: list[dict[str, FileEntry]] = [{}] * self._parallel.world_size
        dist.all_gather_object(everyone, written)
        with self._refusals(final, together=True):
            if self._parallel.is_main:
                files = {name: entry for part in everyone for name, entry in part.items()}
                files |= file_entries(folder, _OF_MAIN_RANK)
                write_json(folder / MANIFEST, asdict(pending.manifest) | {"files": files})
                shutil.rmtree(final, ignore_errors=True)
                folder.rename(final)
                _sync_folder(final.parent)
        return pending.manifest.step

    def close(self) -> None:
        """Give up a checkpoint that was begun and not finished."""
        if self._pending is not None:
            self._pending.write.kill()

    @contextmanager
    def _refusals(self, checkpoint: Path, together: bool = False) -> Iterator[None]:
        """Make one line of what the system refuses; on all ranks where it has all of them wait for each other."""
        reason, is_lost = None, False
        try:
            yield
        except (OSError, RuntimeError, CheckpointingException, CheckpointException) as error:
            reason, is_lost = _reason(error), isinstance(error, WriterLost)
            if isinstance(error, RuntimeError) and _OF_TORCH_SAVE not in reason:
                raise
        everyone = [(is_lost, reason)]
        if together:
            everyone *= self._parallel.world_size
            dist.all_gather_object(everyone, (is_lost, reason))
        # What the system refuses it refuses again; a process that is lost may be for the same reason.
        is_lost, found = min((one for one in everyone if one[1] is not None), default=(False, None))
        if found is not None:
            if self._parallel.is_main:
                shutil.rmtree(_temporary(checkpoint), ignore_errors=True)
            if _OF_TORCH_SAVE in found:
                free = shutil.disk_usage(self._run.path).free
                found = f"a file could not be written, {free / 1e9:.3f} GB are free on its disk"
            kept = self._run.checkpoints()
            serves = f"{kept[-1]} is whole and serves" if kept else "there is none before it"
            if is_lost:
                raise RunInterrupted(f"{checkpoint}: was not saved: {found}; {serves}; start the same command again")
            raise RunStopped(
                f"{checkpoint}: cannot be saved: {found}; {serves}. Make room, or see to the rights of the folder, and "
                "start the same command again"
            )


def _temporary(checkpoint: Path) -> Path:
    """Where it is written."""
    return checkpoint.with_name(f".{checkpoint.name}.tmp")


def _reason(error: BaseException) -> str:
    """The cause, without where in Megatron it came up."""
    if isinstance(error, CheckpointException) and error.failures:
        error = next(iter(error.failures.values()))[0]
    return (str(error).strip() or repr(error)).splitlines()[0].removeprefix("Worker failure: ")


def _sync_folder(folder: Path) -> None:
    """Have the names in a folder survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
