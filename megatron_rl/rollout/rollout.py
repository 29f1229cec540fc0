"""The job's engines as one: weights in, prompts out of one queue, samples as they end, a new engine where one dies."""

import sys
import time
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from converters.model import HFExport
from megatron_rl.config.schema import GenerationConfig, Precision
from megatron_rl.errors import EngineDied, InputError, RunStopped
from megatron_rl.parallel import Parallel, any_rank, shared_store
from megatron_rl.preemption import is_requested
from megatron_rl.processes import deadline
from megatron_rl.rollout.queue import SampleQueue
from megatron_rl.rollout.round import OnCount, Round
from megatron_rl.rollout.samples import Sample, SampleRequest, Sampling, requests_for

if TYPE_CHECKING:  # vLLM is imported only where there are engines
    from megatron_rl.rollout.engine import Engine

OnSample = Callable[[Sample], None]


class Rollout:
    """This rank's share in generation: it leads an engine, or only helps to gather weights for them.

    Every method is called by all ranks together.

    Args:
        folder: config and tokenizer of the model.
        export: the policy's weights, streamed anew at every sync; None: the engines load those of `folder`.
        max_model_len: prompt and response together, in tokens.

    Raises:
        InputError: what was asked for needs a GPU.
    """

    def __init__(
        self,
        folder: Path,
        config: GenerationConfig,
        precision: Precision,
        parallel: Parallel,
        export: HFExport | None,
        max_model_len: int,
    ) -> None:
        if config.fp8 and parallel.device.type == "cpu":
            raise InputError("generation.fp8=true needs a GPU: vLLM has no FP8 layers for the CPU; set it to false")
        self._config, self._parallel, self._export = config, parallel, export
        self.num_engines = config.num_engines or max(1, parallel.world_size // config.tensor_parallel_size)
        stride = parallel.world_size // self.num_engines
        self._index = parallel.rank // stride
        self.leads = parallel.rank % stride == 0 and self._index < self.num_engines
        self._engine: Engine | None = None
        self._lacks_weights = False
        self._died_at: float | None = None
        self._restarts_of_version = 0
        self._recoveries: list[float] = []
        self._store = shared_store(parallel)
        self._round = 0
        self._asleep = False
        if self.leads:
            self._start(folder, precision, max_model_len)
        self._connect()

    def sleep(self) -> None:
        """Leave the accelerator's memory to the policy until the next sync, where the two share it."""
        if self._parallel.device.engine_sleeps and not self._asleep:
            if self._engine is not None:
                self._engine.sleep()
            self._asleep = True
            dist.barrier()  # an engine may lie on the accelerators of other ranks

    def _wake(self) -> None:
        if self._asleep:
            torch.cuda.empty_cache()
            dist.barrier()
            if self._engine is not None:
                self._engine.wake()
            self._asleep = False

    def sync(self, version: int) -> None:
        """Give every engine the policy's current weights; samples from now on carry `version`.

        Raises:
            RunStopped: an engine dies again and again.
        """
        self._wake()
        self._restarts_of_version = 0
        if self._parallel.device.weight_transfer == "shm":
            every = self._config.verify_sync
            self._sender.verify = every > 0 and version % every == 0
        if self._engine is not None:
            self._engine.version = version
            self._lacks_weights = True
        self._bring_weights()

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        samples_per_prompt: int,
        sampling: Sampling,
        seed: str,
        on_sample: OnSample,
        on_count: OnCount = lambda count: None,
        may_stop: bool = False,
        expected_lengths: Sequence[float] = (),
        done: Collection[tuple[int, int]] = (),
    ) -> None:
        """Generate `samples_per_prompt` responses to every prompt; each goes to `on_sample` of the rank whose engine
        made it, the moment it ends. What an engine has not finished when it dies is generated anew.

        Args:
            seed: every sample's own seed is derived from this, its prompt and its place in the group.
            may_stop: a request to stop ends the round early.
            expected_lengths: of the responses to each prompt, in tokens; the longest start first. Empty: in order.
            done: prompts and places in the group that need no response.

        Raises:
            RunStopped: an engine dies again and again.
        """
        self._round += 1
        requests = requests_for(prompts, samples_per_prompt, seed, done)
        queue = SampleQueue(self._store, f"round-{self._round}", longest_first(requests, expected_lengths))
        capacity = -(-len(requests) // self.num_engines)
        if self.num_engines > 1:  # a lone engine takes everything: then what it batches does not depend on timing
            capacity = min(capacity, _hand_size(self._config.max_num_seqs))
        part = Round(self._engine, self._index, self.num_engines, queue, requests, sampling, capacity, on_count)
        should_stop = lambda: may_stop and is_requested()  # noqa: E731
        while True:
            self._work(part, on_sample, should_stop)
            is_over = any_rank(should_stop() or part.is_finished)
            part.hold_meeting()
            if not any_rank(should_stop()):
                self._bring_weights()
            if is_over:
                return

    def _work(self, part: Round, on_sample: OnSample, should_stop: Callable[[], bool]) -> None:
        """Until all ranks are to meet."""
        while not part.is_meeting_due():
            try:
                ended = part.advance()
                for sample in ended:
                    on_sample(sample)
                part.finish(len(ended))
            except EngineDied as error:
                if not should_stop():  # SIGTERM, which Slurm sends to all processes of a job, ends an engine too
                    lost = part.give_back()
                    self._restart(f"{error}; {lost} samples go back to the queue")
                    part.call_meeting()
            if should_stop():
                part.call_meeting()

    def take_recoveries(self) -> tuple[int, float]:
        """Since the last call: how often this rank's engine died, and seconds until a new one had weights, in all."""
        taken, self._recoveries = self._recoveries, []
        return len(taken), sum(taken)

    def close(self) -> None:
        """End the engines."""
        if self._engine is not None:
            self._engine.close()

    def _bring_weights(self) -> None:
        """Send the policy's weights until every engine has them, whatever happens to it meanwhile."""
        engine = self._engine
        while any_rank(self._lacks_weights):
            if engine is not None and self._lacks_weights and not engine.is_alive:
                self._restart(f"vLLM {engine.name} has ended")
            self._sender.is_sender = self._lacks_weights
            with deadline(self._config.timeout_minutes * 60, f"rank {self._parallel.rank}: weight sync"):
                self._sender.send_weights()
            self._lacks_weights = engine is not None and self._lacks_weights and not engine.is_alive
        if self._died_at is not None:
            seconds, self._died_at = time.monotonic() - self._died_at, None
            self._recoveries.append(seconds)
            self._say(f"a new engine is at work after {seconds:.1f} s")

    def _restart(self, reason: str) -> None:
        """A new engine in place of one that died, its weights yet to come.

        Raises:
            RunStopped: it has died too often since the last sync.
        """
        assert self._engine is not None
        self._died_at = self._died_at or time.monotonic()
        self._restarts_of_version += 1
        if self._restarts_of_version > self._config.max_engine_restarts:
            raise RunStopped(
                f"rank {self._parallel.rank}: {reason}. That was death {self._restarts_of_version} within a step, "
                f"above generation.max_engine_restarts={self._config.max_engine_restarts}; the engine's own log tells "
                "why (often memory: lower generation.gpu_memory_utilization or max_num_seqs)"
            )
        self._say(f"{reason}; starting a new one")
        try:
            self._engine.restart()
        except EngineDied as error:
            self._restart(str(error))
        self._lacks_weights = self._export is not None

    def _say(self, what: str) -> None:
        print(f"megatron-rl: rank {self._parallel.rank}: {what}", file=sys.stderr, flush=True)

    def _start(self, folder: Path, precision: Precision, max_model_len: int) -> None:
        from megatron_rl.rollout.engine import Engine

        self._engine = Engine(
            folder,
            self._config,
            precision,
            self._parallel.device,
            max_model_len,
            self._index,
            self.num_engines,
            load_weights=self._export is None,
        )

    def _connect(self) -> None:
        self._sender: Any = None
        if self._export is not None:
            from megatron_rl.rollout.weight_sync import connect

            bucket_bytes = self._config.sync_bucket_mib << 20
            self._sender = connect(self._engine, self._export, self._parallel, bucket_bytes, self._config.fp8)


def _hand_size(max_num_seqs: int) -> int:
    """Samples that one of several engines is given at a time: a few wait in it, each for a place that gets free, which
    the next one from the queue would reach some steps late."""
    return max_num_seqs + max(1, max_num_seqs // 4)


def longest_first(requests: Sequence[SampleRequest], expected_lengths: Sequence[float]) -> list[int]:
    """Numbers of the requests, those of the prompts with the longest expected responses first."""
    if not expected_lengths:
        return list(range(len(requests)))
    return sorted(range(len(requests)), key=lambda number: -expected_lengths[requests[number].prompt_index])
