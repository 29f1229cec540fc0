"""A model's logits from Megatron in one layout.

Arguments: `models` (folders by name), `tp`, `pp`, `vpp`, `tokens` (ids), `checkpoints` (Megatron checkpoints by name).
Rank 0 of the last stage writes `NAME.safetensors`: `hf` from the folder's own weights, `megatron` from the checkpoint;
every rank's export of the weights must be the folder's, bit for bit, and the main one counts its tensors.
"""

from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import dist_checkpointing
from ranks import read_arguments, write_result
from safetensors.torch import save_file
from tiny import train_config

from converters.hf_folder import HFReader
from converters.model import HFExport, load_hf
from megatron_rl.parallel import Parallel, setup_parallel
from megatron_rl.policy.forward import forward_logits
from megatron_rl.policy.model import Architecture, build_model, load_weights, model_groups, sharded_weights


def compared(name: str, arguments: dict[str, Any], parallel: Parallel, folder: Path) -> int:
    model_folder = Path(arguments["models"][name])
    config = train_config(
        model_folder,
        cluster__gpus_per_node=parallel.world_size,
        policy__tensor_model_parallel_size=parallel.tp,
        policy__pipeline_model_parallel_size=parallel.pp,
        policy__virtual_pipeline_model_parallel_size=arguments["vpp"],
    ).policy
    architecture = Architecture.of_folder(model_folder, config)
    chunks = build_model(config, architecture, parallel, temperature=1.0)
    reader = HFReader(model_folder)
    load_hf(reader, chunks, architecture.family, architecture.shape)
    found = {"hf": forward_logits(chunks, arguments["tokens"], parallel)}
    exported = dict(HFExport(chunks, architecture.family, architecture.shape, model_groups()))
    assert exported.keys() == reader.names
    assert all(torch.equal(tensor, reader[key]) for key, tensor in exported.items())
    with torch.no_grad():
        for parameter in (parameter for chunk in chunks for parameter in chunk.parameters()):
            parameter.zero_()
    load_weights(chunks, dist_checkpointing.load(sharded_weights(chunks), arguments["checkpoints"][name]))
    found["megatron"] = forward_logits(chunks, arguments["tokens"], parallel)
    if parallel.is_last_stage and parallel.tp_rank == 0:
        save_file({key: logits for key, logits in found.items() if logits is not None}, folder / f"{name}.safetensors")
    return len(exported)


def main() -> None:
    arguments, folder = read_arguments()
    any_model = next(iter(arguments["models"].values()))
    parallel = setup_parallel(
        train_config(
            any_model,
            cluster__gpus_per_node=arguments["tp"] * arguments["pp"],
            policy__tensor_model_parallel_size=arguments["tp"],
            policy__pipeline_model_parallel_size=arguments["pp"],
            policy__virtual_pipeline_model_parallel_size=arguments["vpp"],
        )
    )
    counts = {name: compared(name, arguments, parallel, folder) for name in arguments["models"]}
    dist.barrier()
    if parallel.is_main:
        write_result(folder, counts)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
