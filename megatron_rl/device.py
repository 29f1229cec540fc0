"""The only file that knows CPU from CUDA.

Megatron-Core names its device literally (`device="cuda"`, `torch.cuda.current_device()`, `tensor.cuda()`,
`torch.cuda.FloatTensor`). On a machine without a GPU `setup_device` maps these names to the CPU, once per process;
on CUDA it patches nothing of this. This is the only place that patches another library; the others of its patches are
`bind_stores` and `keep_write_results`. What it registers with vLLM, by vLLM's own means, is in `bind_activation`.
"""

import importlib
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from queue import SimpleQueue
from typing import Any

import psutil
import torch
from torch.overrides import TorchFunctionMode

from megatron_rl.config.schema import Device, FP8Recipe, GenerationConfig
from megatron_rl.errors import InputError
from megatron_rl.sockets import LOOPBACK, is_loopback, tcp_store

_FP8_CAPABILITY = {
    FP8Recipe.DELAYED: (8, 9),
    FP8Recipe.TENSORWISE: (8, 9),
    FP8Recipe.BLOCKWISE: (9, 0),
    FP8Recipe.MXFP8: (10, 0),
}
"""The least compute capability that Transformer Engine wants for each."""
_NO_MXFP8 = (12, 0)
"""From this one on it refuses MXFP8 again."""
_BLOCKWISE_CUDA = (12, 9)
_ROW_MULTIPLE = 8
"""vLLM's CPU activation wants rows of a multiple of so many elements."""
_INSTALL_TRANSFORMER_ENGINE = "pip install 'transformer-engine[pytorch]>=2.20,<2.21'"


@dataclass(frozen=True, slots=True)
class DeviceSetup:
    """What this process computes on."""

    type: str
    """`cpu` or `cuda`."""
    collective_backend: str
    """`gloo` or `nccl`."""
    transformer_engine: bool
    """Layers come from Transformer Engine rather than from Megatron's local spec."""
    weight_transfer: str
    """vLLM weight-transfer backend for an engine on the same node."""
    engine_sleeps: bool
    """Engine and policy share the accelerator's memory: while the policy trains the engine gives its part back."""

    @property
    def torch_device(self) -> torch.device:
        """Where this rank's tensors live."""
        return torch.device("cpu") if self.type == "cpu" else torch.device("cuda", torch.cuda.current_device())


def resolve_device(requested: Device) -> str:
    """`cpu` or `cuda`; `auto` takes CUDA where there is a GPU.

    Raises:
        InputError: CUDA was asked for on a machine without a GPU.
    """
    available = torch.cuda.is_available()
    if requested is Device.CUDA and not available:
        raise InputError("cluster.device=cuda but torch sees no GPU; set cluster.device=auto, or check the driver")
    return "cuda" if available and requested is not Device.CPU else "cpu"


def setup_device(requested: Device, local_rank: int) -> DeviceSetup:
    """Bind this process to its device; call once, before Megatron-Core is used.

    Raises:
        InputError: as `resolve_device`; there is a GPU to train on, but no Transformer Engine.
    """
    if resolve_device(requested) == "cuda":
        if find_spec("transformer_engine") is None:
            raise InputError(
                f"training on a GPU needs Transformer Engine: {_INSTALL_TRANSFORMER_ENGINE}, or set cluster.device=cpu"
            )
        torch.cuda.set_device(local_rank)
        return DeviceSetup("cuda", "nccl", transformer_engine=True, weight_transfer="ipc", engine_sleeps=True)
    _name_cpu_cuda()
    return DeviceSetup("cpu", "gloo", transformer_engine=False, weight_transfer="shm", engine_sleeps=False)


def bind_stores() -> None:
    """Have `init_process_group` serve its store at MASTER_ADDR's own address and, where that is of this machine only,
    Gloo at that too: torch has no setting for it. Called before it, and again without effect."""
    module: Any = importlib.import_module("torch.distributed.rendezvous")  # under its name there is a function, too
    module.TCPStore = tcp_store
    if is_loopback(os.environ.get("MASTER_ADDR", LOOPBACK)):
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")


def bind_activation() -> None:
    """Have vLLM compute SwiGLU without a GPU by its own kernel, a row at a time. It would by torch's, which gives every
    thread an equal share of all elements, and rounds the last ones of a share differently: a sample's log-probs would
    depend on where in a batch it is. Called in an engine's processes, and again without effect."""
    from vllm.model_executor.custom_op import op_registry_oot
    from vllm.model_executor.layers.activation import SiluAndMul
    from vllm.platforms import current_platform

    if not current_platform.is_cpu() or SiluAndMul.__name__ in op_registry_oot:
        return

    @SiluAndMul.register_oot(name=SiluAndMul.__name__)
    class RowwiseSiluAndMul(SiluAndMul):
        def __init__(self, *, compile_native: bool = True) -> None:
            super().__init__(compile_native=compile_native)
            self.op = torch.ops._C.silu_and_mul

        def forward_cpu(self, x: torch.Tensor) -> torch.Tensor:
            is_vectorized = x.shape[-1] % (2 * _ROW_MULTIPLE) == 0
            return self.forward_cuda(x) if is_vectorized else self.forward_native(x)


def keep_write_results() -> None:
    """Have what Megatron notes of a checkpoint's files stay in the process that wrote them, in place of a process that
    Megatron would start to serve a queue, and that would live on where a rank is killed."""
    from megatron.core.dist_checkpointing.strategies import filesystem_async

    filesystem_async._results_queue = SimpleQueue()


def check_fp8(recipe: FP8Recipe, device: DeviceSetup) -> None:
    """Refuse FP8 products that this machine cannot make.

    Raises:
        InputError: names what is missing.
    """
    missing: str | None = "Transformer Engine on a GPU"
    if device.transformer_engine:
        missing = missing_for_fp8(recipe, torch.cuda.get_device_capability(), torch.version.cuda or "0")
    if missing is not None:
        raise InputError(f"policy.fp8.recipe={recipe} needs {missing}; set another recipe, or policy.fp8=null")


def missing_for_fp8(recipe: FP8Recipe, capability: tuple[int, int], cuda: str) -> str | None:
    """What Transformer Engine wants for a recipe and a GPU of this compute capability, or this CUDA, lacks."""
    least = _FP8_CAPABILITY[recipe]
    if capability < least:
        return f"a GPU of compute capability {_dotted(least)}; this one has {_dotted(capability)}"
    if recipe is FP8Recipe.MXFP8 and capability >= _NO_MXFP8:
        return f"a GPU of a compute capability below {_dotted(_NO_MXFP8)}; this one has {_dotted(capability)}"
    if recipe is FP8Recipe.BLOCKWISE and tuple(map(int, cuda.split("."))) < _BLOCKWISE_CUDA:
        return f"CUDA {_dotted(_BLOCKWISE_CUDA)}; torch was built with {cuda}"
    return None


def _dotted(version: tuple[int, int]) -> str:
    return f"{version[0]}.{version[1]}"


def engine_environment(device: DeviceSetup, cpus: Sequence[int], tensor_parallel_size: int) -> dict[str, str]:
    """Environment variables of a vLLM engine: on CUDA it has the GPUs from its leading rank's on, one per worker;
    without a GPU its workers share the cores `cpus` evenly."""
    common = {"VLLM_WORKER_MULTIPROCESSING_METHOD": "spawn", "VLLM_NO_USAGE_STATS": "1"}
    common |= {"VLLM_HOST_IP": LOOPBACK, "GLOO_SOCKET_IFNAME": "lo"}  # an engine's workers are all of this machine
    if device.type == "cuda":
        first = int(os.environ.get("LOCAL_RANK", "0"))
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        of_node = visible.split(",") if visible else [str(gpu) for gpu in range(first + tensor_parallel_size)]
        return common | {"CUDA_VISIBLE_DEVICES": ",".join(of_node[first : first + tensor_parallel_size])}
    # Where a sample's attention is cut, and so its rounding, would depend on what is generated beside it.
    common |= {"VLLM_CPU_ATTN_SPLIT_KV": "0"}
    if tensor_parallel_size == 1:
        return common | {"OMP_NUM_THREADS": str(len(cpus))}
    shares = [cpus[worker::tensor_parallel_size] or cpus for worker in range(tensor_parallel_size)]
    return common | {"VLLM_CPU_OMP_THREADS_BIND": "|".join(",".join(map(str, share)) for share in shares)}


def engine_arguments(device: DeviceSetup, config: GenerationConfig, max_model_len: int) -> dict[str, Any]:
    """vLLM engine arguments that differ between the devices."""
    if device.type == "cuda":
        return {"enable_sleep_mode": True}
    from vllm.v1.executor.uniproc_executor import UniProcExecutor

    return {
        "kv_cache_memory_bytes": config.cpu_kv_cache_gib << 30,
        # vLLM rewinds a sample's generator after a partial prefill, which CPU generators cannot do: no partial ones.
        "enable_chunked_prefill": False,
        "max_num_batched_tokens": max(8192, max_model_len),
        # A lone worker computes in the engine's process. In one of its own, vLLM's choice, the engine would wait for it
        # in a busy loop, on a core that the worker computes with.
        "distributed_executor_backend": UniProcExecutor if config.tensor_parallel_size == 1 else "mp",
    }


def used_memory_gib(device: DeviceSetup) -> float:
    """GiB in use: of this rank's GPU by whatever process; without a GPU by this process and all that it started, where
    what several share (libraries, the buffer of a weight sync) counts as much as with the one that has most of it."""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info()
        return float(total - free) / (1 << 30)
    own, shared = 0, [0]
    for process in (psutil.Process(), *psutil.Process().children(recursive=True)):
        with suppress(psutil.Error):
            found = process.memory_info()
            own += found.rss - found.shared
            shared.append(found.shared)
    return float(own + max(shared)) / (1 << 30)


def available_cpus() -> list[int]:
    """Cores that this process may run on."""
    return sorted(os.sched_getaffinity(0))


class _CpuForCuda(TorchFunctionMode):
    """Redirects every CUDA device argument to the CPU, and answers Megatron's checks of CUDA tensor types."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.Tensor.cuda:
            return args[0]
        if func is torch.Tensor.type and len(args) == 1 and not kwargs:
            return func(*args).replace("torch.", "torch.cuda.")
        if func is torch.Tensor.to:
            args = tuple("cpu" if _is_cuda(argument) else argument for argument in args)
        if _is_cuda(kwargs.get("device")):
            kwargs["device"] = "cpu"
            kwargs.pop("pin_memory", None)
        return func(*args, **kwargs)


class _CpuStream:
    """A CUDA stream, and an event of it, where everything is done when the call returns."""

    def wait_stream(self, stream: object) -> None: ...

    def record_event(self) -> "_CpuStream":
        return self

    def synchronize(self) -> None: ...


def _is_cuda(device: object) -> bool:
    return (isinstance(device, str) and device.startswith("cuda")) or (
        isinstance(device, torch.device) and device.type == "cuda"
    )


@cache
def _name_cpu_cuda() -> None:
    """Make `torch.cuda`'s device and random-state calls mean the CPU, for this process."""
    replacements: dict[str, Callable[..., Any]] = {
        "current_device": lambda: "cpu",
        "synchronize": lambda device=None: None,
        "empty_cache": lambda: None,
        "manual_seed": torch.manual_seed,
        "get_rng_state": lambda device=None: torch.get_rng_state(),
        "set_rng_state": lambda state, device=None: torch.set_rng_state(state),
        "current_stream": lambda device=None: None,
        "Stream": _CpuStream,
    }
    for name, replacement in replacements.items():
        setattr(torch.cuda, name, replacement)
    _CpuForCuda().__enter__()

    import megatron.core.tensor_parallel.random as megatron_random
    import megatron.core.transformer.moe.moe_utils as megatron_moe

    megatron_moe.te_general_gemm = None  # the router asks for it, and only Transformer Engine's presence defines it
    megatron_random._get_cuda_rng_state = lambda device="cuda", clone=False, graph_safe=False: torch.get_rng_state()
    megatron_random._set_cuda_rng_state = lambda state, device=-1, graph_safe=False: torch.set_rng_state(state)
