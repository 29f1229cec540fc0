"""What becomes of a checkpoint whose writer comes to grief."""

import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from typing import Any

import pytest
from megatron.core.dist_checkpointing.strategies.async_utils import AsyncRequest

from megatron_rl.checkpoint.background import BackgroundWrite, WriterLost


def is_killed(*_: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def waits_for_one_that_was_killed(*_: Any) -> None:
    child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
    child.start()
    child.kill()
    time.sleep(60)


def is_slow(*_: Any) -> None:
    time.sleep(60)


def is_refused(*_: Any) -> None:
    raise OSError("no room")


@pytest.mark.parametrize(
    ("write", "seconds", "kind", "message"),
    [
        (is_killed, 20, WriterLost, "ended with status -9"),
        (waits_for_one_that_was_killed, 20, WriterLost, "ended by signal 9"),
        (is_slow, 0.5, WriterLost, "not written within 0 s"),
        (is_refused, 20, OSError, "no room"),
    ],
)
def test_why_nothing_was_written_is_told(
    write: Callable[..., None], seconds: float, kind: type[OSError], message: str
) -> None:
    writing = BackgroundWrite(AsyncRequest(write, (None, [], None), []))
    with pytest.raises(OSError, match=message) as caught:
        writing.wait(seconds)
    assert type(caught.value) is kind
