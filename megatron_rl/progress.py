"""What a person sees while a run goes on: a live display on a terminal, one plain line per step in a log file."""

import time
from types import TracebackType
from typing import Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars
from rich.text import Text

console = Console(stderr=True, highlight=False)
"""For every message to people; standard output stays free for results. Prints above a live display, not into it."""

_COUNT = TextColumn("{task.fields[count]}", style="dim")
_SMOOTHING = 0.2
"""Weight of the newest step in the average that the time left is computed from."""


class Progress:
    """Progress of one stage on rank 0; a context manager.

    On a terminal it keeps a small live display at the bottom; elsewhere (a Slurm log) `step` prints one line without
    control codes and `phase` prints nothing. `start_step` is the step that a resumed run continues from.
    """

    def __init__(self, title: str, total_steps: int, start_step: int = 0, *, to: Console = console) -> None:
        self._console = to
        self._total_steps = total_steps
        self._last_step = start_step
        self._last_time = time.monotonic()
        self._step_seconds: float | None = None
        self._facts: dict[str, str] = {}
        self._bars = Bars(TextColumn("{task.description}"), BarColumn(), _COUNT, TimeElapsedColumn(), console=to)
        count = f"{start_step}/{total_steps}"
        self._stage = self._bars.add_task(escape(title), total=total_steps, completed=start_step, count=count)
        self._phase = self._bars.add_task("starting", total=None, count="")
        self._phase_name = ""
        drawable = to.is_terminal and not to.is_dumb_terminal
        self._live = Live(get_renderable=self._render, console=to, refresh_per_second=4) if drawable else None

    def __enter__(self) -> Self:
        self._last_time = time.monotonic()
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def phase(self, name: str, done: int | None = None, total: int | None = None) -> None:
        """Say what the run is doing now; with `done` of `total` (samples, for instance) it gets a bar."""
        if name != self._phase_name:
            self._phase_name = name
            self._bars.remove_task(self._phase)
            self._phase = self._bars.add_task(escape(name), total=total, count="")
        count = "" if total is None else f"{done or 0}/{total}"
        self._bars.update(self._phase, completed=done or 0, total=total, count=count)

    def note(self, message: str) -> None:
        """Print a line that stays."""
        self._console.print(message, soft_wrap=True, markup=False)

    def warn(self, message: str) -> None:
        """Print a line that stays and stands out."""
        self._console.print(f"warning: {message}", style="yellow", soft_wrap=True, markup=False)

    def step(self, step: int, metrics: dict[str, float]) -> None:
        """Step `step` is done; `metrics` are those of the metrics log (any part of them)."""
        self._measure(step)
        new_facts = _facts(metrics)
        if self._step_seconds is not None:
            new_facts["s/step"] = f"{metrics.get('timing/total_step_time', self._step_seconds):.3g}"
            new_facts["left"] = _duration(self._step_seconds * (self._total_steps - step))
        self._facts |= new_facts
        if self._live is not None:
            self._bars.update(self._stage, completed=step, count=f"{step}/{self._total_steps}")
        else:
            line = " | ".join([f"step {step}/{self._total_steps}", *(f"{k} {v}" for k, v in new_facts.items())])
            self._console.print(line, soft_wrap=True, markup=False)

    def _measure(self, step: int) -> None:
        steps = step - self._last_step
        now = time.monotonic()
        if steps <= 0:  # a validation before the first step, or between steps
            if self._step_seconds is None:  # the first one is no part of any step
                self._last_time = now
            return
        seconds = (now - self._last_time) / steps
        old = self._step_seconds
        self._step_seconds = seconds if old is None else old + _SMOOTHING * (seconds - old)
        self._last_step, self._last_time = step, now

    def _render(self) -> RenderableType:
        facts = Text("   ").join(Text.assemble((f"{name} ", "dim"), value) for name, value in self._facts.items())
        return Group(self._bars, facts)


def _facts(metrics: dict[str, float]) -> dict[str, str]:
    """The few figures worth a place on one line, in reading order."""
    shown = {
        "reward": ("train/reward", "{:.3f}"),
        "accuracy": ("validation/accuracy", "{:.1%}"),
        "loss": ("train/loss", "{:.4g}"),
        "tokens/s/gpu": ("performance/tokens_per_sec_per_gpu", "{:,.0f}"),
    }
    return {name: form.format(metrics[key]) for name, (key, form) in shown.items() if key in metrics}


def _duration(seconds: float) -> str:
    """`seconds` as 0:07, 12:34 or 3:04:05."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
