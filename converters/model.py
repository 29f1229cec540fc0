"""A family's table joined with a Megatron model that tensor and pipeline parallelism have cut up."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from converters.errors import ConversionError
from converters.families.family import Entry, Family
from converters.hf_config import ModelShape
from converters.hf_folder import HFReader


@dataclass(frozen=True, slots=True)
class ModelGroups:
    """The process groups over which the model is cut; None where it is whole."""

    tp: dist.ProcessGroup | None
    pp: dist.ProcessGroup | None

    @property
    def tp_rank(self) -> int:
        return 0 if self.tp is None else dist.get_rank(self.tp)

    @property
    def tp_size(self) -> int:
        return 1 if self.tp is None else dist.get_world_size(self.tp)


def global_parameters(chunks: Sequence[torch.nn.Module]) -> dict[str, Tensor]:
    """This rank's parameters by name, layers numbered over the whole model and not from 0 in every stage."""
    parameters: dict[str, Tensor] = {}
    for chunk in chunks:
        offsets: dict[str, int] = {str(i): layer.layer_number - 1 for i, layer in enumerate(_layers(chunk))}
        for name, parameter in chunk.named_parameters():
            before, marker, rest = name.partition("decoder.layers.")
            if marker:
                local, _, tail = rest.partition(".")
                name = f"{before}{marker}{offsets[local]}.{tail}"
            parameters[name] = parameter
    return parameters


def _layers(chunk: Any) -> Any:
    return chunk.decoder.layers


def load_hf(
    reader: HFReader, chunks: Sequence[torch.nn.Module], family: Family, shape: ModelShape, groups: ModelGroups
) -> None:
    """Fill this rank's part of a Megatron model from a Hugging Face folder.

    Raises:
        ConversionError: a tensor is missing, extra or misshapen, or a parameter has no entry in the family's table.
    """
    parameters = global_parameters(chunks)
    expected: set[str] = set()
    for entry in family.entries(shape):
        expected |= set(entry.hf)
        name = _local_name(entry, parameters)
        if name is None:
            continue
        whole = entry.op.join(_read_parts(reader, entry, shape), shape)
        with torch.no_grad():
            parameters.pop(name).copy_(entry.op.shard(whole, groups.tp_rank, groups.tp_size))
    if shape.tied:
        # The last stage holds a copy of the embedding under the output layer's name.
        name = _local_name(family.output, parameters)
        if name is not None:
            (embedding,) = family.first
            whole = embedding.op.join(_read_parts(reader, embedding, shape), shape)
            with torch.no_grad():
                parameters.pop(name).copy_(embedding.op.shard(whole, groups.tp_rank, groups.tp_size))
    if parameters:
        raise ConversionError(f"no entry of the {family.model_type} table fills {sorted(parameters)}")
    extra = reader.names - expected - (set(family.output.hf) if shape.tied else set())
    if extra:
        raise ConversionError(
            f"{reader.folder}: tensors that a {family.model_type} model does not have: {sorted(extra)[:5]}"
        )


def _read_parts(reader: HFReader, entry: Entry, shape: ModelShape) -> list[Tensor]:
    parts = [reader[name] for name in entry.hf]
    for name, part, wanted in zip(entry.hf, parts, entry.op.hf_shapes(shape), strict=True):
        if tuple(part.shape) != wanted:
            raise ConversionError(
                f"{reader.folder}: {name} has shape {tuple(part.shape)}, config.json implies {wanted}; "
                "weights and config do not belong together"
            )
    return parts


def _local_name(entry: Entry, parameters: Mapping[str, Tensor]) -> str | None:
    return next((name for name in entry.megatron if name in parameters), None)


class HFExport:
    """Streams a sharded Megatron model as Hugging Face tensors, whole and in one order on every rank.

    Every rank of the model must iterate in step: each tensor is gathered over TP and broadcast over PP.
    """

    def __init__(
        self, chunks: Sequence[torch.nn.Module], family: Family, shape: ModelShape, groups: ModelGroups
    ) -> None:
        self._shape, self._groups = shape, groups
        self._entries = list(family.entries(shape))
        self._parameters = global_parameters(chunks)
        self._owners = self._find_owners()

    def metadata(self, dtype: torch.dtype) -> list[tuple[str, torch.dtype, tuple[int, ...]]]:
        """Name, dtype and shape of every tensor, in order, without moving any."""
        return [
            (name, dtype, wanted)
            for entry in self._entries
            for name, wanted in zip(entry.hf, entry.op.hf_shapes(self._shape), strict=True)
        ]

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        for entry, owner in zip(self._entries, self._owners, strict=True):
            yield from zip(entry.hf, self._whole(entry, owner), strict=True)

    def _find_owners(self) -> list[int]:
        """For each entry the pipeline rank that holds it."""
        held = [_local_name(entry, self._parameters) is not None for entry in self._entries]
        everyone = [held]
        if self._groups.pp is not None:
            everyone = [[]] * dist.get_world_size(self._groups.pp)
            dist.all_gather_object(everyone, held, group=self._groups.pp)
        return [next(rank for rank, holds in enumerate(everyone) if holds[i]) for i in range(len(held))]

    def _whole(self, entry: Entry, owner: int) -> list[Tensor]:
        shape, pp = self._shape, self._groups.pp
        is_owner = pp is None or dist.get_rank(pp) == owner
        parts: list[Tensor] = []
        if is_owner:
            name = _local_name(entry, self._parameters)
            assert name is not None
            parts = entry.op.split(entry.op.unshard(self._gather(self._parameters[name].detach()), shape), shape)
        if pp is None or dist.get_world_size(pp) == 1:
            return parts
        if not is_owner:
            like = next(iter(self._parameters.values()))
            parts = [like.new_empty(wanted) for wanted in entry.op.hf_shapes(shape)]
        received = []
        for part in parts:
            part = part.contiguous()
            dist.broadcast(part, src=dist.get_global_rank(pp, owner), group=pp)
            received.append(part)
        return received

    def _gather(self, local: Tensor) -> list[Tensor]:
        if self._groups.tp_size == 1:
            return [local]
        shards = [torch.empty_like(local) for _ in range(self._groups.tp_size)]
        dist.all_gather(shards, local.contiguous(), group=self._groups.tp)
        return shards
