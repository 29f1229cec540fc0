"""Ranks and their groups: `torch.distributed` and Megatron's parallel state."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed

from megatron_rl.config.schema import TrainConfig
from megatron_rl.device import DeviceSetup, bind_stores, setup_device
from megatron_rl.errors import InputError, Preempted, RunStopped
from megatron_rl.preemption import is_requested
from megatron_rl.processes import LAUNCHER_VARIABLE, die_with_parent
from megatron_rl.sockets import LOOPBACK, tcp_store

T = TypeVar("T")
LONGEST_WAIT_MINUTES = 4 * 60
"""Of a rank for another, which nobody calls a hang: the longest deadline that there is, and some more."""


@dataclass(frozen=True, slots=True)
class Parallel:
    """Where this rank stands."""

    rank: int
    world_size: int
    tp: int
    tp_rank: int
    pp: int
    pp_rank: int
    dp: int
    dp_rank: int
    device: DeviceSetup
    cp: int = 1
    cp_rank: int = 0
    vpp: int = 1

    @property
    def layout(self) -> dict[str, int]:
        """The sizes, for people."""
        return {"tp": self.tp, "pp": self.pp, "vpp": self.vpp, "cp": self.cp, "dp": self.dp}

    @property
    def is_main(self) -> bool:
        """The one rank that logs and writes."""
        return self.rank == 0

    @property
    def is_last_stage(self) -> bool:
        """This rank computes log-probs and the loss."""
        return self.pp_rank == self.pp - 1

    @property
    def micro_batch_group(self) -> int:
        """The number of micro-batches is a multiple of this: interleaved stages take one for each stage in turn."""
        return self.pp if self.vpp > 1 else 1


def setup_parallel(config: TrainConfig) -> Parallel:
    """Join the job's process groups as `torchrun` or Slurm placed this rank.

    Raises:
        InputError: the launcher started another number of ranks than the config says.
    """
    world, rank = int(os.environ["WORLD_SIZE"]), int(os.environ["RANK"])
    if world != config.world_size:
        raise InputError(
            f"the launcher started {world} ranks, but cluster.num_nodes x cluster.gpus_per_node = "
            f"{config.world_size}; make them equal"
        )
    launcher = os.environ.get(LAUNCHER_VARIABLE)
    die_with_parent(int(launcher) if launcher else None)
    device = setup_device(config.cluster.device, int(os.environ["LOCAL_RANK"]))
    if device.type == "cpu":
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // config.cluster.gpus_per_node))
    bind_stores()
    # The watch, which can tell who is missing, is to speak before a collective gives up; and what may take longer than
    # that, an export say, while the others wait for it in one, has a deadline of its own.
    watched = config.cluster.timeout_minutes + config.cluster.heartbeat_timeout_seconds / 60
    minutes = max(watched, LONGEST_WAIT_MINUTES)
    timeout = timedelta(minutes=minutes)
    dist.init_process_group(device.collective_backend, timeout=timeout, rank=rank, world_size=world)
    parallel_state.initialize_model_parallel(
        tensor_model_parallel_size=config.policy.tensor_model_parallel_size,
        pipeline_model_parallel_size=config.policy.pipeline_model_parallel_size,
        virtual_pipeline_model_parallel_size=config.policy.virtual_pipeline_model_parallel_size,
        context_parallel_size=config.policy.context_parallel_size,
        distributed_timeout_minutes=minutes,
    )
    model_parallel_cuda_manual_seed(config.seed)
    return Parallel(
        rank=rank,
        world_size=world,
        tp=parallel_state.get_tensor_model_parallel_world_size(),
        tp_rank=parallel_state.get_tensor_model_parallel_rank(),
        pp=parallel_state.get_pipeline_model_parallel_world_size(),
        pp_rank=parallel_state.get_pipeline_model_parallel_rank(),
        dp=parallel_state.get_data_parallel_world_size(),
        dp_rank=parallel_state.get_data_parallel_rank(),
        cp=parallel_state.get_context_parallel_world_size(),
        cp_rank=parallel_state.get_context_parallel_rank(),
        vpp=config.policy.virtual_pipeline_model_parallel_size or 1,
        device=device,
    )


def leave_parallel() -> None:
    """Leave the job that `setup_parallel` joined; this process may join another."""
    parallel_state.destroy_model_parallel()
    dist.destroy_process_group()


def broadcast_object(value: T | None, source: int = 0) -> T:
    """The `source` rank's value on every rank."""
    box = [value]
    dist.broadcast_object_list(box, src=source)
    received = box[0]
    assert received is not None
    return received


def by_main(act: Callable[[], None]) -> None:
    """Have the main rank do something; called by all ranks together.

    Raises:
        InputError, RunStopped: on all of them, if it does on that one.
    """
    failure = None
    if dist.get_rank() == 0:
        try:
            act()
        except (InputError, RunStopped) as error:
            failure = error
    (failure,) = broadcast_object((failure,))
    if failure is not None:
        raise failure


def shared_store(parallel: Parallel) -> dist.TCPStore:
    """A connection to a new key-value store of the job, served by rank 0; called by all ranks together."""
    host = os.environ.get("MASTER_ADDR", LOOPBACK)
    store = tcp_store(host, 0, is_master=True, wait_for_workers=False) if parallel.is_main else None
    port = broadcast_object(store.port if store is not None else None)
    return store or tcp_store(host, port)


def any_rank(flag: bool) -> bool:
    """Whether it is set on some rank; called by all ranks together."""
    found = torch.tensor(int(flag), device=torch.cuda.current_device())
    dist.all_reduce(found, op=dist.ReduceOp.MAX)
    return bool(found.item())


def stop_if_preempted() -> None:
    """Called by all ranks together.

    Raises:
        Preempted: on all of them, if one of them was told to stop.
    """
    if any_rank(is_requested()):
        raise Preempted("told to stop; start the same command again")
