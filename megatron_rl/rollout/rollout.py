"""The job's engines as one: weights in, prompts out of one queue, samples as they end."""

import os
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from converters.model import HFExport
from megatron_rl.config.schema import GenerationConfig, Precision
from megatron_rl.errors import EngineDied
from megatron_rl.parallel import Parallel, broadcast_object
from megatron_rl.preemption import is_requested
from megatron_rl.processes import deadline
from megatron_rl.rollout.samples import Sample, SampleRequest, Sampling

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
        self._config, self._parallel, self._export = config, parallel, export
        self.num_engines = config.num_engines or max(1, parallel.world_size // config.tensor_parallel_size)
        stride = parallel.world_size // self.num_engines
        self.leads = parallel.rank % stride == 0 and parallel.rank // stride < self.num_engines
        self._engine: Engine | None = None
        self._store = _shared_store(parallel)
        self._round = 0
        self._asleep = False
        if self.leads:
            self._start(folder, precision, max_model_len, parallel.rank // stride)
        self._connect()

    def sleep(self) -> None:
        """Leave the accelerator's memory to the policy until the next sync, where the two share it."""
        if self._parallel.device.engine_sleeps:
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
        """Give every engine the policy's current weights; samples from now on carry `version`."""
        assert self._sender is not None
        self._wake()
        with deadline(self._timeout, f"rank {self._parallel.rank}: weight sync {version}"):
            if self._engine is not None:
                self._engine.version = version
            if self._parallel.device.weight_transfer == "shm":
                every = self._config.verify_sync
                self._sender.verify = every > 0 and version % every == 0
            self._sender.send_weights()

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        samples_per_prompt: int,
        sampling: Sampling,
        seed: str,
        on_sample: OnSample,
        may_stop: bool = False,
    ) -> None:
        """Generate `samples_per_prompt` responses to every prompt; each goes to `on_sample` of the rank whose engine
        made it, the moment it ends.

        Args:
            seed: every sample's own seed is derived from this, its prompt and its place in the group.
            may_stop: a request to stop ends this rank's share early.
        """
        self._round += 1
        engine = self._engine
        if engine is None:
            return
        more = True

        def fill() -> bool:
            while more and self._has_room():
                prompt = self._store.add(f"round-{self._round}", 1) - 1  # the one queue: a counter
                if prompt >= len(prompts):
                    return False
                for request in _requests(prompt, prompts[prompt], samples_per_prompt, seed):
                    engine.add(request, sampling)
            return more

        engine.hold()
        more = fill()
        engine.release()
        while engine.in_flight and not (may_stop and is_requested()):
            try:
                with deadline(self._timeout, f"rank {self._parallel.rank}: next output of vLLM {engine.name}"):
                    ended = list(engine.step())
            except EngineDied:
                if may_stop and is_requested():  # by SIGTERM, which Slurm sends to all processes of a job
                    return
                raise
            for sample in ended:
                on_sample(sample)
            more = fill()

    def close(self) -> None:
        """End the engines."""
        if self._engine is not None:
            self._engine.close()

    def _has_room(self) -> bool:
        # A lone engine takes everything at once: then what it batches together does not depend on timing.
        return self.num_engines == 1 or self._engine is None or self._engine.in_flight < self._config.max_num_seqs

    @property
    def _timeout(self) -> float:
        return self._config.timeout_minutes * 60

    def _start(self, folder: Path, precision: Precision, max_model_len: int, index: int) -> None:
        from megatron_rl.rollout.engine import Engine

        self._engine = Engine(
            folder,
            self._config,
            precision,
            self._parallel.device,
            max_model_len,
            index,
            self.num_engines,
            load_weights=self._export is None,
        )

    def _connect(self) -> None:
        self._sender: Any = None
        if self._export is not None:
            from megatron_rl.rollout.weight_sync import connect

            bucket_bytes = self._config.sync_bucket_mib << 20
            self._sender = connect(self._engine, self._export, self._parallel, bucket_bytes)


def _requests(prompt: int, tokens: Sequence[int], samples: int, seed: str) -> list[SampleRequest]:
    return [
        SampleRequest(prompt, i, tuple(tokens), random.Random(f"{seed}/{prompt}/{i}").getrandbits(31))
        for i in range(samples)
    ]


def _shared_store(parallel: Parallel) -> dist.TCPStore:
    """A key-value store of the job, served by rank 0."""
    host = os.environ.get("MASTER_ADDR", "127.0.0.1")
    store = dist.TCPStore(host, 0, is_master=True, wait_for_workers=False) if parallel.is_main else None
    port = broadcast_object(store.port if store is not None else None)
    return store or dist.TCPStore(host, port, is_master=False)
