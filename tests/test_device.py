"""What differs between the devices, as far as it shows without a GPU."""

import mmap
import sys
from collections.abc import Iterator
from pathlib import Path
from subprocess import PIPE, Popen

import pytest
import torch
from vllm.config import CompilationConfig, VllmConfig, set_current_vllm_config
from vllm.model_executor.custom_op import op_registry_oot
from vllm.model_executor.layers.activation import SiluAndMul
from vllm.platforms import current_platform

from megatron_rl import device
from megatron_rl.config.schema import Device, FP8Recipe
from megatron_rl.device import (
    DeviceSetup,
    bind_activation,
    check_fp8,
    engine_environment,
    missing_for_fp8,
    setup_device,
    used_memory_gib,
)
from megatron_rl.errors import InputError

CUDA = DeviceSetup("cuda", "nccl", transformer_engine=True, weight_transfer="ipc", engine_sleeps=True)
CPU = DeviceSetup("cpu", "gloo", transformer_engine=False, weight_transfer="shm", engine_sleeps=False)


@pytest.mark.parametrize(
    ("rank", "visible", "size", "wanted"),
    [(0, None, 1, "0"), (3, None, 1, "3"), (4, None, 4, "4,5,6,7"), (2, "7,5,3,1", 2, "3,1"), (0, "", 2, "0,1")],
)
def test_an_engine_has_the_gpus_from_its_leading_ranks_on(
    monkeypatch: pytest.MonkeyPatch, rank: int, visible: str | None, size: int, wanted: str
) -> None:
    monkeypatch.setenv("LOCAL_RANK", str(rank))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert engine_environment(CUDA, [0], size)["CUDA_VISIBLE_DEVICES"] == wanted


def test_workers_share_the_cores_evenly() -> None:
    assert engine_environment(CPU, [0, 1, 2, 3], 2)["VLLM_CPU_OMP_THREADS_BIND"] == "0,2|1,3"


@pytest.fixture
def activation() -> Iterator[SiluAndMul]:
    """As an engine on the CPU that compiles nothing has it."""
    current_platform.import_kernels()
    bind_activation()
    bind_activation()
    with set_current_vllm_config(VllmConfig(compilation_config=CompilationConfig(custom_ops=["all"]))):
        yield SiluAndMul()
    del op_registry_oot["SiluAndMul"]


@pytest.mark.parametrize("width", [352, 176, 48])
def test_a_token_has_the_same_activation_wherever_in_a_batch_it_is(activation: SiluAndMul, width: int) -> None:
    rows = torch.randn(4096, 2 * width)
    found = activation(rows)
    for size in range(1, len(rows), 37):
        differ = (activation(rows[:size]) != found[:size]).any(-1)
        assert not differ.any(), f"of {size} rows {differ.nonzero().flatten().tolist()} differ"


@pytest.mark.parametrize("width", [352, 12, 33])
def test_an_activation_is_that_of_swiglu_at_any_width(activation: SiluAndMul, width: int) -> None:
    rows = torch.randn(100, 2 * width)
    gate, up = rows.double().split(width, -1)
    torch.testing.assert_close(activation(rows).double(), gate * gate.sigmoid() * up, rtol=1e-6, atol=1e-6)


A100, L40, H100, B200, RTX_5090 = (8, 0), (8, 9), (9, 0), (10, 0), (12, 0)


@pytest.mark.parametrize(("recipe", "capability", "cuda", "missing"), [
    ("delayed", L40, "13.0", None),
    ("delayed", A100, "13.0", "compute capability 8.9; this one has 8.0"),
    ("tensorwise", H100, "12.6", None),
    ("tensorwise", A100, "12.6", "compute capability 8.9; this one has 8.0"),
    ("blockwise", H100, "12.9", None),
    ("blockwise", B200, "13.0", None),
    ("blockwise", L40, "13.0", "compute capability 9.0; this one has 8.9"),
    ("blockwise", H100, "12.8", "CUDA 12.9; torch was built with 12.8"),
    ("mxfp8", B200, "13.0", None),
    ("mxfp8", H100, "13.0", "compute capability 10.0; this one has 9.0"),
    ("mxfp8", RTX_5090, "13.0", "compute capability below 12.0; this one has 12.0"),
])  # fmt: skip
def test_what_a_recipe_of_fp8_lacks_on_a_gpu(
    recipe: str, capability: tuple[int, int], cuda: str, missing: str | None
) -> None:
    found = missing_for_fp8(FP8Recipe(recipe), capability, cuda)
    assert found is None if missing is None else str(found).endswith(missing)


@pytest.mark.parametrize("recipe", list(FP8Recipe))
def test_fp8_without_a_gpu_is_refused_in_one_line(recipe: FP8Recipe) -> None:
    with pytest.raises(InputError, match=f"^policy.fp8.recipe={recipe} needs Transformer Engine on a GPU; set .*$"):
        check_fp8(recipe, CPU)


def test_a_gpu_without_transformer_engine_is_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "resolve_device", lambda requested: "cuda")
    monkeypatch.setattr(device, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"^training on a GPU needs Transformer Engine: pip install .*=cpu$"):
        setup_device(Device.AUTO, 0)


_CHILD = """
import mmap, sys
own = bytearray(128 << 20)
file = open(sys.argv[1], "r+b")
shared = mmap.mmap(file.fileno(), 0)
for memory in (own, shared):
    for page in range(0, len(memory), 4096):
        memory[page] = 1
print("ready", flush=True)
sys.stdin.read()
"""


def test_memory_counts_children_and_what_is_shared_once(tmp_path: Path) -> None:
    path = tmp_path / "shared"
    path.write_bytes(bytes(256 << 20))
    before = used_memory_gib(CPU)
    with (
        path.open("r+b") as file,
        mmap.mmap(file.fileno(), 0) as shared,
        Popen([sys.executable, "-c", _CHILD, str(path)], stdin=PIPE, stdout=PIPE, text=True) as child,
    ):
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        for page in range(0, len(shared), 4096):
            shared[page] = 1
        used = used_memory_gib(CPU) - before
        assert child.stdin is not None
        child.stdin.close()
    # The child's own 128 MiB and the 256 that both have touched, of which this process's libraries hide a part.
    assert 0.2 < used < 0.42
