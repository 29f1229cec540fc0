"""Log-probs over a vocabulary that is cut over all ranks, and the gradients of a loss.

Arguments: `inputs` (safetensors: hidden states `h_N`, whole output weight `w_N`, labels `l_N` of case N), `cases` (for
each `vocab`, `padded`, `temperature`, `chunk`, `bonus`). Rank 0 writes `found.safetensors`: `log_probs_N`, `entropy_N`
and the gradients `hidden_N`, summed over ranks, and `weight_N`, put together.
"""

import torch
import torch.distributed as dist
from policy.test_log_probs import gradients
from ranks import read_arguments, write_result
from safetensors.torch import load_file, save_file
from torch import Tensor

from megatron_rl.policy.log_probs import token_log_probs, vocabulary_part


def main() -> None:
    arguments, folder = read_arguments()
    dist.init_process_group("gloo")
    given = load_file(arguments["inputs"])
    found: dict[str, Tensor] = {}
    for place, case in enumerate(arguments["cases"]):
        part = vocabulary_part(case["vocab"], case["padded"], dist.group.WORLD)
        hidden, whole, labels = (given[f"{name}_{place}"] for name in "hwl")
        leaves = hidden.requires_grad_(), whole.chunk(dist.get_world_size())[dist.get_rank()].clone().requires_grad_()
        values = token_log_probs(*leaves, labels, part, case["temperature"], case["chunk"])
        hidden_grad, weight_grad = gradients(*values, leaves, case["bonus"])
        dist.all_reduce(hidden_grad)
        parts = [torch.empty_like(weight_grad) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, weight_grad)
        named = zip(["log_probs", "entropy", "hidden", "weight"], [*values, hidden_grad, torch.cat(parts)], strict=True)
        found |= {f"{name}_{place}": tensor.detach() for name, tensor in named}
    if dist.get_rank() == 0:
        save_file(found, folder / "found.safetensors")
        write_result(folder, len(arguments["cases"]))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
