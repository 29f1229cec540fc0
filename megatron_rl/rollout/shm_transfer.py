"""vLLM weight-transfer backend `shm`: whole Hugging Face tensors through shared memory, bucket by bucket.

Sender (the trainer rank that leads an engine) and receivers (the engine's workers) map one buffer of the size of the
largest bucket. What is in which bucket, and where, goes over once at the handshake; a sync sends only bucket numbers.
"""

import mmap
import os
import tempfile
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from vllm.distributed.weight_transfer.base import (
    ParamMeta,
    TrainerInitInfo,
    TrainerWeightTransferEngine,
    VLLMWeightSyncClient,
    WeightSource,
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

_ALIGNMENT = 64
_SHARED_MEMORY = "/dev/shm"


@dataclass
class ShmTrainerInitInfo(TrainerInitInfo):
    """`rank` 0 sends; other ranks only take part in gathering."""

    backend: ClassVar[str] = "shm"
    bucket_bytes: int


@dataclass
class ShmInitInfo(WeightTransferInitInfo):
    """The buffer, and per bucket its tensors as (name, dtype name, shape, offset in bytes)."""

    path: str
    buffer_bytes: int
    buckets: list[list[tuple[str, str, list[int], int]]]


@dataclass
class ShmUpdateInfo(WeightTransferUpdateInfo):
    """The number of the bucket now in the buffer."""

    bucket: int


def plan_buckets(
    metadata: list[ParamMeta], bucket_bytes: int
) -> tuple[list[list[tuple[str, str, list[int], int]]], int]:
    """Tensors in order, cut into buckets of at most `bucket_bytes`, and the size of the largest bucket.

    A tensor above that size has a bucket of its own.
    """
    buckets: list[list[tuple[str, str, list[int], int]]] = []
    used, largest = 0, 0
    for meta in metadata:
        size = meta.dtype.itemsize * torch.Size(meta.shape).numel()
        if not buckets or used + size > bucket_bytes:
            buckets.append([])
            used = 0
        buckets[-1].append((meta.name, str(meta.dtype).removeprefix("torch."), list(meta.shape), used))
        largest = max(largest, used + size)
        used = -(-(used + size) // _ALIGNMENT) * _ALIGNMENT
    return buckets, largest


def _map(path: str, size: int) -> torch.Tensor:
    with open(path, "r+b") as file:
        return torch.frombuffer(mmap.mmap(file.fileno(), size), dtype=torch.uint8)


def _view(buffer: torch.Tensor, dtype: str, shape: list[int], offset: int) -> torch.Tensor:
    element = getattr(torch, dtype)
    size = torch.Size(shape).numel() * element.itemsize
    return buffer[offset : offset + size].view(element).view(shape)


class ShmSender(TrainerWeightTransferEngine[ShmTrainerInitInfo]):
    """The trainer's side."""

    init_info_cls = ShmTrainerInitInfo

    def __init__(
        self,
        *,
        client: VLLMWeightSyncClient,
        source: WeightSource,
        is_sender: bool,
        buckets: list[list[tuple[str, str, list[int], int]]],
        buffer: torch.Tensor | None,
    ) -> None:
        super().__init__(client=client, source=source, is_sender=is_sender)
        self._buckets, self._buffer = buckets, buffer

    @classmethod
    def trainer_init(
        cls, init_info: ShmTrainerInitInfo, *, client: VLLMWeightSyncClient, source: WeightSource | None = None
    ) -> Self:
        assert source is not None
        buckets, size = plan_buckets(source.metadata(), init_info.bucket_bytes)
        if not init_info.is_sender:
            return cls(client=client, source=source, is_sender=False, buckets=buckets, buffer=None)
        descriptor, path = tempfile.mkstemp(prefix="megatron-rl-weights-", dir=_SHARED_MEMORY)
        try:
            os.posix_fallocate(descriptor, 0, size)  # a full /dev/shm fails here and not by SIGBUS later
            buffer = _map(path, size)
            client.init_weight_transfer_engine({"path": path, "buffer_bytes": size, "buckets": buckets})
        finally:
            # Both sides have it mapped; without a name nothing is left behind however the processes end.
            os.close(descriptor)
            os.unlink(path)
        return cls(client=client, source=source, is_sender=True, buckets=buckets, buffer=buffer)

    def send_weights(self) -> None:
        assert self.source is not None
        stream = iter(self.source)
        if self._buffer is None:
            for _ in stream:  # this rank's part in the gathering
                pass
            return
        self.client.start_weight_update()
        for number, bucket in enumerate(self._buckets):
            for expected, dtype, shape, offset in bucket:
                name, tensor = next(stream)
                assert name == expected, f"the weight source yields {name!r} where it announced {expected!r}"
                _view(self._buffer, dtype, shape, offset).copy_(tensor)
            self.client.update_weights({"bucket": number})
        assert next(stream, None) is None, "the weight source yields more than it announced"
        self.client.finish_weight_update()


class ShmReceiver(WeightTransferEngine[ShmInitInfo, ShmUpdateInfo]):
    """The side of an engine's worker."""

    init_info_cls = ShmInitInfo
    update_info_cls = ShmUpdateInfo

    def init_transfer_engine(self, init_info: ShmInitInfo) -> None:
        self._buffer = _map(init_info.path, init_info.buffer_bytes)
        self._buckets = init_info.buckets

    def start_weight_update(self) -> None:
        initialize_layerwise_reload(self.model)

    def update_weights(self, update_info: dict[str, Any]) -> None:
        self.receive_weights(self.parse_update_info(update_info))

    def receive_weights(self, update_info: ShmUpdateInfo) -> None:
        # vLLM keeps a layer's tensors until the layer is whole, which may be after the sender has reused the buffer.
        self.model.load_weights(  # type: ignore[operator]
            (name, _view(self._buffer, dtype, shape, offset).clone())
            for name, dtype, shape, offset in self._buckets[update_info.bucket]
        )

    def finish_weight_update(self) -> None:
        finalize_layerwise_reload(self.model, self.model_config)
        if self.model_config.hf_config.tie_word_embeddings:
            # A tied output layer loads nothing of its own, so vLLM leaves it with what it packed from the old weights.
            head = self.model.lm_head
            head.quant_method.process_weights_after_loading(head)  # type: ignore[operator, union-attr]

    def shutdown(self) -> None:
        """The mapping goes with the process."""
