"""A conversion in the making: a hidden folder beside its place, with a journal of what is already written.

An interrupted conversion leaves this folder and none that looks finished; the same command carries on in it. What
the journal tells of counts only while the machine has not been restarted: until the end nothing is forced to disk.
"""

import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Lock
from typing import Any

from converters.errors import ConversionError
from converters.hf_folder import PARTIAL, partial_folder, put_in_place, sync

_JOURNAL = "journal.jsonl"
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class Partial:
    """The folder and its journal.

    Attributes:
        folder: where to write.
        done: what an earlier attempt has written, by unit of work.
    """

    def __init__(self, folder: Path, plan: dict[str, Any]) -> None:
        self.folder = folder
        self._journal = folder / _JOURNAL
        self._lock = Lock()
        boot = _BOOT_ID.read_text().strip() if _BOOT_ID.is_file() else ""
        first = json.dumps(plan | {"boot": boot}, sort_keys=True)
        self.done: dict[str, Any] = {}
        lines = self._journal.read_text().split("\n") if self._journal.is_file() else [""]
        if lines[0] == first:
            # The last line may be cut short; what it tells of is then written once more.
            whole = lines[:-1]
            self._journal.write_text("".join(line + "\n" for line in whole))
            self.done = {entry["unit"]: entry["data"] for entry in map(json.loads, whole[1:])}
        else:
            for path in folder.iterdir():
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            self._journal.write_text(first + "\n")

    def finish(self, destination: Path) -> None:
        """Bring everything to the disk and give it its name.

        Raises:
            OSError: something did not reach the disk; nobody can tell what, so the next attempt starts afresh.
        """
        try:
            sync(self.folder)
        finally:
            self._journal.unlink()
        put_in_place(self.folder, destination)

    def mark(self, unit: str, data: Any = None) -> None:
        """Note that a unit is written."""
        with self._lock, open(self._journal, "a") as file:
            file.write(json.dumps({"unit": unit, "data": data}) + "\n")


@contextmanager
def partial(source: Path, destination: Path, plan: dict[str, Any], overwrite: bool) -> Iterator[Partial]:
    """The folder to write to; it takes the place of `destination` at the end of the block.

    Raises:
        ConversionError: `destination` exists and may not be replaced, or holds the source; somebody else is making it;
            the disk is full.
    """
    if source.resolve().is_relative_to(destination.resolve()):
        raise ConversionError(f"{destination}: holds {source}, which is to be converted; give another folder")
    folder = partial_folder(destination)
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder):
        if destination.is_symlink() or (destination.exists() and not (overwrite and destination.is_dir())):
            with suppress(OSError):  # what an earlier attempt left there stays
                folder.rmdir()
            raise ConversionError(f"{destination}: exists already; give another folder, or --overwrite for a folder")
        work = Partial(folder, plan)
        yield work
        work.finish(destination)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Keep other processes out of `folder`; the lock ends with this process, however it ends."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConversionError(f"{folder}: another process is converting to the same folder; wait for it") from error
        yield
    finally:
        os.close(descriptor)


def fingerprint(folder: Path) -> list[list[Any]]:
    """What tells one version of a source folder from another: names, sizes and times of its files."""
    return [
        [str(path.relative_to(folder)), path.stat().st_size, path.stat().st_mtime_ns]
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not any(part.endswith(PARTIAL) for part in path.relative_to(folder).parts)
    ]
