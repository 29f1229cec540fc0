"""A checkpoint's manifest: what it holds, and size and checksum of the files that it is read from. Written last."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from converters.errors import ConversionError

MANIFEST = "manifest.json"
"""A folder without it is not a whole checkpoint."""
_NO_FILE = (FileNotFoundError, NotADirectoryError, IsADirectoryError)
FileEntry = dict[str, Any]
"""`bytes` and `sha256`."""


class DamagedCheckpoint(ConversionError):
    """A checkpoint is not what was written; the message is one line that names the file."""


class UnreadableCheckpoint(ConversionError):
    """The system does not let it be read, which tells nothing of what it holds."""


def file_entry(path: Path) -> FileEntry:
    """Of a file as it is."""
    with open(path, "rb") as file:
        return {"sha256": hashlib.file_digest(file, "sha256").hexdigest(), "bytes": file.tell()}


def file_entries(folder: Path, names: Iterable[str]) -> dict[str, FileEntry]:
    """Of the files `names` in a folder, by name."""
    listed = tuple(names)
    with ThreadPoolExecutor() as threads:  # hashing leaves Python to other threads
        return dict(zip(listed, threads.map(file_entry, map(folder.joinpath, listed)), strict=True))


def read_manifest(checkpoint: Path) -> dict[str, Any]:
    """What `manifest.json` says.

    Raises:
        DamagedCheckpoint: it is missing, or not a manifest.
        UnreadableCheckpoint: the system refuses it.
    """
    path = checkpoint / MANIFEST
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        kind = DamagedCheckpoint if isinstance(error, _NO_FILE) else UnreadableCheckpoint
        raise kind(f"{path}: cannot be read ({error})") from error
    except (ValueError, RecursionError) as error:
        raise DamagedCheckpoint(f"{path}: cannot be read ({error})") from error
    entries = found.get("files", {}) if isinstance(found, dict) else None
    if not isinstance(entries, dict) or not all(map(_is_entry, entries.values())):
        raise DamagedCheckpoint(f"{path}: not a checkpoint's manifest")
    return dict(found)


def _is_entry(value: Any) -> bool:
    return isinstance(value, dict) and isinstance(value.get("bytes"), int) and isinstance(value.get("sha256"), str)


def check_files(checkpoint: Path, entries: Mapping[str, FileEntry]) -> None:
    """Compare files with what the manifest says of them.

    Raises:
        DamagedCheckpoint: names the first that is missing or differs, and in what.
    """
    for name, wanted in entries.items():
        path = checkpoint / name
        size = path.stat().st_size if path.is_file() else None
        if size != wanted["bytes"]:
            has = "is missing" if size is None else f"has {size} bytes"
            raise DamagedCheckpoint(f"{path}: {has}, {MANIFEST} says {wanted['bytes']}")
    for name, found in file_entries(checkpoint, entries).items():
        if found["sha256"] != entries[name]["sha256"]:
            raise DamagedCheckpoint(
                f"{checkpoint / name}: its SHA-256 is {found['sha256'][:12]}..., {MANIFEST} says "
                f"{entries[name]['sha256'][:12]}...: its content is not what was written"
            )
