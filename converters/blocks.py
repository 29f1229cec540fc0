"""A block of a Megatron tensor against the rows of the Hugging Face tensors that it is made of.

Whatever cuts a model up (TP, PP, EP, or the shards of a checkpoint), each part is a rectangle of one of the whole
tensors of the family's table. `matches` pairs its rows with those of the Hugging Face tensors, both as views, so
copying from right to left or from left to right is the conversion and its inverse: exact in every dtype.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from converters.families.family import Weight
from converters.hf_config import ModelShape


@dataclass(frozen=True, slots=True)
class Block:
    """A rectangle of one whole Megatron tensor.

    Attributes:
        weight: the line of the table.
        layer, expert: numbers in the whole model, 0 where the weight has none.
        row, column: where in the whole tensor it starts; column 0 for vectors.
        size: rows, and columns if it is a matrix.
    """

    weight: Weight
    layer: int
    expert: int
    row: int
    column: int
    size: tuple[int, ...]


def whole_block(weight: Weight, layer: int, expert: int, shape: ModelShape) -> Block:
    """All of a weight."""
    return Block(weight, layer, expert, 0, 0, weight.megatron_shape(shape))


def cut_blocks(weight: Weight, layer: int, expert: int, shape: ModelShape, tp: int, tp_rank: int) -> list[Block]:
    """What tensor-parallel rank `tp_rank` holds of a weight; tensors one below the other are cut one by one."""
    rows, *columns = weight.megatron_shape(shape)
    if weight.cut is None:
        return [whole_block(weight, layer, expert, shape)]
    if weight.cut == 1:
        (width,) = (column // tp for column in columns)
        return [Block(weight, layer, expert, 0, tp_rank * width, (rows, width))]
    tensors = len(weight.rows) if weight.groups is None else 1
    height = rows // tensors // tp
    starts = [tensor * (rows // tensors) + tp_rank * height for tensor in range(tensors)]
    return [Block(weight, layer, expert, start, 0, (height, *columns)) for start in starts]


def matches(block: Block, data: Tensor, parts: Sequence[Tensor], shape: ModelShape) -> Iterator[tuple[Tensor, Tensor]]:
    """Pairs of views, of `data` (the content of `block`) and of the Hugging Face tensors `parts`, that hold the same.

    Padding of the vocabulary is in no pair.
    """
    end = block.row + block.size[0]
    columns = () if len(block.size) == 1 else (slice(block.column, block.column + block.size[1]),)
    groups = block.weight.num_groups(shape)
    heights = [part.shape[0] // groups for part in parts]
    position = (block.row // sum(heights)) * sum(heights) if groups > 1 else 0
    group = position // sum(heights)
    while position < end and group < groups:
        for part, height in zip(parts, heights, strict=True):
            start, stop = max(position, block.row), min(position + height, end)
            if start < stop:
                first = group * height + start - position
                yield data[start - block.row : stop - block.row], part[(slice(first, first + stop - start), *columns)]
            position += height
        group += 1


def to_megatron(block: Block, data: Tensor, parts: Sequence[Tensor], shape: ModelShape) -> None:
    """Fill `data` from the Hugging Face tensors; padding becomes zero."""
    if block.weight.padded:
        data[max(0, shape.vocab_size - block.row) :] = 0
    for mine, theirs in matches(block, data, parts, shape):
        mine.copy_(theirs)


def to_hf(block: Block, data: Tensor, parts: Sequence[Tensor], shape: ModelShape) -> None:
    """Fill this block's part of the Hugging Face tensors from `data`."""
    for mine, theirs in matches(block, data, parts, shape):
        theirs.copy_(mine)


def empty_parts(weight: Weight, shape: ModelShape, like: Tensor) -> list[Tensor]:
    """Room for a weight's Hugging Face tensors, of the dtype and device of `like`."""
    return [torch.empty(size, dtype=like.dtype, device=like.device) for size in weight.hf_shapes(shape)]
