"""Environments of their own for the systems that benchmarks compare ours with."""

import subprocess
from collections.abc import Sequence
from pathlib import Path


def python_with(environment: Path, packages: Sequence[str]) -> Path:
    """The interpreter of an environment that holds `packages`; it is made if it is not there."""
    python = environment / "bin" / "python"
    if not (environment / ".installed").is_file():
        subprocess.run(["python3.11", "-m", "venv", str(environment)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", *packages], check=True)
        (environment / ".installed").touch()
    return python
