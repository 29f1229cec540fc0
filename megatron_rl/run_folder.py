"""What lies where in a run folder. Light: nothing heavy is imported."""

import fcntl
import json
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from converters.manifest import MANIFEST
from megatron_rl.errors import InputError

CHECKPOINT_PREFIX = "step_"
_CHECKPOINT = re.compile(CHECKPOINT_PREFIX + "[0-9]{1,18}")


@dataclass(frozen=True, slots=True)
class RunFolder:
    """`runs/NAME` of one stage."""

    path: Path

    @property
    def config(self) -> Path:
        """The resolved configuration."""
        return self.path / "config.yaml"

    @property
    def metrics(self) -> Path:
        """One JSON line per step."""
        return self.path / "metrics.jsonl"

    @property
    def summary(self) -> Path:
        """Written when the stage is done: its presence means finished."""
        return self.path / "summary.json"

    @property
    def problems(self) -> Path:
        """How the policy did on every training problem when it met it last; written with every checkpoint."""
        return self.path / "problems.jsonl"

    @property
    def model(self) -> Path:
        """Config, tokenizer and first weights of a model made from scratch."""
        return self.path / "model"

    @property
    def hf(self) -> Path:
        """The exported Hugging Face folder."""
        return self.path / "hf"

    @property
    def logs(self) -> Path:
        """Output of the ranks that do not speak to the terminal."""
        return self.path / "logs"

    @property
    def journal(self) -> Path:
        """Samples and verdicts of the steps since the last checkpoint."""
        return self.path / "journal"

    @property
    def stacks(self) -> Path:
        """Where every rank stood when the watch of the ranks ended the run."""
        return self.logs / "stacks"

    @property
    def verdict(self) -> Path:
        """Why it did, on one line."""
        return self.stacks / "verdict.txt"

    def samples(self, name: str) -> Path:
        """Sampled responses of a step, `step_N`, or of a validation, `validation_SET_step_N`; or those that a guard
        refused, `GUARD_step_N`."""
        return self.path / "samples" / f"{name}.jsonl"

    def checkpoint(self, step: int) -> Path:
        """Where the checkpoint of `step` lies."""
        return self.path / "checkpoints" / f"{CHECKPOINT_PREFIX}{step}"

    def has_checkpoint(self, step: int) -> bool:
        """The checkpoint of `step` is complete."""
        return (self.checkpoint(step) / MANIFEST).is_file()

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Within the block no other start works in the folder; on a file system without locks nobody can tell.

        Raises:
            InputError: another one does, or the folder cannot be written.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            file = open(self.path / ".lock", "a")  # noqa: SIM115
        except OSError as error:
            raise InputError(f"{self.path}: cannot be written: {error}; correct output_dir, or its rights") from error
        with file:
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # of this process, not of those that it forks
            except (BlockingIOError, PermissionError):  # POSIX allows for both
                raise InputError(f"{self.path}: another start is at work in it; wait for its end, or end it") from None
            except OSError:
                pass
            yield

    def checkpoints(self) -> list[Path]:
        """Complete checkpoints, oldest first."""
        folders = (self.path / "checkpoints").glob(f"{CHECKPOINT_PREFIX}*")
        found = [path for path in folders if _CHECKPOINT.fullmatch(path.name) and (path / MANIFEST).is_file()]
        return sorted(found, key=self.step_of)

    @staticmethod
    def step_of(checkpoint: Path) -> int:
        """The step of a checkpoint, by its name."""
        return int(checkpoint.name.removeprefix(CHECKPOINT_PREFIX))

    def metric_lines(self) -> list[dict[str, Any]]:
        """All lines of `metrics.jsonl`.

        Raises:
            InputError: one is no JSON object.
        """
        if not self.metrics.is_file():
            return []
        lines = self.metrics.read_text(encoding="utf-8", errors="replace").split("\n")[:-1]
        return [read_object(line, f"{self.metrics}:{number}") for number, line in enumerate(lines, 1)]


def find_checkpoint(path: Path) -> Path:
    """`path` if it is a complete checkpoint, else the newest one of the run folder `path`.

    Raises:
        InputError: there is none.
    """
    if (path / MANIFEST).is_file():
        return path
    found = RunFolder(path).checkpoints()
    if not found:
        raise InputError(f"{path}: neither a checkpoint nor a run folder with one; check policy.from_checkpoint")
    return found[-1]


def read_object(text: str, place: str) -> dict[str, Any]:
    """The JSON object in `text`, which stands at `place`; NaN and infinity read as None.

    Raises:
        InputError: it is none.
    """
    try:
        found = json.loads(text, parse_constant=lambda _: None)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{place}: not JSON ({error}); remove it") from error
    if not isinstance(found, dict):
        raise InputError(f"{place}: a JSON object is expected, found {text[:40].strip()!r}; remove it")
    return found


def write_text(path: Path, text: str) -> None:
    """Write a file that is either whole or not there."""
    _write(path, [text])


def write_lines(path: Path, lines: Iterable[str]) -> None:
    """`write_text` of lines, which may be more than memory holds."""
    _write(path, (f"{line}\n" for line in lines))


def _write(path: Path, pieces: Iterable[str]) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    with open(temporary, "w", encoding="utf-8") as file:
        file.writelines(pieces)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def write_json(path: Path, value: dict[str, Any]) -> None:
    """`write_text` of indented JSON."""
    write_text(path, json.dumps(value, indent=2) + "\n")
