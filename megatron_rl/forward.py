"""`megatron-rl convert check --logits`: the forward passes of two checkpoints on the same random tokens, in fp32."""

import os
import random
from pathlib import Path

import torch
from torch import Tensor

from converters.errors import ConversionError
from converters.hf_config import HF_FILES, read_config
from converters.megatron_folder import is_megatron_folder

_TOKENS = 256


def compare_logits(first: Path, second: Path, like: Path | None = None) -> float:
    """The largest difference between the logits of two checkpoints; infinite where one has NaNs.

    Args:
        like: where a Megatron checkpoint that holds no config has it.

    Raises:
        ConversionError: their vocabularies are not of one size.
    """
    a, b = (_megatron(path, like) if is_megatron_folder(path) else _transformers(path) for path in (first, second))
    if a.shape != b.shape:
        raise ConversionError(f"{second}: its vocabulary has {b.shape[1]} tokens, that of {first} {a.shape[1]}")
    return float((a - b).abs().nan_to_num(nan=float("inf")).max())


def _tokens(folder: Path) -> list[int]:
    config = read_config(folder)
    count = min(_TOKENS, config["max_position_embeddings"])
    return [random.Random(i).randrange(config["vocab_size"]) for i in range(count)]


def _transformers(folder: Path) -> Tensor:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, local_files_only=True, use_safetensors=True, trust_remote_code=False
    ).eval()
    with torch.no_grad():
        logits: Tensor = model(torch.tensor([_tokens(folder)])).logits[0]
    return logits


def _megatron(checkpoint: Path, like: Path | None) -> Tensor:
    """In a job of this one process."""
    from megatron.core import dist_checkpointing

    from megatron_rl.config.loader import to_config
    from megatron_rl.launcher import free_port
    from megatron_rl.parallel import leave_parallel, setup_parallel
    from megatron_rl.policy.forward import forward_logits
    from megatron_rl.policy.model import Architecture, build_model, load_weights, sharded_weights

    folder = like or checkpoint / HF_FILES
    config = to_config(
        {
            "algorithm": "sft",
            "name": "check",
            "data": {"path": "none"},
            "sft": {"max_num_steps": 1},
            "cluster": {"gpus_per_node": 1},
            "policy": {"model_name": str(folder), "precision": "fp32", "max_total_sequence_length": _TOKENS},
        },
        source="convert check",
    )
    os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    parallel = setup_parallel(config)
    try:
        architecture = Architecture.of_folder(folder, config.policy)
        chunks = build_model(config.policy, architecture, parallel, temperature=1.0)
        load_weights(chunks, dist_checkpointing.load(sharded_weights(chunks), str(checkpoint)))
        logits = forward_logits(chunks, _tokens(folder), parallel)
    finally:
        leave_parallel()
    assert logits is not None
    return logits.cpu()
