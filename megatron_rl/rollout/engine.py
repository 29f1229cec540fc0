"""One vLLM engine: its own process, led by one Megatron rank."""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from vllm import SamplingParams
from vllm.config.weight_transfer import WeightTransferConfig
from vllm.engine.arg_utils import EngineArgs
from vllm.logprobs import FlatLogprobs
from vllm.outputs import RequestOutput
from vllm.sampling_params import RequestOutputKind
from vllm.v1.engine.core_client import SyncMPClient
from vllm.v1.engine.llm_engine import LLMEngine
from vllm.v1.executor.abstract import Executor

from converters.fp8 import fp8_config
from megatron_rl.config.schema import GenerationConfig, Precision
from megatron_rl.device import DeviceSetup, available_cpus, engine_arguments, engine_environment
from megatron_rl.errors import EngineDied
from megatron_rl.processes import deadline
from megatron_rl.rollout.samples import Sample, SampleRequest, Sampling
from megatron_rl.rollout.scheduler import hold_outputs
from megatron_rl.rollout.vllm_plugin import ENGINE_VARIABLE
from megatron_rl.rollout.watch import EngineWatch


class Engine:
    """A running vLLM engine, with random weights until the first sync unless it loads those of its folder.

    Args:
        folder: config and tokenizer of the model.
        max_model_len: prompt and response together, in tokens.
        engine_index: of this engine among the `num_engines` of this node.
    """

    def __init__(
        self,
        folder: Path,
        config: GenerationConfig,
        precision: Precision,
        device: DeviceSetup,
        max_model_len: int,
        engine_index: int,
        num_engines: int,
        load_weights: bool = False,
    ) -> None:
        self.name = f"engine {engine_index}"
        self.version = 0
        self._config, self._loads_weights = config, load_weights
        self._arguments = EngineArgs(
            model=str(folder),
            load_format="auto" if load_weights else "dummy",
            dtype="bfloat16" if precision is Precision.BF16 else "float32",
            tensor_parallel_size=config.tensor_parallel_size,
            max_model_len=max_model_len,
            max_num_seqs=config.max_num_seqs,
            gpu_memory_utilization=config.gpu_memory_utilization,
            enforce_eager=config.enforce_eager,
            enable_prefix_caching=True,
            logprobs_mode="processed_logprobs",
            weight_transfer_config=WeightTransferConfig(backend=device.weight_transfer),
            hf_overrides={"quantization_config": fp8_config()} if config.fp8 else {},
            seed=0,
            **engine_arguments(device, config, max_model_len),
        )
        cpus = available_cpus()[engine_index::num_engines] or available_cpus()
        self._sockets = TemporaryDirectory(prefix="vllm-", ignore_cleanup_errors=True)  # vLLM leaves theirs behind
        self._environment = engine_environment(device, cpus, config.tensor_parallel_size)
        self._environment |= {ENGINE_VARIABLE: "1", "VLLM_RPC_BASE_PATH": self._sockets.name}
        self._transfer: dict[str, Any] | None = None
        self._requests: dict[str, SampleRequest] = {}
        self._start()
        self._tokenizer = self._llm.get_tokenizer()

    def _start(self) -> None:
        timeout = self._config.timeout_minutes * 60
        with deadline(timeout, f"start of vLLM {self.name}"), _environment(self._environment):
            engine_config = hold_outputs(self._arguments.create_engine_config())
            self._llm = LLMEngine(
                engine_config, Executor.get_class(engine_config), log_stats=False, multiprocess_mode=True
            )
        client = self._llm.engine_core
        assert isinstance(client, SyncMPClient)
        self._watch = EngineWatch(client, self.name, self._config.engine_stall_seconds)
        if self._loads_weights:
            self._set_version()

    def restart(self) -> None:
        """A new process in place of one that has ended; like a new engine's, its weights are yet to come.

        Raises:
            EngineDied: it did not start.
        """
        self._requests.clear()
        try:
            self._start()
        except (RuntimeError, TimeoutError) as error:
            raise EngineDied(f"vLLM {self.name} did not start again: {error}") from error
        if self._transfer is not None:
            self.init_weight_transfer_engine(self._transfer)

    @property
    def is_alive(self) -> bool:
        """Its process has not ended, as far as is known."""
        return self._watch.is_alive

    @property
    def in_flight(self) -> list[SampleRequest]:
        """Requests taken and not yet finished."""
        return list(self._requests.values())

    def add(self, request: SampleRequest, sampling: Sampling) -> None:
        """Queue one sample in the engine.

        Raises:
            EngineDied: its process has ended; the request counts as taken.
        """
        identifier = f"{request.prompt_index}-{request.sample_index}"
        parameters = SamplingParams(
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            max_tokens=sampling.max_new_tokens,
            seed=request.seed,
            logprobs=0,
            flat_logprobs=True,
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        self._requests[identifier] = request
        with self._watch.call("queueing"):
            self._llm.add_request(identifier, {"prompt_token_ids": list(request.prompt_tokens)}, parameters)

    def step(self) -> list[Sample]:
        """Wait for the engine's next output; the samples that have ended.

        Raises:
            EngineDied: its process has ended.
        """
        with self._watch.call("generation"):
            outputs = self._llm.step()
        return [self._sample(output) for output in outputs if isinstance(output, RequestOutput) and output.finished]

    @contextmanager
    def held(self) -> Iterator[None]:
        """Start what is added only at the end, so that what runs together does not depend on timing.

        Raises:
            EngineDied: its process has ended.
        """
        with self._watch.call("queueing"):
            self._llm.sleep(level=0, mode="keep")
        yield
        with self._watch.call("queueing"):
            self._llm.wake_up(tags=["scheduling"])

    def _sample(self, output: RequestOutput) -> Sample:
        completion = output.outputs[0]
        tokens = tuple(completion.token_ids)
        assert isinstance(completion.logprobs, FlatLogprobs)
        assert tuple(completion.logprobs.token_ids) == tokens  # at each place that of the sampled token alone
        assert completion.weight_versions is not None
        (version,) = completion.weight_versions  # one sync is complete before the next request: never two versions
        return Sample(
            request=self._requests.pop(output.request_id),
            length=len(tokens),
            tokens=tokens,
            log_probs=tuple(completion.logprobs.logprobs),
            text=self._tokenizer.decode(tokens, skip_special_tokens=True),
            truncated=completion.finish_reason == "length",
            policy_version=int(version.version),
        )

    def sleep(self) -> None:
        """Give the accelerator's memory to the trainer; the weights are discarded, the next sync brings them anew.

        To an engine that has ended this, like `wake` and the calls of a sync, does nothing: `is_alive` tells.
        """
        self._tell("sleep", lambda: self._llm.sleep(level=2))

    def wake(self) -> None:
        """Take the memory back; call before a sync."""
        self._tell("wake-up", self._llm.wake_up)

    def close(self) -> None:
        """End the engine's process."""
        self._llm.engine_core.shutdown()
        self._sockets.cleanup()

    # The four calls of vLLM's weight-sync protocol (`VLLMWeightSyncClient`), with a version for every sync. They return
    # when the engine has died, so that the ranks that take part in a sync come to its end together.

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        self._transfer = init_info
        self._call_workers("init_weight_transfer_engine", init_info=init_info)

    def start_weight_update(self) -> None:
        assert not (self._requests and self.is_alive)  # what is held back of them would carry the new version
        self._call_workers("start_weight_update")

    def update_weights(self, update_info: dict[str, Any] | list[dict[str, Any]]) -> None:
        self._call_workers("update_weights", update_info=update_info)

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        self._call_workers("finish_weight_update")
        self._set_version()
        # Cached keys and values are those of the old weights.
        self._tell("weight sync", self._llm.reset_prefix_cache)

    def _set_version(self) -> None:
        self._tell("weight sync", lambda: self._llm.set_weight_version(str(self.version)))

    def _call_workers(self, method: str, **arguments: Any) -> None:
        self._tell("weight sync", lambda: self._llm.collective_rpc(method, kwargs=arguments))

    def _tell(self, phase: str, call: Callable[[], Any]) -> None:
        with suppress(EngineDied), self._watch.call(phase):
            call()


class _environment:
    """Sets environment variables while the engine's process is started, which inherits them."""

    def __init__(self, variables: Mapping[str, str]) -> None:
        self._variables = variables

    def __enter__(self) -> None:
        self._before = dict(os.environ)
        # The engine has its own number of threads; ours is bound to the trainer's share of the cores.
        os.environ.pop("OMP_NUM_THREADS", None)
        os.environ.update(self._variables)

    def __exit__(self, *_: object) -> None:
        os.environ.clear()
        os.environ.update(self._before)
