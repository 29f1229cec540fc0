"""One vLLM engine as events: between two ends of samples the batch is constant, so the clock jumps from end to end."""

import heapq
from collections import deque
from dataclasses import dataclass

from megatron_rl.plan.roofline import DecodeCost


@dataclass(slots=True)
class Request:
    """A sample to generate.

    Attributes:
        length: response tokens it will have.
        done: those it has already, having been pushed out of the cache.
    """

    index: int
    prompt_tokens: int
    length: int
    done: int = 0


class EngineModel:
    """Continuous batching: samples join as soon as a place and cache are free; when the cache runs full the youngest is
    pushed out and computed again later, as vLLM does.

    Attributes:
        clock: seconds since the step began.
        tokens: response tokens generated, those generated again not counted.
        max_waiting: most samples that waited at once for a place or for cache.
    """

    def __init__(self, cost: DecodeCost, max_num_seqs: int, kv_cache_tokens: int) -> None:
        self._cost, self._max_num_seqs, self._capacity = cost, max_num_seqs, kv_cache_tokens
        self._waiting: deque[Request] = deque()
        self._running: dict[int, tuple[Request, int]] = {}
        """Index to the request and the decode step at which it began, oldest first."""
        self._ends: list[tuple[int, int]] = []
        """Heap of (decode step at which it ends, index); those pushed out are dropped when they come up."""
        self._step = self._context = 0
        self.clock = 0.0
        self.tokens = self.max_waiting = 0

    @property
    def in_flight(self) -> int:
        """Samples that run or wait."""
        return len(self._running) + len(self._waiting)

    def add(self, request: Request) -> None:
        """Queue a sample."""
        self._waiting.append(request)

    def advance(self) -> list[int]:
        """Run to the next end of samples; their indices. There must be one in flight."""
        self._admit()
        while True:
            until_end = self._next_end() - self._step
            until_full = (self._capacity - self._context) // len(self._running)
            if until_end <= until_full or len(self._running) == 1:
                self._decode(until_end)
                return self._take_ended()
            self._decode(max(0, until_full))
            self._push_out_youngest()

    def _admit(self) -> None:
        admitted = 0
        while self._waiting and len(self._running) < self._max_num_seqs:
            request = self._waiting[0]
            tokens = request.prompt_tokens + request.done
            if self._running and self._context + tokens > self._capacity:
                break
            self._waiting.popleft()
            self._running[request.index] = (request, self._step)
            heapq.heappush(self._ends, (self._step + request.length - request.done, request.index))
            self._context += tokens
            admitted += tokens
        self.clock += admitted * self._cost.prefill_per_token
        self.max_waiting = max(self.max_waiting, len(self._waiting))

    def _next_end(self) -> int:
        while not self._is_current(*self._ends[0]):
            heapq.heappop(self._ends)
        return self._ends[0][0]

    def _is_current(self, end: int, index: int) -> bool:
        if index not in self._running:
            return False
        request, begin = self._running[index]
        return end == begin + request.length - request.done

    def _decode(self, steps: int) -> None:
        """`steps` decode steps of the same batch: their context grows evenly, so the mean step counts."""
        batch = len(self._running)
        mean_context = self._context + batch * (steps - 1) / 2
        self.clock += steps * self._cost.step_seconds(batch, mean_context)
        self.tokens += steps * batch
        self._context += steps * batch
        self._step += steps

    def _take_ended(self) -> list[int]:
        ended = []
        while self._ends and (self._ends[0][0] <= self._step or not self._is_current(*self._ends[0])):
            end, index = heapq.heappop(self._ends)
            if self._is_current(end, index):
                request, _ = self._running.pop(index)
                self._context -= request.prompt_tokens + request.length
                ended.append(index)
        return ended

    def _push_out_youngest(self) -> None:
        _, (request, begin) = self._running.popitem()
        request.done += self._step - begin
        self._context -= request.prompt_tokens + request.done
        self._waiting.appendleft(request)
        self.max_waiting = max(self.max_waiting, len(self._waiting))
