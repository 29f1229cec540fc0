"""Log-probs and their gradients by chunks of tokens against the naive way, which holds all logits: memory and time.

    python benchmarks/logprobs.py [--dtypes fp32 bf16] [--hidden 1536] [--memory-hidden 256] [--repeats 3]

One rank on the CPU, a vocabulary of 152,064 (Qwen2), temperature 0.7, fp32 and bf16, forward and backward:

    ours    `token_log_probs`, which makes the entropy too
    naive   linear -> float -> / temperature -> log_softmax -> gather, and autograd; no entropy

Memory: the peak of a fresh process over what it held before (inputs, libraries) and over both gradients and the sum in
fp32 from which the weight's is made; told also in logits of one chunk in fp32. Ours at 4,096 tokens by chunks of 256,
1,024 and 4,096 and at 32,768 by 1,024, naive at 1,024 and 2,048 tokens, from which follows what 32,768 would take. All
of it with a small hidden size, of which logits know nothing: with 1,536 the 32,768 tokens alone take minutes on two
cores (`--memory-hidden 1536`). Time: 2,048 tokens with the true hidden size, chunks of 1,024, in turns. About five
minutes in all, hours on a CPU without bf16 instructions; 6 GB of memory. The last line on standard output is JSON.
"""

import argparse
import gc
import json
import multiprocessing
import statistics
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor

from megatron_rl.policy.log_probs import VocabularyPart, token_log_probs

VOCABULARY, TEMPERATURE = 152_064, 0.7
TOKENS, FEW_TOKENS, TIMED_TOKENS, NAIVE_TOKENS = 32_768, 4_096, 2_048, (1_024, 2_048)
CHUNK, CHUNKS = 1_024, (256, 1_024, 4_096)
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
MAX_OF_NAIVE, MAX_CHUNKS, MAX_OF_FEW = 1.25, 3.0, 1.1

Way = Callable[[Tensor, Tensor, Tensor], Tensor]


def ours(chunk: int) -> Way:
    part = VocabularyPart(0, VOCABULARY, None)
    return lambda hidden, weight, labels: token_log_probs(hidden, weight, labels, part, TEMPERATURE, chunk)[0]


def naive(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    return torch.log_softmax(F.linear(hidden, weight).float() / TEMPERATURE, -1).gather(1, labels[:, None]).squeeze(1)


def inputs(tokens: int, hidden: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states [tokens, hidden], weight [VOCABULARY, hidden] for logits of size 1, labels [tokens]."""
    states = torch.randn(tokens, hidden, dtype=dtype)
    weight = torch.randn(VOCABULARY, hidden, dtype=dtype).mul_(hidden**-0.5)
    return states.requires_grad_(), weight.requires_grad_(), torch.randint(VOCABULARY, (tokens,))


def seconds(way: Way, tensors: tuple[Tensor, Tensor, Tensor]) -> float:
    """Of forward and backward; the gradients are dropped."""
    start = time.perf_counter()
    way(*tensors).sum().backward()
    took = time.perf_counter() - start
    for tensor in tensors:
        tensor.grad = None
    return took


def status_bytes(key: str) -> int:
    """Of this process, from /proc."""
    return int(Path("/proc/self/status").read_text().partition(f"{key}:")[2].split()[0]) * 1024


def peak(dtype: str, hidden: int, tokens: int, chunk: int | None) -> int:
    """In a fresh process: bytes over inputs, gradients and the fp32 sum; without a chunk, of the naive way."""
    way = naive if chunk is None else ours(chunk)
    seconds(way, inputs(2, hidden, DTYPES[dtype]))  # libraries and kernels
    gc.collect()
    tensors = inputs(tokens, hidden, DTYPES[dtype])
    held = sum(tensor.nbytes for tensor in tensors[:2])  # as much as both gradients
    if dtype != "fp32" and chunk is not None:
        held += 4 * tensors[1].numel()
    before = status_bytes("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM counts from here
    seconds(way, tensors)
    return status_bytes("VmHWM") - before - held


def times(dtype: str, hidden: int, repeats: int) -> dict[str, float]:
    """Median seconds of both ways, in turns."""
    tensors = inputs(TIMED_TOKENS, hidden, DTYPES[dtype])
    ways = {"ours": ours(CHUNK), "naive": naive}
    found: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(repeats + 1):
        for name, way in ways.items():
            took = seconds(way, tensors)
            if turn:  # the first one warms up
                found[name].append(took)
    return {name: statistics.median(values) for name, values in found.items()}


def in_fresh_process(function: Callable[..., Any], *arguments: Any) -> Any:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, arguments)


def measured(dtype: str, arguments: argparse.Namespace) -> dict[str, float]:
    def megabytes(tokens: int, chunk: int | None) -> float:
        return round(in_fresh_process(peak, dtype, arguments.memory_hidden, tokens, chunk) / 1e6, 1)

    found = {f"chunk_{chunk}_mb": megabytes(FEW_TOKENS, chunk) for chunk in CHUNKS}
    found |= {f"chunk_{chunk}_in_chunks": round(found[f"chunk_{chunk}_mb"] / chunk_mb(chunk), 2) for chunk in CHUNKS}
    found["full_mb"] = megabytes(TOKENS, CHUNK)
    found["full_of_few"] = round(found["full_mb"] / found[f"chunk_{CHUNK}_mb"], 2)
    fewer, more = (megabytes(tokens, None) for tokens in NAIVE_TOKENS)
    found["naive_mb"] = more
    per_token = (more - fewer) / (NAIVE_TOKENS[1] - NAIVE_TOKENS[0])
    found["naive_full_mb"] = round(more + per_token * (TOKENS - NAIVE_TOKENS[1]))
    took = in_fresh_process(times, dtype, arguments.hidden, arguments.repeats)
    found |= {f"{name}_seconds": round(median, 2) for name, median in took.items()}
    found["of_naive"] = round(took["ours"] / took["naive"], 2)
    return found


def chunk_mb(chunk: int) -> float:
    """Of one chunk's logits in fp32."""
    return 4 * chunk * VOCABULARY / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES))
    parser.add_argument("--hidden", type=int, default=1536, help="hidden size where time is measured")
    parser.add_argument("--memory-hidden", type=int, default=256, help="hidden size where memory is measured")
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    console = Console(stderr=True)
    result = {}
    for dtype in arguments.dtypes:
        with console.status(f"{dtype}: some minutes"):
            result[dtype] = measured(dtype, arguments)
    table = Table("", *result)
    for name in result[arguments.dtypes[0]]:
        table.add_row(name.replace("_", " "), *(f"{row[name]:,}" for row in result.values()))
    console.print(table)
    targets = {}
    for dtype, row in result.items():
        worst = max(row[f"chunk_{chunk}_in_chunks"] for chunk in CHUNKS)
        targets[f"{dtype}: at most {MAX_CHUNKS} times the logits of one chunk"] = worst <= MAX_CHUNKS
        targets[f"{dtype}: 8 times the tokens in at most {MAX_OF_FEW} times the memory"] = (
            row["full_of_few"] <= MAX_OF_FEW
        )
        targets[f"{dtype}: at most {MAX_OF_NAIVE} times the naive way's time"] = row["of_naive"] <= MAX_OF_NAIVE
    for name, met in targets.items():
        console.print(f"{'yes' if met else 'NO ':3} {name}")
    sizes = {"vocabulary": VOCABULARY, "hidden": arguments.hidden, "memory_hidden": arguments.memory_hidden}
    versions = {"torch": version("torch")}
    print(json.dumps({"benchmark": "logprobs", "versions": versions, **sizes, "results": result, "targets": targets}))


if __name__ == "__main__":
    main()
