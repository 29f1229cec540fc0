"""Megatron checkpoint folders (`torch_dist`), read and written block by block in one process.

The format is that of `torch.distributed.checkpoint`: `.distcp` files of saved tensors behind each other, and
`.metadata`, which tells for every key its whole shape and where each of its blocks lies.
"""

import io
import json
import mmap
import pickle
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from operator import gt
from pathlib import Path
from threading import Lock
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)

from converters.blocks import Block, empty_parts, to_hf
from converters.errors import ConversionError
from converters.families.family import Family, Weight
from converters.hf_config import ModelShape
from converters.hf_folder import start_writeback

_ALIGNMENT = 64
_BACKEND = {
    "sharded_backend": "torch_dist",
    "sharded_backend_version": 1,
    "common_backend": "torch",
    "common_backend_version": 1,
}
Place = tuple[str, int, int]  # key, layer, expert


@dataclass(frozen=True, slots=True)
class Stored:
    """Where a block's tensor lies: `length` bytes from `offset` of the file."""

    file: str
    offset: int
    length: int


def num_axes(weight: Weight) -> int:
    """Dimensions before the weight's own: the layer, and the expert."""
    return weight.per_layer + weight.per_expert


def is_megatron_folder(path: Path) -> bool:
    """Whether `path` holds a Megatron checkpoint."""
    return (path / ".metadata").is_file()


class MegatronReader:
    """Weights of a checkpoint, whatever layout wrote it.

    Raises:
        ConversionError: not a whole checkpoint, or not one of this family and these sizes.
    """

    def __init__(self, folder: Path, family: Family, shape: ModelShape) -> None:
        self.folder, self._shape = folder, shape
        metadata = read_metadata(folder)
        self.dtypes: dict[str, torch.dtype] = {}
        self._sizes: dict[str, int] = {}  # values of each key, in one layer and expert
        self._blocks: dict[Place, list[tuple[Block, Stored]]] = {}
        table = {weight.key: weight for weight in family.table(shape)}
        try:
            for key, entry in metadata.state_dict_metadata.items():
                if isinstance(entry, TensorStorageMetadata) and not key.startswith("optimizer."):
                    if key not in table:
                        raise ConversionError(
                            f"{folder}: {key!r} is not a weight of a {family.model_type} model; it would be lost"
                        )
                    self._take(table[key], entry, metadata)
        except ConversionError:
            raise
        except (AttributeError, TypeError, ValueError) as error:
            raise _damaged(folder / ".metadata", error) from error
        self._check_whole(family)
        self._maps: dict[str, mmap.mmap] = {}
        self._lock = Lock()

    def _take(self, weight: Weight, entry: TensorStorageMetadata, metadata: Metadata) -> None:
        """Check the whole shape of a key and index its blocks."""
        axes = num_axes(weight)
        sizes = (self._shape.num_layers, self._shape.num_experts)[:axes]
        expected = [*sizes, *weight.megatron_shape(self._shape)]
        found = list(entry.size)
        if weight.padded and len(found) == len(expected) and found[0] >= self._shape.vocab_size:
            expected[0] = found[0]  # the padding depends on the layout that wrote it
        if found != expected:
            raise ConversionError(
                f"{self.folder}: {weight.key} has shape {tuple(found)}, config.json implies {tuple(expected)}; "
                "checkpoint and config do not belong together"
            )
        self.dtypes[weight.key] = entry.properties.dtype
        self._sizes[weight.key] = torch.Size(found[num_axes(weight) :]).numel()
        for chunk in entry.chunks:
            layer, expert = (*chunk.offsets[:axes], 0, 0)[:2]
            row, column = (*chunk.offsets[axes:], 0)[:2]
            if any(size != 1 for size in chunk.sizes[:axes]):
                raise ConversionError(f"{self.folder}: {weight.key} has a block of several layers; save it anew")
            block = Block(weight, layer, expert, row, column, tuple(chunk.sizes[axes:]))
            info = metadata.storage_data.get(MetadataIndex(weight.key, chunk.offsets))
            if info is None:
                raise ConversionError(f"{self.folder}/.metadata: no file for {weight.key} at {tuple(chunk.offsets)}")
            ends = [begin + size for begin, size in zip(chunk.offsets, chunk.sizes, strict=True)]
            if min(*chunk.offsets, info.offset, info.length) < 0 or any(map(gt, ends, found)):
                raise _damaged(self.folder / ".metadata", f"{weight.key} has a block beyond its end")
            if Path(info.relative_path).name != info.relative_path:
                raise _damaged(self.folder / ".metadata", f"{weight.key} lies in {info.relative_path!r:.80}")
            self._blocks.setdefault((weight.key, layer, expert), []).append(
                (block, Stored(info.relative_path, info.offset, info.length))
            )

    def _check_whole(self, family: Family) -> None:
        """See that the blocks of every weight add up to all of it, and their files are there."""
        for weight, layer, expert in family.walk(self._shape):
            held = self._blocks.get((weight.key, layer, expert), [])
            wanted = self._sizes.get(weight.key, torch.Size(weight.megatron_shape(self._shape)).numel())
            found = sum(torch.Size(block.size).numel() for block, _ in held)
            if found != wanted:
                raise ConversionError(
                    f"{self.folder}: {weight.key}, layer {layer}, expert {expert}: {found} of {wanted} values are "
                    "there; the checkpoint is incomplete"
                )
        ends: dict[str, int] = {}
        for held in self._blocks.values():
            for _, stored in held:
                ends[stored.file] = max(ends.get(stored.file, 0), stored.offset + stored.length)
        for file, end in ends.items():
            path = self.folder / file
            size = path.stat().st_size if path.is_file() else None
            if size is None or size < end:
                state = "missing" if size is None else f"cut short: {size} of at least {end} bytes"
                raise ConversionError(f"{path}: {state}; restore the checkpoint from a copy")

    def parts(self, weight: Weight, layer: int, expert: int) -> list[Tensor]:
        """The Hugging Face tensors of one weight."""
        parts: list[Tensor] = []
        for block, stored in self._blocks[weight.key, layer, expert]:
            data = self._read(block, stored)
            parts = parts or empty_parts(weight, self._shape, data)
            to_hf(block, data, parts, self._shape)
        return parts

    def _read(self, block: Block, stored: Stored) -> Tensor:
        """A block's tensor: a view of its file where that is aligned, else a copy."""
        with self._lock:
            if stored.file not in self._maps:
                with open(self.folder / stored.file, "rb") as file:
                    self._maps[stored.file] = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
            mapped = self._maps[stored.file]
        dtype = self.dtypes[block.weight.key]
        size = torch.Size(block.size).numel() * dtype.itemsize
        item = memoryview(mapped)[stored.offset : stored.offset + stored.length]
        try:
            values = item[_payload(item, size) :][:size]
        except (zipfile.BadZipFile, ValueError) as error:
            raise ConversionError(
                f"{self.folder / stored.file}: damaged at byte {stored.offset} ({error}); restore it from a copy"
            ) from error
        data = torch.frombuffer(values, dtype=torch.uint8)
        if data.data_ptr() % dtype.itemsize:
            data = data.clone()
        return data.view(dtype).view(block.size)


def _damaged(path: Path, reason: object) -> ConversionError:
    return ConversionError(f"{path}: damaged ({reason!r}); restore it from a copy")


def _payload(item: memoryview, nbytes: int) -> int:
    """Where in a tensor saved by `torch.save` its values start."""
    with zipfile.ZipFile(_View(item)) as archive:
        (entry,) = (entry for entry in archive.infolist() if entry.filename.endswith("/data/0"))
    if entry.file_size != nbytes or entry.compress_type != zipfile.ZIP_STORED:
        raise ValueError(f"holds {entry.file_size} bytes of values, {nbytes} are expected")
    header = item[entry.header_offset : entry.header_offset + 30]
    name, extra = (int.from_bytes(header[i : i + 2], "little") for i in (26, 28))
    return entry.header_offset + 30 + name + extra


class _View(io.RawIOBase):
    """A file of bytes that lie in memory already."""

    def __init__(self, view: memoryview) -> None:
        self._view, self._position = view, 0

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._position = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: len(self._view)}[whence]
        return self._position

    def tell(self) -> int:
        return self._position

    def read(self, size: int = -1) -> bytes:
        end = len(self._view) if size < 0 else self._position + size
        found = bytes(self._view[self._position : end])
        self._position += len(found)
        return found


class _MetadataUnpickler(pickle.Unpickler):
    """Makes what `.metadata` is made of and nothing else: a pickle may name any function, to be called."""

    def find_class(self, module: str, name: str) -> Any:
        found = super().find_class(module, name) if module in _METADATA_MODULES else None
        if name in _METADATA_MODULES.get(module, ()) or isinstance(found, torch.dtype):
            return found
        raise pickle.UnpicklingError(f"names {module}.{name}, which has no place there")


_METADATA_MODULES: dict[str, tuple[str, ...]] = {
    "torch": ("Size",),
    "torch.serialization": ("_get_layout",),
    "torch.distributed.checkpoint.filesystem": ("_StorageInfo", "_StoragePrefix"),
    "torch.distributed.checkpoint.planner": (
        *("SavePlan", "WriteItem", "WriteItemType", "TensorWriteData", "BytesIOWriteData"),
    ),
    "torch.distributed.checkpoint.metadata": (
        *("Metadata", "MetadataIndex", "StorageMeta", "TensorProperties", "_MEM_FORMAT_ENCODING"),
        *("TensorStorageMetadata", "BytesStorageMetadata", "ChunkStorageMetadata"),
    ),
    "collections": ("OrderedDict",),
    "pathlib": ("Path", "PosixPath"),
}


def read_metadata(folder: Path) -> Metadata:
    """The `.metadata` of a checkpoint, unpickled without trust in it.

    Raises:
        ConversionError: it is missing, damaged, or names what has no place there.
    """
    path = folder / ".metadata"
    if not path.is_file():
        raise ConversionError(f"{folder}: no .metadata; not a Megatron checkpoint of format torch_dist")
    try:
        with open(path, "rb") as file:
            metadata = _MetadataUnpickler(file).load()
    except Exception as error:  # damaged bytes may ask for anything
        raise _damaged(path, error) from error
    if not isinstance(metadata, Metadata):
        raise ConversionError(f"{folder}/.metadata: holds a {type(metadata).__name__}; restore it from a copy")
    return metadata


def write_blocks(path: Path, blocks: Iterable[tuple[Block, Tensor]]) -> Iterator[tuple[Block, Stored]]:
    """Write tensors behind each other into one `.distcp` file; yields each with its place once it is written."""
    with open(path, "wb") as file:
        for block, data in blocks:
            file.write(bytes(-file.tell() % _ALIGNMENT))
            begin = file.tell()
            torch.save(data.view(*[1] * num_axes(block.weight), *block.size), file)
            file.flush()
            start_writeback(file.fileno(), begin, file.tell() - begin)
            yield block, Stored(path.name, begin, file.tell() - begin)


def write_metadata(
    folder: Path, stored: Iterable[tuple[Block, Stored]], dtypes: Mapping[str, torch.dtype], shape: ModelShape
) -> None:
    """Write what makes `.distcp` files a Megatron checkpoint, but for the manifest."""
    entries: dict[str, TensorStorageMetadata] = {}
    places: dict[MetadataIndex, _StorageInfo] = {}
    for block, where in stored:
        weight = block.weight
        axes = num_axes(weight)
        sizes = (shape.num_layers, shape.num_experts)[:axes]
        entry = entries.setdefault(
            weight.key,
            TensorStorageMetadata(
                properties=TensorProperties(dtype=dtypes[weight.key]),
                size=torch.Size((*sizes, *weight.megatron_shape(shape))),
                chunks=[],
            ),
        )
        corner = (block.row, block.column)[: len(block.size)]
        offsets = torch.Size((*(block.layer, block.expert)[:axes], *corner))
        entry.chunks.append(ChunkStorageMetadata(offsets, torch.Size((*[1] * axes, *block.size))))
        places[MetadataIndex(weight.key, offsets)] = _StorageInfo(where.file, where.offset, where.length)
    metadata: Any = Metadata(dict(entries), storage_data=places)
    (folder / ".metadata").write_bytes(pickle.dumps(metadata))
    (folder / "metadata.json").write_text(json.dumps(_BACKEND))
    torch.save({}, folder / "common.pt")
