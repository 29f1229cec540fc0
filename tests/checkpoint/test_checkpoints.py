"""Checkpoints are snapshots; a damaged one is known for what it is, and the one before it serves."""

import re
from pathlib import Path
from typing import Any

import pytest
from ranks import run_job

LAYOUTS = {"tp2": {"tp": 2, "pp": 1}, "pp2": {"tp": 1, "pp": 2}}


@pytest.fixture(scope="module", params=LAYOUTS)
def job(
    request: pytest.FixtureRequest, model_folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp(request.param)
    arguments = {"model": str(model_folders["untied"])} | LAYOUTS[request.param]
    return folder, run_job("checkpoints.py", arguments, 2, folder)


def test_a_checkpoint_is_of_the_moment_when_it_was_begun(job: tuple[Path, dict[str, Any]]) -> None:
    _, result = job
    found = result["trained on meanwhile"]
    assert found["before"] == [False, None]
    assert found["at_once"] == [".step_2.tmp"]  # no checkpoint before it is whole
    assert found["after_first"] == [".step_4.tmp", "step_2"]
    assert found["finished"] == [4, None]
    assert found["step"] == 4
    assert result["remove_manifest"]["losses"] == found["losses"][2:]  # bit for bit, from the first of the two
    assert len(set(found["losses"])) == 6


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("flip_a_byte", r"distcp: its SHA-256 is \w{12}..., manifest.json says \w{12}...: its content is not what was"),
        ("cut_short", r"distcp: has \d+ bytes, manifest.json says \d+"),
        ("empty_but_for_the_manifest", r"is missing, manifest.json says \d+"),
        ("tear_manifest", r"manifest.json: cannot be read \("),
    ],
)
def test_the_checkpoint_before_a_damaged_one_serves(
    job: tuple[Path, dict[str, Any]], damage: str, message: str
) -> None:
    folder, result = job
    found = result[damage]
    assert found["step"] == 2
    assert found["losses"] == result["trained on meanwhile"]["losses"][2:]
    assert found["left"] == ["damaged_step_4", "step_2"]
    (said,) = [line for line in (folder / "rank_0.log").read_text().splitlines() if f"{folder / damage}/" in line]
    assert said.startswith(f"megatron-rl: {folder / damage}/checkpoints/step_4/")
    assert re.search(message, said)
    assert said.endswith(f"set aside as damaged_step_4, taken instead: {folder / damage}/checkpoints/step_2")


def test_the_same_checkpoint_damaged_again_is_set_aside_again(job: tuple[Path, dict[str, Any]]) -> None:
    found = job[1]["damage_a_second_time"]
    assert (found["step"], found["left"]) == (2, ["damaged_step_4", "damaged_step_4_1", "step_2"])


def test_a_rank_that_cannot_read_says_nothing_of_the_checkpoint(job: tuple[Path, dict[str, Any]]) -> None:
    folder, result = job
    found = result["unreadable"]
    assert re.match(rf"rank 1 on \S+: {folder}/unreadable/checkpoints/step_4: \[Errno 5\] Input/output", found["error"])
    assert found["error"].endswith("see to the file system of that host, and start the same command again")
    assert found["left"] == ["step_2", "step_4"]


def test_what_the_main_rank_does_not_find_is_no_damage(job: tuple[Path, dict[str, Any]]) -> None:
    found = job[1]["stale"]
    assert re.match(r"rank 1 on \S+: step_4/x.distcp: is missing; see to the file system of that host", found["error"])
    assert found["left"] == ["step_2", "step_4"]


def test_a_killed_writer_interrupts_the_run(job: tuple[Path, dict[str, Any]]) -> None:
    folder, result = job
    found, checkpoints = result["writer killed"], folder / "writer_killed/checkpoints"
    assert found["error"].startswith(f"{checkpoints / 'step_4'}: was not saved: the process that wrote it ended with")
    assert found["error"].endswith(f"{checkpoints / 'step_2'} is whole and serves; start the same command again")
    assert found["left"] == ["step_2"]


def test_a_run_with_nothing_but_damaged_checkpoints_does_not_start_anew(job: tuple[Path, dict[str, Any]]) -> None:
    folder, result = job
    message = result["all damaged"]["error"]
    assert message.startswith(f"{folder}/all_damaged/checkpoints/step_2/")
    assert "and there is no checkpoint before it; copy one to" in message


def test_what_cannot_be_written_leaves_the_one_before_it(job: tuple[Path, dict[str, Any]]) -> None:
    folder, result = job
    checkpoints = folder / "unwritable/checkpoints"
    assert result["unwritable"].startswith(f"{checkpoints / 'step_4'}: cannot be saved: [Errno ")
    assert f"{checkpoints / 'step_2'} is whole and serves" in result["unwritable"]


def test_a_full_disk_leaves_the_one_before_it(model_folders: dict[str, Path], tmp_path: Path) -> None:
    """A file system of 15 MB has room for one checkpoint of 9 MB, and not for the next."""
    disk = tmp_path / "disk"
    disk.mkdir()
    arguments = {"model": str(model_folders["untied"]), "disk": str(disk)}
    of_its_own = ["unshare", "--user", "--map-root-user", "--mount"]
    mounted = [*of_its_own, "sh", "-c", f'mount -t tmpfs -o size=15m tmpfs {disk} && exec "$@"', "sh"]
    result = run_job("full_disk.py", arguments, 1, tmp_path / "job", prefix=mounted)
    reason = r"(\[Errno 28\] No space left on device|a file could not be written, 0.00\d GB are free on its disk)"
    assert re.match(rf"{disk}/checkpoints/step_2: cannot be saved: {reason}", result["message"])
    assert f"{disk}/checkpoints/step_1 is whole and serves. Make room" in result["message"]
    assert result["resumed"] == 1
    assert result["left"] == ["step_1"]
