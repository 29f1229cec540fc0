"""The trainer's side of vLLM's weight-transfer backend `shm`: every rank writes its pieces of the weights into memory.

Every rank copies its own pieces to where they belong in one half of the shared buffer, with no gathering before, while
the engines load the other half. What is in which bucket, and where, goes over once at the handshake; a sync sends only
bucket numbers, and checksums when these are asked for.
"""

import socket
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Self

import torch
import torch.distributed as dist
from vllm.distributed.weight_transfer.base import (
    TrainerInitInfo,
    TrainerWeightTransferEngine,
    VLLMWeightSyncClient,
    WeightSource,
)

from megatron_rl.rollout.shm_buffer import Bucket, open_buffer, plan_buckets, share_memory, view

if TYPE_CHECKING:
    from megatron_rl.rollout.weight_sync import PolicySource


@dataclass
class ShmTrainerInitInfo(TrainerInitInfo):
    """`rank` 0 leads an engine; all ranks write."""

    backend: ClassVar[str] = "shm"
    bucket_bytes: int


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
        path = share_memory(size, group)
        if init_info.is_sender:
            entries = [bucket.entries for bucket in buckets]
            client.init_weight_transfer_engine({"path": path, "buffer_bytes": size, "buckets": entries})
        return cls(
            client=client,
            source=source,
            is_sender=init_info.is_sender,
            group=group,
            buckets=buckets,
            buffer=open_buffer(path, size),
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
            tensors = [view(self._buffer, entry) for entry in bucket.entries]
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
