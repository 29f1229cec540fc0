"""Processes of the tiny pipeline killed at random moments, and the same command given again: nothing may differ.

    python tests/chaos/chaos.py [--kills 50] [--seed N] [--only ROLE]        (make chaos)

First the pipeline is left alone: SFT at DP=2, math RL at TP=2, code RL at PP=2, a few steps each. Then any process of
it (launcher, rank, engine, verifier, writer of a checkpoint, or what a library started, each role as often as the
others) gets SIGKILL at a random moment of its life, and again, the command being given anew each time it ends, until it
is done; then another one, until all kills are made. An engine that is killed is replaced, and its samples are generated
anew; that it was is the one metric that tells of it. What the step journal holds when a command is given again is not
generated again: the step's line has the seconds that its generation took in the earlier start.
"""

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console
from rich.table import Table
from safetensors.numpy import load_file

from converters.manifest import read_manifest
from megatron_rl.run_folder import RunFolder

ROOT = Path(__file__).parents[2]
RECIPES = ROOT / "recipes" / "tiny"
STAGES = ("sft", "math", "code")
BY_THE_CLOCK = (
    *("timing/", "memory/", "performance/", "time"),
    *("verify/seconds", "verify/latency", "verify/utilization", "verify/queue_length"),
    "generation/engine_restarts",
)
SECONDS, PATIENCE_SECONDS, ENDING_SECONDS = 1800.0, 30.0, 12.0
MOMENTS = ("early", "at any time", "in a step")
"""When a kill comes after the start, or after the last one that the run survived: each as often as the others."""
EARLY_SECONDS, ANY_SECONDS, STEP_SECONDS = 12.0, 60.0, 3.0
_MARK = "CHAOS_RUN"
_ENDED = "ended"
_OFTEN_THERE = ("launcher", "keeper", "rank", "engine", "verifier", "resource tracker", "fork server")


@dataclass(frozen=True, slots=True)
class Kill:
    """What was killed when, and what became of it: the exit status of the launcher, or None where the run went on."""

    process: str
    stage: str
    steps: int
    seconds: float
    status: int | None


class Pipeline:
    """The tiny pipeline in a folder with the tiny world; RL starts from the weights of the run `sft`."""

    def __init__(self, folder: Path, name: str, sft: Path) -> None:
        self.folder, self.name = folder, name
        self.journaled: dict[tuple[str, int], float] = {}
        """Stages and steps whose samples an earlier start had left, and the seconds that took."""
        settings: dict[str, object] = {"name": name, "sft.sft.max_num_steps": 4, "sft.checkpointing.save_period": 2}
        for stage in STAGES[1:]:
            settings[f"{stage}.grpo.max_num_steps"] = 6
            settings[f"{stage}.grpo.num_prompts_per_step"] = 16
            settings[f"{stage}.checkpointing.save_period"] = 3
        settings |= {f"{stage}.validation.max_prompts": 16 for stage in STAGES}
        settings |= {"math.policy.from_checkpoint": sft}
        self.arguments = ["pipeline", str(RECIPES / "pipeline.yaml"), *(f"{k}={v}" for k, v in settings.items())]

    def run(self, stage: str) -> RunFolder:
        """Of one stage."""
        return RunFolder(self.folder / "runs" / self.name / stage)

    def start(self) -> "subprocess.Popen[bytes]":
        """The command."""
        for stage in STAGES:
            for path in self.run(stage).journal.glob("*.safetensors"):
                step = 1 + int(path.name.split("_")[1])
                rest = json.loads(load_file(path)["rest"].tobytes())
                self.journaled[stage, step] = rest["generation_seconds"]
        return start(self.folder, *self.arguments)

    @property
    def is_done(self) -> bool:
        """Its last file is there."""
        return (self.folder / "runs" / self.name / "summary.json").is_file()

    def traces(self) -> list[str]:
        """What changes with every step: lines, checkpoints, the journal."""
        folder = self.run(self.place()[0]).path
        names = [str(path) for name in ("journal", "checkpoints") for path in (folder / name).glob("*")]
        return [*sorted(names), str(self.place())]

    def place(self) -> tuple[str, int]:
        """The stage that is under way and how many steps it has logged."""
        stage = next((stage for stage in STAGES if not self.run(stage).summary.is_file()), STAGES[-1])
        try:
            return stage, len(self.run(stage).metric_lines())
        except ValueError:  # a line that is being written
            return stage, -1


def start(folder: Path, *arguments: str | Path) -> "subprocess.Popen[bytes]":
    """`megatron-rl ARGUMENTS` in `folder`, its output in `folder/output.log`."""
    with open(folder / "output.log", "ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "megatron_rl", *map(str, arguments)],
            cwd=folder,
            env=os.environ | {"PYTHONPATH": str(ROOT), _MARK: str(folder)},
            stdout=log,
            stderr=subprocess.STDOUT,
        )


def finish(folder: Path, *arguments: str | Path) -> None:
    """Run a command to its end, which must be a good one."""
    status = start(folder, *arguments).wait(SECONDS)
    assert status == 0, (folder / "output.log").read_text(errors="replace")[-4000:]


def kill_at_random(
    pipeline: Pipeline, made: list[Kill], kills: int, rng: random.Random, console: Console, only: str | None
) -> None:
    """Until the pipeline is done; no more when so many kills have been made.

    Raises:
        AssertionError: a process is left over, or the pipeline hangs.
    """
    while not pipeline.is_done:
        process, before = pipeline.start(), len(made)
        begin = time.monotonic()
        while process.poll() is None and len(made) < kills:
            await_moment(pipeline, process, rng)
            victims = {} if process.poll() is not None else processes_of(process.pid)
            if not victims:
                break
            roles = [role for role in sorted(victims) if only in (None, role)]
            if not roles:
                continue
            role = rng.choice(roles)  # or an engine, one among many processes, would seldom be taken
            victim, (stage, steps) = rng.choice(victims[role]), pipeline.place()
            seconds = time.monotonic() - begin
            try:
                victim.kill()
            except psutil.NoSuchProcess:
                continue
            # A run that goes on without it does so at once; one that ends takes its time to say why.
            status = wait(process, ENDING_SECONDS)
            made.append(Kill(role, stage, steps, round(seconds, 1), status))
            console.print(f"{len(made):3}: {made[-1]}")
        status = wait(process, SECONDS)
        assert status is not None, f"the run hangs: {log_of(pipeline.folder)}"
        left = left_over(pipeline.folder)
        assert not left, f"left over: {left}"
        assert status == 0 or len(made) > before, f"status {status} of a run left alone: {log_of(pipeline.folder)}"


def await_moment(pipeline: Pipeline, process: "subprocess.Popen[bytes]", rng: random.Random) -> None:
    """Until the next kill is due, or the process has ended."""
    moment, limit = rng.choice(MOMENTS), time.monotonic() + ANY_SECONDS
    if moment == "in a step":
        before = pipeline.traces()
        while process.poll() is None and pipeline.traces() == before and time.monotonic() < limit:
            time.sleep(0.05)
    seconds = {"early": EARLY_SECONDS, "at any time": ANY_SECONDS, "in a step": STEP_SECONDS}[moment]
    wait(process, rng.uniform(0.0, seconds))


def processes_of(launcher: int) -> dict[str, list[psutil.Process]]:
    """The launcher and all that it and its children have started, by their roles."""
    found = defaultdict[str, list[psutil.Process]](list)
    with suppress(psutil.NoSuchProcess):
        process = psutil.Process(launcher)
        for one in (process, *process.children(recursive=True)):
            found[role_of(one, launcher)].append(one)
    found.pop(_ENDED, None)
    return found


def role_of(process: psutil.Process, launcher: int) -> str:
    """What a process is, for people."""
    try:
        name, command = process.name(), " ".join(process.cmdline())
        parent = process.parent()
        of_rank = parent is not None and parent.pid != launcher and "megatron_rl" in " ".join(parent.cmdline())
    except psutil.Error:
        return _ENDED
    if process.pid == launcher:
        return "launcher"
    if name.startswith("VLLM"):
        return "engine"
    for part, role in (
        ("resource_tracker", "resource tracker"),
        ("verifiers", "verifier"),
        ("forkserver", "fork server"),
        ("spawn_main", "spawned by a library"),
        ("read -r _", "keeper"),
        ("convert", "export"),
    ):
        if part in command:
            return role
    if "megatron_rl train" in command:
        return "forked by a rank" if of_rank else "rank"
    return name


def wait(process: "subprocess.Popen[bytes]", seconds: float) -> int | None:
    """Its exit status, None where it runs on."""
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        return None


def left_over(folder: Path) -> list[str]:
    """Processes of the pipeline's that still run after a while: orphans, whose launcher has ended."""
    limit = time.monotonic() + PATIENCE_SECONDS
    while True:
        own = set(psutil.Process().children(recursive=True))  # such as a test's, which may work in the same folder
        found = [text for process in psutil.process_iter() if process not in own and (text := _of(folder, process))]
        if not found or time.monotonic() > limit:
            return found
        time.sleep(0.2)


def _of(folder: Path, process: psutil.Process) -> str:
    try:
        # An engine's title is written over its environment, and the sandbox has another working directory.
        is_ours = process.cwd() == str(folder.resolve()) or process.environ().get(_MARK) == str(folder)
        is_ours = is_ours and process.status() != psutil.STATUS_ZOMBIE
        return f"{process.pid} {' '.join(process.cmdline())}" if is_ours else ""
    except psutil.Error:
        return ""


def log_of(folder: Path) -> str:
    """The end of what was said."""
    return (folder / "output.log").read_text(errors="replace")[-4000:]


def without_times(lines: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of lines of metrics what a clock does not make."""
    return [{key: value for key, value in line.items() if not key.startswith(BY_THE_CLOCK)} for line in lines]


def unequal(a: dict[str, Any], b: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """What two lines of metrics do not agree in."""
    return {key: (a.get(key), b.get(key)) for key in sorted({*a, *b}) if a.get(key) != b.get(key)}


def differences(whole: Pipeline, killed: Pipeline) -> list[str]:
    """Between two pipelines: in metrics, and in weights and optimizer by the checksums of the last checkpoints."""
    found = []
    for stage in STAGES:
        a, b = whole.run(stage), killed.run(stage)
        if [line["step"] for line in a.metric_lines()] != [line["step"] for line in b.metric_lines()]:
            found.append(f"{stage}: steps missing or doubled")
        else:
            lines = zip(without_times(a.metric_lines()), without_times(b.metric_lines()), strict=True)
            found += [f"{stage}: step {x['step']}: {unequal(x, y)}" for x, y in lines if x != y]
        files = [
            {name: entry for name, entry in read_manifest(run.checkpoints()[-1])["files"].items() if "distcp" in name}
            for run in (a, b)
        ]
        if files[0] != files[1] or not files[0]:
            found.append(f"{stage}: weights")
    for (stage, step), seconds in killed.journaled.items():
        (line,) = [line for line in killed.run(stage).metric_lines() if line["step"] == step]
        if line["timing/generation"] != seconds:
            found.append(f"{stage}: step {step} was generated again, though the journal had it")
    return found


def chaos(
    folder: Path, whole: Pipeline, sft: Path, kills: int, seed: int, console: Console, only: str | None = None
) -> list[Kill]:
    """Kill pipelines until all kills are made, and compare each with the one left alone."""
    rng, made = random.Random(seed), list[Kill]()
    while len(made) < kills:
        killed = Pipeline(folder, f"killed_after_{len(made)}", sft)
        kill_at_random(killed, made, kills, rng, console, only)
        found = differences(whole, killed)
        assert not found, found
        steps = len(killed.journaled)
        console.print(
            f"{killed.name}: equal to the one left alone, bit for bit; {steps} steps on samples of the journal"
        )
    return made


def table_of(kills: Sequence[Kill]) -> Table:
    """What was killed how often, and what became of it."""
    table = Table("process killed", "times", "in", "the run went on", "exit statuses of those that did not")
    for process, times in Counter(kill.process for kill in kills).most_common():
        own = [kill for kill in kills if kill.process == process]
        stages = ", ".join(f"{stage} {n}" for stage, n in Counter(kill.stage for kill in own).items())
        statuses = Counter(kill.status for kill in own if kill.status is not None)
        ended = ", ".join(f"{status}: {n}" for status, n in sorted(statuses.items()))
        table.add_row(process, str(times), stages, str(sum(kill.status is None for kill in own)), ended)
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    parser.add_argument("--only", choices=_OFTEN_THERE, help="kill no others")
    arguments = parser.parse_args()
    console = Console(stderr=True, highlight=False)
    folder = Path(tempfile.mkdtemp(prefix="chaos-"))
    console.print(f"seed {arguments.seed}, in {folder}, which stays unless all is well")
    sft = folder / "runs" / "tiny_sft"
    finish(folder, "data", "tiny", "runs/tiny_world")
    finish(folder, "train", RECIPES / "sft.yaml", "validation.at_start=false", "validation.at_end=false")
    whole = Pipeline(folder, "whole", sft)
    finish(folder, *whole.arguments)
    kills = chaos(folder, whole, sft, arguments.kills, arguments.seed, console, arguments.only)
    shutil.rmtree(folder)
    console.print(table_of(kills))
    print(json.dumps({"kills": [asdict(kill) for kill in kills], "seed": arguments.seed, "equal": True}))


if __name__ == "__main__":
    main()
