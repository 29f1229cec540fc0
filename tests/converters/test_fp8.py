"""FP8 in blocks: what a loader gets back, and that the folder says so."""

import json
from pathlib import Path

import pytest
import torch
from test_convert import contents, make_folder
from tiny import family_config

from converters.convert import hf_to_megatron, megatron_to_hf
from converters.families import FAMILIES
from converters.fp8 import BLOCK, dequantise, quantise
from converters.hf_config import model_shape
from converters.layout import Layout


@pytest.mark.parametrize("shape", [(128, 128), (256, 384), (130, 70), (1, 1)])
def test_values_come_back_within_the_formats_precision(shape: tuple[int, int]) -> None:
    """e4m3 has 3 bits of mantissa: half a step is 1/16 of a value, or of the block's smallest normal number."""
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(1)) * torch.logspace(-3, 3, shape[1])
    (_, values), (_, scale) = quantise("model.layers.0.mlp.up_proj.weight", weight)
    assert values.dtype == torch.float8_e4m3fn
    assert scale.shape == tuple(-(-size // BLOCK) for size in shape)
    back = dequantise(values, scale)
    wide = scale.repeat_interleave(BLOCK, 0)[: shape[0]].repeat_interleave(BLOCK, 1)[:, : shape[1]]
    allowed = torch.maximum(weight.abs() / 16, wide * 2**-10) * 1.001
    assert ((back - weight).abs() <= allowed).all()
    assert back.abs().max() == pytest.approx(float(weight.abs().max()), rel=1e-6)


def test_a_block_of_zeros_stays_zero() -> None:
    (_, values), (_, scale) = quantise("model.layers.0.mlp.up_proj.weight", torch.zeros(128, 128))
    assert not dequantise(values, scale).any()


def test_the_folder_holds_what_vllm_looks_for(tmp_path: Path) -> None:
    config = family_config("qwen3_moe")
    source = make_folder(tmp_path / "source", config, torch.bfloat16)
    tensors = {
        name: torch.randn(size).bfloat16()
        for name, size in FAMILIES["qwen3_moe"].hf_tensors(model_shape(config, 1)).items()
    }
    from safetensors.torch import save_file

    save_file(tensors, source / "model.safetensors")
    hf_to_megatron(source, tmp_path / "megatron", Layout(tp=2, ep=2))
    megatron_to_hf(tmp_path / "megatron", tmp_path / "out", fp8=True)
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert written["quantization_config"] == {
        "quant_method": "fp8",
        "fmt": "e4m3",
        "activation_scheme": "dynamic",
        "weight_block_size": [128, 128],
    }
    found = contents(tmp_path / "out")
    for name, tensor in tensors.items():
        linear = name.endswith("proj.weight")
        assert (f"{name}_scale_inv" in found) == linear
        if linear:
            back = dequantise(found[name], found[f"{name}_scale_inv"])
            assert (back - tensor.float()).abs().max() < tensor.float().abs().max() / 16
        else:
            assert torch.equal(found[name], tensor)
    assert len(found) == len(tensors) + sum(name.endswith("proj.weight") for name in tensors)
