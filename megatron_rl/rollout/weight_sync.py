"""The policy's weights as a vLLM `WeightSource`, and the sender that pushes them to an engine."""

import socket
from collections.abc import Iterator, Sequence
from typing import Any

import torch.distributed as dist
from torch import Tensor
from vllm.distributed.weight_transfer.base import ParamMeta, TrainerInitInfo, TrainerWeightTransferEngine, WeightSource
from vllm.distributed.weight_transfer.factory import WeightTransferTrainerFactory
from vllm.distributed.weight_transfer.ipc_engine import IPCTrainerInitInfo

from converters.fp8 import fp8_plan, quantise
from converters.model import HFExport
from megatron_rl.errors import InputError
from megatron_rl.parallel import Parallel
from megatron_rl.pulse import tick
from megatron_rl.rollout.checksums import piece_checksum
from megatron_rl.rollout.shm_sender import ShmTrainerInitInfo
from megatron_rl.rollout.vllm_plugin import register


class PolicySource(WeightSource):
    """Hugging Face tensors of the Megatron ranks: gathered anew in every iteration, or written piece by piece.

    Args:
        is_writer: this rank's copy of the model is the one of its host that writes.
    """

    def __init__(self, export: HFExport, is_writer: bool = True) -> None:
        self._export, self._is_writer = export, is_writer
        self._units = export.units()

    def metadata(self) -> list[ParamMeta]:
        return [ParamMeta(name, dtype, shape) for name, (dtype, shape) in self._export.plan().items()]

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        for pair in self._export:
            tick()
            yield pair

    def units(self) -> list[list[ParamMeta]]:
        """The tensors in order, those together that the engine needs at once."""
        return [
            [ParamMeta(*tensor) for place in unit for tensor in self._export.tensors(place)] for unit in self._units
        ]

    def fill(self, unit: int, tensors: Sequence[Tensor], with_checksums: bool) -> list[int]:
        """Copy this rank's pieces of a unit into its tensors.

        Returns:
            What they add to the checksum of each tensor; nothing without `with_checksums`.
        """
        tick()
        sums, first = [], 0
        for place in self._units[unit]:
            parts = tensors[first : first + len(self._export.tensors(place))]
            first += len(parts)
            mine = [0] * len(parts)
            for piece, target in self._export.pieces(place, parts) if self._is_writer else ():
                target.copy_(piece)
                if with_checksums:
                    index = next(i for i, part in enumerate(parts) if _holds(part, target))
                    mine[index] += piece_checksum(piece, target, parts[index])
            sums += mine
        return sums if with_checksums else []


class QuantisedSource(WeightSource):
    """The policy's weights, linear layers in FP8 with block scales: the engine has those of this very step, rounded."""

    def __init__(self, export: HFExport) -> None:
        self._export = export

    def metadata(self) -> list[ParamMeta]:
        return [ParamMeta(name, dtype, shape) for name, (dtype, shape) in fp8_plan(self._export.plan()).items()]

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        for name, tensor in self._export:
            tick()
            yield from quantise(name, tensor)


def _holds(part: Tensor, view: Tensor) -> bool:
    return part.data_ptr() <= view.data_ptr() < part.data_ptr() + part.nbytes


def connect(
    engine: Any, export: HFExport, parallel: Parallel, bucket_bytes: int, fp8: bool = False
) -> TrainerWeightTransferEngine:
    """The sender to `engine`; a rank without one (None) only brings its share of the weights."""
    register()
    rank = 0 if engine is not None else 1  # vLLM's convention: rank 0 of a transfer sends
    info: TrainerInitInfo
    source: WeightSource
    if parallel.device.weight_transfer == "shm":
        info = ShmTrainerInitInfo(bucket_bytes=bucket_bytes, rank=rank)
        source = PolicySource(export, _is_writer(parallel))
    else:
        source = QuantisedSource(export) if fp8 else PolicySource(export)
        info = IPCTrainerInitInfo(packed=True, packed_buffer_size_bytes=bucket_bytes, rank=rank)
    return WeightTransferTrainerFactory.trainer_init(info, client=engine, source=source)


def _is_writer(parallel: Parallel) -> bool:
    """Whether this rank is of the first copy of the model on its host.

    Raises:
        InputError: that copy has ranks on other hosts.
    """
    mine = (socket.gethostname(), parallel.dp_rank, parallel.cp_rank)
    everyone = [mine] * parallel.world_size
    dist.all_gather_object(everyone, mine)
    first = min(other for other in everyone if other[0] == mine[0])
    ranks, wanted = everyone.count(first), parallel.tp * parallel.pp
    if ranks != wanted:
        raise InputError(
            f"{ranks} of the {wanted} ranks of a copy of the model are on host {mine[0]}; without a GPU all have to be "
            "where its engine is: lower policy.pipeline_model_parallel_size or raise cluster.gpus_per_node"
        )
    return mine == first
