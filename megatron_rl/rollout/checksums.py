"""Checksums of tensors that may be summed up from pieces, wherever these lie and whoever holds them.

The bits of each element count times its place, modulo 2^64: a changed bit, an exchanged row or a piece in the wrong
place each change the sum. Weights stay below 2^32 / 1000 for any tensor, so that no single bit can hide.
"""

import torch
from torch import Tensor

_ROW, _COLUMN = 31, 17
_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32}


def checksum(tensor: Tensor) -> int:
    """Of a whole tensor of at most two dimensions."""
    return piece_checksum(tensor, tensor)


def piece_checksum(piece: Tensor, place: Tensor, whole: Tensor | None = None) -> int:
    """What a piece adds to the checksum of a whole tensor; `place` is the view of `whole` where it belongs."""
    whole = place if whole is None else whole
    bits = piece.reshape(piece.shape[0], -1).view(_BITS[piece.element_size()])
    width = whole.shape[1] if whole.dim() > 1 else 1
    offset = (place.data_ptr() - whole.data_ptr()) // whole.element_size()
    rows = torch.arange(bits.shape[0]) + offset // width
    columns = torch.arange(bits.shape[1]) + offset % width
    by_row, by_column = bits.sum(1, dtype=torch.int64), bits.sum(0, dtype=torch.int64)
    return int((by_row * (_ROW * rows + 1)).sum() + (by_column * _COLUMN * columns).sum())
