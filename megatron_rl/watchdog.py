"""No silent hang: the ranks of a job watch each other, and the one that holds up the others is named.

A thread of every rank brings a beat to a store that rank 0 serves: the rank's phase, for how long its main thread has
made no progress, and where that stands. Another judges what came from there:

- a beat that no longer changes is of a rank that is FROZEN: stopped, swapped out, on a host that is gone. Rank 0 looks
  at all beats, the others at rank 0's; when its store does not answer, a call to it never returns, which stops the
  thread that called but not the one that judges.
- a rank without progress is STUCK, unless it waits for others. Rank 0 sees that.

The time that a process was asleep itself (a job suspended as a whole) counts for nothing. After a verdict every rank
that can writes the stacks of its threads, and ends with `INTERRUPTED_EXIT_CODE`. The rest is killed by whoever started
it: our launcher, `torchrun`, `srun --kill-on-bad-exit`.
"""

import faulthandler
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import astuple, dataclass
from datetime import datetime
from pathlib import Path
from typing import TypeVar

import torch.distributed as dist

from megatron_rl import pulse
from megatron_rl.config.schema import ClusterConfig
from megatron_rl.errors import INTERRUPTED_EXIT_CODE
from megatron_rl.parallel import Parallel, shared_store
from megatron_rl.run_folder import RunFolder

Group = TypeVar("Group")

_REMEDY = "start the same command again"
_MOST_PERIOD_SECONDS = 2.0
_PERIODS_PER_LIMIT = 10
_MOST_PERIODS_ASLEEP = 3
_GRACE_SECONDS = 5.0
"""From a verdict to the end: the others learn of it, and all write their stacks."""


@dataclass(frozen=True, slots=True)
class Beat:
    """What a rank says of itself.

    Attributes:
        number: of the beat; two are never the same.
        idle: seconds without progress; below 0 where more time than usual is allowed.
        waits_in: the function in which it waits for others; empty: in none.
        place: `file.py:line function`.
    """

    number: int
    phase: str
    idle: float
    waits_in: str
    place: str


@contextmanager
def watch(parallel: Parallel, run: RunFolder, config: ClusterConfig) -> Iterator[None]:
    """Within the block the ranks watch each other; called by all ranks together."""
    if parallel.is_main:
        _move_aside(run)
    watchman = _Watchman(parallel, run, config)
    try:
        yield
    finally:
        watchman.close()


class _Watchman:
    """This rank's two threads. Once they have started, the main thread never calls the store."""

    def __init__(self, parallel: Parallel, run: RunFolder, config: ClusterConfig) -> None:
        self._rank, self._run = parallel.rank, run
        self._frozen_seconds, self._stuck_seconds = config.heartbeat_timeout_seconds, config.timeout_minutes * 60
        self._watched = range(parallel.world_size) if parallel.is_main else range(1)
        self._period = min(_MOST_PERIOD_SECONDS, self._frozen_seconds / _PERIODS_PER_LIMIT)
        self._clock = AwakeClock(_MOST_PERIODS_ASLEEP * self._period)
        self._number = self._ticks = 0
        self._ticked = 0.0
        first = Beat(0, pulse.phase(), 0.0, "", "its start")
        self._signs: dict[int, tuple[Beat | None, float]] = dict.fromkeys(self._watched, (first, 0.0))
        self._told = ""
        self._ended = threading.Event()
        self._store = shared_store(parallel)
        run.stacks.mkdir(parents=True, exist_ok=True)
        self._file = open(run.stacks / f"rank_{self._rank}.txt", "w", encoding="utf-8")  # noqa: SIM115
        if parallel.is_main:
            self._store.set("verdict", "")
        # Not faulthandler's own timer: it fires in a process that was only suspended, too, and walks the stacks of
        # threads that run, which may end the process. A handler walks only that of the thread it interrupts.
        faulthandler.register(signal.SIGALRM, file=self._file, all_threads=False)
        self._bring_beat()
        dist.barrier()  # from here on no key is missing, which a look at it would wait for
        self._threads = [
            threading.Thread(target=target, name=f"watch: {target.__name__}", daemon=True)
            for target in (self._exchange, self._judge)
        ]
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """Say goodbye to the others."""
        self._ended.set()
        for thread in self._threads:
            thread.join(2 * self._period)  # no longer: rank 0 may not answer
        signal.setitimer(signal.ITIMER_REAL, 0)
        faulthandler.unregister(signal.SIGALRM)
        self._file.close()
        Path(self._file.name).unlink()
        with suppress(OSError):  # others have files there
            self._run.stacks.rmdir()
            self._run.logs.rmdir()

    def _exchange(self) -> None:
        keys = ["verdict", *(f"beat/{rank}" for rank in self._watched)]
        try:
            while not self._ended.wait(self._period):
                self._bring_beat()
                verdict, *beats = self._store.multi_get(keys)
                self._told = verdict.decode()
                for rank, text in zip(self._watched, beats, strict=True):
                    self._note(rank, Beat(*json.loads(text)) if text else None)
            self._store.set(f"beat/{self._rank}", "")
        except RuntimeError:  # the process of rank 0 has ended: whoever started it ends the others
            self._signs.clear()

    def _bring_beat(self) -> None:
        # If it is the last, because this rank cannot run its own threads, the main one writes where it stands.
        signal.setitimer(signal.ITIMER_REAL, self._frozen_seconds)
        self._number += 1
        ticks, allowed = pulse.progress()
        if ticks != self._ticks:
            self._ticks, self._ticked = ticks, self._clock.now
        idle = self._clock.now - self._ticked - allowed
        beat = Beat(self._number, pulse.phase(), idle, *pulse.stand())
        self._store.set(f"beat/{self._rank}", json.dumps(astuple(beat)))

    def _note(self, rank: int, beat: Beat | None) -> None:
        before, _ = self._signs[rank]
        if beat is None or before is None or beat.number != before.number:
            self._signs[rank] = beat, self._clock.now

    def _judge(self) -> None:
        while not self._ended.wait(self._period):
            now = self._clock.look()
            verdict = self._told or self._verdict(now)
            if verdict:
                self._end(verdict)

    def _verdict(self, now: float) -> str:
        """Empty: all is well, as far as this rank sees."""
        beats = {rank: beat for rank, (beat, _) in self._signs.items() if beat is not None}
        silence = {rank: now - self._signs[rank][1] for rank in beats}
        return frozen_verdict(beats, silence, self._frozen_seconds) or (
            stuck_verdict(beats, self._stuck_seconds) if self._rank == 0 else ""
        )

    def _end(self, verdict: str) -> None:
        """End this process, whatever becomes of files on the way."""
        timer = threading.Timer(_GRACE_SECONDS + 2 * self._period, os._exit, (INTERRUPTED_EXIT_CODE,))
        timer.start()
        self._say(verdict)
        if self._rank == 0:
            self._store.set("verdict", verdict)
        signal.setitimer(signal.ITIMER_REAL, 0)
        with suppress(OSError):
            self._file.seek(0)
            self._file.truncate()
            print(verdict, file=self._file, flush=True)
            faulthandler.dump_traceback(self._file)
        timer.join()

    def _say(self, verdict: str) -> None:
        """To people, unless another rank has."""
        try:
            with open(self._run.verdict, "x", encoding="utf-8") as file:
                print(verdict, file=file)
        except FileExistsError:
            return
        except OSError as error:  # to be told all the same
            print(f"megatron-rl: {error}", file=sys.stderr)
        print(f"megatron-rl: {verdict}", file=sys.stderr, flush=True)


class AwakeClock:
    """Seconds that this process has been awake: of a time between two looks at most `most` count."""

    def __init__(self, most: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._most, self._time = most, clock
        self._last = clock()
        self.now = 0.0
        """As of the last look."""

    def look(self) -> float:
        """What it is now."""
        before, self._last = self._last, self._time()
        self.now += min(self._last - before, self._most)
        return self.now


def frozen_verdict(beats: Mapping[int, Beat], silence: Mapping[int, float], limit: float) -> str:
    """Names the ranks that have given no sign for longer than `limit` seconds; empty if there are none.

    Args:
        beats: the last of each rank.
        silence: seconds since then.
    """
    frozen = [rank for rank in sorted(beats) if silence[rank] > limit]
    if not frozen:
        return ""
    said = "; ".join(
        f"{_ranks(ranks)} last seen in {phase} at {place}"
        for (phase, place), ranks in _grouped(frozen, lambda rank: (beats[rank].phase, beats[rank].place))
    )
    return (
        f"no sign of {_ranks(frozen)} for {max(silence[rank] for rank in frozen):.0f} s ({said}): the process is "
        f"stopped, starved or swapped out, or its host is gone; {_REMEDY}"
    )


def stuck_verdict(beats: Mapping[int, Beat], limit: float) -> str:
    """Names the ranks that have made no progress for longer than `limit` seconds and wait for no other, or says that
    all wait for each other; empty if neither is so."""
    overdue = [rank for rank in sorted(beats) if beats[rank].idle > limit]
    missing = [rank for rank in overdue if not beats[rank].waits_in]
    waiting = [rank for rank in sorted(beats) if beats[rank].waits_in]
    if missing:
        said = [
            f"{_ranks(ranks)} {_have(ranks)} made no progress for {max(beats[rank].idle for rank in ranks):.0f} s in "
            f"{phase}: at {place}"
            for (phase, place), ranks in _grouped(missing, lambda rank: (beats[rank].phase, beats[rank].place))
        ]
        said += [
            f"{_ranks(ranks)} {'waits' if len(ranks) == 1 else 'wait'} for {'it' if len(missing) == 1 else 'them'} in "
            f"{function}"
            for function, ranks in _grouped(waiting, lambda rank: beats[rank].waits_in)
        ]
    elif overdue and len(overdue) == len(beats):
        said = [f"no rank has made progress for {min(beats[rank].idle for rank in overdue):.0f} s, all wait for others"]
        said += [
            f"{_ranks(ranks)} in {function} ({phase}, {place})"
            for (function, phase, place), ranks in _grouped(
                waiting, lambda rank: (beats[rank].waits_in, beats[rank].phase, beats[rank].place)
            )
        ]
    else:
        return ""
    return "; ".join([*said, _REMEDY])


def _grouped(ranks: Sequence[int], key: Callable[[int], Group]) -> list[tuple[Group, list[int]]]:
    groups: dict[Group, list[int]] = {}
    for rank in ranks:
        groups.setdefault(key(rank), []).append(rank)
    return list(groups.items())


def _ranks(ranks: Sequence[int]) -> str:
    """`rank 3`, or `ranks 0, 2-5`."""
    runs: list[list[int]] = []
    for rank in ranks:
        if runs and rank == runs[-1][-1] + 1:
            runs[-1].append(rank)
        else:
            runs.append([rank])
    names = ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 2 else ", ".join(map(str, run)) for run in runs)
    return f"rank{'s' if len(ranks) > 1 else ''} {names}"


def _have(ranks: Sequence[int]) -> str:
    return "has" if len(ranks) == 1 else "have"


def _move_aside(run: RunFolder) -> None:
    """A restart keeps what tells why the last start ended."""
    if run.verdict.is_file():
        when = datetime.fromtimestamp(run.verdict.stat().st_mtime)
        run.stacks.rename(run.stacks.with_name(f"{run.stacks.name}_{when:%Y%m%d_%H%M%S}"))
