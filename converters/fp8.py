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
    values = torch.empty_like(weight, dtype=torch.float8_e4m3fn)
    scale = torch.empty([-(-size // BLOCK) for size in weight.shape], device=weight.device)
    for row in range(scale.shape[0]):  # strip by strip: wide copies of a whole layer would fill the memory
        strip = slice(row * BLOCK, (row + 1) * BLOCK)
        values[strip], scale[row] = _quantise_strip(weight[strip].float())
    return [(name, values), (scale_name(name), scale)]


def _quantise_strip(strip: Tensor) -> tuple[Tensor, Tensor]:
    """FP8 values of up to 128 rows, and the scale of each of their blocks."""
    columns = strip.shape[1]
    blocks = torch.nn.functional.pad(strip, (0, -columns % BLOCK)).unflatten(1, (-1, BLOCK))  # [row, block, column]
    largest = blocks.abs().amax(dim=(0, 2))
    scale = torch.where(largest > 0, largest / _MAX, 1.0)
    return (blocks / scale[None, :, None]).to(torch.float8_e4m3fn).flatten(1)[:, :columns], scale


def dequantise(values: Tensor, scale: Tensor) -> Tensor:
    """The float32 weight that a loader sees."""
    rows, columns = values.shape
    wide = scale.repeat_interleave(BLOCK, 0)[:rows].repeat_interleave(BLOCK, 1)[:, :columns]
    return values.float() * wide
