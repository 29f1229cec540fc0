"""What the tests of launching share: the launcher's environment, and a folder that stands for a checkout."""

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PIPELINE = "recipes/tiny/pipeline.yaml"
STAGES = ("sft", "math", "code")
# The tiny pipeline in a few steps.
FEW_STEPS = (
    "sft.sft.max_num_steps=4",
    *(f"{stage}.grpo.{key}" for stage in STAGES[1:] for key in ("max_num_steps=1", "num_prompts_per_step=8")),
    *(f"{stage}.validation.{key}=false" for stage in STAGES for key in ("at_start", "at_end")),
)


def launcher(name: str = "megatron-rl") -> Path:
    """A program of the environment with NeMo-Run; skips where it was not made."""
    path = ROOT / ".venv-launch" / "bin" / name
    if not path.is_file():
        pytest.skip("the launcher's environment is missing: make .venv-launch/.installed")
    return path


def make_checkout(folder: Path) -> Path:
    """Recipes, scripts and tiny data; the site's environment is that of these tests. Returns the site file."""
    folder.mkdir()
    (folder / "recipes").symlink_to(ROOT / "recipes")
    shutil.copytree(ROOT / "slurm", folder / "slurm")
    site = folder / "slurm" / "here.env"
    site.write_text(f"source {ROOT}/slurm/site.env\nexport ENVIRONMENT={sys.prefix} OMP_NUM_THREADS=1\n")
    subprocess.run([sys.executable, "-m", "megatron_rl", "data", "tiny", "runs/tiny_world"], cwd=folder, check=True)
    return site


def plain_environment(**more: str) -> Mapping[str, str]:
    """This process's, without what a sourced site file leaves."""
    return {key: value for key, value in os.environ.items() if not key.startswith(("SBATCH_", "SITE"))} | more
