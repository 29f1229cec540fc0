"""Checkpoints with the past that FP8's delayed scaling goes by, which Transformer Engine's linear layers would keep:
here those of the CPU keep numbers of their own.

Arguments: `model`, `tp`, `pp`; without `saved` two runs are saved, with the folder of such a job they are loaded.
Rank 0's result: what linear layers know afterwards, by the names of the runs and of the layers.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core.tensor_parallel.layers import ColumnParallelLinear, RowParallelLinear
from ranks import read_arguments, write_result
from saving import save_checkpoint
from tiny import train_config

from megatron_rl.checkpoint.reader import load_weights, resume
from megatron_rl.config.schema import FP8Config, FP8Recipe
from megatron_rl.parallel import setup_parallel
from megatron_rl.policy.model import Architecture
from megatron_rl.policy.policy import Policy
from megatron_rl.run_folder import RunFolder

DELAYED, BLOCKWISE = FP8Recipe.DELAYED, FP8Recipe.BLOCKWISE


def keep_numbers() -> None:
    """As Transformer Engine: a tensor of bytes, empty while there is no past."""

    def take(self: Any, state: torch.Tensor | None) -> None:
        if state is not None and state.numel():
            self.past = state

    for layer in (ColumnParallelLinear, RowParallelLinear):
        layer.get_extra_state = lambda self: getattr(self, "past", None)
        layer.set_extra_state = take


class Runs:
    def __init__(self, model: str, tp: int, pp: int) -> None:
        self.model = Path(model)
        self.config = train_config(
            model,
            cluster__gpus_per_node=tp * pp,
            policy__precision="bf16",
            policy__tensor_model_parallel_size=tp,
            policy__pipeline_model_parallel_size=pp,
        )
        self.parallel = setup_parallel(self.config)

    def policy(self, recipe: FP8Recipe) -> Policy:
        """One that takes itself for FP8's; its layers have no past."""
        config = self.config.policy
        policy = Policy(config, Architecture.of_folder(self.model, config), self.parallel)
        policy.config = replace(config, fp8=FP8Config(recipe=recipe))
        for _, layer in self.layers(policy):
            layer.past = torch.empty(0, dtype=torch.uint8)
        return policy

    def layers(self, policy: Policy) -> list[tuple[str, Any]]:
        return [
            (f"{block.layer_number}.{name}", layer)
            for block in policy.chunks[0].decoder.layers
            for name, layer in (
                ("linear_qkv", block.self_attention.linear_qkv),
                ("linear_proj", block.self_attention.linear_proj),
                ("linear_fc1", block.mlp.linear_fc1),
                ("linear_fc2", block.mlp.linear_fc2),
            )
        ]

    def save(self, recipe: FP8Recipe, folder: Path) -> None:
        policy = self.policy(recipe)
        policy.load_hf(self.model)
        for position, (name, layer) in enumerate(self.layers(policy)):
            number = int(name.split(".")[0]) * 10 + position % 4
            layer.past = torch.tensor([number], dtype=torch.uint8)
        save_checkpoint(RunFolder(folder), policy, self.parallel, 1, self.model)

    def known(self, policy: Policy) -> dict[str, int | None]:
        """Of all pipeline stages."""
        mine = {name: int(layer.past) if layer.past.numel() else None for name, layer in self.layers(policy)}
        everyone: list[dict[str, int | None]] = [{}] * dist.get_world_size()
        dist.all_gather_object(everyone, mine)
        return {name: value for part in everyone for name, value in part.items()}

    def resumed(self, run: Path, recipe: FP8Recipe) -> dict[str, int | None]:
        policy = self.policy(recipe)
        assert resume(RunFolder(run), policy) == 1
        return self.known(policy)

    def weights_alone(self, run: Path) -> dict[str, int | None]:
        policy = self.policy(DELAYED)
        load_weights(RunFolder(run).checkpoint(1), policy)
        return self.known(policy)


def main() -> None:
    arguments, folder = read_arguments()
    keep_numbers()
    runs = Runs(arguments["model"], arguments["tp"], arguments["pp"])
    result: dict[str, dict[str, int | None]] = {}
    if "saved" in arguments:
        saved = Path(arguments["saved"])
        for of, on in ((DELAYED, DELAYED), (DELAYED, BLOCKWISE), (BLOCKWISE, DELAYED)):
            result[f"{of}, resumed {on}"] = runs.resumed(saved / of, on)
        result["delayed, weights alone"] = runs.weights_alone(saved / DELAYED)
    else:
        for recipe in (DELAYED, BLOCKWISE):
            runs.save(recipe, folder / recipe)
    if runs.parallel.is_main:
        write_result(folder, result)
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
