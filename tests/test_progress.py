"""The progress display: plain lines in a log file, a live display on a terminal."""

import io

import pytest
from rich.console import Console

from megatron_rl.progress import Progress, _duration


def log_file() -> Console:
    return Console(file=io.StringIO(), width=20)


def terminal() -> Console:
    return Console(file=io.StringIO(), force_terminal=True, width=100, _environ={"TERM": "xterm-256color"})


def written(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_a_log_file_gets_one_plain_line_per_step() -> None:
    console = log_file()
    with Progress("math [red]", total_steps=40, start_step=10, to=console) as progress:
        progress.phase("generating", done=1, total=8)
        progress.step(11, {"train/reward": 0.5, "timing/total_step_time": 3.25, "train/entropy": 9.0})
        progress.phase("saving")
        progress.step(12, {"train/reward": 0.25, "performance/tokens_per_sec_per_gpu": 12345.6})
    first, second = written(console).splitlines()
    assert first.startswith("step 11/40 | reward 0.500 | s/step 3.25 | left ")
    assert second.startswith("step 12/40 | reward 0.250 | tokens/s/gpu 12,346 | s/step ")
    assert "\x1b" not in written(console)


def test_a_validation_before_the_first_step_says_no_speed() -> None:
    console = log_file()
    with Progress("math", total_steps=40, to=console) as progress:
        progress.step(0, {"validation/accuracy": 0.125})
    assert written(console) == "step 0/40 | accuracy 12.5%\n"


def test_the_time_left_follows_the_wall_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("megatron_rl.progress.time.monotonic", lambda: now)
    console = log_file()
    with Progress("math", total_steps=64, to=console) as progress:
        now = 110.0
        progress.step(2, {})
        now = 115.0
        progress.step(2, {"validation/accuracy": 0.5})
        progress.step(3, {})
    lines = written(console).splitlines()
    assert lines[0] == "step 2/64 | s/step 5 | left 5:10"
    assert lines[2] == "step 3/64 | s/step 5 | left 5:05"


def test_the_validation_before_the_first_step_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("megatron_rl.progress.time.monotonic", lambda: now)
    console = log_file()
    with Progress("math", total_steps=64, to=console) as progress:
        now = 160.0
        progress.step(0, {"validation/accuracy": 0.5})
        now = 165.0
        progress.step(1, {})
    assert written(console).splitlines()[1] == "step 1/64 | s/step 5 | left 5:15"


def test_a_terminal_shows_the_phase_and_the_latest_figures() -> None:
    console = terminal()
    with Progress("math [stage]", total_steps=40, to=console) as progress:
        progress.step(7, {"train/reward": 0.5, "validation/accuracy": 0.25})
        progress.phase("generating", done=300, total=1024)
        console.print("a message")
    shown = written(console)
    for text in ("math [stage]", "7/40", "generating", "300/1024", "reward", "0.500", "25.0%", "a message"):
        assert text in shown


def test_an_error_inside_leaves_the_terminal_usable() -> None:
    console = terminal()
    with pytest.raises(RuntimeError), Progress("math", total_steps=2, to=console):
        raise RuntimeError("engine died")
    assert written(console).rstrip().endswith("\x1b[?25h")  # the cursor is back


@pytest.mark.parametrize(("seconds", "text"), [(7, "0:07"), (59.6, "1:00"), (754, "12:34"), (11045, "3:04:05")])
def test_duration(seconds: float, text: str) -> None:
    assert _duration(seconds) == text
