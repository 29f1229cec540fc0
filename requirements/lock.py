"""Pin `cpu.in` as `cpu.txt`: `python requirements/lock.py`, where pip finds a CPU build of torch.

With the CUDA build the lock would name its CUDA packages; torch itself pins those, so the lock leaves them out.
"""

import json
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
CUDA_ONLY = ("nvidia-", "cuda-")


def main() -> None:
    """Resolve without installing and write the pins in order."""
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--quiet", "--report", "-"]
    report = json.loads(subprocess.check_output([*command, "-r", str(HERE / "cpu.in")]))
    pins = {
        item["metadata"]["name"].lower().replace("_", "-"): item["metadata"]["version"].partition("+")[0]
        for item in report["install"]
    }
    lines = [f"{name}=={version}" for name, version in sorted(pins.items()) if not name.startswith(CUDA_ONLY)]
    header = "# Made by `make lock` from cpu.in; do not edit."
    (HERE / "cpu.txt").write_text("\n".join([header, *lines]) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
