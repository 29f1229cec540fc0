"""FP8 weights in blocks of 128 x 128, as DeepSeek-V3 and Qwen publish theirs and vLLM loads them.

A linear layer's `weight` becomes float8_e4m3fn, and `weight_scale_inv` holds one float32 for each block, by which the
values are multiplied to have the weight back. Embedding, output layer, router and norms stay as they are.
"""

from typing import Any

import torch
from torch import Tensor

from converters.hf_folder import TensorPlan

BLOCK = 128
_MAX = torch.finfo(torch.float8_e4m3fn).max


def is_quantised(name: str, shape: tuple[int, ...]) -> bool:
    """Whether a Hugging Face tensor is the weight of a linear layer that is stored in FP8."""
    return len(shape) == 2 and name.startswith("model.layers.") and not name.endswith("mlp.gate.weight")


def scale_name(name: str) -> str:
    """The name of a quantised weight's scales."""
    return f"{name}_scale_inv"


def fp8_plan(plan: TensorPlan) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
    """The tensors of the quantised folder, for those of the whole one."""
    found: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {}
    for name, (dtype, shape) in plan.items():
        if is_quantised(name, shape):
            found[name] = (torch.float8_e4m3fn, shape)
            found[scale_name(name)] = (torch.float32, tuple(-(-size // BLOCK) for size in shape))
        else:
            found[name] = (dtype, shape)
    return found


def fp8_config() -> dict[str, Any]:
    """`quantization_config` of such a folder's `config.json`."""
    return {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": [BLOCK, BLOCK]}


def quantise(name: str, weight: Tensor) -> list[tuple[str, Tensor]]:
    """The tensors to store for `weight`: itself, or its FP8 values and their scales."""
    if not is_quantised(name, tuple(weight.shape)):
        return [(name, weight)]
    rows, columns = weight.shape
    padded = torch.nn.functional.pad(weight.float(), (0, -columns % BLOCK, 0, -rows % BLOCK))
    blocks = padded.unflatten(1, (-1, BLOCK)).unflatten(0, (-1, BLOCK))  # [row block, row, column block, column]
    largest = blocks.abs().amax(dim=(1, 3), keepdim=True)
    scale = torch.where(largest > 0, largest / _MAX, 1.0)
    values = (blocks / scale).to(torch.float8_e4m3fn).flatten(2, 3).flatten(0, 1)[:rows, :columns]
    return [(name, values), (scale_name(name), scale[:, 0, :, 0])]


def dequantise(values: Tensor, scale: Tensor) -> Tensor:
    """The float32 weight that a loader sees."""
    rows, columns = values.shape
    wide = scale.repeat_interleave(BLOCK, 0)[:rows].repeat_interleave(BLOCK, 1)[:, :columns]
    return values.float() * wide
