"""The policy's weights as a vLLM `WeightSource`, and the sender that pushes them to an engine."""

from collections.abc import Iterator
from typing import Any

import torch
from vllm.distributed.weight_transfer.base import ParamMeta, TrainerInitInfo, TrainerWeightTransferEngine, WeightSource
from vllm.distributed.weight_transfer.factory import WeightTransferTrainerFactory
from vllm.distributed.weight_transfer.ipc_engine import IPCTrainerInitInfo

from converters.model import HFExport
from megatron_rl.parallel import Parallel
from megatron_rl.rollout.shm_transfer import ShmTrainerInitInfo
from megatron_rl.rollout.vllm_plugin import register


class PolicySource(WeightSource):
    """Hugging Face tensors gathered from the Megatron ranks, anew in every iteration."""

    def __init__(self, export: HFExport) -> None:
        self._export = export

    def metadata(self) -> list[ParamMeta]:
        return [ParamMeta(name, dtype, shape) for name, (dtype, shape) in self._export.plan().items()]

    def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]:
        return iter(self._export)


def connect(engine: Any, export: HFExport, parallel: Parallel, bucket_bytes: int) -> TrainerWeightTransferEngine:
    """The sender to `engine`; a rank without one (None) only takes part in gathering."""
    register()
    rank = 0 if engine is not None else 1  # vLLM's convention: rank 0 of a transfer sends
    info: TrainerInitInfo
    if parallel.device.weight_transfer == "shm":
        info = ShmTrainerInitInfo(bucket_bytes=bucket_bytes, rank=rank)
    else:
        info = IPCTrainerInitInfo(packed=True, packed_buffer_size_bytes=bucket_bytes, rank=rank)
    return WeightTransferTrainerFactory.trainer_init(info, client=engine, source=PolicySource(export))
