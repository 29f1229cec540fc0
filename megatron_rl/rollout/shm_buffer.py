"""The memory that all ranks and engines of a host share for a weight sync, and which tensor lies where in it.

It has two halves: what is in one is loaded while the other is filled.
"""

import mmap
import os
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from vllm.distributed.weight_transfer.base import ParamMeta

_ALIGNMENT = 64

Entry = tuple[str, str, list[int], int]
"""A tensor in a bucket: name, dtype name, shape, offset in bytes."""


@dataclass(slots=True)
class Bucket:
    """Tensors that cross together.

    Attributes:
        units: how many units they are.
        is_whole: it takes the whole buffer, not the half that its number says.
    """

    entries: list[Entry]
    units: int
    is_whole: bool


def plan_buckets(units: Sequence[Sequence[ParamMeta]], buffer_bytes: int) -> tuple[list[Bucket], int]:
    """Tensors in order, cut between units into buckets of at most half the buffer; a larger unit has the whole buffer.

    Returns:
        The buckets, every other one in the second half, and the size of the buffer, which is larger if a unit is.
    """
    half = buffer_bytes // 2 // _ALIGNMENT * _ALIGNMENT
    buckets: list[Bucket] = []
    used, size = 0, 2 * half
    for unit in units:
        unit_bytes = sum(_aligned(_bytes(meta)) for meta in unit)
        is_whole = unit_bytes > half
        if not buckets or is_whole or buckets[-1].is_whole or used + unit_bytes > half:
            buckets.append(Bucket([], 0, is_whole))
            used = 0
        base = 0 if is_whole else (len(buckets) - 1) % 2 * half
        for meta in unit:
            name = str(meta.dtype).removeprefix("torch.")
            buckets[-1].entries.append((meta.name, name, list(meta.shape), base + used))
            used += _aligned(_bytes(meta))
        buckets[-1].units += 1
        size = max(size, unit_bytes)
    return buckets, size


def _bytes(meta: ParamMeta) -> int:
    return meta.dtype.itemsize * torch.Size(meta.shape).numel()


def _aligned(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT


def share_memory(size: int, group: dist.ProcessGroup) -> str:
    """Memory of that size, made by the first rank, as a path by which every process of the host can open it.

    It has no name in any file system: it is gone with the last process that has it, however these end, and can be
    opened for as long as the first rank lives, which never closes it.
    """
    box: list[str | None] = [None]
    if dist.get_rank(group) == 0:
        descriptor = os.memfd_create("megatron-rl-weights")
        os.posix_fallocate(descriptor, 0, size)  # too little memory fails here and not by SIGBUS later
        box[0] = f"/proc/{os.getpid()}/fd/{descriptor}"
    dist.broadcast_object_list(box, src=dist.get_global_rank(group, 0), group=group)
    assert box[0] is not None
    return box[0]


def open_buffer(path: str, size: int) -> torch.Tensor:
    """The bytes of `share_memory`'s memory."""
    with open(path, "r+b") as file:
        return torch.frombuffer(mmap.mmap(file.fileno(), size), dtype=torch.uint8)


def view(buffer: torch.Tensor, entry: Entry) -> torch.Tensor:
    """A tensor in the buffer."""
    _, dtype, shape, offset = entry
    element = getattr(torch, dtype)
    size = torch.Size(shape).numel() * element.itemsize
    return buffer[offset : offset + size].view(element).view(shape)
