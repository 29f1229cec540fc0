"""Two checkpoints of any kinds, tensor by tensor, under their Hugging Face names."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from converters.errors import ConversionError
from converters.families import family_of
from converters.hf_config import HF_FILES, model_shape, read_config
from converters.hf_folder import HFReader, drop_tied_copy
from converters.megatron_folder import MegatronReader, is_megatron_folder

_SLICE = 1 << 22
Description = dict[str, tuple[torch.dtype, tuple[int, ...]]]


class Checkpoint(Protocol):
    """A checkpoint of either kind: `describe` gives dtype and shape by name, indexing the tensor."""

    def describe(self) -> Description: ...

    def __getitem__(self, name: str) -> Tensor: ...


class _MegatronCheckpoint:
    """A Megatron checkpoint under its Hugging Face names."""

    def __init__(self, folder: Path, like: Path | None) -> None:
        hf_config = read_config(like or folder / HF_FILES)
        family, shape = family_of(hf_config), model_shape(hf_config, vocab_divisor=1)
        self._reader = MegatronReader(folder, family, shape)
        self._sizes = family.hf_tensors(shape)
        self._places = {
            name: (weight, layer, expert, index)
            for weight, layer, expert in family.walk(shape)
            for index, name in enumerate(weight.hf_names(layer, expert))
        }

    def describe(self) -> Description:
        return {name: (self._reader.dtypes[self._places[name][0].key], size) for name, size in self._sizes.items()}

    def __getitem__(self, name: str) -> Tensor:
        weight, layer, expert, index = self._places[name]
        return self._reader.parts(weight, layer, expert)[index]


def open_checkpoint(path: Path, like: Path | None = None) -> Checkpoint:
    """The checkpoint in `path`, a Hugging Face folder or a Megatron checkpoint.

    Args:
        like: where a Megatron checkpoint that holds no config has it.

    Raises:
        ConversionError: it is neither, or damaged.
    """
    if not path.is_dir():
        raise ConversionError(f"{path}: no such folder")
    if is_megatron_folder(path):
        return _MegatronCheckpoint(path, like)
    reader = HFReader(path)
    drop_tied_copy(reader, bool(read_config(path).get("tie_word_embeddings", False)))
    return reader


@dataclass(frozen=True, slots=True)
class Difference:
    """What is not the same about one tensor."""

    name: str
    what: str


def compare(
    a: Checkpoint, b: Checkpoint, workers: int = 2, progress: Callable[[int, int], None] = lambda done, total: None
) -> Iterator[Difference]:
    """The tensors that are not the same in both, bit for bit; nothing is yielded for equal checkpoints."""
    in_a, in_b = a.describe(), b.describe()
    for name in sorted(in_a.keys() ^ in_b.keys()):
        yield Difference(name, f"only in the {'first' if name in in_a else 'second'}")
    both = [name for name in in_a if name in in_b]
    with ThreadPoolExecutor(workers) as pool:
        for done, (name, what) in enumerate(zip(both, pool.map(lambda name: _what(a, b, name), both), strict=True), 1):
            progress(done, len(both))
            if what is not None:
                yield Difference(name, what)


def _what(a: Checkpoint, b: Checkpoint, name: str) -> str | None:
    first, second = a[name], b[name]
    if first.shape != second.shape:
        return f"shape {tuple(first.shape)} against {tuple(second.shape)}"
    dtypes = "" if first.dtype == second.dtype else f"{first.dtype} against {second.dtype}, "
    same_bits, count, largest, worst = not dtypes, 0, 0.0, 0
    for start in range(0, first.numel(), _SLICE):  # in slices: wide copies of an embedding would fill the memory
        x, y = (tensor.flatten()[start : start + _SLICE] for tensor in (first, second))
        if not dtypes and torch.equal(x.view(torch.uint8), y.view(torch.uint8)):
            continue
        same_bits = False
        x, y = x.double(), y.double()
        differ = ~((x == y) | (x.isnan() & y.isnan()))
        distance = torch.where(differ, (x - y).abs(), 0.0).nan_to_num(nan=torch.inf)
        count += int(differ.sum())
        if differ.any() and float(distance.max()) > largest:
            largest, worst = float(distance.max()), start + int(distance.argmax())
    if same_bits:
        return None
    if count == 0:
        return f"{dtypes}every value the same" if dtypes else "the same values in other bits (signed zeros, NaNs)"
    place = [int(index) for index in torch.unravel_index(torch.tensor(worst), first.shape)]
    return f"{dtypes}{count} of {first.numel()} values differ, by up to {largest:.3g} at {place}"
