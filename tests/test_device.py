"""What differs between the devices, as far as it shows without a GPU."""

import pytest

from megatron_rl.device import DeviceSetup, engine_environment

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
