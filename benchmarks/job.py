"""A program on several Megatron ranks of this machine, for benchmarks."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


def run_ranks(program: Path, arguments: Sequence[str], ranks: int, seconds: float) -> Any:
    """What rank 0 prints as JSON in its last line.

    Raises:
        SystemExit: a rank failed.
        subprocess.TimeoutExpired: rank 0 took longer than `seconds`.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {
        "WORLD_SIZE": str(ranks),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}",
        "VLLM_LOGGING_LEVEL": "ERROR",
    }
    processes = [
        subprocess.Popen(
            [sys.executable, str(program), *arguments],
            env=os.environ | common | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
        )
        for rank in range(ranks)
    ]
    try:
        output, _ = processes[0].communicate(timeout=seconds)
        if any(process.wait(60) for process in processes):
            raise SystemExit("a rank failed; what it said is above")
    finally:
        for process in processes:
            process.kill()
    return json.loads(output.decode().strip().splitlines()[-1])
