"""Which checkpoints stay: the newest, the best, and one that is being read."""

import json
from pathlib import Path

import pytest
from waiting import eventually

from converters.manifest import MANIFEST
from megatron_rl.checkpoint.retention import best_steps, remove_old_checkpoints
from megatron_rl.config.schema import CheckpointingConfig
from megatron_rl.run_folder import RunFolder

ACCURACIES = {1: 0.5, 2: 0.9, 3: None, 4: 0.9, 5: 0.7, 6: 0.1}


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    found = RunFolder(tmp_path)
    for step in ACCURACIES:
        found.checkpoint(step).mkdir(parents=True)
        (found.checkpoint(step) / MANIFEST).write_text("{}")
    lines = ({"step": step, "validation/accuracy": value, "one/of/mine": -step} for step, value in ACCURACIES.items())
    found.metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return found


@pytest.mark.parametrize(
    ("config", "exported", "kept"),
    [
        (CheckpointingConfig(keep_last=2), None, [5, 6]),
        (CheckpointingConfig(keep_last=1), 3, [3, 6]),
        (CheckpointingConfig(keep_last=1, keep_top_k=1), None, [4, 6]),
        (CheckpointingConfig(keep_last=1, keep_top_k=3), None, [2, 4, 5, 6]),
        (CheckpointingConfig(keep_last=1, keep_top_k=9), None, [1, 2, 4, 5, 6]),
        (CheckpointingConfig(keep_last=1, keep_top_k=2, metric_name="one/of/mine"), None, [1, 2, 6]),
        (CheckpointingConfig(keep_last=1, keep_top_k=2, metric_name="nobody/knows"), None, [6]),
        (CheckpointingConfig(keep_last=9), None, [1, 2, 3, 4, 5, 6]),
    ],
)
def test_the_newest_and_the_best_stay(
    run: RunFolder, config: CheckpointingConfig, exported: int | None, kept: list[int]
) -> None:
    left_behind = run.checkpoint(0).with_name(".step_0.f00d.removed")  # by a start that was killed
    left_behind.mkdir()
    remove_old_checkpoints(run, config, exported)
    assert [run.step_of(checkpoint) for checkpoint in run.checkpoints()] == kept
    names = {run.checkpoint(step).name for step in kept} | ({left_behind.name} if len(kept) == 6 else set())
    assert eventually(lambda: {path.name for path in left_behind.parent.iterdir()} == names)


def test_of_equals_the_later_is_the_better(run: RunFolder) -> None:
    assert best_steps(run, CheckpointingConfig(keep_top_k=3)) == [4, 2, 5]
