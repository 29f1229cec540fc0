"""Engines killed and stopped in the middle of a real run: nothing of it is lost, done twice, or otherwise."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.long
@pytest.mark.rare
def test_a_run_whose_engines_die_has_the_metrics_of_one_left_alone() -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "healing.py"), "--events", "4", "--steps", "40"]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=1500)
    assert finished.returncode == 0, finished.stderr[-4000:]
    result = json.loads(finished.stdout.strip().splitlines()[-1])
    print(result)
    assert len(result["events"]) == 4
    assert all(result["targets"].values())
