"""Whole conversions between Hugging Face folders and Megatron checkpoints, in one process without a model.

Weights pass one by one, through as many threads as asked for: memory holds one weight per thread, whatever the size
of the model.
"""

import json
import shutil
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import asdict
from pathlib import Path
from threading import Lock
from typing import Any, TypeVar

import torch
from torch import Tensor

from converters.blocks import Block, to_megatron
from converters.errors import ConversionError, os_errors
from converters.families import family_of
from converters.families.family import Family, Weight
from converters.fp8 import fp8_config, fp8_plan, quantise, scale_name
from converters.hf_config import HF_FILES, ModelShape, model_shape, read_config
from converters.hf_folder import (
    SHARD_BYTES,
    HFReader,
    HFWriter,
    TensorPlan,
    check_names,
    check_room,
    copy_other_files,
)
from converters.layout import Layout
from converters.manifest import MANIFEST, file_entries
from converters.megatron_folder import MegatronReader, Stored, write_blocks, write_metadata
from converters.partial import fingerprint, partial

Progress = Callable[[int, int], None]
"""Called with (bytes written, bytes in all)."""
Unit = TypeVar("Unit")


@os_errors()
def hf_to_megatron(
    source: Path,
    destination: Path,
    layout: Layout,
    vocab_divisor: int = 128,
    workers: int = 2,
    overwrite: bool = False,
    progress: Progress = lambda done, total: None,
) -> None:
    """Convert a Hugging Face folder to a Megatron checkpoint, cut for `layout` (and readable by any other).

    Args:
        vocab_divisor: the vocabulary is padded to a multiple of this times TP.

    Raises:
        ConversionError: whatever is wrong with the source, the layout or the destination.
    """
    hf_config = read_config(source)
    family, shape = family_of(hf_config), model_shape(hf_config, vocab_divisor * layout.tp)
    family.translate(hf_config)
    layout.check(shape)
    reader = HFReader(source)
    dtypes = _megatron_dtypes(family, shape, check_names(reader, family, shape))
    files: dict[int, list[Block]] = {}
    for rank, block in layout.blocks(family, shape):
        files.setdefault(rank, []).append(block)
    plan = {"source": fingerprint(source), "layout": asdict(layout), "vocab_divisor": vocab_divisor}
    with partial(source, destination, plan, overwrite) as work:
        written = dict(work.done)
        sizes = {rank: sum(_block_bytes(block, dtypes) for block in blocks) for rank, blocks in files.items()}
        check_room(work.folder, sum(size for rank, size in sizes.items() if str(rank) not in written))
        count = _Count(sum(sizes.values()), progress)

        def write_file(rank: int) -> None:
            if str(rank) in written:
                count.add(sizes[rank])
                return
            places = []
            blocks = _filled(files[rank], reader, shape, dtypes)
            for block, stored in write_blocks(work.folder / f"__{rank}_0.distcp", blocks):
                places.append((stored.offset, stored.length))
                count.add(_block_bytes(block, dtypes))
            written[str(rank)] = places
            work.mark(str(rank), places)

        _in_threads(write_file, files, workers)
        stored = (
            (block, Stored(f"__{rank}_0.distcp", *where))
            for rank, blocks in files.items()
            for block, where in zip(blocks, written[str(rank)], strict=True)
        )
        write_metadata(work.folder, stored, dtypes, shape)
        (work.folder / HF_FILES).mkdir(exist_ok=True)
        copy_other_files(source, work.folder / HF_FILES)
        names = [*(f"__{rank}_0.distcp" for rank in files), ".metadata", "common.pt", "metadata.json"]
        manifest = {"step": 0, "seed": 0, "layout": asdict(layout), "files": file_entries(work.folder, names)}
        (work.folder / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")


def _megatron_dtypes(family: Family, shape: ModelShape, hf: dict[str, torch.dtype]) -> dict[str, torch.dtype]:
    """The dtype of every Megatron weight, which is that of all Hugging Face tensors in it."""
    dtypes: dict[str, torch.dtype] = {}
    for weight, layer, expert in family.walk(shape):
        for name in weight.hf_names(layer, expert):
            if dtypes.setdefault(weight.key, hf[name]) != hf[name]:
                raise ConversionError(
                    f"{name} has dtype {hf[name]}, others of Megatron's {weight.key} {dtypes[weight.key]}; "
                    "cast the folder to one dtype"
                )
    return dtypes


def _filled(
    blocks: Iterable[Block], reader: HFReader, shape: ModelShape, dtypes: dict[str, torch.dtype]
) -> Iterator[tuple[Block, Tensor]]:
    for block in blocks:
        parts = [reader[name] for name in block.weight.hf_names(block.layer, block.expert)]
        data = torch.empty(block.size, dtype=dtypes[block.weight.key])
        to_megatron(block, data, parts, shape)
        yield block, data


@os_errors()
def megatron_to_hf(
    source: Path,
    destination: Path,
    like: Path | None = None,
    dtype: torch.dtype | None = None,
    fp8: bool = False,
    shard_bytes: int = SHARD_BYTES,
    workers: int = 2,
    overwrite: bool = False,
    progress: Progress = lambda done, total: None,
) -> None:
    """Convert a Megatron checkpoint to a Hugging Face folder; the checkpoint's README.md becomes the model card.

    Args:
        like: folder with config and tokenizer; by default those in the checkpoint.
        dtype: of the weights; by default as they are stored.
        fp8: quantise the linear layers to FP8 in blocks of 128 x 128.

    Raises:
        ConversionError: whatever is wrong with the source or the destination.
    """
    like = like or source / HF_FILES
    if not like.is_dir():
        raise ConversionError(f"{source}: holds no {HF_FILES}/ with config and tokenizer; name a folder with --like")
    hf_config = read_config(like)
    family, shape = family_of(hf_config), model_shape(hf_config, vocab_divisor=1)
    family.translate(hf_config)
    reader = MegatronReader(source, family, shape)
    tensors = {
        name: (dtype or reader.dtypes[weight.key], size)
        for weight, layer, expert in family.walk(shape)
        for name, size in zip(weight.hf_names(layer, expert), weight.hf_shapes(shape), strict=True)
    }
    if fp8:
        tensors = fp8_plan(tensors)
    plan = {"source": fingerprint(source), "like": fingerprint(like), "shard_bytes": shard_bytes}
    plan |= {"dtype": str(dtype), "fp8": fp8}
    with partial(source, destination, plan, overwrite) as work:
        copy_other_files(like, work.folder)
        _write_config(work.folder, hf_config, tensors, fp8)
        if (source / "README.md").is_file():
            shutil.copyfile(source / "README.md", work.folder / "README.md")
        writer = HFWriter(work.folder, tensors, shard_bytes)
        count = _Count(writer.total_bytes, progress)

        def write_weight(place: tuple[Weight, int, int]) -> None:
            weight, layer, expert = place
            unit = f"{weight.key} {layer} {expert}"
            names = weight.hf_names(layer, expert)
            if unit in work.done:
                count.add(writer.skip([*names, *map(scale_name, names)]))
                return
            for name, part in zip(names, reader.parts(weight, layer, expert), strict=True):
                part = part if dtype is None else part.to(dtype)
                for written, tensor in quantise(name, part) if fp8 else [(name, part)]:
                    count.add(writer.write(written, tensor))
            work.mark(unit)

        _in_threads(write_weight, family.walk(shape), workers)
        writer.finish()


def _write_config(folder: Path, hf_config: dict[str, Any], tensors: TensorPlan, fp8: bool) -> None:
    """`config.json`, changed only where the weights are not what it says."""
    stored = str(next(iter(tensors.values()))[0]).removeprefix("torch.")  # the embedding's, which is never quantised
    key = "dtype" if "dtype" in hf_config else "torch_dtype"
    changes: dict[str, Any] = {"quantization_config": fp8_config()} if fp8 else {}
    if hf_config.get(key) != stored:
        changes[key] = stored
    if changes:
        (folder / "config.json").write_text(json.dumps(hf_config | changes, indent=2) + "\n", encoding="utf-8")


class _Count:
    """Bytes written so far by all threads."""

    def __init__(self, total: int, progress: Progress) -> None:
        self._done, self._total, self._progress = 0, total, progress
        self._lock = Lock()

    def add(self, size: int) -> None:
        """Some more are written."""
        with self._lock:
            self._done += size
            self._progress(self._done, self._total)


def _block_bytes(block: Block, dtypes: dict[str, torch.dtype]) -> int:
    return torch.Size(block.size).numel() * dtypes[block.weight.key].itemsize


def _in_threads(work: Callable[[Unit], None], units: Iterable[Unit], workers: int) -> None:
    """Do all units; the first error ends the rest and is raised."""
    with ThreadPoolExecutor(workers) as pool:
        futures = [pool.submit(work, unit) for unit in units]
        try:
            wait(futures, return_when=FIRST_EXCEPTION)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
        for future in futures:
            if not future.cancelled():
                future.result()
