"""A step's generation as discrete events: prompts from one queue, engines that batch continuously and run dry."""

import heapq
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from megatron_rl.plan.engine import EngineModel, Request
from megatron_rl.plan.roofline import DecodeCost
from megatron_rl.plan.verdicts import End


@dataclass(frozen=True, kw_only=True)
class Generated:
    """All ends in order of time, and per engine when its last one was (0: it got none) and how its cache fared."""

    ends: list[End]
    engine_seconds: list[float]
    tokens: int
    max_waiting: int

    @property
    def seconds(self) -> float:
        """Until the last sample ended."""
        return max(self.engine_seconds)


def generate(
    groups: Sequence[Sequence[Request]], engines: int, cost: DecodeCost, max_num_seqs: int, kv_cache_tokens: int
) -> Generated:
    """Prompts from one queue: whenever an engine has fewer than `max_num_seqs` samples in flight it takes the next
    prompt with all its samples. At the start the engines take turns; a lone engine takes everything."""
    queue = deque(groups)
    models = [EngineModel(cost, max_num_seqs, kv_cache_tokens) for _ in range(engines)]

    def take(model: EngineModel) -> bool:
        if not queue or (engines > 1 and model.in_flight >= max_num_seqs):
            return False
        for request in queue.popleft():
            model.add(request)
        return True

    while queue and sum(take(model) for model in models):  # a round: one prompt for every engine
        pass
    events: list[tuple[float, int, list[int]]] = []

    def advance(engine: int) -> None:
        model = models[engine]
        if model.in_flight:
            ended = model.advance()
            heapq.heappush(events, (model.clock, engine, ended))

    for engine in range(engines):
        advance(engine)
    ends: list[End] = []
    last = [0.0] * engines
    while events:
        seconds, engine, ended = heapq.heappop(events)
        ends += [End(seconds, engine, index) for index in ended]
        last[engine] = seconds
        while take(models[engine]):
            pass
        advance(engine)
    return Generated(
        ends=ends,
        engine_seconds=last,
        tokens=sum(model.tokens for model in models),
        max_waiting=max(model.max_waiting for model in models),
    )


def requests(groups: Sequence[Sequence[int]], prompt_tokens: int) -> list[list[Request]]:
    """Lengths as requests, numbered through."""
    numbered: list[list[Request]] = []
    index = 0
    for group in groups:
        numbered.append([Request(index + i, prompt_tokens, length) for i, length in enumerate(group)])
        index += len(group)
    return numbered
