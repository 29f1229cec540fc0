"""vLLM weight-transfer backend `shm`: Hugging Face tensors through memory that all ranks and engines of a host share.

The buffer has two halves. Every rank copies its own pieces of the weights to where they belong in one, with no
gathering before, while the engines load the other. What is in which bucket, and where, goes over once at the handshake;
a sync sends only bucket numbers, and checksums when these are asked for.
"""

import mmap
import os
import socket
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
import torch.distributed as dist
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
from vllm.model_executor.model_loader.reload.layerwise import get_layerwise_info

from megatron_rl.rollout.checksums import checksum

if TYPE_CHECKING:
    from megatron_rl.rollout.weight_sync import PolicySource

_ALIGNMENT = 64

Entry = tuple[str, str, list[int], int]
"""A tensor in a bucket: name, dtype name, shape, offset in bytes."""


@dataclass
class ShmTrainerInitInfo(TrainerInitInfo):
    """`rank` 0 leads an engine; all ranks write."""

    backend: ClassVar[str] = "shm"
    bucket_bytes: int


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


@dataclass(slots=True)
class Bucket:
    """Tensors that cross together.

    Attributes:
        units: how many units they are.
        is_whole: it takes the whole buffer, not the half that its number says.
    """

    entries: list[Entry]
    units: int
    is_whole: bool


def plan_buckets(units: Sequence[Sequence[ParamMeta]], buffer_bytes: int) -> tuple[list[Bucket], int]:
    """Tensors in order, cut between units into buckets of at most half the buffer; a larger unit has the whole buffer.

    Returns:
        The buckets, every other one in the second half, and the size of the buffer, which is larger if a unit is.
    """
    half = buffer_bytes // 2 // _ALIGNMENT * _ALIGNMENT
    buckets: list[Bucket] = []
    used, size = 0, 2 * half
    for unit in units:
        unit_bytes = sum(_aligned(_bytes(meta)) for meta in unit)
        is_whole = unit_bytes > half
        if not buckets or is_whole or buckets[-1].is_whole or used + unit_bytes > half:
            buckets.append(Bucket([], 0, is_whole))
            used = 0
        base = 0 if is_whole else (len(buckets) - 1) % 2 * half
        for meta in unit:
            name = str(meta.dtype).removeprefix("torch.")
            buckets[-1].entries.append((meta.name, name, list(meta.shape), base + used))
            used += _aligned(_bytes(meta))
        buckets[-1].units += 1
        size = max(size, unit_bytes)
    return buckets, size


def _bytes(meta: ParamMeta) -> int:
    return meta.dtype.itemsize * torch.Size(meta.shape).numel()


def _aligned(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT


def _map(path: str, size: int) -> torch.Tensor:
    with open(path, "r+b") as file:
        return torch.frombuffer(mmap.mmap(file.fileno(), size), dtype=torch.uint8)


def _view(buffer: torch.Tensor, entry: Entry) -> torch.Tensor:
    _, dtype, shape, offset = entry
    element = getattr(torch, dtype)
    size = torch.Size(shape).numel() * element.itemsize
    return buffer[offset : offset + size].view(element).view(shape)


class ShmSender(TrainerWeightTransferEngine[ShmTrainerInitInfo]):
    """The trainer's side, on every rank."""

    init_info_cls = ShmTrainerInitInfo

    def __init__(
        self,
        *,
        client: VLLMWeightSyncClient,
        source: "PolicySource",
        is_sender: bool,
        group: dist.ProcessGroup,
        buckets: list[Bucket],
        buffer: torch.Tensor,
    ) -> None:
        super().__init__(client=client, source=source, is_sender=is_sender)
        self._source, self._group = source, group
        self._buckets, self._buffer = buckets, buffer
        self._caller = ThreadPoolExecutor(1, thread_name_prefix="weight-sync")
        self.verify = False
        """Send checksums along with the next sync."""

    @classmethod
    def trainer_init(
        cls, init_info: ShmTrainerInitInfo, *, client: VLLMWeightSyncClient, source: WeightSource | None = None
    ) -> Self:
        from megatron_rl.rollout.weight_sync import PolicySource

        assert isinstance(source, PolicySource)
        group = _ranks_of_this_host()
        buckets, size = plan_buckets(source.units(), init_info.bucket_bytes)
        path = _shared_memory(size, group)
        if init_info.is_sender:
            entries = [bucket.entries for bucket in buckets]
            client.init_weight_transfer_engine({"path": path, "buffer_bytes": size, "buckets": entries})
        return cls(
            client=client,
            source=source,
            is_sender=init_info.is_sender,
            group=group,
            buckets=buckets,
            buffer=_map(path, size),
        )

    def send_weights(self) -> None:
        """All ranks of the host together."""
        loading: list[Future[None]] = []
        if self.is_sender:
            loading.append(self._caller.submit(self.client.start_weight_update))
        first = 0
        for number, bucket in enumerate(self._buckets):
            needs_all = bucket.is_whole or (number > 0 and self._buckets[number - 1].is_whole)
            if self.is_sender:
                for loaded in loading[: None if needs_all else -1]:  # the last may be in the other half
                    loaded.result()
            dist.barrier(self._group)
            tensors = [_view(self._buffer, entry) for entry in bucket.entries]
            sums = self._fill(range(first, first + bucket.units), tensors)
            first += bucket.units
            dist.barrier(self._group)
            if self.is_sender:
                update = {"bucket": number, "checksums": sums}
                loading.append(self._caller.submit(self.client.update_weights, update))
        if self.is_sender:
            for loaded in loading:
                loaded.result()
            self.client.finish_weight_update()

    def _fill(self, units: range, tensors: Sequence[torch.Tensor]) -> list[int]:
        """Write this rank's pieces; the checksums of the whole tensors, where they are asked for."""
        sums: list[int] = []
        first = 0
        sizes = [len(unit) for unit in self._source.units()[units.start : units.stop]]
        for unit, size in zip(units, sizes, strict=True):
            sums += self._source.fill(unit, tensors[first : first + size], self.verify)
            first += size
        if not self.verify:
            return []
        total = torch.tensor(sums)
        dist.all_reduce(total, group=self._group)
        return [int(value) for value in total]

    def shutdown(self) -> None:
        """End the thread that calls the engine."""
        self._caller.shutdown()


def _ranks_of_this_host() -> dist.ProcessGroup:
    hosts: list[str] = [""] * dist.get_world_size()
    dist.all_gather_object(hosts, socket.gethostname())
    groups = {
        host: dist.new_group([rank for rank, other in enumerate(hosts) if other == host], backend="gloo")
        for host in dict.fromkeys(hosts)
    }
    mine: dist.ProcessGroup = groups[socket.gethostname()]
    return mine


def _shared_memory(size: int, group: dist.ProcessGroup) -> str:
    """Memory of that size, made by the first rank, as a path by which every process of the host can open it.

    It has no name in any file system: it is gone with the last process that has it, however these end, and can be
    opened for as long as the first rank lives, which never closes it.
    """
    box: list[str | None] = [None]
    if dist.get_rank(group) == 0:
        descriptor = os.memfd_create("megatron-rl-weights")
        os.posix_fallocate(descriptor, 0, size)  # too little memory fails here and not by SIGBUS later
        box[0] = f"/proc/{os.getpid()}/fd/{descriptor}"
    dist.broadcast_object_list(box, src=dist.get_global_rank(group, 0), group=group)
    assert box[0] is not None
    return box[0]


class DamagedWeights(Exception):
    """A tensor reached the engine with other bits than the policy's."""


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
        bucket = self._buckets[update_info.bucket]
        tensors = [(entry[0], _view(self._buffer, entry)) for entry in bucket]
        for (name, tensor), expected in zip(tensors, update_info.checksums, strict=False):
            found = checksum(tensor)
            if found != expected:
                raise DamagedWeights(f"{name} has the checksum {found:x} in the engine, {expected:x} in the policy")
        self.model.load_weights(iter(tensors))  # type: ignore[operator]
        self._keep_what_waits()

    def _keep_what_waits(self) -> None:
        """Copy what vLLM leaves in the buffer until the end, waiting for the rows that pad a vocabulary."""
        start = self._buffer.data_ptr()
        for module in self.model.modules():
            for _, arguments in get_layerwise_info(module).loaded_weights:
                for key, value in arguments.arguments.items():
                    if isinstance(value, torch.Tensor) and start <= value.data_ptr() < start + len(self._buffer):
                        arguments.arguments[key] = value.clone()

    def finish_weight_update(self) -> None:
        finalize_layerwise_reload(self.model, self.model_config)
        if self.model_config.hf_config.tie_word_embeddings:
            # A tied output layer loads nothing of its own, so vLLM leaves it with what it packed from the old weights.
            head = self.model.lm_head
            head.quant_method.process_weights_after_loading(head)  # type: ignore[operator, union-attr]

    def shutdown(self) -> None:
        """The mapping goes with the process."""
