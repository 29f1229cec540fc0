"""The trained model: packed batches through Megatron's pipeline schedules, one optimizer step per batch."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig, finalize_model_grads
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.pipeline_parallel import get_forward_backward_func
from megatron.core.transformer.module import Float16Module
from torch import Tensor

from converters.hf_folder import HFReader
from converters.model import HFExport, load_hf
from megatron_rl.algorithms.losses import TokenLoss
from megatron_rl.config.schema import FP8Recipe, PolicyConfig, Precision
from megatron_rl.device import check_fp8
from megatron_rl.parallel import Parallel
from megatron_rl.policy.batch import MicroBatch, Share, TrainSequence, batch_metrics, micro_batches
from megatron_rl.policy.flops import forward_flops
from megatron_rl.policy.model import (
    Architecture,
    PolicyModel,
    build_model,
    load_weights,
    model_groups,
    sharded_weights,
)
from megatron_rl.policy.optimizer import (
    CHECKPOINT_METADATA,
    distributed_optimizer,
    load_optimizer,
    make_optimizer,
    make_scheduler,
    offload_state,
    restore_state,
    sharded_state,
)
from megatron_rl.policy.packing import PACKING_METRICS
from megatron_rl.pulse import tick

_FP8_MULTIPLE = 128
"""Tokens of one rank's matrix products come in multiples of a scaling block (Transformer Engine)."""

StepCheck = Callable[[Mapping[str, float]], None]
"""Looks at the metrics of an update before it is made; an exception forbids it."""


class Policy:
    """This rank's part of the policy and its optimizer.

    Args:
        temperature: log-probs are those of the distribution sampled at this temperature: GRPO scores samples under the
            very distribution they were drawn from, SFT imitates at 1.

    Raises:
        InputError: settings that need another machine.
    """

    def __init__(
        self, config: PolicyConfig, architecture: Architecture, parallel: Parallel, temperature: float = 1.0
    ) -> None:
        self.config, self.architecture, self.parallel = config, architecture, parallel
        if config.fp8 is not None:
            check_fp8(config.fp8.recipe, parallel.device)
        self.chunks = build_model(config, architecture, parallel, temperature)
        self._wrapped = _wrap(self.chunks, config, parallel)
        self.optimizer = make_optimizer(config, self._wrapped, parallel.device)
        self._scheduler = make_scheduler(config.optimizer, self.optimizer)
        self._is_offloaded = False
        self._reference: list[Tensor] = []
        self._share, self._cost = _share(config, parallel), forward_flops(architecture.shape)
        shared = self.chunks[0].config
        shared.finalize_model_grads_func = _finalize_without_rescaling
        shared.no_sync_func = self._no_sync
        shared.grad_scale_func = self.optimizer.scale_loss

    def load_hf(self, folder: Path) -> None:
        """Start from the weights of a Hugging Face folder; ValueError as `converters.model.load_hf`."""
        load_hf(HFReader(folder), self.chunks, self.architecture.family, self.architecture.shape)
        self.optimizer.reload_model_params()

    def export(self) -> HFExport:
        """The current weights as Hugging Face tensors; all ranks of the model iterate it in step."""
        return HFExport(self.chunks, self.architecture.family, self.architecture.shape, model_groups())

    @property
    def temperature(self) -> float:
        """Of the distribution whose log-probs the policy gives."""
        return self.chunks[0].temperature

    @temperature.setter
    def temperature(self, value: float) -> None:
        for chunk in self.chunks:
            chunk.temperature = value

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        return self.chunks[0].config.params_dtype

    @property
    def inner_optimizer(self) -> torch.optim.Optimizer:
        """What Megatron's distributed optimizer steps with."""
        return distributed_optimizer(self.optimizer).optimizer

    def train_step(
        self, sequences: Sequence[TrainSequence], loss: TokenLoss, check: StepCheck | None = None
    ) -> dict[str, float]:
        """One optimizer step on all of `sequences`, the same list on every rank.

        Args:
            check: called with the loss, its metrics and the gradient norm between backward pass and optimizer step.
                What it raises, on every rank, leaves policy, optimizer and learning rate as they were.

        Returns:
            `loss`, `grad_norm`, `lr`, the loss's metrics as means per response token, and `PACKING_METRICS`; equal on
            every rank.
        """
        self._bring_back()
        for chunk in self._wrapped:
            chunk.train()
            chunk.zero_grad_buffer()
        self.optimizer.zero_grad()
        sums = self._run(self._micro_batches(sequences), loss)
        tokens = max(sums.pop("tokens"), 1.0)
        metrics = {"loss": sums.pop("loss")} | {name: value / tokens for name, value in sums.items()}
        metrics |= batch_metrics(sequences, self._share, self.config.micro_batch_tokens, self._cost)
        # Megatron's `optimizer.step()` in its parts: the norm is known before the step.
        self.optimizer.prepare_grads()
        metrics["grad_norm"] = self._clip_grads()
        if check is not None:
            try:
                check(metrics)
            except Exception:
                self.optimizer.zero_grad()  # a checkpoint before the first step makes moments of what it finds
                raise
        lr = self.optimizer.param_groups[0]["lr"]
        self.optimizer.step_with_ready_grads()
        self._scheduler.step(increment=1)
        return metrics | {"lr": lr}

    def _clip_grads(self) -> float:
        """The norm of the gradients, which are clipped to `clip_grad`; 0 leaves them as they are."""
        optimizer, limit = distributed_optimizer(self.optimizer), self.config.optimizer.clip_grad
        return float(optimizer.clip_grad_norm(limit) if limit > 0 else optimizer.get_grad_norm())

    def offload(self) -> None:
        """Leave the accelerator's memory to others, but for the weights, until the next training step: gradients are
        freed, the optimizer's state goes to the host's memory. Checkpoints can be saved meanwhile."""
        if not self._is_offloaded:
            for chunk in self._wrapped:
                chunk.offload_grad_buffers()
            offload_state(distributed_optimizer(self.optimizer))
            self._is_offloaded = True

    def _bring_back(self) -> None:
        if self._is_offloaded:
            for chunk in self._wrapped:
                chunk.restore_grad_buffers()
            restore_state(distributed_optimizer(self.optimizer))
            self._is_offloaded = False

    @property
    def num_updates(self) -> int:
        """Optimizer steps made or skipped."""
        return int(self._scheduler.num_steps)

    def skip_updates(self, count: int) -> None:
        """Move the learning rate on as if `count` optimizer steps had been made."""
        self._scheduler.step(increment=count)

    def keep_reference(self) -> None:
        """Keep the current weights, in the host's memory, as those of the reference policy."""
        self._reference = [weight.detach().to("cpu", copy=True) for weight in self._weights()]

    def reference_log_probs(self, sequences: Sequence[TrainSequence]) -> list[list[float]]:
        """`log_probs` of the reference policy."""
        own = [weight.detach().to("cpu", copy=True) for weight in self._weights()]
        self._set_weights(self._reference)
        try:
            return self.log_probs(sequences)
        finally:
            self._set_weights(own)

    def _weights(self) -> list[Tensor]:
        return [weight for chunk in self.chunks for weight in chunk.parameters()]

    def _set_weights(self, values: Sequence[Tensor]) -> None:
        for weight, value in zip(self._weights(), values, strict=True):
            weight.data.copy_(value)

    def log_probs(self, sequences: Sequence[TrainSequence]) -> list[list[float]]:
        """Log-probs of every sequence's response tokens, on every rank, without training."""
        for chunk in self._wrapped:
            chunk.eval()
        batches = self._micro_batches(sequences)
        found: list[tuple[int, list[float]]] = []

        def collect(log_probs_T: Tensor, entropy_T: Tensor, batch: MicroBatch) -> tuple[Tensor, dict[str, Tensor]]:
            values, mask = self._whole(log_probs_T, batch), self._whole(batch.response_mask, batch)
            for position, index in enumerate(batch.members):
                place = slice(int(batch.cu_seqlens[position]), int(batch.cu_seqlens[position + 1]))
                found.append((index, values[place][mask[place]].tolist()))
            return log_probs_T.sum(), {}

        with torch.no_grad():
            self._run(batches, collect, forward_only=True)
        everyone: list[list[tuple[int, list[float]]]] = [[]] * self.parallel.world_size
        dist.all_gather_object(everyone, found)
        by_index = dict(item for part in everyone for item in part)
        return [by_index[i] for i in range(len(sequences))]

    @property
    def has_scaling(self) -> bool:
        """It scales by the past, which belongs into checkpoints that a run carries on from."""
        return self.config.fp8 is not None and self.config.fp8.recipe is FP8Recipe.DELAYED

    def sharded_state(
        self, with_optimizer: bool, is_loading: bool = False, with_scaling: bool = False
    ) -> dict[str, Any]:
        """State for `megatron.core.dist_checkpointing`, reshardable over TP, PP and DP."""
        state: dict[str, Any] = {"model": sharded_weights(self.chunks, CHECKPOINT_METADATA, with_scaling)}
        if with_optimizer:
            state["optimizer"] = sharded_state(self.optimizer, state["model"], is_loading)
        return state

    def load_state(self, state: dict[str, Any], step: int) -> None:
        """Take over a state loaded through `sharded_state`; `step` optimizer steps have been made or skipped.

        Without an optimizer in the state its main weights are refreshed from the model's.
        """
        load_weights(self.chunks, state["model"])
        if "optimizer" in state:
            load_optimizer(self.optimizer, state["optimizer"])
        else:
            self.optimizer.reload_model_params()
        self._scheduler.step(increment=step)

    def _whole(self, values_T: Tensor, batch: MicroBatch) -> Tensor:
        """The values of the whole micro-batch, of which each context-parallel rank has a share."""
        whole = values_T.new_zeros(int(batch.cu_seqlens[-1])).index_copy(0, batch.positions, values_T)
        if self.parallel.cp > 1:
            dist.all_reduce(whole, group=parallel_state.get_context_parallel_group())
        return whole

    def _micro_batches(self, sequences: Sequence[TrainSequence]) -> list[MicroBatch]:
        device = self.parallel.device.torch_device
        return micro_batches(sequences, self._share, self.config.micro_batch_tokens, device, self._cost)

    def _run(self, batches: Sequence[MicroBatch], loss: TokenLoss, forward_only: bool = False) -> dict[str, float]:
        """Forward (and backward) over all micro-batches; the sums of the loss's metrics over all ranks."""
        outputs: list[dict[str, Tensor]] = get_forward_backward_func()(
            forward_step_func=partial(_forward_step, loss=loss),
            data_iterator=[iter(batches) for _ in self._wrapped],
            model=self._wrapped,
            num_microbatches=len(batches),
            seq_length=self.config.micro_batch_tokens,
            micro_batch_size=1,
            forward_only=forward_only,
        )
        # Every rank joins the sum; of each set of tokens only one rank, of the last stage, brings something to it.
        brings = self.parallel.is_last_stage and self.parallel.tp_rank == 0
        mine: dict[str, float] = {}
        for output in outputs if brings else []:
            for name, value in output.items():
                mine[name] = mine.get(name, 0.0) + float(value)
        return _sum_over_ranks(mine)

    @contextmanager
    def _no_sync(self) -> Iterator[None]:
        """Gradients stay with their ranks: more micro-batches are to come."""
        with ExitStack() as stack:
            for chunk in self._wrapped:
                stack.enter_context(chunk.no_sync())
            yield


def step_metrics(result: Mapping[str, float]) -> dict[str, float]:
    """What `train_step` returns, under the names of a step's metrics."""
    return {f"{'performance' if name in PACKING_METRICS else 'train'}/{name}": value for name, value in result.items()}


def _share(config: PolicyConfig, parallel: Parallel) -> Share:
    multiple = parallel.tp if config.sequence_parallel else 1
    if config.fp8 is not None:
        multiple *= _FP8_MULTIPLE
    return Share(
        parallel.dp_rank,
        parallel.dp,
        parallel.cp_rank,
        parallel.cp,
        multiple,
        parallel.micro_batch_group,
        parallel_state.get_context_parallel_group() if parallel.cp > 1 else None,
    )


def _forward_step(data_iterator: Iterator[MicroBatch], model: torch.nn.Module, loss: TokenLoss) -> tuple[Any, Any]:
    tick()
    batch = next(data_iterator)
    packing = PackedSeqParams(
        qkv_format="thd",
        cu_seqlens_q=batch.cu_seqlens,
        cu_seqlens_kv=batch.cu_seqlens,
        max_seqlen_q=batch.longest,
        max_seqlen_kv=batch.longest,
    )
    output = model(
        input_ids=batch.tokens[None],
        position_ids=None,
        attention_mask=None,
        labels=batch.labels[None],
        packed_seq_params=packing,
    )

    def compute_loss(output: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        value, sums = loss(*output, batch)
        return value, torch.ones((), dtype=torch.int32, device=value.device), sums

    return output, compute_loss


def _finalize_without_rescaling(model: list[torch.nn.Module], num_tokens: Tensor | None = None, **kwargs: Any) -> None:
    """Megatron's gradient reduction, without its division: the loss is already normalised."""
    finalize_model_grads(model, None, **kwargs)


def _sum_over_ranks(mine: dict[str, float]) -> dict[str, float]:
    everyone: list[dict[str, float]] = [{}] * dist.get_world_size()
    dist.all_gather_object(everyone, mine)
    total: dict[str, float] = {}
    for sums in everyone:
        for name, value in sums.items():
            total[name] = total.get(name, 0.0) + value
    return total


def _wrap(chunks: Sequence[PolicyModel], config: PolicyConfig, parallel: Parallel) -> list[DistributedDataParallel]:
    ddp_config = DistributedDataParallelConfig(
        use_distributed_optimizer=True,
        grad_reduce_in_fp32=config.grad_reduce_in_fp32,
        overlap_grad_reduce=parallel.device.type == "cuda",
        # Gathered in the next forward pass, new weights would reach neither a weight sync before it nor the output
        # layer: Megatron waits for them in its `forward`, which `PolicyModel` never calls.
        overlap_param_gather=False,
    )
    wrapped = []
    for number, chunk in enumerate(chunks):
        module = Float16Module(chunk.config, chunk) if config.precision is Precision.BF16 else chunk
        # Only the first chunk's gradients, the last to be complete, are reduced in buckets: the others' as a whole.
        wrapped.append(DistributedDataParallel(chunk.config, ddp_config, module, disable_bucketing=number > 0))
        wrapped[-1].broadcast_params()
    return wrapped
