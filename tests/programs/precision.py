"""Steps in bf16 on data-parallel ranks: with smaller gradients, and with FP8's settings where no kernels follow them.

Arguments: `model`, `ranks`. Rank 0's result: the metrics of every run by its name, and the gradients' dtypes.
"""

from pathlib import Path
from typing import Any

import torch
from ranks import read_arguments, write_result
from tiny import step_sequences, train_config

from megatron_rl.algorithms.losses import sft_loss
from megatron_rl.config.schema import FP8Recipe
from megatron_rl.parallel import setup_parallel
from megatron_rl.policy import policy as policy_module
from megatron_rl.policy.model import Architecture
from megatron_rl.policy.policy import Policy

STEPS = 5
RUNS: dict[str, dict[str, Any]] = {
    "bf16": {},
    "gradients": {"policy__grad_reduce_in_fp32": False},
    **{recipe: {"policy__fp8__recipe": recipe} for recipe in FP8Recipe},
    "spared": {"policy__fp8__num_layers_at_start_in_bf16": 1, "policy__fp8__num_layers_at_end_in_bf16": 1},
}


def main() -> None:
    arguments, folder = read_arguments()
    model = Path(arguments["model"])
    common = {"cluster__gpus_per_node": arguments["ranks"], "policy__precision": "bf16"}
    parallel = setup_parallel(train_config(model, **common))
    policy_module.check_fp8 = lambda recipe, device: None
    metrics, dtypes = {}, {}
    for name, changes in RUNS.items():
        config = train_config(model, **common, **changes).policy
        policy = Policy(config, Architecture.of_folder(model, config), parallel)
        policy.load_hf(model)
        metrics[name] = [policy.train_step(step_sequences(step, sft=True), sft_loss) for step in range(STEPS)]
        dtypes[name] = sorted({str(buffer.grad_dtype) for chunk in policy._wrapped for buffer in chunk.buffers})
    if parallel.is_main:
        write_result(folder, {"metrics": metrics, "dtypes": dtypes})
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
