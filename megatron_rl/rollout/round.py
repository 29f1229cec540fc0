"""One rank's part in a round of generation: its engine is kept full from the one queue until a meeting of all ranks."""

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from megatron_rl.pulse import await_others, tick
from megatron_rl.rollout.queue import SampleQueue
from megatron_rl.rollout.samples import Sample, SampleRequest, Sampling

if TYPE_CHECKING:  # vLLM is imported only where there are engines
    from megatron_rl.rollout.engine import Engine

OnCount = Callable[[int], None]
"""How many samples of the round have ended, in the whole job."""

_IDLE_SECONDS = 0.05
_LOOK_SECONDS = 0.5
"""Between two looks at the job's store while the engine is busy."""


class Round:
    """Of a rank that leads engine number `index` of `num_engines`, or none.

    Args:
        requests: all samples of the round; the queue holds their numbers in this list.
        capacity: samples that an engine takes at a time.
    """

    def __init__(
        self,
        engine: "Engine | None",
        index: int,
        num_engines: int,
        queue: SampleQueue,
        requests: Sequence[SampleRequest],
        sampling: Sampling,
        capacity: int,
        on_count: OnCount,
    ) -> None:
        self._engine, self._queue, self._requests, self._sampling = engine, queue, requests, sampling
        self._numbers = {(r.prompt_index, r.sample_index): number for number, r in enumerate(requests)}
        self._capacity, self._on_count = capacity, on_count
        self._hand = [] if engine is None else queue.deal(index, num_engines, capacity)
        self._next_look = 0.0

    def advance(self) -> list[Sample]:
        """Fill the engine and wait for its next output; the samples that have ended.

        Raises:
            EngineDied: its process has ended.
        """
        engine = self._engine
        if engine is None:
            await_others(_IDLE_SECONDS)
            return []
        if self._hand:
            with engine.held():
                while self._hand:
                    engine.add(self._requests[self._hand.pop(0)], self._sampling)
        while len(engine.in_flight) < self._capacity and (number := self._queue.draw()) is not None:
            engine.add(self._requests[number], self._sampling)
        if not engine.in_flight:
            await_others(_IDLE_SECONDS)
            return []
        tick()
        return engine.step()

    def finish(self, count: int) -> None:
        """Note that `count` samples are done with."""
        if count:
            self._on_count(self._queue.finish(count))

    def give_back(self) -> int:
        """Put what the engine has not finished back into the queue; how many samples that were."""
        lost = self._hand
        if self._engine is not None:
            lost = lost + [self._numbers[r.prompt_index, r.sample_index] for r in self._engine.in_flight]
        self._hand = []
        self._queue.give_back(lost)
        return len(lost)

    def call_meeting(self) -> None:
        """Ask all ranks to meet."""
        self._queue.call_meeting()
        self._next_look = 0.0

    def is_meeting_due(self) -> bool:
        """All samples have ended, or a rank has called."""
        is_busy = self._engine is not None and bool(self._hand or self._engine.in_flight)
        if is_busy and time.monotonic() < self._next_look:
            return False
        self._next_look = time.monotonic() + _LOOK_SECONDS
        return self._queue.is_meeting_called or (not is_busy and self.is_finished)

    @property
    def is_finished(self) -> bool:
        """All samples of all ranks have ended."""
        return self._queue.is_finished

    def hold_meeting(self) -> None:
        """Note that all ranks have met."""
        self._queue.hold_meeting()
        self._next_look = 0.0
