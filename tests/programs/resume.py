"""Runs that are started again in one state or another, in one process.

Arguments: `model`, `data` (a file of problems with responses), `case`: `edges`, `crash` or `stopped`, which tell what
they give.
"""

import os
import shutil
import signal
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from ranks import read_arguments, write_result
from tiny import train_config

from converters.manifest import read_manifest
from megatron_rl import preemption
from megatron_rl.config.schema import DataConfig, TrainConfig, ValidationConfig
from megatron_rl.errors import Preempted
from megatron_rl.launcher import free_port
from megatron_rl.policy.policy import Policy
from megatron_rl.rollout.rollout import Rollout
from megatron_rl.run_folder import RunFolder
from megatron_rl.train import train

STEPS = 6
BORDER = 3
"""12 problems, 4 to a step."""


class Calls:
    """Counts the calls of a method, of which one may fail."""

    def __init__(self, owner: type, name: str) -> None:
        self.count, self.fails_at = 0, 0
        method = getattr(owner, name)

        def counted(*arguments: Any, **named: Any) -> Any:
            self.count += 1
            if self.count == self.fails_at:
                raise ZeroDivisionError
            return method(*arguments, **named)

        setattr(owner, name, counted)

    def take(self) -> int:
        """Since the last time."""
        taken, self.count, self.fails_at = self.count, 0, 0
        return taken


def start(config: TrainConfig, name: str) -> RunFolder:
    """The run to its end."""
    os.environ["MASTER_PORT"] = str(free_port())
    config = replace(config, name=name)
    train(config)
    return RunFolder(Path(config.run_dir))


def state_of(run: RunFolder) -> dict[str, Any]:
    """What it leaves behind."""
    files = read_manifest(run.checkpoints()[-1])["files"]
    weights = {name: entry["sha256"] for name, entry in files.items() if "distcp" in name}
    return {"lines": run.metric_lines(), "weights": weights, "is_finished": run.summary.is_file()}


def edges(model: str, data: str, folder: Path) -> dict[str, Any]:
    """By the step from which a run is started again (-1: it never was): its state, its updates since, its metrics."""
    config = config_of(model, data, folder, algorithm="sft", sft={"max_num_steps": STEPS, "global_batch_size": 4})
    updates = Calls(Policy, "train_step")
    whole = start(config, "whole")
    found = {"-1": state_of(whole) | {"updates": updates.take()}}
    for step in (0, BORDER, STEPS):
        run = RunFolder(whole.path.with_name(f"from_{step}"))
        shutil.copytree(whole.path, run.path)
        for checkpoint in run.checkpoints()[step:]:
            shutil.rmtree(checkpoint)
        run.summary.unlink()
        start(config, run.path.name)
        found[str(step)] = state_of(run) | {"updates": updates.take()}
    return found


def crash(model: str, data: str, folder: Path) -> dict[str, Any]:
    """A run whose third update fails, with its last checkpoint after the first step, and that is started again: its
    steps, and how many updates and generations each start made."""
    grpo = {"max_num_steps": 4, "num_prompts_per_step": 4, "num_generations_per_prompt": 4}
    config = config_of(model, data, folder, algorithm="grpo", grpo=grpo, generation__max_new_tokens=16)
    updates, generations = Calls(Policy, "train_step"), Calls(Rollout, "generate")
    updates.fails_at = 3
    with suppress(ZeroDivisionError):
        start(config, "crashed")
    counts = [[updates.take(), generations.take()]]
    run = start(config, "crashed")
    counts.append([updates.take(), generations.take()])
    return {"steps": [line["step"] for line in run.metric_lines()], "counts": counts}


def stopped(model: str, data: str, folder: Path) -> dict[str, Any]:
    """A run that is told to stop in each of its validations, and one that is left alone: their states."""
    sft = {"max_num_steps": 2, "global_batch_size": 4}
    validation = {"data": {"math": DataConfig(path=data), "again": DataConfig(path=data)}, "period": 1}
    config = config_of(model, data, folder, algorithm="sft", sft=sft, generation__max_new_tokens=16)
    config = replace(config, validation=ValidationConfig(**validation))
    found: dict[str, Any] = {"whole": state_of(start(config, "whole")), "said": []}
    updates, generate, calls = Calls(Policy, "train_step"), Rollout.generate, Calls(Rollout, "generate")
    counted = Rollout.generate

    def generate_and_be_told(*arguments: Any, **named: Any) -> None:
        if calls.count + 1 == told_at:
            preemption.note(signal.SIGTERM, None)
        counted(*arguments, **named)

    Rollout.generate = generate_and_be_told  # type: ignore[method-assign]
    for told_at in (1, 3, 4, 0):  # noqa: B007
        try:
            start(config, "stopped")
        except Preempted as error:
            found["said"].append(str(error))
        preemption._terminated = False
        found["said"].append(calls.take())
    Rollout.generate = generate  # type: ignore[method-assign]
    stopped = state_of(RunFolder(Path(replace(config, name="stopped").run_dir)))
    found["stopped"] = stopped | {"updates": updates.take()}
    return found


def config_of(model: str, data: str, folder: Path, **settings: Any) -> TrainConfig:
    config = train_config(model, checkpointing__save_period=1, checkpointing__keep_last=STEPS, **settings)
    return replace(config, data=replace(config.data, path=data), output_dir=str(folder))


def main() -> None:
    arguments, folder = read_arguments()
    case = {"edges": edges, "crash": crash, "stopped": stopped}[arguments["case"]]
    write_result(folder, case(arguments["model"], arguments["data"], folder))


if __name__ == "__main__":
    main()
