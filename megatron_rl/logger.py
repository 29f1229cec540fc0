"""Metrics and samples of one run: `metrics.jsonl` always, TensorBoard and W&B when asked. Used by rank 0 only."""

import dataclasses
import json
import math
import secrets
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from megatron_rl.config.schema import TrainConfig
from megatron_rl.errors import InputError, RunStopped
from megatron_rl.run_folder import RunFolder, read_object, write_text

if TYPE_CHECKING:  # at run time it is imported only when asked for: it brings torch
    from torch.utils.tensorboard import SummaryWriter


class MetricsLogger:
    """Writes what the run measured, and on resume first forgets the steps that were run but not checkpointed.

    `resume_step` is the step of the checkpoint that the run continues from; 0 (or less) means a run from its
    beginning, which logs step 0 anew. What an earlier life of the run wrote beyond that is removed: no step appears
    twice.

    Raises:
        InputError: `metrics.jsonl` of an earlier life holds a line that is not its own.
    """

    def __init__(self, config: TrainConfig, run_dir: Path, resume_step: int) -> None:
        self._samples_dir = run_dir / "samples"
        self._samples_dir.mkdir(parents=True, exist_ok=True)
        self._path = RunFolder(run_dir).metrics
        _drop_lines_after(self._path, resume_step)
        self._file = self._path.open("a", encoding="utf-8")
        self._tensorboard = _start_tensorboard(run_dir, resume_step) if config.logger.tensorboard_enabled else None
        self._wandb = _start_wandb(config, run_dir, resume_step) if config.logger.wandb_enabled else None

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Append one line `{"step", "time" (seconds since the epoch), metrics in alphabetical order}` and flush it.

        NaN and infinities become null in the file, which stays valid JSON; TensorBoard and W&B show them as they are.

        Raises:
            RunStopped: it cannot be written.
        """
        values = {name: float(metrics[name]) for name in sorted(metrics)}
        with self._refusals():
            self._file.write(_to_json({"step": step, "time": round(time.time(), 3)} | values) + "\n")
            self._file.flush()
        self._show(step, values)
        if self._wandb is not None:
            self._wandb.log(values, step=step)

    def complete(self, metrics: dict[str, float]) -> None:
        """Put metrics into the last line, which lacks them.

        Raises:
            RunStopped: it cannot be written.
        """
        *lines, last = self._path.read_text(encoding="utf-8").splitlines()
        line = read_object(last, str(self._path))
        values = {name: float(metrics[name]) for name in sorted(metrics)}
        rest = {name: value for name, value in line.items() if name not in ("step", "time")} | values
        line = {"step": line["step"], "time": line["time"]} | {name: rest[name] for name in sorted(rest)}
        with self._refusals():
            _write_lines(self._path, (f"{one}\n" for one in (*lines, _to_json(line))))
            self._file.close()
            self._file = self._path.open("a", encoding="utf-8")
        self._show(line["step"], values)
        if self._wandb is not None:
            self._wandb.log(values, commit=False)  # with the next step's: it takes none for one that is past

    @contextmanager
    def _refusals(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise RunStopped(f"{self._path}: {error}; make room, and start the same command again") from error

    def _show(self, step: int, values: dict[str, float]) -> None:
        if self._tensorboard is not None:
            for name, value in values.items():
                self._tensorboard.add_scalar(name, value, step)
            self._tensorboard.flush()

    def log_samples(self, file_name: str, records: list[dict[str, Any]]) -> None:
        """Write `samples/<file_name>.jsonl`, one line per record, all or nothing; an older one is replaced."""
        _write_lines(self._samples_dir / f"{file_name}.jsonl", (_to_json(record) + "\n" for record in records))

    def close(self) -> None:
        """Flush and close everything; W&B waits for its upload here."""
        with suppress(OSError):  # a line that could not be written, of which `log` told
            self._file.close()
        if self._tensorboard is not None:
            self._tensorboard.close()
        if self._wandb is not None:
            self._wandb.finish()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def _to_json(record: dict[str, Any]) -> str:
    return json.dumps(finite(record), ensure_ascii=False, allow_nan=False)


def finite(value: Any) -> Any:
    """The value with None for every NaN and infinity in it."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _write_lines(path: Path, lines: Iterable[str]) -> None:
    # A lone surrogate, which UTF-8 refuses, becomes the escape that JSON has for it.
    write_text(path, "".join(lines).encode("utf-8", "backslashreplace").decode("utf-8"))


def _drop_lines_after(path: Path, resume_step: int) -> None:
    """Keep the lines up to `resume_step`; a last line that a kill cut short goes too."""
    if not path.exists():
        return
    if not path.is_file():
        raise InputError(f"{path}: not a file; remove it, or start under another name")
    text = path.read_text(encoding="utf-8", errors="replace")
    lines = text.split("\n")
    del lines[-1]  # empty after a whole line, torn otherwise
    if resume_step <= 0:
        lines.clear()
    kept = [f"{line}\n" for number, line in enumerate(lines, 1) if _step(path, number, line) <= resume_step]
    if "".join(kept) != text:
        _write_lines(path, kept)


def _step(path: Path, number: int, line: str) -> int:
    step = read_object(line, f"{path}:{number}").get("step")
    if not isinstance(step, int):
        raise InputError(
            f"{path}:{number}: not a line of metrics ({line[:40]!r}); remove the line, or start under another name"
        )
    return step


def _start_tensorboard(run_dir: Path, resume_step: int) -> "SummaryWriter":
    # torch's writer, not tensorboard's own `summary.Writer`: that one is marked experimental and cannot purge.
    from torch.utils.tensorboard import SummaryWriter

    first_step = resume_step + 1 if resume_step > 0 else 0
    return SummaryWriter(str(run_dir / "tensorboard"), purge_step=first_step)


def _start_wandb(config: TrainConfig, run_dir: Path, resume_step: int) -> Any:
    """A W&B run; its key comes from the environment. A resumed run continues the same W&B run."""
    import wandb

    id_file = run_dir / "wandb_run_id"
    if resume_step <= 0 or not id_file.exists():
        write_text(id_file, secrets.token_hex(4))
    return wandb.init(
        project=config.logger.wandb.project,
        name=config.logger.wandb.name or config.name,
        id=id_file.read_text(encoding="utf-8"),
        resume="allow",
        dir=str(run_dir),
        config=dataclasses.asdict(config),
    )
