"""Counts what each kind of rank holds on the true Megatron model: built on torch's `meta` device, which holds no data,
in a job whose other ranks are only named (torch's `fake` process group). No GPU is touched."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from torch.overrides import TorchFunctionMode
from torch.testing._internal.distributed.fake_pg import FakeStore

from megatron_rl.config.schema import PolicyConfig
from megatron_rl.device import DeviceSetup
from megatron_rl.parallel import Parallel, leave_parallel
from megatron_rl.plan.shards import Shard
from megatron_rl.policy.model import Architecture, build_model


class _Meta(DeviceSetup):
    """A device of which tensors have sizes and nothing else."""

    @property
    def torch_device(self) -> torch.device:
        return torch.device("meta")


class _StayMeta(TorchFunctionMode):
    """`tensor.cuda()` does nothing: Megatron calls it on a tied output layer."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        return args[0] if func is torch.Tensor.cuda else func(*args, **(kwargs or {}))


_META = _Meta("cpu", "fake", transformer_engine=False, weight_transfer="none", engine_sleeps=False)


def count_shards(policy: PolicyConfig, architecture: Architecture) -> list[Shard]:
    """The first rank of every pipeline stage; the stage's other ranks hold as much.

    Must run where no process group is: it makes and destroys its own.
    """
    # What has no influence on the parameters is left out: context parallelism, recomputation, FP8 products, and which
    # of the layers, all alike, an interleaved stage has.
    plain = replace(
        policy,
        virtual_pipeline_model_parallel_size=None,
        context_parallel_size=1,
        recompute_granularity=None,
        fp8=None,
    )
    return [_count(plain, architecture, stage) for stage in range(policy.pipeline_model_parallel_size)]


def _count(policy: PolicyConfig, architecture: Architecture, stage: int) -> Shard:
    with _rank_alone(policy, stage) as parallel, torch.device("meta"), _StayMeta():
        (model,) = build_model(policy, architecture, parallel, temperature=1.0)
    parameters = list(model.parameters())
    sharded = [p for p in parameters if getattr(p, "tensor_model_parallel", False)]
    tied_copy = [p for p in sharded if getattr(p, "shared_embedding", False) and stage > 0]
    total, cut = (sum(p.numel() for p in group) for group in (parameters, sharded))
    return Shard(
        stage=stage,
        layers=len(model.decoder.layers),
        sharded=cut,
        replicated=total - cut,
        tied_copy=sum(p.numel() for p in tied_copy),
        weight_bytes=sum(p.numel() * p.element_size() for p in parameters),
    )


@contextmanager
def _rank_alone(policy: PolicyConfig, stage: int) -> Iterator[Parallel]:
    """The first rank of `stage` in a job of one model copy."""
    tp, pp = policy.tensor_model_parallel_size, policy.pipeline_model_parallel_size
    dist.init_process_group("fake", store=FakeStore(), rank=stage * tp, world_size=tp * pp)
    try:
        parallel_state.initialize_model_parallel(tp, pp, create_gloo_process_groups=False)
        yield Parallel(
            rank=stage * tp,
            world_size=tp * pp,
            tp=tp,
            tp_rank=0,
            pp=pp,
            pp_rank=stage,
            dp=1,
            dp_rank=0,
            device=_META,
        )
    finally:
        leave_parallel()
