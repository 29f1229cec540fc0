"""vLLM's schedulers, of which each tells what it has sampled not token by token but several at once.

An engine is a process of its own. The message with which each token would come from it, its log-prob and its rank as
arrays, takes time from the cores that compute the next one, and from the trainer's process that takes it apart.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from vllm.config import VllmConfig
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.interface import SchedulerInterface
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs
from vllm.v1.outputs import LogprobsLists

TOKENS_PER_MESSAGE = 16
"""Few enough that an engine is heard of often: whoever waits for it takes a long silence for its end."""


class HoldingScheduler(Scheduler):
    """Holds back what a request has sampled until there are `TOKENS_PER_MESSAGE` tokens of it, or its last."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._held: dict[str, list[EngineCoreOutput]] = {}

    def update_from_output(self, *args: Any, **kwargs: Any) -> dict[int, EngineCoreOutputs]:
        found = super().update_from_output(*args, **kwargs)
        for of_client in found.values():
            of_client.outputs = [merged for output in of_client.outputs for merged in self._hold(output)]
        return {client: said for client, said in found.items() if said.outputs or said.finished_requests}

    def _hold(self, output: EngineCoreOutput) -> list[EngineCoreOutput]:
        held = self._held.setdefault(output.request_id, [])
        held.append(output)
        if not output.finished and len(held) < TOKENS_PER_MESSAGE:
            return []
        del self._held[output.request_id]
        return [_merged(held)]


class HoldingAsyncScheduler(HoldingScheduler, AsyncScheduler):
    """The same of the one that schedules a step while the one before it runs."""


_HOLDING: dict[type[SchedulerInterface], type[HoldingScheduler]] = {
    Scheduler: HoldingScheduler,
    AsyncScheduler: HoldingAsyncScheduler,
}


def hold_outputs(config: VllmConfig) -> VllmConfig:
    """`config` with the scheduler that takes the place of the one that vLLM has chosen."""
    config.scheduler_config.scheduler_cls = _HOLDING[config.scheduler_config.get_scheduler_cls()]
    return config


def _merged(outputs: Sequence[EngineCoreOutput]) -> EngineCoreOutput:
    """One output that says what `outputs`, one after the other, do."""
    last = outputs[-1]
    last.prefill_stats = outputs[0].prefill_stats
    last.new_token_ids = [token for output in outputs for token in output.new_token_ids]
    log_probs = [output.new_logprobs for output in outputs if output.new_logprobs is not None]
    if log_probs:
        ids, values, ranks = (np.concatenate(column) for column in list(zip(*log_probs, strict=True))[:3])
        last.new_logprobs = LogprobsLists(ids, values, ranks)
    return last
