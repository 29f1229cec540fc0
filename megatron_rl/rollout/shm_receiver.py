"""The engine's side of vLLM's weight-transfer backend `shm`: its workers load the weights from shared memory.

vLLM loads a layer by copying its tensors into a new parameter, and on the CPU packs that into another layout. Where the
parameter lies in the buffer as it is, it is packed from there, without the copy.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import wraps
from typing import Any

import torch
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload
from vllm.model_executor.model_loader.reload.layerwise import get_layerwise_info, make_online_process_loader

from megatron_rl.rollout.checksums import checksum
from megatron_rl.rollout.shm_buffer import Entry, open_buffer, view


@dataclass
class ShmInitInfo(WeightTransferInitInfo):
    """Where the memory can be opened, and per bucket its tensors."""

    path: str
    buffer_bytes: int
    buckets: list[list[Entry]]


@dataclass
class ShmUpdateInfo(WeightTransferUpdateInfo):
    """The number of a bucket that is in the buffer, and what its tensors should sum up to."""

    bucket: int
    checksums: list[int] = field(default_factory=list)


class DamagedWeights(Exception):
    """A tensor reached the engine with other bits than the policy's."""


class ShmReceiver(WeightTransferEngine[ShmInitInfo, ShmUpdateInfo]):
    """The side of an engine's worker."""

    init_info_cls = ShmInitInfo
    update_info_cls = ShmUpdateInfo

    def init_transfer_engine(self, init_info: ShmInitInfo) -> None:
        self._buffer = open_buffer(init_info.path, init_info.buffer_bytes)
        self._buckets = init_info.buckets

    def start_weight_update(self) -> None:
        initialize_layerwise_reload(self.model)
        for module in self.model.modules():
            for name in get_layerwise_info(module).restore_metadata[0]:
                parameter = getattr(module, name)
                parameter.weight_loader = self._adopting(module, name, _innermost(parameter.weight_loader))
                parameter.weight_loader = make_online_process_loader(module, name)

    def _adopting(self, module: torch.nn.Module, name: str, loader: Callable[..., Any]) -> Callable[..., Any]:
        """`loader`, but a parameter whose pieces follow one another in the buffer becomes a view of it."""

        @wraps(loader)
        def load(param: torch.Tensor, *arguments: Any, **options: Any) -> Any:
            pieces = [a.arguments for key, a in get_layerwise_info(module).loaded_weights if key == name]
            if param.is_meta or not is_whole(param, pieces) or not self._is_in_buffer(pieces[0]["loaded_weight"]):
                return loader(param, *arguments, **options)
            param.data = pieces[0]["loaded_weight"].as_strided(param.shape, param.stride())
            return None

        return load

    def update_weights(self, update_info: dict[str, Any]) -> None:
        self.receive_weights(self.parse_update_info(update_info))

    def receive_weights(self, update_info: ShmUpdateInfo) -> None:
        bucket = self._buckets[update_info.bucket]
        tensors = [(entry[0], view(self._buffer, entry)) for entry in bucket]
        for (name, tensor), expected in zip(tensors, update_info.checksums, strict=False):
            found = checksum(tensor)
            if found != expected:
                raise DamagedWeights(f"{name} has the checksum {found:x} in the engine, {expected:x} in the policy")
        self.model.load_weights(iter(tensors))  # type: ignore[operator]
        self._keep_what_waits()

    def _keep_what_waits(self) -> None:
        """Copy what vLLM leaves in the buffer until the end, waiting for the rows that pad a vocabulary."""
        for module in self.model.modules():
            for _, arguments in get_layerwise_info(module).loaded_weights:
                for key, value in arguments.arguments.items():
                    if isinstance(value, torch.Tensor) and self._is_in_buffer(value):
                        arguments.arguments[key] = value.clone()

    def _is_in_buffer(self, tensor: torch.Tensor) -> bool:
        return 0 <= tensor.data_ptr() - self._buffer.data_ptr() < len(self._buffer)

    def finish_weight_update(self) -> None:
        finalize_layerwise_reload(self.model, self.model_config)
        if self.model_config.hf_config.tie_word_embeddings:
            # A tied output layer loads nothing of its own, so vLLM leaves it with what it packed from the old weights.
            head = self.model.lm_head
            head.quant_method.process_weights_after_loading(head)  # type: ignore[operator, union-attr]

    def shutdown(self) -> None:
        """The mapping goes with the process."""


def _innermost(loader: Callable[..., Any]) -> Callable[..., Any]:
    while hasattr(loader, "__wrapped__"):
        loader = loader.__wrapped__
    return loader


def is_whole(param: torch.Tensor, pieces: Sequence[Mapping[str, Any]]) -> bool:
    """Whether what was loaded into a parameter, by the arguments of its loader, is that parameter as it lies there."""
    shards = [piece.get("loaded_shard_id") for piece in pieces]
    tensors = [piece["loaded_weight"] for piece in pieces]
    ends = [tensor.data_ptr() + tensor.nbytes for tensor in tensors]
    return (
        shards in ([None], ["q", "k", "v"], [0, 1])
        and all(t.dtype == param.dtype and t.shape[1:] == param.shape[1:] and t.is_contiguous() for t in tensors)
        and sum(tensor.numel() for tensor in tensors) == param.numel()
        and ends[:-1] == [tensor.data_ptr() for tensor in tensors[1:]]
    )
