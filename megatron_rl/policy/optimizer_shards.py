"""The distributed optimizer's state as parts of the model's weights, where it lies: no copy, no communication.

Megatron's own reshardable form gathers the whole state on every data-parallel rank, in three copies. Here each rank
writes what it owns, a stretch of every weight laid out flat, as rectangles of that weight. Under the same keys, so
Megatron loads it, into any layout.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import pairwise
from typing import Any

from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import ShardedTensor, ShardedTensorFactory
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer
from torch import Tensor

_KEPT = ("param", "exp_avg", "exp_avg_sq")


def sharded_optimizer_state(optimizer: DistributedOptimizer, model_state: Mapping[str, Any]) -> dict[str, Any]:
    """What `optimizer.sharded_state_dict` gives for saving with `fully_reshardable`.

    Args:
        model_state: the sharded state of the weights, not yet touched by a save.
    """
    weights = {id(entry.data): entry for entry in nested_values(model_state)}
    shards = [
        shard
        for ranges in optimizer.gbuf_ranges
        for bucket in next(iter(ranges.values()))
        for weight, place in bucket["param_map"].items()
        for shard in _shards(optimizer, weight, weights[id(weight)], place["param"].start, place["param"].end)
    ]
    state: dict[str, Any] = optimizer.state_dict()
    return state | {"param_state": shards, "param_state_sharding_type": "fully_reshardable"}


def _shards(
    optimizer: DistributedOptimizer, weight: Tensor, entry: Any, begin: int, end: int
) -> Iterator[ShardedTensor]:
    """Of one weight, of whose local values this rank owns those from `begin` to `end`."""
    states = optimizer._get_main_param_and_optimizer_states(weight)
    parts = list(nested_values(entry.build())) if isinstance(entry, ShardedTensorFactory) else [entry]
    first = 0  # of the part's values; parts follow on each other by rows
    for part in parts:
        last = first + part.data.numel()
        for row, column, rows, columns in rectangles(max(begin, first) - first, min(end, last) - first, _columns(part)):
            place = first + row * _columns(part) + column - begin
            for key in _KEPT:
                values = states[key].detach()[place : place + rows * columns]
                yield _rectangle(part, f"optimizer.state.{key}.{entry.key}", values, (row, column), (rows, columns))
        first = last


def _columns(part: ShardedTensor) -> int:
    """1 in a vector."""
    assert len(part.local_shape) <= 2
    return part.local_shape[1] if len(part.local_shape) == 2 else 1


def rectangles(begin: int, end: int, columns: int) -> Iterator[tuple[int, int, int, int]]:
    """The values from `begin` to `end` of a matrix laid out by rows, as (first row, first column, rows, columns)."""
    whole_from, whole_to = -(-begin // columns) * columns, end // columns * columns
    cuts = [begin, whole_from, whole_to, end] if whole_from <= whole_to else [begin, end]
    for a, b in pairwise(cuts):
        if a < b:
            rows = max(1, (b - a) // columns)
            yield a // columns, a % columns, rows, (b - a) // rows


def _rectangle(
    part: ShardedTensor, key: str, values: Tensor, corner: tuple[int, int], size: tuple[int, int]
) -> ShardedTensor:
    axes, ahead = len(part.local_shape), part.prepend_axis_num
    shape = (*[1] * ahead, *size[:axes])
    offset = (*part.global_offset[:ahead], *(a + b for a, b in zip(part.global_offset[ahead:], corner, strict=False)))
    return replace(
        part,
        key=key,
        data=values.view(shape),
        dtype=values.dtype,
        local_shape=shape,
        global_offset=offset,
        axis_fragmentations=None,  # no regular grid
        replica_id=(*part.replica_id[:2], 0),  # other data-parallel ranks have other values
        prepend_axis_num=0,
    )
