"""Hugging Face model folders: safetensors read lazily and written as they come, never pickles.

A folder is written beside its place under a hidden name and renamed when it is whole. Its weight files are laid out in
advance, so tensors may come in any order and from several threads, and none waits in memory for its file to be full.
"""

import json
import os
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from converters.errors import ConversionError
from converters.families.family import EMBEDDING, OUTPUT, Family
from converters.hf_config import INDEX_NAME, ModelShape, weight_files

SHARD_BYTES = 5 * 10**9
PARTIAL = ".partial"
(EMBEDDING_NAME,), (OUTPUT_NAME,) = EMBEDDING.hf, OUTPUT.hf
_WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".gguf")
# In the order of the safetensors library, which writes the widest first.
_DTYPE_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.float8_e4m3fn: "F8_E4M3",
}
DTYPES = {name: dtype for dtype, name in _DTYPE_NAMES.items()}

TensorPlan = Mapping[str, tuple[torch.dtype, tuple[int, ...]]]


class HFReader:
    """Tensors of a folder by name, read when asked for: views of the files, in memory only as pages of them.

    Raises:
        ConversionError: as `weight_files`.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._files = weight_files(folder)
        self._open: dict[Path, Any] = {}
        self._lock = Lock()

    @property
    def names(self) -> set[str]:
        """Names of all tensors in the folder."""
        return set(self._files)

    def forget(self, name: str) -> None:
        """Take no more notice of a tensor."""
        del self._files[name]

    def describe(self) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
        """Dtype and shape of every tensor, from the files' headers."""
        found = {}
        for name in self._files:
            part = self._file(name).get_slice(name)
            dtype = part.get_dtype()
            if dtype not in DTYPES:
                raise ConversionError(f"{self._files[name]}: {name} has dtype {dtype}; known: {sorted(DTYPES)}")
            found[name] = (DTYPES[dtype], tuple(part.get_shape()))
        return found

    def __getitem__(self, name: str) -> Tensor:
        """The tensor `name`; ConversionError if the folder lacks it."""
        if name not in self._files:
            raise ConversionError(f"{self.folder}: tensor {name!r} is missing; the folder is incomplete")
        tensor = self._file(name).get_tensor(name)
        assert isinstance(tensor, Tensor)
        return tensor

    def _file(self, name: str) -> Any:
        path = self._files[name]
        with self._lock:
            if path not in self._open:
                self._open[path] = safe_open(path, framework="pt")
            return self._open[path]


def drop_tied_copy(reader: HFReader, tied: bool) -> None:
    """Forget the copy of a tied output layer that some folders keep: it is no weight of its own.

    Raises:
        ConversionError: it is not a copy.
    """
    if not (tied and {OUTPUT_NAME, EMBEDDING_NAME} <= reader.names):
        return
    output, embedding = reader[OUTPUT_NAME], reader[EMBEDDING_NAME]
    same = output.dtype == embedding.dtype and output.shape == embedding.shape
    if not same or not torch.equal(output.view(torch.uint8), embedding.view(torch.uint8)):
        raise ConversionError(
            f"{reader.folder}: config.json says tie_word_embeddings=true, but {OUTPUT_NAME} is not {EMBEDDING_NAME}; "
            "set it to false, or remove the tensor"
        )
    reader.forget(OUTPUT_NAME)


def check_names(reader: HFReader, family: Family, shape: ModelShape) -> dict[str, torch.dtype]:
    """See that the folder holds the family's tensors and no others; the dtype of each.

    Raises:
        ConversionError: a tensor is missing, extra or misshapen.
    """
    drop_tied_copy(reader, shape.tied)
    found = reader.describe()
    expected: dict[str, torch.dtype] = {}
    for weight, layer, expert in family.walk(shape):  # up to the first that is missing: a config may ask for millions
        for name, size in zip(weight.hf_names(layer, expert), weight.hf_shapes(shape), strict=True):
            if name not in found:
                raise ConversionError(f"{reader.folder}: tensor {name!r} is missing; the folder is incomplete")
            if found[name][1] != size:
                raise ConversionError(
                    f"{reader.folder}: {name} has shape {found[name][1]}, config.json implies {size}; "
                    "weights and config do not belong together"
                )
            expected[name] = found[name][0]
    extra = found.keys() - expected
    if extra:
        raise ConversionError(
            f"{reader.folder}: {sorted(extra)[:5]}: tensors that a {family.model_type} model with this config.json "
            "does not have; they would be lost"
        )
    return expected


@dataclass(frozen=True, slots=True)
class _Slot:
    """Where a tensor's bytes go."""

    file: str
    offset: int
    dtype: torch.dtype
    shape: tuple[int, ...]


class HFWriter:
    """Weight files of a folder, laid out for the tensors of `plan`; `write` may be called from several threads.

    Files are cut at `shard_bytes`, in the plan's order, and named as transformers names them.

    Raises:
        ConversionError: the disk has not enough room.
    """

    def __init__(self, folder: Path, plan: TensorPlan, shard_bytes: int = SHARD_BYTES) -> None:
        self.folder = folder
        self._slots: dict[str, _Slot] = {}
        self._descriptors: dict[str, int] = {}
        groups = _cut(plan, shard_bytes)
        self.total_bytes = sum(_size(*entry) for entry in plan.values())
        check_room(folder, self.total_bytes - sum(path.stat().st_blocks * 512 for path in folder.glob("*.safetensors")))
        names = [f"model-{i + 1:05d}-of-{len(groups):05d}.safetensors" for i in range(len(groups))]
        for file, group in zip(names if len(groups) > 1 else ["model.safetensors"], groups, strict=True):
            self._lay_out(file, group)
        if len(groups) > 1:
            self._write_index()

    def _lay_out(self, file: str, plan: TensorPlan) -> None:
        """Write the file's header, as the safetensors library would, and remember where each tensor goes."""
        order = list(_DTYPE_NAMES)
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        end = 0
        for name, (dtype, size) in sorted(plan.items(), key=lambda item: (order.index(item[1][0]), item[0])):
            begin, end = end, end + _size(dtype, size)
            header[name] = {"dtype": _DTYPE_NAMES[dtype], "shape": list(size), "data_offsets": [begin, end]}
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        text += b" " * (-len(text) % 8)
        start = 8 + len(text)
        for name, (dtype, size) in plan.items():
            self._slots[name] = _Slot(file, start + header[name]["data_offsets"][0], dtype, size)
        descriptor = os.open(self.folder / file, os.O_RDWR | os.O_CREAT, 0o644)
        self._descriptors[file] = descriptor
        _pwrite(descriptor, len(text).to_bytes(8, "little") + text, 0)
        os.ftruncate(descriptor, start + end)

    def _write_index(self) -> None:
        index = {
            "metadata": {"total_size": self.total_bytes},
            "weight_map": {name: slot.file for name, slot in self._slots.items()},
        }
        (self.folder / INDEX_NAME).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")

    def write(self, name: str, tensor: Tensor) -> int:
        """Put a tensor's bytes in their place; their number."""
        slot = self._slots.pop(name)
        assert (tensor.dtype, tuple(tensor.shape)) == (slot.dtype, slot.shape), f"{name} is not what was announced"
        data = tensor.detach().cpu().contiguous().view(torch.uint8).flatten()
        descriptor = self._descriptors[slot.file]
        _pwrite(descriptor, data.numpy(), slot.offset)
        start_writeback(descriptor, slot.offset, data.numel())
        return data.numel()

    def skip(self, names: Iterable[str]) -> int:
        """Leave tensors as an earlier attempt wrote them; their bytes."""
        slots = [self._slots.pop(name) for name in names if name in self._slots]
        return sum(_size(slot.dtype, slot.shape) for slot in slots)

    def finish(self) -> None:
        """Close the files; `put_in_place` brings them to the disk.

        Raises:
            ConversionError: a tensor was never written.
        """
        if self._slots:
            raise ConversionError(f"{self.folder}: never written: {sorted(self._slots)[:5]}")
        for descriptor in self._descriptors.values():
            os.close(descriptor)
        self._descriptors = {}


def copy_other_files(source: Path, destination: Path) -> None:
    """Copy what is not weights: config, generation config, tokenizer, chat template, licence."""
    for path in sorted(source.iterdir()):
        if path.is_file() and path.suffix not in _WEIGHT_SUFFIXES and path.name != INDEX_NAME:
            shutil.copyfile(path, destination / path.name)


def partial_folder(destination: Path) -> Path:
    """Where a folder is made until it is whole."""
    absolute = destination.absolute()
    return absolute.with_name(f".{absolute.name}{PARTIAL}")


def sync(folder: Path) -> None:
    """Bring a folder and all in it to the disk."""
    for path in [*folder.rglob("*"), folder]:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def put_in_place(temporary: Path, destination: Path) -> None:
    """Give a finished folder its name; an older one goes only when the new one has it."""
    destination = destination.absolute()
    old = destination.with_name(f".{destination.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if destination.exists():
        destination.rename(old)
    temporary.rename(destination)
    shutil.rmtree(old, ignore_errors=True)


def check_room(folder: Path, needed: int) -> None:
    """See that the disk has `needed` bytes left.

    Raises:
        ConversionError: it has not.
    """
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise ConversionError(
            f"{folder}: the disk has {free / 1e9:.1f} GB left and {needed / 1e9:.1f} GB are needed; free some, or "
            "choose another disk"
        )


def _size(dtype: torch.dtype, shape: tuple[int, ...]) -> int:
    return dtype.itemsize * torch.Size(shape).numel()


def _cut(plan: TensorPlan, shard_bytes: int) -> list[TensorPlan]:
    """The plan in parts of at most `shard_bytes`; a larger tensor is a part of its own."""
    parts: list[dict[str, tuple[torch.dtype, tuple[int, ...]]]] = []
    used = 0
    for name, entry in plan.items():
        size = _size(*entry)
        if not parts or used + size > shard_bytes:
            parts.append({})
            used = 0
        parts[-1][name] = entry
        used += size
    return list(parts)


def start_writeback(descriptor: int, offset: int, size: int) -> None:
    """Have the kernel bring this part of a file to the disk while we go on: at the end less is left to wait for."""
    os.posix_fadvise(descriptor, offset, size, os.POSIX_FADV_DONTNEED)


def _pwrite(descriptor: int, data: Any, offset: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(descriptor, view, offset)
        view, offset = view[written:], offset + written
