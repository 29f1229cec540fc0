"""bf16 with smaller gradients, and FP8 as far as it goes without kernels: settings, packing, checkpoints."""

from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import run_job
from safetensors.torch import load_file

from converters.convert import megatron_to_hf
from megatron_rl.run_folder import RunFolder

STEP = 1


@pytest.fixture(scope="module")
def result(model_folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    arguments = {"model": str(model_folders["untied"]), "ranks": 2}
    found: dict[str, Any] = run_job("precision.py", arguments, 2, tmp_path_factory.mktemp("precision"))
    return found


def assert_close(found: list[dict[str, float]], wanted: list[dict[str, float]]) -> None:
    assert len({step["loss"] for step in wanted}) == len(wanted)
    for a, b in zip(found, wanted, strict=True):
        assert a == pytest.approx(b, rel=1e-2)  # bfloat16 rounds to 1 in 256


def test_gradients_in_bf16_differ_by_rounding(result: dict[str, Any]) -> None:
    found, wanted = result["metrics"]["gradients"], result["metrics"]["bf16"]
    assert (result["dtypes"]["gradients"], result["dtypes"]["bf16"]) == (["torch.bfloat16"], ["torch.float32"])
    assert found != wanted
    assert_close(found, wanted)


@pytest.mark.parametrize("run", ["delayed", "tensorwise", "blockwise", "mxfp8", "spared"])
def test_without_kernels_fp8_is_bf16_with_micro_batches_filled_up(result: dict[str, Any], run: str) -> None:
    assert_close(result["metrics"][run], result["metrics"]["bf16"])


@pytest.fixture(scope="module")
def saved(model_folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints at TP=2, one with the past that delayed scaling goes by and one without."""
    arguments = {"model": str(model_folders["untied"]), "tp": 2, "pp": 1}
    return save_or_load(arguments, tmp_path_factory.mktemp("saved"))[0]


def save_or_load(arguments: dict[str, Any], folder: Path) -> tuple[Path, dict[str, Any]]:
    return folder, run_job("scaling.py", arguments, 2, folder)


def test_the_past_of_delayed_scaling_is_resumed_in_another_layout_and_nowhere_else(
    saved: Path, model_folders: dict[str, Path], tmp_path: Path
) -> None:
    arguments = {"model": str(model_folders["untied"]), "tp": 1, "pp": 2, "saved": str(saved)}
    _, found = save_or_load(arguments, tmp_path / "job")
    layers = {f"{number}.{name}": number * 10 + i for number in range(1, 5) for i, name in enumerate(LINEARS)}
    assert found["delayed, resumed delayed"] == layers
    nothing = dict.fromkeys(layers, None)
    assert found["delayed, resumed blockwise"] == nothing
    assert found["blockwise, resumed delayed"] == nothing
    assert found["delayed, weights alone"] == nothing


LINEARS = ("linear_qkv", "linear_proj", "linear_fc1", "linear_fc2")


@pytest.mark.parametrize("run", ["delayed", "blockwise"])
def test_a_conversion_leaves_the_past_behind(
    saved: Path, model_folders: dict[str, Path], tmp_path: Path, run: str
) -> None:
    megatron_to_hf(RunFolder(saved / run).checkpoint(STEP), tmp_path / "hf")
    found, wanted = (load_file(folder / "model.safetensors") for folder in (tmp_path / "hf", model_folders["untied"]))
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], tensor.bfloat16()) for name, tensor in wanted.items())
