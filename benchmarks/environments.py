"""Environments of their own for the systems that benchmarks compare ours with."""

import subprocess
from collections.abc import Sequence
from pathlib import Path


def python_with(environment: Path, *installs: Sequence[str]) -> Path:
    """The interpreter of an environment, made if it is not there by `pip install` with each of these arguments."""
    python = environment / "bin" / "python"
    if not (environment / ".installed").is_file():
        subprocess.run(["python3.11", "-m", "venv", str(environment)], check=True)
        for arguments in installs:
            subprocess.run([str(python), "-m", "pip", "install", "--quiet", *arguments], check=True)
        (environment / ".installed").touch()
    return python
