"""Every family's Megatron model computes what transformers' does, from either kind of checkpoint."""

from pathlib import Path

import pytest
import torch
from ranks import run_job
from safetensors.torch import load_file
from tiny import FAMILY_CONFIGS, make_model_folder
from transformers import AutoModelForCausalLM

from converters.convert import hf_to_megatron
from converters.hf_config import read_config
from converters.layout import Layout

LENGTH, TOLERANCE = 256, 1e-4
TP, PP = 2, 2
# Short enough for Llama's scaling to change some of the frequencies at positions below 256, on either side.
CHANGES = {"llama": {"rope_theta": 500000.0}}
NAMES = [f"{family}_{kind}" for family in FAMILY_CONFIGS for kind in ("tied", "untied")]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("families")
    found = {name: root / name for name in NAMES}
    for name, folder in found.items():
        family, _, kind = name.rpartition("_")
        make_model_folder(folder, kind == "tied", family, **CHANGES.get(family, {}))
    return found


@pytest.fixture(scope="module")
def tokens() -> list[int]:
    return torch.randint(0, 500, (LENGTH,), generator=torch.Generator().manual_seed(3)).tolist()


@pytest.fixture(scope="module", params=[None, 2], ids=["", "interleaved"])
def folder(
    models: dict[str, Path],
    tokens: list[int],
    tmp_path_factory: pytest.TempPathFactory,
    request: pytest.FixtureRequest,
) -> Path:
    """Of one job's results; the checkpoints it loads are cut for another layout than its own."""
    root = tmp_path_factory.mktemp("logits")
    checkpoints = {name: str(root / name) for name in models}
    for name, source in models.items():
        experts = 4 if "moe" in name else 1
        hf_to_megatron(source, root / name, Layout(tp=1, pp=4, ep=experts), vocab_divisor=16 * TP)
    arguments = {
        "models": {name: str(path) for name, path in models.items()},
        "checkpoints": checkpoints,
        "tp": TP,
        "pp": PP,
        "vpp": request.param,
        "tokens": tokens,
    }
    counts = run_job("logits.py", arguments, ranks=TP * PP, folder=root / "job")
    assert counts.keys() == models.keys()
    return root / "job"


@pytest.mark.parametrize("name", NAMES)
def test_logits_are_those_of_transformers(name: str, folder: Path, models: dict[str, Path], tokens: list[int]) -> None:
    model = AutoModelForCausalLM.from_pretrained(models[name], dtype=torch.float32).eval()
    with torch.no_grad():
        expected = model(torch.tensor([tokens])).logits[0]
    found = load_file(folder / f"{name}.safetensors")
    assert found["hf"].shape == expected.shape == (LENGTH, 500)
    assert expected.std() > 0.1
    assert (found["hf"] - expected).abs().max() <= TOLERANCE
    assert torch.equal(found["megatron"], found["hf"])


def test_the_rope_scaling_matters(models: dict[str, Path], tokens: list[int]) -> None:
    """Without it the logits differ by far more than the tolerance, so agreement shows that it is honoured."""
    found = []
    for rope_type in ({}, {"rope_type": "default"}):
        rope = read_config(models["llama_untied"])["rope_scaling"] | {"rope_theta": 500000.0} | rope_type
        model = AutoModelForCausalLM.from_pretrained(models["llama_untied"], dtype=torch.float32, rope_parameters=rope)
        with torch.no_grad():
            found.append(model.eval()(torch.tensor([tokens])).logits[0])
    assert (found[0] - found[1]).abs().max() > 100 * TOLERANCE
