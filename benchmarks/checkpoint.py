"""What a checkpoint costs: how long training stands still for it, and how fast it is written.

    python benchmarks/checkpoint.py [--rounds 5] [--layers 8] [--folder DIR]

A model with fp32 weights and Adam's moments on one rank. In turns: saved by Megatron alone, synchronously, in its
reshardable form; by us, waited for; by us, beside the training, which goes on meanwhile; and the same bytes written to
one file, with fsync. Training stands still for the snapshot at the beginning and for manifest and name at the end. The
last line on standard output is JSON.
"""

import argparse
import json
import os
import shutil
import statistics
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import dist_checkpointing
from rich.console import Console
from rich.table import Table
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from megatron_rl.algorithms.losses import sft_loss
from megatron_rl.checkpoint.writer import CheckpointWriter
from megatron_rl.config.loader import to_config
from megatron_rl.launcher import free_port
from megatron_rl.parallel import Parallel, setup_parallel
from megatron_rl.policy.batch import TrainSequence
from megatron_rl.policy.model import Architecture, sharded_weights
from megatron_rl.policy.policy import Policy
from megatron_rl.run_folder import RunFolder

MAX_STALL, VOCABULARY = 0.10, 8192
METADATA = {"distrib_optim_sharding_type": "fully_reshardable"}


def make_model_folder(folder: Path, layers: int) -> None:
    """Config and tokenizer of a Qwen2 model that is 1024 wide."""
    folder.mkdir()
    config: dict[str, Any] = {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "vocab_size": VOCABULARY,
        "hidden_size": 1024,
        "intermediate_size": 2816,
        "num_hidden_layers": layers,
        "num_attention_heads": 16,
        "num_key_value_heads": 4,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1e6,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "eos_token_id": 1,
    }
    (folder / "config.json").write_text(json.dumps(config))
    words = Tokenizer(WordLevel({"<unk>": 0, "<eos>": 1}, unk_token="<unk>"))
    PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<eos>").save_pretrained(folder)


def make_policy(model: Path) -> tuple[Policy, Parallel]:
    """With random weights, after one step."""
    raw = {
        "algorithm": "sft",
        "name": "benchmark",
        "data": {"path": "none"},
        "sft": {"max_num_steps": 1},
        "cluster": {"gpus_per_node": 1, "device": "cpu"},
        "policy": {"model_name": str(model), "precision": "fp32", "max_total_sequence_length": 4096},
    }
    config = to_config(raw, source="benchmark")
    os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    parallel = setup_parallel(config)
    policy = Policy(config.policy, Architecture.of_folder(model, config.policy), parallel)
    train(policy)
    return policy, parallel


def train(policy: Policy) -> None:
    tokens = torch.randint(VOCABULARY, (64,)).tolist()
    policy.train_step([TrainSequence(tokens, 1, weight=1 / 63)], sft_loss)


def by_megatron(policy: Policy, folder: Path) -> dict[str, float]:
    begin = time.monotonic()
    folder.mkdir()
    weights = sharded_weights(policy.chunks, METADATA)
    optimizer = policy.optimizer.sharded_state_dict(weights, metadata=METADATA)
    dist_checkpointing.save({"model": weights, "optimizer": optimizer}, str(folder))
    return {"seconds": time.monotonic() - begin}


def waited_for(policy: Policy, writer: CheckpointWriter, model: Path) -> dict[str, float]:
    begin = time.monotonic()
    writer.start(policy, 1, 1, model)
    writer.finish()
    return {"seconds": time.monotonic() - begin}


def beside_training(policy: Policy, writer: CheckpointWriter, model: Path) -> dict[str, float]:
    begin = time.monotonic()
    writer.start(policy, 1, 1, model)
    snapshot, steps = time.monotonic() - begin, 0
    while writer.is_writing():
        train(policy)
        steps += 1
    end = time.monotonic()
    writer.finish()
    naming = time.monotonic() - end
    return {
        "snapshot_seconds": snapshot,
        "naming_seconds": naming,
        "stall_seconds": snapshot + naming,
        "seconds": time.monotonic() - begin,
        "steps_meanwhile": steps,
    }


def plainly(path: Path, content: bytes, num_bytes: int) -> dict[str, float]:
    begin = time.monotonic()
    with open(path, "wb") as file:
        for place in range(0, num_bytes, len(content)):
            file.write(content[: num_bytes - place])
        file.flush()
        os.fsync(file.fileno())
    return {"seconds": time.monotonic() - begin}


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def measure(folder: Path, layers: int, rounds: int, console: Console) -> dict[str, Any]:
    model, run = folder / "model", RunFolder(folder / "run")
    make_model_folder(model, layers)
    policy, parallel = make_policy(model)
    writer, content = CheckpointWriter(run, parallel), os.urandom(1 << 26)
    found: dict[str, list[dict[str, float]]] = {"megatron": [], "waited_for": [], "beside_training": [], "plain": []}
    num_bytes = 0
    for number in range(rounds + 1):
        with console.status(f"round {number} of {rounds}"):
            took = {"megatron": by_megatron(policy, folder / "megatron")}
            shutil.rmtree(folder / "megatron")
            took["waited_for"] = waited_for(policy, writer, model)
            shutil.rmtree(run.checkpoint(1))
            took["beside_training"] = beside_training(policy, writer, model)
            num_bytes = size_of(run.checkpoint(1))
            shutil.rmtree(run.checkpoint(1))
            took["plain"] = plainly(folder / "plain", content, num_bytes)
            (folder / "plain").unlink()
        if number:  # the first one starts what later ones use
            for name, values in took.items():
                found[name].append(values)
    dist.destroy_process_group()
    medians = {
        name: {key: round(statistics.median(x[key] for x in values), 3) for key in values[0]}
        for name, values in found.items()
    }

    def ratio(system: str, key: str, to: str) -> float:
        pairs = zip(found[system], found[to], strict=True)
        return round(statistics.median(one[key] / other["seconds"] for one, other in pairs), 3)

    return {
        "gigabytes": round(num_bytes / 1e9, 3),
        "rounds": rounds,
        **medians,
        "stall_of_waited_for": ratio("beside_training", "stall_seconds", "waited_for"),
        "stall_of_megatron": ratio("beside_training", "stall_seconds", "megatron"),
        "seconds_of_plain_write": ratio("waited_for", "seconds", "plain"),
        "gb_per_second": {name: round(num_bytes / 1e9 / medians[name]["seconds"], 3) for name in medians},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--folder", type=Path, help="On the disk to measure; default: that of temporary files.")
    arguments = parser.parse_args()
    console = Console(stderr=True)
    with tempfile.TemporaryDirectory(dir=arguments.folder) as scratch:
        result = measure(Path(scratch), arguments.layers, arguments.rounds, console)
    table = Table("", "seconds", "training stands still")
    for name, seconds in ((name, result[name]) for name in ("megatron", "waited_for", "beside_training", "plain")):
        stall = "" if name == "plain" else str(seconds.get("stall_seconds", seconds["seconds"]))
        table.add_row(name.replace("_", " "), str(seconds["seconds"]), stall)
    console.print(table)
    measured = result["stall_of_waited_for"]
    target = {"name": "stall / the same save waited for", "target": MAX_STALL, "measured": measured}
    versions = {name: version(name) for name in ("torch", "megatron-core")}
    output = {"benchmark": "checkpoint", "versions": versions, **result, "targets": [target]}
    print(json.dumps(output | {"targets_met": measured < MAX_STALL}))


if __name__ == "__main__":
    main()
