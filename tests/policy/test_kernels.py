"""Whose code a part runs, told by its class. That a run says so is tested in `rollout/test_options.py`."""

import pytest
import torch

from megatron_rl.policy.kernels import library_of
from megatron_rl.policy.layer_spec import PackedAttention


@pytest.mark.parametrize(
    ("module", "library"),
    [
        ("transformer_engine.pytorch.attention", "Transformer Engine"),
        ("transformer_engine_torch", "Transformer Engine"),
        ("apex.optimizers.fused_adam", "apex"),
        ("amp_C", "apex"),
        ("megatron.core.tensor_parallel.layers", "torch"),
        ("transformer_engineer", "torch"),
    ],
)
def test_a_part_is_its_nearest_librarys(module: str, library: str) -> None:
    base = type("Base", (torch.nn.Linear,), {"__module__": module})
    megatrons = type("TEColumnParallelLinear", (base,), {"__module__": "megatron.core.extensions.transformer_engine"})
    assert library_of(megatrons) == library_of(base) == library


def test_what_is_neither_is_torchs() -> None:
    assert library_of(PackedAttention) == library_of(torch.optim.AdamW) == library_of(torch.norm) == "torch"
