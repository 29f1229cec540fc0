"""One of the two Megatron ranks of `weight_sync.py`; rank 0 leads the vLLM engine and prints the figures as JSON.

RANK=0 WORLD_SIZE=2 ... python benchmarks/weight_sync_rank.py FOLDER BUCKET_MIB REPEATS
"""

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import torch
import torch.distributed as dist

from converters.hf_folder import HFWriter, copy_other_files
from converters.model import HFExport
from megatron_rl.config.loader import to_config
from megatron_rl.parallel import setup_parallel
from megatron_rl.policy.model import Architecture, build_model, model_groups
from megatron_rl.rollout.rollout import Rollout

_SHARED_MEMORY = "/dev/shm"
_POOL_BYTES = 1 << 29  # more than any cache holds, and no less than the largest tensor


def main() -> None:
    folder, bucket_mib, repeats = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    config = to_config(settings(folder, bucket_mib), source="benchmark")
    parallel = setup_parallel(config)
    architecture = Architecture.of_folder(folder, config.policy)
    chunks = [chunk.bfloat16() for chunk in build_model(config.policy, architecture, parallel, temperature=1.0)]
    export = HFExport(chunks, architecture.family, architecture.shape, model_groups())
    assert config.generation is not None
    rollout = Rollout(folder, config.generation, config.policy.precision, parallel, export, 1024)
    size = sum(dtype.itemsize * torch.Size(shape).numel() for dtype, shape in export.plan().values())
    bench = Bench(rollout, export, folder, size)
    found: dict[str, list[float]] = {}
    growth = 0
    for repeat in range(repeats + 1):
        for name in ("sync", "copy", "load", "files"):
            before = bench.reset_peaks() if name == "sync" else []
            seconds = timed(lambda: getattr(bench, name)(repeat))  # noqa: B023
            if name == "sync" and repeat:
                growth = max(growth, bench.growth(before))
            if repeat:  # the first round warms up
                found.setdefault(name, []).append(round(seconds, 3))
    if parallel.is_main:
        held = rollout._sender._buffer.nbytes
        print(
            json.dumps({"bytes": size, "tensors": len(export.plan()), "seconds": found, "extra_bytes": held + growth})
        )
    rollout.close()
    dist.barrier()
    dist.destroy_process_group()


def settings(folder: Path, bucket_mib: int) -> dict[str, Any]:
    return {
        "algorithm": "grpo",
        "name": "benchmark",
        "data": {"path": "none"},
        "grpo": {"max_num_steps": 1},
        "generation": {"max_new_tokens": 32, "enforce_eager": True, "num_engines": 1, "sync_bucket_mib": bucket_mib},
        "cluster": {"gpus_per_node": 2, "device": "cpu"},
        "policy": {
            "model_name": str(folder),
            "precision": "bf16",
            "tensor_model_parallel_size": 2,
            "max_total_sequence_length": 1024,
        },
    }


def timed(action: Callable[[], None]) -> float:
    dist.barrier()
    start = time.perf_counter()
    action()
    dist.barrier()
    return time.perf_counter() - start


class Bench:
    """What is timed; every method is called by both ranks together."""

    def __init__(self, rollout: Rollout, export: HFExport, folder: Path, size: int) -> None:
        self.rollout, self.export, self.folder, self.size = rollout, export, folder, size
        self.engine = rollout._engine
        self.processes = [psutil.Process(), *psutil.Process().children(recursive=True)]
        if self.engine is not None:
            self.engine._llm.collective_rpc(keep_tensors, args=(export.plan(),))
            self.source, self.target = (torch.zeros(_POOL_BYTES, dtype=torch.uint8) for _ in range(2))

    def sync(self, version: int) -> None:
        """The product's."""
        self.rollout.sync(version)

    def copy(self, version: int) -> None:
        """The same bytes from memory to memory."""
        if self.engine is not None:
            for _ in range(self.size // _POOL_BYTES):
                self.target.copy_(self.source)
            rest = self.size % _POOL_BYTES
            self.target[:rest].copy_(self.source[:rest])

    def load(self, _: int) -> None:
        """vLLM's own loading of tensors that are in its memory."""
        if self.engine is not None:
            self.engine._llm.collective_rpc(load_kept_tensors)

    def files(self, _: int) -> None:
        """By way of safetensors files in memory."""
        with tempfile.TemporaryDirectory(dir=_SHARED_MEMORY) as scratch:
            folder = Path(scratch)
            if self.engine is not None:
                copy_other_files(self.folder, folder)
                writer = HFWriter(folder, self.export.plan())
            for name, tensor in self.export:
                if self.engine is not None:
                    writer.write(name, tensor)
            if self.engine is not None:
                writer.finish()
                self.engine._llm.collective_rpc(load_files, args=(str(folder),))

    def reset_peaks(self) -> list[int]:
        """What the processes of this rank hold now; their peaks count from here."""
        for process in self.processes:
            Path(f"/proc/{process.pid}/clear_refs").write_text("5")
        return [process.memory_info().rss for process in self.processes]

    def growth(self, before: list[int]) -> int:
        """By how much all processes together passed it."""
        peaks = []
        for process in self.processes:
            status = Path(f"/proc/{process.pid}/status").read_text()
            peaks.append(int(status.partition("VmHWM:")[2].split()[0]) * 1024)
        mine = sum(max(0, peak - held) for peak, held in zip(peaks, before, strict=True))
        total = torch.tensor(mine)
        dist.all_reduce(total)
        return int(total)


def keep_tensors(worker: Any, plan: dict[str, Any]) -> None:
    """In the engine's worker: random tensors of the model's names and shapes, views of one pool in turns."""
    pool = torch.randn(_POOL_BYTES // 4).view(torch.bfloat16)
    worker.kept, at = {}, 0
    for name, (dtype, shape) in plan.items():
        count = torch.Size(shape).numel()
        at = 0 if at + count > len(pool) else at
        worker.kept[name] = pool[at : at + count].view(dtype).view(shape)
        at += count


def load_kept_tensors(worker: Any) -> None:
    _load(worker, iter(worker.kept.items()))


def load_files(worker: Any, folder: str) -> None:
    from vllm.model_executor.model_loader.weight_utils import safetensors_weights_iterator

    _load(worker, safetensors_weights_iterator([str(f) for f in Path(folder).glob("*.safetensors")], False))


def _load(worker: Any, tensors: Iterator[tuple[str, torch.Tensor]]) -> None:
    from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

    model = worker.model_runner.model
    initialize_layerwise_reload(model)
    model.load_weights(tensors)
    finalize_layerwise_reload(model, worker.model_config)


if __name__ == "__main__":
    os.environ["VLLM_ALLOW_INSECURE_SERIALIZATION"] = "1"  # for the functions that the engine's worker runs
    main()
