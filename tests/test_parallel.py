"""Ranks that end alike, and one that waits for another which does not come."""

from pathlib import Path

from ranks import run_job, started_job
from waiting import eventually

from megatron_rl.errors import INTERRUPTED_EXIT_CODE

PATIENCE_SECONDS = 120.0


def test_what_fails_on_the_main_rank_ends_all_of_them_alike(tmp_path: Path) -> None:
    found = run_job("together.py", {"absent": False}, ranks=2, folder=tmp_path)
    alike = {"done": "well", "bad input": "InputError('x is 1, not 2')", "stopped": "RunStopped('no room')"}
    assert found == [alike | {"done by": [0]}, alike | {"done by": []}]


def test_a_rank_that_does_not_come_to_the_start_is_not_waited_for_for_ever(tmp_path: Path) -> None:
    with started_job("together.py", {"absent": True, "start_seconds": 5.0}, ranks=2, folder=tmp_path) as job:
        here = job.processes[0]
        assert eventually(lambda: here.poll() is not None, PATIENCE_SECONDS)
    assert here.returncode == INTERRUPTED_EXIT_CODE
    said = (tmp_path / "rank_0.log").read_text()
    assert "megatron-rl: gave up after 5 s: the other ranks, at the start\n" in said
    assert "in setup_parallel\n" in said
