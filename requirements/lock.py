"""Pin `cpu.in` as `cpu.txt` and `launch.in` as `launch.txt`, where pip finds a CPU build of torch.

With the CUDA build the lock would name its CUDA packages; torch itself pins those, so the lock leaves them out.
"""

import json
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
CUDA_ONLY = ("nvidia-", "cuda-")


def lock(name: str) -> None:
    """Resolve `NAME.in` without installing and write the pins to `NAME.txt` in order."""
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--quiet", "--report", "-"]
    report = json.loads(subprocess.check_output([*command, "-r", str(HERE / f"{name}.in")]))
    pins = {
        item["metadata"]["name"].lower().replace("_", "-"): item["metadata"]["version"].partition("+")[0]
        for item in report["install"]
    }
    lines = [f"{package}=={version}" for package, version in sorted(pins.items()) if not package.startswith(CUDA_ONLY)]
    header = f"# Made by `make lock` from {name}.in; do not edit."
    (HERE / f"{name}.txt").write_text("\n".join([header, *lines]) + "\n", encoding="utf-8")


if __name__ == "__main__":
    for name in ("cpu", "launch"):
        lock(name)
