"""Ranks that freeze or get stuck are named, and the run ends; ranks that only take long are left alone."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
import yaml
from ranks import ROOT, started_job
from test_launcher import recipe, train
from waiting import eventually

from megatron_rl import pulse
from megatron_rl.errors import INTERRUPTED_EXIT_CODE
from megatron_rl.run_folder import RunFolder
from megatron_rl.watchdog import AwakeClock, Beat, frozen_verdict, stuck_verdict

__all__ = ["recipe"]  # a fixture

PATIENCE_SECONDS = 240.0
FROZEN_SECONDS, STUCK_SECONDS = 6.0, 5.0


def beat(idle: float, waits_in: str = "", place: str = "policy.py:212 train_step") -> Beat:
    return Beat(1, "policy_training", idle, waits_in, place)


# Verdicts -----------------------------------------------------------------------------------------------------------


def test_ranks_that_give_a_sign_in_time_are_not_named() -> None:
    assert frozen_verdict({0: beat(0), 1: beat(0)}, {0: 0.0, 1: 120.0}, limit=120.0) == ""


def test_ranks_without_a_sign_are_named_with_what_they_last_did() -> None:
    beats = {0: beat(0), 1: beat(0), 2: beat(0), 3: beat(0, place="round.py:70 advance")}
    found = frozen_verdict(beats, {0: 1.0, 1: 130.2, 2: 121.0, 3: 125.0}, limit=120.0)
    assert found.startswith(
        "no sign of ranks 1-3 for 130 s (ranks 1, 2 last seen in policy_training at policy.py:212 train_step; "
        "rank 3 last seen in policy_training at round.py:70 advance): "
    )
    assert found.endswith("; start the same command again")


def test_a_rank_without_progress_that_waits_for_nobody_is_named_and_who_waits_for_it() -> None:
    beats = {0: beat(1790, "all_reduce"), 1: beat(1801), 2: beat(1790, "all_reduce"), 3: beat(1790, "barrier")}
    assert stuck_verdict(beats, limit=1800) == (
        "rank 1 has made no progress for 1801 s in policy_training: at policy.py:212 train_step; "
        "ranks 0, 2 wait for it in all_reduce; rank 3 waits for it in barrier; start the same command again"
    )


def test_several_stuck_ranks_are_named_by_their_places() -> None:
    beats = {0: beat(1900), 1: beat(1901), 2: beat(1810, place="stage.py:1 open_stage"), 3: beat(2, "all_reduce")}
    assert stuck_verdict(beats, limit=1800) == (
        "ranks 0, 1 have made no progress for 1901 s in policy_training: at policy.py:212 train_step; "
        "rank 2 has made no progress for 1810 s in policy_training: at stage.py:1 open_stage; "
        "rank 3 waits for them in all_reduce; start the same command again"
    )


def test_who_waits_for_others_that_make_progress_is_not_stuck() -> None:
    assert stuck_verdict({0: beat(5000, "barrier"), 1: beat(3)}, limit=1800) == ""
    assert stuck_verdict({0: beat(5000, "barrier"), 1: beat(-3000)}, limit=1800) == ""
    assert stuck_verdict({0: beat(1799)}, limit=1800) == ""


def test_ranks_that_all_wait_for_each_other_are_told_apart() -> None:
    found = stuck_verdict({0: beat(1900, "all_reduce"), 1: beat(1850, "barrier"), 2: beat(1850, "barrier")}, limit=1800)
    assert found == (
        "no rank has made progress for 1850 s, all wait for others; "
        "rank 0 in all_reduce (policy_training, policy.py:212 train_step); "
        "ranks 1, 2 in barrier (policy_training, policy.py:212 train_step); start the same command again"
    )


def test_time_asleep_does_not_count() -> None:
    times = iter([10.0, 12.0, 500.0, 503.0])
    clock = AwakeClock(most=6.0, clock=lambda: next(times))
    assert [clock.look() for _ in range(3)] == [2.0, 8.0, 11.0]


# The main thread, as its own process sees it ------------------------------------------------------------------------


def seen_from_outside(main: str) -> tuple[str, str]:
    """`stand` of a main thread that is in a function named `main`."""
    found: list[tuple[str, str]] = []
    called = threading.Event()

    def look() -> None:
        called.wait()
        time.sleep(0.1)
        found.append(pulse.stand())

    thread = threading.Thread(target=look)
    thread.start()
    called.set()
    if main == "waits":
        pulse.await_others(0.5)
    else:
        pulse.tick()
        thread.join()
    thread.join()
    pulse.tick()
    return found[0]


def test_a_loop_that_waits_for_others_is_seen_to_wait_until_the_next_tick() -> None:
    waits_in, place = seen_from_outside("waits")
    assert waits_in == "seen_from_outside"
    assert place.startswith("pulse.py:")
    assert seen_from_outside("works")[0] == ""


def test_a_tick_counts_and_its_allowance_lasts_until_the_next() -> None:
    before, _ = pulse.progress()
    pulse.tick("saving", allow=60.0)
    assert (pulse.progress(), pulse.phase()) == ((before + 1, 60.0), "saving")
    pulse.tick()
    assert (pulse.progress(), pulse.phase()) == ((before + 2, 0.0), "saving")


# Jobs ---------------------------------------------------------------------------------------------------------------


def statuses_of(fault: str, folder: Path) -> list[int]:
    """Exit statuses of two ranks of which the second has a fault; one that does not end by itself is killed."""
    arguments = {"frozen_seconds": FROZEN_SECONDS, "stuck_seconds": STUCK_SECONDS, "fault": fault}
    with started_job("watched.py", arguments, ranks=2, folder=folder) as job:
        limit = time.monotonic() + PATIENCE_SECONDS
        while job.processes[0].poll() is None:
            assert time.monotonic() < limit, "a silent hang"
            time.sleep(0.1)
        eventually(lambda: job.processes[1].poll() is not None, seconds=15.0)
    return [process.returncode for process in job.processes]


def test_a_rank_in_an_endless_loop_is_named_and_all_leave_their_stacks(tmp_path: Path) -> None:
    assert statuses_of("loop", tmp_path) == [INTERRUPTED_EXIT_CODE, INTERRUPTED_EXIT_CODE]
    verdict = RunFolder(tmp_path / "run").verdict.read_text()
    assert verdict.startswith("rank 1 has made no progress for ")
    assert " s in summing: at watched.py:" in verdict
    assert verdict.endswith(" spin; rank 0 waits for it in all_reduce; start the same command again\n")
    assert f"megatron-rl: {verdict}" in (tmp_path / "rank_0.log").read_text()
    stacks = [(RunFolder(tmp_path / "run").stacks / f"rank_{rank}.txt").read_text() for rank in range(2)]
    assert all(stack.startswith(verdict) for stack in stacks)
    assert "in all_reduce" in stacks[0]
    assert "in spin" in stacks[1]


@pytest.mark.long
@pytest.mark.rare
def test_a_rank_that_cannot_run_its_own_threads_is_named_and_its_stacks_are_there(tmp_path: Path) -> None:
    assert statuses_of("native", tmp_path) == [INTERRUPTED_EXIT_CODE, -signal.SIGKILL]
    verdict = RunFolder(tmp_path / "run").verdict.read_text()
    assert verdict.startswith("no sign of rank 1 for ")
    assert "in third_step" in (RunFolder(tmp_path / "run").stacks / "rank_1.txt").read_text()


@pytest.mark.long
@pytest.mark.rare
def test_ranks_that_wait_for_each_other_are_named(tmp_path: Path) -> None:
    assert statuses_of("other", tmp_path) == [INTERRUPTED_EXIT_CODE, INTERRUPTED_EXIT_CODE]
    verdict = RunFolder(tmp_path / "run").verdict.read_text()
    assert verdict.startswith("no rank has made progress for ")
    assert "; rank 0 in all_reduce (summing, " in verdict
    assert "; rank 1 in recv (summing, " in verdict


@pytest.mark.long
@pytest.mark.rare
def test_ranks_that_take_long_for_a_reason_are_left_alone(tmp_path: Path) -> None:
    assert statuses_of("patient", tmp_path) == [0, 0]
    assert not RunFolder(tmp_path / "run").stacks.exists()


@pytest.mark.long
def test_a_run_survives_being_suspended_and_names_a_rank_that_freezes(recipe: Path) -> None:
    run = RunFolder(recipe.parent / "runs" / "cut")
    settings = (f"cluster.heartbeat_timeout_seconds={FROZEN_SECONDS}", "checkpointing.save_period=2")
    for frozen in (1, 0):
        process = train(recipe, *settings)
        everyone = started(process, run)
        if frozen == 1:
            suspend(everyone, 3 * FROZEN_SECONDS)
            started(process, run)
            time.sleep(2 * FROZEN_SECONDS)
            assert process.poll() is None
        # Not among everyone: a process that writes a checkpoint has its rank's environment, and ends meanwhile.
        (rank,) = [p for p in psutil.Process(process.pid).children() if p.environ().get("RANK") == str(frozen)]
        begin = time.monotonic()
        rank.send_signal(signal.SIGSTOP)
        assert eventually(run.verdict.is_file, PATIENCE_SECONDS)
        print(f"rank {frozen} was named after {time.monotonic() - begin:.1f} s")
        _, output = process.communicate(timeout=PATIENCE_SECONDS)
        assert process.returncode == INTERRUPTED_EXIT_CODE
        said = run.verdict.read_text()
        assert said.startswith(f"no sign of rank {frozen} for ")
        assert output.count(f"megatron-rl: {said}") == 1, output
        assert " in run_steps\n" in (run.stacks / f"rank_{1 - frozen}.txt").read_text()
        assert eventually(lambda: not still_running(everyone))  # noqa: B023
    (earlier,) = run.logs.glob("stacks_*")
    assert "no sign of rank 1 " in (earlier / "verdict.txt").read_text()


def started(process: "subprocess.Popen[str]", run: RunFolder) -> list[psutil.Process]:
    """All processes of a run, when it has made two more steps."""
    before = len(run.metric_lines())
    assert eventually(lambda: process.poll() is not None or len(run.metric_lines()) >= before + 2, PATIENCE_SECONDS)
    assert process.poll() is None
    return psutil.Process(process.pid).children(recursive=True)


def still_running(processes: list[psutil.Process]) -> list[psutil.Process]:
    """Of those that were killed the larger ones take a moment to be gone."""
    found = []
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def suspend(processes: list[psutil.Process], seconds: float) -> None:
    for process in processes:
        os.kill(process.pid, signal.SIGSTOP)
    time.sleep(seconds)
    for process in reversed(processes):
        os.kill(process.pid, signal.SIGCONT)


# The phases of a real step ------------------------------------------------------------------------------------------

# Found by Python in every rank: one of them stops itself at a tick in a phase.
SITECUSTOMIZE = """
import os, pathlib, signal, time
from megatron_rl import pulse
wanted, number, rank, note = os.environ["FREEZE"].split(",")
tick, ticks = pulse.tick, []
def freezing_tick(phase=None, allow=0.0):
    tick(phase, allow)
    ticks.append(pulse.phase())
    if os.environ.get("RANK") == rank and ticks.count(wanted) == int(number):
        time.sleep(2)  # until a beat has told the phase
        pathlib.Path(note).touch()
        os.kill(os.getpid(), signal.SIGSTOP)
pulse.tick = freezing_tick
"""
# Phase, its tick, rank: rank 0 leads the engine and the verifier's workers.
MOMENTS = (
    ("generating", 10, 0),
    ("verifying", 1, 0),
    ("policy_training", 3, 1),
    ("weight_sync", 4, 1),
    ("saving", 1, 0),
)


@pytest.mark.long
@pytest.mark.rare
def test_a_rank_that_freezes_in_any_phase_of_a_step_is_named(model_folders: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(SITECUSTOMIZE)
    grpo = grpo_recipe(model_folders["untied"], tmp_path)
    for phase, number, rank in MOMENTS:
        note, run = tmp_path / f"frozen_in_{phase}", RunFolder(tmp_path / "runs" / phase)
        process = subprocess.Popen(
            [sys.executable, "-m", "megatron_rl", "train", str(grpo), f"name={phase}"],
            env=os.environ | {"PYTHONPATH": f"{tmp_path / 'site'}:{ROOT}", "FREEZE": f"{phase},{number},{rank},{note}"},
            stderr=subprocess.PIPE,
            text=True,
        )
        assert eventually(lambda: note.is_file() or process.poll() is not None, PATIENCE_SECONDS), phase  # noqa: B023
        assert process.poll() is None, process.communicate()[1]
        everyone = psutil.Process(process.pid).children(recursive=True)
        assert any(p.name().startswith("VLLM") for p in everyone)
        _, output = process.communicate(timeout=PATIENCE_SECONDS)
        said = run.verdict.read_text()
        seconds = run.verdict.stat().st_mtime - note.stat().st_mtime
        print(f"{phase:16} {said.partition(' for ')[0]:20} named after {seconds:4.1f} s", flush=True)
        assert process.returncode == INTERRUPTED_EXIT_CODE, output
        assert said.startswith(f"no sign of rank {rank} for ")
        assert f"(rank {rank} last seen in {phase} at " in said
        assert f"megatron-rl: {said}" in output
        assert " in train\n" in (run.stacks / f"rank_{1 - rank}.txt").read_text()
        assert eventually(lambda: not still_running(everyone))  # noqa: B023


def grpo_recipe(model: Path, folder: Path) -> Path:
    """Two steps at TP=2 with one engine; heartbeats are due within `FROZEN_SECONDS`."""
    lines = [{"prompt": f"{i} + 1 =", "answer": str(i + 1)} for i in range(8)]
    (folder / "data.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    config = {
        "algorithm": "grpo",
        "output_dir": str(folder / "runs"),
        "cluster": {"gpus_per_node": 2, "device": "cpu", "heartbeat_timeout_seconds": FROZEN_SECONDS},
        "policy": {
            "model_name": str(model),
            "max_total_sequence_length": 192,
            "precision": "fp32",
            "tensor_model_parallel_size": 2,
            "micro_batch_tokens": 300,
        },
        "generation": {"max_new_tokens": 48, "enforce_eager": True, "num_engines": 1},
        "grpo": {"max_num_steps": 2, "num_prompts_per_step": 4, "num_generations_per_prompt": 4},
        "verifier": {"num_workers": 1},
        "data": {"path": str(folder / "data.jsonl")},
        "checkpointing": {"save_period": 1},
    }
    (folder / "grpo.yaml").write_text(yaml.safe_dump(config))
    return folder / "grpo.yaml"
