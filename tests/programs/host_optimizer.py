"""The optimizer in the host's memory (Megatron's HybridDeviceOptimizer), with a pretended GPU whose memory it leaves.

Tensors count as the GPU's until `.cpu()` makes a copy; what is computed from such copies alone is the host's.
Arguments: `model`, `ranks`. Rank 0's result: the metrics of every run by its name, what a run left in the GPU's memory,
and how many of an optimizer's parameters were parts of the weights before they were out of the way and are no more.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from megatron.core.optimizer import optimizer_config
from ranks import read_arguments, write_result
from saving import save_checkpoint
from tiny import step_sequences, train_config
from torch.overrides import TorchFunctionMode

from megatron_rl.algorithms.losses import sft_loss
from megatron_rl.checkpoint.reader import resume
from megatron_rl.device import DeviceSetup
from megatron_rl.parallel import Parallel, setup_parallel
from megatron_rl.policy import policy as policy_module
from megatron_rl.policy.model import Architecture
from megatron_rl.policy.policy import Policy
from megatron_rl.run_folder import RunFolder

GPU = DeviceSetup("cuda", "nccl", transformer_engine=True, weight_transfer="ipc", engine_sleeps=True)
STEPS, SAVED_STEP = 6, 3


class PretendedGPU(TorchFunctionMode):
    """Says of every tensor which memory it is in, and copies between the two."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        kwargs.pop("pin_memory", None)
        if func == torch.Tensor.is_cuda.__get__:
            return not is_hosts(args[0])
        if func in (torch.Tensor.cuda, torch.Tensor.cpu) or (func is torch.Tensor.to and args[1:] in MEMORIES):
            to_host = func is torch.Tensor.cpu or args[1:] == ("cpu",)
            return args[0] if is_hosts(args[0]) == to_host else marked(func(args[0]).clone(), to_host)
        if func is torch.Tensor.pin_memory:
            return args[0]
        if func == torch.Tensor.data.__set__:
            args[0].is_hosts = is_hosts(args[1])
        found = func(*args, **kwargs)
        tensors = [argument for argument in args if isinstance(argument, torch.Tensor)]
        hosts = all(map(is_hosts, tensors)) if tensors else str(kwargs.get("device")) == "cpu"
        return marked(found, hosts) if isinstance(found, torch.Tensor) else found


MEMORIES = (("cpu",), ("cuda",))


class Stream:
    """Of a GPU on which everything is done when the call returns; and an event of it."""

    def wait_stream(self, stream: "Stream") -> None: ...

    def record_event(self) -> "Stream":
        return self

    def synchronize(self) -> None: ...

    def wait(self, stream: "Stream") -> None: ...


def is_hosts(tensor: torch.Tensor) -> bool:
    return getattr(tensor, "is_hosts", False)


def marked(tensor: torch.Tensor, hosts: bool) -> torch.Tensor:
    tensor.is_hosts = hosts  # type: ignore[attr-defined]
    return tensor


class Runs:
    """Policies with the optimizer in either memory, and runs of them."""

    def __init__(self, model: str, ranks: int, folder: Path) -> None:
        self.model, self.folder = model, folder
        self.parallel: Parallel = setup_parallel(train_config(model, cluster__gpus_per_node=ranks))

    def policy(self, on_host: bool, precision: str = "bf16") -> Policy:
        changes = {"policy__precision": precision, "policy__optimizer__optimizer_cpu_offload": on_host}
        config = train_config(self.model, **changes).policy
        return Policy(config, Architecture.of_folder(Path(self.model), config), self.parallel)

    def run(self, policy: Policy, name: str, start: int = 0) -> list[dict[str, float]]:
        """Steps from `start` on; where that is the first, with a checkpoint."""
        metrics = []
        for step in range(start, STEPS):
            policy.offload()
            metrics.append(policy.train_step(step_sequences(step, sft=True), sft_loss))
            if step + 1 == SAVED_STEP and not start:
                save_checkpoint(RunFolder(self.folder / name), policy, self.parallel, SAVED_STEP, Path(self.model))
        return metrics

    def resumed(self, run: str, on_host: bool) -> tuple[Policy, list[dict[str, float]]]:
        policy = self.policy(on_host)
        start = resume(RunFolder(self.folder / run), policy)
        return policy, self.run(policy, "", start)


def left_on_gpu(policy: Policy) -> list[str]:
    """Names of the optimizer's tensors that are not in the host's memory, or hold more of it than they need."""
    (inner,) = policy.optimizer.chained_optimizers
    found = set()
    for values in inner.optimizer.state.values():
        for name, value in values.items():
            if name != "step" and (not is_hosts(value) or value.untyped_storage().nbytes() > value.nbytes):
                found.add(name)
    return sorted(found)


def parts_of_weights(policy: Policy) -> int:
    """How many of the optimizer's parameters lie in the weights' memory."""
    weights = {weight.untyped_storage().data_ptr() for chunk in policy.chunks for weight in chunk.parameters()}
    parameters = [parameter for group in policy.optimizer.param_groups for parameter in group["params"]]
    return sum(parameter.untyped_storage().data_ptr() in weights for parameter in parameters)


def main() -> None:
    arguments, folder = read_arguments()
    runs = Runs(arguments["model"], arguments["ranks"], folder)
    torch.cuda.current_stream = lambda device=None: Stream()
    torch.cuda.current_device = lambda: "cuda"
    optimizer_config.is_te_min_version = lambda version: True
    make = policy_module.make_optimizer
    policy_module.make_optimizer = lambda config, chunks, device: make(config, chunks, GPU)
    metrics, left = {}, {}
    with PretendedGPU():
        for name, on_host in (("gpu", False), ("host", True)):
            policy = runs.policy(on_host)
            policy.load_hf(Path(runs.model))
            metrics[name] = runs.run(policy, name)
            left[name] = left_on_gpu(policy)
        for run, on_host in (("host", True), ("host", False), ("gpu", True), ("gpu", False)):
            name = f"{run}, resumed on {'host' if on_host else 'gpu'}"
            policy, metrics[name] = runs.resumed(run, on_host)
            left[name] = left_on_gpu(policy)
        policy = runs.policy(on_host=False, precision="fp32")
        parts = [parts_of_weights(policy)]
        policy.offload()
        policy.train_step(step_sequences(0, sft=True), sft_loss)
        parts.append(parts_of_weights(policy))
    if runs.parallel.is_main:
        write_result(folder, {"metrics": metrics, "left": left, "parts": parts})
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
