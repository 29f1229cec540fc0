"""A family's table joined with a live Megatron model, however parallelism has cut it up.

Where each parameter lies in the whole model is what Megatron's own sharded state says; nothing here knows of stages,
layer specs or how a fused projection is cut.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
import torch.distributed as dist
from megatron.core.dist_checkpointing import ShardedTensor
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import apply_factories
from torch import Tensor

from converters.blocks import Block, empty_parts, matches, to_hf, to_megatron
from converters.errors import ConversionError
from converters.families.family import Family, Weight
from converters.hf_config import ModelShape
from converters.hf_folder import HFReader, check_names

Place = tuple[str, int, int]
"""A weight of the whole model: key, layer, expert."""


@dataclass(frozen=True, slots=True)
class ModelGroups:
    """The process groups over which the model is cut; None where it is whole."""

    tp: dist.ProcessGroup | None
    pp: dist.ProcessGroup | None
    ep: dist.ProcessGroup | None = None


def local_blocks(chunks: Sequence[torch.nn.Module], family: Family, shape: ModelShape) -> list[tuple[Block, Tensor]]:
    """This rank's blocks with their content, which is the parameters' own memory.

    Raises:
        ConversionError: the model and the table do not have the same weights.
    """
    table = {weight.key: weight for weight in family.table(shape)}
    found: list[tuple[Block, Tensor]] = []
    for chunk in chunks:
        state: Any = chunk.sharded_state_dict()  # type: ignore[operator]
        apply_factories(state)
        for tensor in nested_values(state):
            if isinstance(tensor, ShardedTensor):
                found.append((_block(tensor, table, family), tensor.data.detach()))
    layered = {weight.key for weight in table.values() if weight.per_layer}
    here = {block.weight.key for block, _ in found}
    if here & layered and layered - here:
        raise ConversionError(f"Megatron's model lacks {sorted(layered - here)} of the {family.model_type} table")
    return found


def _block(tensor: ShardedTensor, table: dict[str, Weight], family: Family) -> Block:
    weight = table.get(tensor.key)
    if weight is None:
        raise ConversionError(f"no line of the {family.model_type} table is for Megatron's parameter {tensor.key!r}")
    axes = tensor.prepend_axis_num
    layer, expert = (*tensor.global_offset[:axes], 0, 0)[:2]
    row, column = (*tensor.global_offset[axes:], 0)[:2]
    return Block(weight, layer, expert, row, column, tuple(tensor.local_shape))


def load_hf(reader: HFReader, chunks: Sequence[torch.nn.Module], family: Family, shape: ModelShape) -> None:
    """Fill this rank's part of a Megatron model from a Hugging Face folder.

    Raises:
        ConversionError: a tensor is missing, extra or misshapen; model and table do not fit.
    """
    check_names(reader, family, shape)
    with torch.no_grad():
        for block, data in local_blocks(chunks, family, shape):
            parts = [reader[name] for name in block.weight.hf_names(block.layer, block.expert)]
            to_megatron(block, data, parts, shape)


class HFExport:
    """Streams a sharded Megatron model as Hugging Face tensors, whole and in one order on every rank.

    Every rank of the model must iterate in step: each weight is gathered over TP and broadcast over PP (and EP).
    """

    def __init__(
        self, chunks: Sequence[torch.nn.Module], family: Family, shape: ModelShape, groups: ModelGroups
    ) -> None:
        self._family, self._shape, self._groups = family, shape, groups
        self._table = {weight.key: weight for weight in family.table(shape)}
        self._local: dict[Place, list[tuple[Block, Tensor]]] = {}
        for block, data in local_blocks(chunks, family, shape):
            self._local.setdefault(_place(block), []).append((block, data))
        self._blocks = {place: [block for block, _ in held] for place, held in self._local.items()}
        # Of every tensor-parallel rank: its blocks of each place. Ranks of one group hold the same places.
        self._cuts = _gather_objects(self._blocks, groups.tp)
        self._like = next(iter(self._local.values()))[0][1]
        spread = [group for group in (groups.pp, groups.ep) if group is not None and dist.get_world_size(group) > 1]
        self._owners = self._find_owners(spread)
        self._mine = {place for place in self._local if self._writes(place)}

    def plan(self) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
        """Dtype and shape of every tensor by name, in order."""
        return {name: (self._like.dtype, size) for name, size in self._family.hf_tensors(self._shape).items()}

    def units(self) -> list[list[Place]]:
        """The weights in order, in lists of those that belong to one module (weight and bias, all experts of a layer).

        Who loads a model module by module needs all of a unit at once.
        """
        groups = groupby(
            ((weight.key, layer, expert) for weight, layer, expert in self._family.walk(self._shape)),
            key=lambda place: (
                place[0].partition(".experts.")[0].removesuffix(".weight").removesuffix(".bias"),
                place[1],
            ),
        )
        return [list(places) for _, places in groups]

    def tensors(self, place: Place) -> list[tuple[str, torch.dtype, tuple[int, ...]]]:
        """Name, dtype and shape of the Hugging Face tensors of a weight."""
        key, layer, expert = place
        weight = self._table[key]
        sizes = weight.hf_shapes(self._shape)
        return [(n, self._like.dtype, s) for n, s in zip(weight.hf_names(layer, expert), sizes, strict=True)]

    def pieces(self, place: Place, parts: Sequence[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        """Pairs of views that this rank is to copy from left to right, so that all ranks together fill `parts`.

        No rank waits for another; each piece is one rank's, whatever is replicated.
        """
        if place in self._mine:
            for block, data in self._local[place]:
                yield from matches(block, data, parts, self._shape)

    def _writes(self, place: Place) -> bool:
        is_replicated = all(blocks[place] == self._cuts[0][place] for blocks in self._cuts)
        if is_replicated and self._groups.tp is not None and dist.get_rank(self._groups.tp) != 0:
            return False
        return all(dist.get_rank(group) == owners.get(place, 0) for group, owners in self._owners)

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        for weight, layer, expert in self._family.walk(self._shape):
            yield from zip(weight.hf_names(layer, expert), self._whole(weight, layer, expert), strict=True)

    def _find_owners(self, groups: Iterable[dist.ProcessGroup]) -> list[tuple[dist.ProcessGroup, dict[Place, int]]]:
        """For each group over which the model is spread: a rank for every place that not all of its ranks hold."""
        owners = []
        held = set(self._local)
        for group in groups:
            everyone = _gather_objects(held, group)
            held = set().union(*everyone)
            partly = held - set.intersection(*everyone)
            owner = {place: next(i for i, part in enumerate(everyone) if place in part) for place in partly}
            owners.append((group, owner))
        missing = {(weight.key, layer, expert) for weight, layer, expert in self._family.walk(self._shape)} - held
        if missing:
            raise ConversionError(f"no rank holds {sorted(missing)[:3]} of the {self._family.model_type} table")
        return owners

    def _whole(self, weight: Weight, layer: int, expert: int) -> list[Tensor]:
        place = (weight.key, layer, expert)
        parts = empty_parts(weight, self._shape, self._like)
        if place in self._local:
            for block, data in self._gather(place):
                to_hf(block, data, parts, self._shape)
        for group, owners in self._owners:
            if place in owners:
                for part in parts:
                    dist.broadcast(part, src=dist.get_global_rank(group, owners[place]), group=group)
        return parts

    def _gather(self, place: Place) -> Iterator[tuple[Block, Tensor]]:
        """The blocks of all tensor-parallel ranks with their content."""
        held = self._local[place]
        cuts = [blocks[place] for blocks in self._cuts]
        if len(cuts) == 1 or cuts[0] == cuts[1]:
            yield from held
            return
        mine = torch.cat([data.flatten() for _, data in held])
        everyone = [torch.empty_like(mine) for _ in cuts]
        dist.all_gather(everyone, mine, group=self._groups.tp)
        for blocks, flat in zip(cuts, everyone, strict=True):
            sizes = [torch.Size(block.size) for block in blocks]
            for block, data, size in zip(blocks, flat.split([s.numel() for s in sizes]), sizes, strict=True):
                yield block, data.view(size)


def _place(block: Block) -> Place:
    return block.weight.key, block.layer, block.expert


def _gather_objects(mine: Any, group: dist.ProcessGroup | None) -> list[Any]:
    if group is None:
        return [mine]
    everyone = [None] * dist.get_world_size(group)
    dist.all_gather_object(everyone, mine, group=group)
    return everyone
