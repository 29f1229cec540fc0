"""What this rank's main thread is doing, for the watch of the ranks: its progress, its phase, its place in the code."""

import linecache
import sys
import threading
import time
from types import FrameType

_OURS = ("megatron_rl", "converters", "verifiers")
_COLLECTIVES = "torch.distributed.distributed_c10d"

_phase = "starting"
_progress = (0, 0.0)
_waits_in = ""


def tick(phase: str | None = None, allow: float = 0.0) -> None:
    """The main thread makes progress.

    Args:
        phase: that it is in from now on.
        allow: it may take so many seconds more than others until its next tick: what it does has a deadline of its own.
    """
    global _phase, _progress, _waits_in
    _progress, _waits_in = (_progress[0] + 1, allow), ""
    if phase is not None:
        _phase = phase


def await_others(seconds: float) -> None:
    """Sleep, in a loop that waits for other ranks: until the next tick this one holds up nobody."""
    global _waits_in
    _waits_in = sys._getframe(1).f_code.co_name
    time.sleep(seconds)


def progress() -> tuple[int, float]:
    """Ticks until now, and seconds allowed on top until the next one."""
    return _progress


def phase() -> str:
    """The phase that the last tick with one named."""
    return _phase


def stand() -> tuple[str, str]:
    """The function in which the main thread waits for other ranks, empty if in none, and its place in our code."""
    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    waits_in, place = _megatron_wait(frame), ""
    innermost = _name(frame)
    while frame is not None:
        module = frame.f_globals.get("__name__") or ""
        if module == _COLLECTIVES:
            waits_in, place = frame.f_code.co_name, ""
        elif not place and module.partition(".")[0] in _OURS and module != __name__:
            place = _name(frame)
        frame = frame.f_back
    return waits_in or _waits_in, place or innermost


def _megatron_wait(frame: FrameType | None) -> str:
    """Megatron itself waits for what it has sent, received or begun to sum up."""
    if frame is None or not (frame.f_globals.get("__name__") or "").startswith("megatron.core."):
        return ""
    line = linecache.getline(frame.f_code.co_filename, frame.f_lineno)
    return frame.f_code.co_name if ".wait(" in line else ""


def _name(frame: FrameType | None) -> str:
    if frame is None:
        return "nowhere"
    return f"{frame.f_code.co_filename.rpartition('/')[2]}:{frame.f_lineno} {frame.f_code.co_name}"
