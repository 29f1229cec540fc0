"""Starts the ranks of a run on this machine when neither `torchrun` nor Slurm has done so."""

import math
import os
import re
import signal
import socket
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from megatron_rl.config.schema import TrainConfig
from megatron_rl.errors import INTERRUPTED_EXIT_CODE, PREEMPTED_EXIT_CODE, InputError
from megatron_rl.preemption import is_requested, note
from megatron_rl.processes import LAUNCHER_VARIABLE
from megatron_rl.run_folder import RunFolder

# Libraries announce each missing optional kernel in every process; `doctor` tells it once.
_QUIET = {"PYTHONWARNINGS": "ignore", "VLLM_LOGGING_LEVEL": "ERROR", "TORCH_CPP_LOG_LEVEL": "ERROR"}
# The first process of the ranks' group. When the launcher closes its end of the pipe, or dies, it kills the group:
# the ranks and all that they and their libraries started.
_KEEPER = ("sh", "-c", "read -r _; kill -s KILL 0")
# Where the ranks of a Slurm job meet, by the number of the job.
_FIRST_PORT, _PORTS = 20000, 10000
_POLL_SECONDS = 0.2
_GRACE_SECONDS = 10.0


def take_rank() -> bool:
    """Take this process's place among the ranks of a job, if `torchrun`, `srun` or `run_ranks` gave it one."""
    if "RANK" not in os.environ and int(os.environ.get("SLURM_STEP_NUM_TASKS", "1")) > 1:
        os.environ |= _of_slurm_task(os.environ)
        quiet()
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def quiet() -> None:
    """Let this process, and those that it starts, not announce each missing optional kernel."""
    os.environ |= {key: value for key, value in _QUIET.items() if key not in os.environ}
    warnings.simplefilter("ignore")


def _of_slurm_task(task: Mapping[str, str]) -> dict[str, str]:
    """What `torchrun` would have told the rank that `srun` started with the variables `task`."""
    nodes = re.match(r"([^,[]+)(?:\[(\w+))?", task["SLURM_STEP_NODELIST"])  # node[003-018,021],other
    assert nodes is not None
    first_host = nodes[1] + (nodes[2] or "")
    return {
        "RANK": task["SLURM_PROCID"],
        "LOCAL_RANK": task["SLURM_LOCALID"],
        "WORLD_SIZE": task["SLURM_STEP_NUM_TASKS"],
        "MASTER_ADDR": task.get("MASTER_ADDR", first_host),
        "MASTER_PORT": task.get("MASTER_PORT", str(_FIRST_PORT + int(task["SLURM_JOB_ID"]) % _PORTS)),
    }


def run_ranks(config: TrainConfig, arguments: Sequence[str]) -> int:
    """Run `python -m megatron_rl ARGUMENTS` once per rank and wait; the first exit status that is not 0, else 0.

    Rank 0 speaks to the terminal, the others to `RUN/logs/rank_N.log`. When one rank fails the others are ended. A
    SIGUSR1 or SIGTERM is passed on to the ranks, which save and stop.

    Raises:
        InputError: the recipe wants several nodes, which one machine cannot start; or another start is at work.
    """
    if config.cluster.num_nodes > 1:
        raise InputError(
            f"cluster.num_nodes={config.cluster.num_nodes}: start a run over several nodes with srun or torchrun"
        )
    run = RunFolder(Path(config.run_dir))
    with run.locked():  # or nothing is touched
        pass
    logs = run.logs
    logs.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        keeper = subprocess.Popen(_KEEPER, stdin=subprocess.PIPE, process_group=0)
        ranks: list[subprocess.Popen[bytes]] = []
        stack.callback(_end, ranks, keeper)
        stack.enter_context(_passing_on(ranks))
        port = free_port()
        # A rank finds what comes before it listens.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
        for rank in range(config.world_size):
            output = None if rank == 0 else stack.enter_context(open(logs / f"rank_{rank}.log", "wb"))
            ranks.append(
                subprocess.Popen(
                    [sys.executable, "-m", "megatron_rl", *arguments],
                    env=_environment(rank, config.world_size, port),
                    stdout=output,
                    stderr=subprocess.STDOUT if output is not None else None,
                    process_group=keeper.pid,
                )
            )
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR1})
        if is_requested():  # meanwhile
            _tell(ranks)
        return _wait(ranks, run, config.cluster.timeout_minutes * 60)


def _tell(ranks: Sequence["subprocess.Popen[bytes]"]) -> None:
    """To save and stop."""
    for rank in ranks:
        rank.send_signal(signal.SIGUSR1)


@contextmanager
def _passing_on(ranks: Sequence["subprocess.Popen[bytes]"]) -> Iterator[None]:
    """Within the block a request to stop goes to the ranks."""

    def pass_on(number: int, frame: object) -> None:
        note(number, frame)
        _tell(ranks)

    before = {number: signal.signal(number, pass_on) for number in (signal.SIGUSR1, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _environment(rank: int, world_size: int, port: int) -> dict[str, str]:
    own = {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world_size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        LAUNCHER_VARIABLE: str(os.getpid()),
    }
    return _QUIET | os.environ | own


def _wait(ranks: Sequence["subprocess.Popen[bytes]"], run: RunFolder, limit: float) -> int:
    """Until all ranks have ended; one that does not within `limit` seconds of another's good end hangs."""
    first_end = math.inf
    while True:
        statuses = [rank.poll() for rank in ranks]
        for number, status in enumerate(statuses):
            if status not in (None, 0):
                if number != 0 and status not in (PREEMPTED_EXIT_CODE, INTERRUPTED_EXIT_CODE):
                    print(f"megatron-rl: rank {number} failed; see {run.logs / f'rank_{number}.log'}", file=sys.stderr)
                _wait_for_the_others(ranks)
                is_frozen = status == INTERRUPTED_EXIT_CODE and ranks[0].poll() is None
                if is_frozen and run.verdict.is_file():  # which rank 0, who speaks to the terminal, cannot tell
                    print(f"megatron-rl: {run.verdict.read_text(encoding='utf-8')}", end="", file=sys.stderr)
                return status if status > 0 else 128 - status
        if all(status == 0 for status in statuses):
            return 0
        if 0 in statuses:
            first_end = min(first_end, time.monotonic())
        if time.monotonic() - first_end > limit:
            late = ", ".join(str(number) for number, status in enumerate(statuses) if status is None)
            print(f"megatron-rl: {limit:.0f} s after others had ended not yet: rank {late}", file=sys.stderr)
            return INTERRUPTED_EXIT_CODE
        time.sleep(_POLL_SECONDS)


def _wait_for_the_others(ranks: Sequence["subprocess.Popen[bytes]"]) -> None:
    """Ranks mostly fail together: let each say why, for a while."""
    limit = time.monotonic() + _GRACE_SECONDS
    with suppress(subprocess.TimeoutExpired):
        for rank in ranks:
            rank.wait(max(0.0, limit - time.monotonic()))


def _end(ranks: Sequence["subprocess.Popen[bytes]"], keeper: "subprocess.Popen[bytes]") -> None:
    """End the ranks that still run, and all that they left behind."""
    os.killpg(keeper.pid, signal.SIGKILL)
    keeper.communicate()
    for rank in ranks:
        rank.wait()


def free_port() -> int:
    """A port of this machine that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
