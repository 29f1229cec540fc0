"""Hugging Face model folders: safetensors read lazily and written shard by shard, never pickles."""

import json
import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from converters.errors import ConversionError
from converters.hf_config import INDEX_NAME, weight_files

_WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth")


class HFReader:
    """Tensors of a folder by name, read when asked for.

    Raises:
        ConversionError: as `weight_files`.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._files = weight_files(folder)
        self._open: dict[Path, Any] = {}

    @property
    def names(self) -> set[str]:
        """Names of all tensors in the folder."""
        return set(self._files)

    def __getitem__(self, name: str) -> Tensor:
        """The tensor `name`; ConversionError if the folder lacks it."""
        if name not in self._files:
            raise ConversionError(f"{self.folder}: tensor {name!r} is missing; the folder is incomplete")
        path = self._files[name]
        if path not in self._open:
            self._open[path] = safe_open(path, framework="pt")
        return self._open[path].get_tensor(name)


@dataclass(slots=True)
class _Shards:
    """Collects tensors and writes a file whenever `shard_bytes` is passed."""

    folder: Path
    shard_bytes: int
    pending: dict[str, Tensor]
    pending_bytes: int
    weight_map: dict[str, str]
    total_bytes: int

    def add(self, name: str, tensor: Tensor) -> None:
        size = tensor.numel() * tensor.element_size()
        if self.pending and self.pending_bytes + size > self.shard_bytes:
            self.flush()
        self.pending[name] = tensor.detach().cpu().contiguous().clone()
        self.pending_bytes += size
        self.total_bytes += size

    def flush(self) -> None:
        file = f"shard-{len(set(self.weight_map.values())) + 1:05d}.safetensors"
        save_file(self.pending, self.folder / file, metadata={"format": "pt"})
        self.weight_map |= dict.fromkeys(self.pending, file)
        self.pending, self.pending_bytes = {}, 0


def write_folder(
    destination: Path, tensors: Iterable[tuple[str, Tensor]], like: Path, shard_bytes: int = 5 * 10**9
) -> None:
    """Write `tensors` as a complete model folder; every other file comes from the folder `like`.

    The folder appears under its name only when it is whole.
    """
    temporary = destination.with_name(f".{destination.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    for path in sorted(like.iterdir()):
        if path.is_file() and path.suffix not in _WEIGHT_SUFFIXES and path.name != INDEX_NAME:
            shutil.copyfile(path, temporary / path.name)
    shards = _Shards(temporary, shard_bytes, {}, 0, {}, 0)
    for name, tensor in tensors:
        shards.add(name, tensor)
    shards.flush()
    _name_shards(shards)
    _sync_folder(temporary)
    shutil.rmtree(destination, ignore_errors=True)
    temporary.rename(destination)


def _name_shards(shards: _Shards) -> None:
    """Give the shards the names that transformers and vLLM look for, now that their number is known."""
    files = sorted(set(shards.weight_map.values()))
    if len(files) == 1:
        (shards.folder / files[0]).rename(shards.folder / "model.safetensors")
        return
    final = {file: f"model-{i + 1:05d}-of-{len(files):05d}.safetensors" for i, file in enumerate(files)}
    for file, name in final.items():
        (shards.folder / file).rename(shards.folder / name)
    index = {
        "metadata": {"total_size": shards.total_bytes},
        "weight_map": {name: final[file] for name, file in shards.weight_map.items()},
    }
    (shards.folder / INDEX_NAME).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _sync_folder(folder: Path) -> None:
    for path in [*folder.iterdir(), folder]:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
