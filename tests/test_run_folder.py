"""What counts as a checkpoint, and files that are whole or not there."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from converters.manifest import MANIFEST
from megatron_rl.errors import InputError
from megatron_rl.run_folder import RunFolder, find_checkpoint, write_json, write_text

ROOT = Path(__file__).parents[1]


def add_checkpoint(run: RunFolder, step: int, complete: bool = True) -> Path:
    folder = run.checkpoint(step)
    folder.mkdir(parents=True)
    if complete:
        (folder / MANIFEST).write_text("{}")
    return folder


def test_checkpoints_are_in_the_order_of_their_steps(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    assert run.checkpoints() == []
    for step in (100, 9, 20):
        add_checkpoint(run, step)
    assert [path.name for path in run.checkpoints()] == ["step_9", "step_20", "step_100"]


def test_a_folder_without_its_manifest_does_not_exist(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    add_checkpoint(run, 1)
    add_checkpoint(run, 2, complete=False)
    (tmp_path / "checkpoints" / ".step_3.tmp").mkdir()
    (tmp_path / "checkpoints" / ".step_3.tmp" / MANIFEST).write_text("{}")
    assert [path.name for path in run.checkpoints()] == ["step_1"]


def test_two_starts_do_not_work_in_one_folder(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    code = f"""
from pathlib import Path
from megatron_rl.run_folder import RunFolder
with RunFolder(Path({str(run.path)!r})).locked():
    print("locked", flush=True)
    input()
"""
    other = subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert other.stdout is not None
    assert other.stdout.readline() == b"locked\n"
    with pytest.raises(InputError, match="run: another start is at work in it"), run.locked():
        pass
    other.kill()
    other.wait()
    with run.locked():
        pass


def test_a_folder_that_cannot_be_made_is_told_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    message = "file/run: cannot be written: .*; correct output_dir, or its rights"
    with pytest.raises(InputError, match=message), RunFolder(tmp_path / "file" / "run").locked():
        pass


def test_a_checkpoint_is_found_by_itself_and_by_its_run(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    first, last = add_checkpoint(run, 1), add_checkpoint(run, 10)
    assert find_checkpoint(first) == first
    assert find_checkpoint(tmp_path) == last


@pytest.mark.parametrize("exists", [True, False])
def test_a_run_without_a_checkpoint_is_refused(tmp_path: Path, exists: bool) -> None:
    folder = tmp_path / "run"
    if exists:
        add_checkpoint(RunFolder(folder), 1, complete=False)
    with pytest.raises(InputError, match=r"neither a checkpoint nor a run folder with one; check policy\.from_checkp"):
        find_checkpoint(folder)


def test_written_files_replace_old_ones_and_leave_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "summary.json"
    write_text(path, "old")
    write_json(path, {"name": "a", "seconds": 1.5})
    assert json.loads(path.read_text()) == {"name": "a", "seconds": 1.5}
    assert list(tmp_path.iterdir()) == [path]


def test_a_value_that_is_no_json_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "summary.json"
    write_text(path, "old")
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert path.read_text() == "old"


def test_metric_lines_are_read_in_order(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    assert run.metric_lines() == []
    run.metrics.write_text('{"step": 1}\n{"step": 2}\n')
    assert [line["step"] for line in run.metric_lines()] == [1, 2]
