"""Ranks that sum up a number step by step, watched by each other; no policy, no engine.

Arguments: `frozen_seconds`, `stuck_seconds`, `fault` (what rank 1 does in the third step):

- `loop`: it never comes back from a function in Python;
- `native`: nor from one that holds the interpreter's lock;
- `other`: it waits for something else than the others do;
- `patient`: for longer than `stuck_seconds` it waits with a deadline of its own, then for rank 0, which makes progress,
  then rank 0 for it, which has a deadline of its own, for longer than a watched wait may last; all end well.

Rank 0's result: the pids.
"""

import ctypes
import os
import time
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from ranks import read_arguments, write_result
from tiny import train_config

from megatron_rl.parallel import setup_parallel
from megatron_rl.processes import deadline
from megatron_rl.pulse import await_others, tick
from megatron_rl.run_folder import RunFolder
from megatron_rl.watchdog import watch


def spin() -> None:
    while True:
        sum(range(1000))


def wait_natively() -> None:
    """For a lock that this thread itself has; a signal does not end that."""
    lock = ctypes.create_string_buffer(64)
    for _ in range(2):
        ctypes.PyDLL(None).pthread_mutex_lock(lock)


def be_patient(rank: int, seconds: float, watched_seconds: float) -> None:
    """Neither rank makes progress for long; then only rank 0 does; then it waits for rank 1 in a collective."""
    with deadline(10 * seconds, "nothing"):
        time.sleep(2 * seconds)
    limit = time.monotonic() + 2 * seconds
    while time.monotonic() < limit:
        if rank == 0:
            tick()
            time.sleep(0.05)
        else:
            await_others(0.05)
    if rank == 1:
        with deadline(10 * watched_seconds, "nothing"):
            time.sleep(1.5 * watched_seconds)


def third_step(fault: str, rank: int, arguments: dict[str, Any]) -> None:
    if fault == "patient":
        stuck, frozen = arguments["stuck_seconds"], arguments["frozen_seconds"]
        be_patient(rank, stuck, stuck + frozen)
    elif rank == 1 and fault == "loop":
        spin()
    elif rank == 1 and fault == "native":
        wait_natively()
    elif rank == 1 and fault == "other":
        dist.recv(torch.zeros(1), src=0)


def main() -> None:
    arguments, folder = read_arguments()
    config = train_config("unused", cluster__gpus_per_node=2)
    cluster = replace(
        config.cluster,
        heartbeat_timeout_seconds=arguments["frozen_seconds"],
        timeout_minutes=arguments["stuck_seconds"] / 60,
    )
    parallel = setup_parallel(replace(config, cluster=cluster))
    with watch(parallel, RunFolder(folder / "run"), cluster):
        pids = [0, 0]
        dist.all_gather_object(pids, os.getpid())
        if parallel.is_main:
            write_result(folder, pids)
        for step in range(6):
            tick("summing")
            if step == 2:
                third_step(arguments["fault"], parallel.rank, arguments)
            dist.all_reduce(torch.ones(1))
            time.sleep(0.2)
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
