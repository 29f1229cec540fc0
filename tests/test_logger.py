"""The metrics log: lines, resume, TensorBoard and W&B."""

import json
import resource
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from megatron_rl.config.schema import Algorithm, DataConfig, LoggerConfig, PolicyConfig, TrainConfig, WandbConfig
from megatron_rl.errors import InputError, RunStopped
from megatron_rl.logger import MetricsLogger


def config(**logger: Any) -> TrainConfig:
    return TrainConfig(
        algorithm=Algorithm.SFT,
        name="logged",
        policy=PolicyConfig(max_total_sequence_length=64),
        data=DataConfig(path="none.jsonl"),
        logger=LoggerConfig(**({"tensorboard_enabled": False} | logger)),
    )


def rows(run_dir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def steps(run_dir: Path) -> list[int]:
    return [row["step"] for row in rows(run_dir)]


def write_steps(run_dir: Path, first: int, last: int, resume_step: int, **logger: Any) -> None:
    with MetricsLogger(config(**logger), run_dir, resume_step) as log:
        for step in range(first, last + 1):
            log.log(step, {"train/loss": step / 10})


def test_a_line_is_on_disk_at_once_with_sorted_keys(tmp_path: Path) -> None:
    with MetricsLogger(config(), tmp_path, 0) as log:
        log.log(1, {"train/reward": 1, "generation/length_max": 7.0})
        assert list(rows(tmp_path)[0]) == ["step", "time", "generation/length_max", "train/reward"]
    assert rows(tmp_path)[0]["train/reward"] == 1.0


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_what_is_not_finite_is_null(tmp_path: Path, value: float) -> None:
    with MetricsLogger(config(), tmp_path, 0) as log:
        log.log(1, {"train/loss": value, "train/reward": 0.5})
        log.log_samples("step_1", [{"reward": value}])
    assert rows(tmp_path)[0]["train/loss"] is None
    assert rows(tmp_path)[0]["train/reward"] == 0.5
    assert json.loads((tmp_path / "samples/step_1.jsonl").read_text()) == {"reward": None}


def test_what_the_last_line_lacks_is_put_into_it(tmp_path: Path) -> None:
    write_steps(tmp_path, 0, 2, resume_step=0)
    before = rows(tmp_path)
    with MetricsLogger(config(), tmp_path, 2) as log:
        log.complete({"validation/accuracy": 0.5, "a": 1})
        log.log(3, {"train/loss": 0.3})
    assert rows(tmp_path)[:3] == [*before[:2], before[2] | {"validation/accuracy": 0.5, "a": 1.0}]
    assert list(rows(tmp_path)[2]) == ["step", "time", "a", "train/loss", "validation/accuracy"]
    assert steps(tmp_path) == [0, 1, 2, 3]


def test_a_line_that_cannot_be_written_stops_the_run(tmp_path: Path) -> None:
    with MetricsLogger(config(), tmp_path, 0) as log:
        log.log(1, {"train/loss": 0.1})
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, ((tmp_path / "metrics.jsonl").stat().st_size, hard))
        try:
            with pytest.raises(RunStopped, match=r"metrics\.jsonl: \[Errno 27\] File too large; make room"):
                log.log(2, {"train/loss": 0.2})
            with pytest.raises(RunStopped, match=r"metrics\.jsonl: \[Errno 27\] File too large; make room"):
                log.complete({"validation/accuracy": 0.5, "filler": 1})
            log.close()  # which writes what is left
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert steps(tmp_path)[0] == 1


def test_resume_drops_steps_beyond_the_checkpoint_and_a_torn_line(tmp_path: Path) -> None:
    write_steps(tmp_path, 0, 5, resume_step=0)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "train/lo')
    write_steps(tmp_path, 4, 6, resume_step=3)
    assert steps(tmp_path) == [0, 1, 2, 3, 4, 5, 6]


def test_a_torn_line_goes_even_when_it_happens_to_be_whole_json(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"step": 2}')
    write_steps(tmp_path, 2, 2, resume_step=2)
    assert steps(tmp_path) == [1, 2]


@pytest.mark.parametrize("beginning", [0, -1])
def test_a_run_from_its_beginning_logs_step_0_anew(tmp_path: Path, beginning: int) -> None:
    write_steps(tmp_path, 0, 2, resume_step=0)
    write_steps(tmp_path, 0, 1, resume_step=beginning)
    assert steps(tmp_path) == [0, 1]


def test_a_foreign_line_is_refused_with_its_number(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\nhello\n{"step": 2}\n')
    with pytest.raises(InputError, match=r"metrics\.jsonl:2"):
        MetricsLogger(config(), tmp_path, 1)
    assert "hello" in (tmp_path / "metrics.jsonl").read_text()


def test_samples_are_replaced_whole(tmp_path: Path) -> None:
    with MetricsLogger(config(), tmp_path, 0) as log:
        log.log_samples("step_3", [{"response": "ü </script>"}, {"response": "b"}])
        log.log_samples("step_3", [{"response": "ü\n</script>", "advantage": None}])
    assert [path.name for path in (tmp_path / "samples").iterdir()] == ["step_3.jsonl"]
    assert json.loads((tmp_path / "samples/step_3.jsonl").read_text()) == {
        "response": "ü\n</script>",
        "advantage": None,
    }


def test_text_that_utf8_refuses_survives(tmp_path: Path) -> None:
    with MetricsLogger(config(), tmp_path, 0) as log:
        log.log_samples("step_1", [{"response": "a\ud800b"}])
    assert json.loads((tmp_path / "samples/step_1.jsonl").read_text()) == {"response": "a\ud800b"}


def test_tensorboard_forgets_what_the_log_forgets(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    write_steps(tmp_path, 0, 5, resume_step=0, tensorboard_enabled=True)
    write_steps(tmp_path, 4, 4, resume_step=3, tensorboard_enabled=True)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("train/loss")] == [0, 1, 2, 3, 4]
    assert "tensorflow" not in sys.modules


def test_wandb_continues_its_run_and_leaves_no_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[dict[str, Any]] = []
    logged: list[tuple[int, dict[str, float]]] = []
    run = types.SimpleNamespace(log=lambda values, step: logged.append((step, values)), finish=lambda: None)
    wandb = types.ModuleType("wandb")
    monkeypatch.setattr(wandb, "init", lambda **arguments: started.append(arguments) or run, raising=False)
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    monkeypatch.setenv("WANDB_API_KEY", "secret-key")
    asked = {"wandb_enabled": True, "wandb": WandbConfig(project="p")}

    write_steps(tmp_path, 1, 2, resume_step=0, **asked)
    write_steps(tmp_path, 3, 3, resume_step=2, **asked)
    write_steps(tmp_path, 1, 1, resume_step=-1, **asked)

    assert [step for step, _ in logged] == [1, 2, 3, 1]
    first, resumed, restarted = (arguments["id"] for arguments in started)
    assert first == resumed != restarted
    assert started[0]["project"] == "p"
    assert started[0]["name"] == "logged"
    assert not any("secret-key" in path.read_text() for path in tmp_path.rglob("*") if path.is_file())


def test_wandb_is_not_imported_unless_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    write_steps(tmp_path, 1, 1, resume_step=0)
    with pytest.raises(ImportError):
        MetricsLogger(config(wandb_enabled=True), tmp_path, 1)
