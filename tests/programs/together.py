"""Two ranks start, and the main one fails at something.

Arguments: `absent`: rank 1 does not come; `start_seconds`: how long rank 0 waits for it. Rank 0's result: how
`by_main` ended on each rank, by what was done.
"""

import os
from collections.abc import Callable
from dataclasses import replace

import torch.distributed as dist
from ranks import read_arguments, write_result
from tiny import train_config

from megatron_rl.errors import InputError, RunStopped
from megatron_rl.parallel import by_main, setup_parallel
from megatron_rl.stage import open_stage


def fail(error: Exception) -> None:
    raise error


def ended(act: Callable[[], None]) -> str:
    try:
        by_main(act)
    except (InputError, RunStopped) as error:
        return repr(error)
    return "well"


def main() -> None:
    arguments, folder = read_arguments()
    config = train_config("unused", cluster__gpus_per_node=2)
    if arguments["absent"]:
        if os.environ["RANK"] == "1":
            return
        config = replace(config, cluster=replace(config.cluster, timeout_minutes=arguments["start_seconds"] / 60))
        with open_stage(config):
            return
    parallel = setup_parallel(config)
    done: list[int] = []
    acts = {
        "done": lambda: done.append(parallel.rank),
        "bad input": lambda: fail(InputError("x is 1,\nnot 2")),
        "stopped": lambda: fail(RunStopped("no room")),
    }
    own = {name: ended(act) for name, act in acts.items()} | {"done by": done}
    found = [own, own]
    dist.all_gather_object(found, own)
    if parallel.is_main:
        write_result(folder, found)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
