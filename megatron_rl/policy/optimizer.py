"""Megatron's distributed optimizer: made, moved out of the accelerator's memory, saved and loaded."""

from collections.abc import Mapping
from typing import Any

from megatron.core.distributed import DistributedDataParallel
from megatron.core.optimizer import MegatronOptimizer, get_megatron_optimizer
from megatron.core.optimizer import OptimizerConfig as MegatronOptimizerConfig
from megatron.core.optimizer.cpu_offloading import HybridDeviceOptimizer
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler

from megatron_rl.config.schema import OptimizerConfig, PolicyConfig, Precision
from megatron_rl.device import DeviceSetup
from megatron_rl.errors import InputError
from megatron_rl.policy.model import torch_dtype
from megatron_rl.policy.optimizer_shards import sharded_optimizer_state

CHECKPOINT_METADATA = {"distrib_optim_sharding_type": "fully_reshardable"}


def make_optimizer(
    config: PolicyConfig, chunks: list[DistributedDataParallel], device: DeviceSetup
) -> MegatronOptimizer:
    """Of the wrapped chunks' weights.

    Raises:
        InputError: settings that need another machine.
    """
    settings = config.optimizer
    on_host = settings.optimizer_cpu_offload and device.type == "cuda"
    moments = {"exp_avg_dtype": settings.exp_avg_dtype, "exp_avg_sq_dtype": settings.exp_avg_sq_dtype}
    small = [key for key, precision in moments.items() if precision is Precision.BF16]
    if small and not device.transformer_engine:
        raise InputError(f"policy.optimizer.{small[0]}=bf16 needs Transformer Engine on a GPU; set it to fp32")
    return get_megatron_optimizer(
        MegatronOptimizerConfig(
            optimizer="adam",
            lr=settings.lr,
            min_lr=settings.lr,
            weight_decay=settings.weight_decay,
            adam_beta1=settings.adam_beta1,
            adam_beta2=settings.adam_beta2,
            adam_eps=settings.adam_eps,
            clip_grad=settings.clip_grad,
            bf16=config.precision is Precision.BF16,
            params_dtype=torch_dtype(config.precision),
            use_distributed_optimizer=True,
            optimizer_cpu_offload=on_host,
            optimizer_offload_fraction=1.0,
            # Megatron's word for main weights that the inner optimizer keeps. Whole ones: of the halves that it could
            # keep instead, Megatron makes checkpoints that it cannot load.
            use_precision_aware_optimizer=on_host or bool(small),
            store_param_remainders=False,
            **{key: torch_dtype(precision) for key, precision in moments.items()},
        ),
        chunks,
    )


def distributed_optimizer(optimizer: MegatronOptimizer) -> DistributedOptimizer:
    """The one optimizer of a dense model, out of Megatron's chain."""
    (inner,) = getattr(optimizer, "chained_optimizers", [optimizer])
    return inner


def offload_state(optimizer: DistributedOptimizer) -> None:
    """Move all but the weights to the host's memory, where an optimizer that steps there has it already.

    Megatron also moves, and so severs from the weights, parameters of the optimizer that are parts of them.
    """
    if isinstance(optimizer.optimizer, HybridDeviceOptimizer):
        return
    main_weights = {id(weight) for group in optimizer.shard_fp32_from_float16_groups for weight in group}
    parameters = [parameter for group in optimizer.optimizer.param_groups for parameter in group["params"]]
    parts = [(parameter, parameter.data) for parameter in parameters if id(parameter) not in main_weights]
    optimizer.offload_to_cpu()
    for parameter, part in parts:
        parameter.data = part


def restore_state(optimizer: DistributedOptimizer) -> None:
    """Bring back what `offload_state` moved."""
    if not isinstance(optimizer.optimizer, HybridDeviceOptimizer):
        optimizer.restore_from_cpu()


def sharded_state(optimizer: MegatronOptimizer, weights: Mapping[str, Any], is_loading: bool) -> dict[str, Any]:
    """For `megatron.core.dist_checkpointing`, reshardable over TP, PP and DP.

    Args:
        weights: the sharded state of the weights.
    """
    # Megatron describes what it saves, or is about to load, by the state it has; a new optimizer has none yet.
    inner = distributed_optimizer(optimizer)
    _make_first_moments(inner)
    if is_loading:
        state: dict[str, Any] = inner.sharded_state_dict(weights, is_loading=True, metadata=CHECKPOINT_METADATA)
    else:
        state = sharded_optimizer_state(inner, weights)
    _drop_classes(state["optimizer"]["param_groups"])
    return state


def _drop_classes(param_groups: list[dict[str, Any]]) -> None:
    """An optimizer in the host's memory notes the classes that it is made of, with which no checkpoint can be read."""
    for group in param_groups:
        for key in [key for key, value in group.items() if isinstance(value, type)]:
            del group[key]


def _make_first_moments(optimizer: DistributedOptimizer) -> None:
    """Those that an optimizer which has made no step starts from, and nothing else of a step."""
    inner = optimizer.optimizer
    if inner.state:
        return
    rates = [group["lr"] for group in inner.param_groups]
    for group in inner.param_groups:
        group["lr"] = 0.0
    optimizer._init_optimizer_states_with_dummy_values()
    for group, rate in zip(inner.param_groups, rates, strict=True):
        group["lr"] = rate
        for parameter in group["params"]:
            parameter.grad = None
    # The counter is the parameter's (torch) or the group's (Transformer Engine, apex).
    for values in inner.state.values():
        if "step" in values:
            values["step"].zero_()
    for group in inner.param_groups:
        if "step" in group:
            group["step"] = 0


def load_optimizer(optimizer: MegatronOptimizer, state: dict[str, Any]) -> None:
    """`optimizer.load_state_dict(state)`, done so that it also works with torch's Adam.

    That one keeps a step counter per parameter, for which Megatron's loading of the moments has no value (KeyError),
    and which it fills with one tensor shared by all parameters, counted up once for each of them in every later step.
    """
    inner = distributed_optimizer(optimizer)
    moments = state.pop("param_state")
    inner.load_state_dict(state)
    steps = {id(values): values.pop("step") for values in inner.optimizer.state.values() if "step" in values}
    inner.load_parameter_state_from_fully_reshardable(moments)
    for values in inner.optimizer.state.values():
        if id(values) in steps:
            values["step"] = steps[id(values)].clone()
    if isinstance(inner.optimizer, HybridDeviceOptimizer):
        # It has taken the loaded tensors as they are: this rank's parts, as views that keep the whole in memory.
        for values in inner.optimizer.state.values():
            values |= {name: value.clone() for name, value in values.items()}


def make_scheduler(config: OptimizerConfig, optimizer: MegatronOptimizer) -> OptimizerParamScheduler:
    """Of the learning rate: linear warm-up, then constant."""
    return OptimizerParamScheduler(
        optimizer,
        init_lr=0.0 if config.lr_warmup_steps else config.lr,
        max_lr=config.lr,
        min_lr=config.lr,
        lr_warmup_steps=config.lr_warmup_steps,
        lr_decay_steps=config.lr_warmup_steps + 1,
        lr_decay_style="constant",
        start_wd=config.weight_decay,
        end_wd=config.weight_decay,
        wd_incr_steps=0,
        wd_incr_style="constant",
    )
