"""Two checkpoints on a disk that has room for one.

Arguments: `model`, `disk`. Result: what was said, what is left, and which serves.
"""

from pathlib import Path

import torch.distributed as dist
from ranks import read_arguments, write_result
from saving import save_checkpoint
from tiny import train_config

from megatron_rl.checkpoint.reader import resume
from megatron_rl.errors import RunStopped
from megatron_rl.parallel import setup_parallel
from megatron_rl.policy.model import Architecture
from megatron_rl.policy.policy import Policy
from megatron_rl.run_folder import RunFolder


def main() -> None:
    arguments, folder = read_arguments()
    config = train_config(arguments["model"], cluster__gpus_per_node=1)
    parallel = setup_parallel(config)
    model, run, message = Path(arguments["model"]), RunFolder(Path(arguments["disk"])), ""
    policy = Policy(config.policy, Architecture.of_folder(model, config.policy), parallel)
    policy.load_hf(model)
    save_checkpoint(run, policy, parallel, 1, model)
    try:
        save_checkpoint(run, policy, parallel, 2, model)
    except RunStopped as error:
        message = str(error)
    left = sorted(path.name for path in (run.path / "checkpoints").iterdir())
    write_result(folder, {"message": message, "left": left, "resumed": resume(run, policy)})
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
