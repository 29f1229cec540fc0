"""Updates that guards refuse, on real ranks.

Arguments: `model`, `ranks`, `tp`, `case`:

- `policy`: updates spoilt in each of the ways of `SPOILT`, in each of `PRECISIONS`. Rank 0's result: by precision and
  way what was said on every rank and whether a bit has changed on any; and whether a step is Megatron's own;
- `sft`: a whole stage on the file `data` with `settings` (dotted keys with `__`), of whose steps (from 0) those of
  `spoilt` are so. Rank 0's result: what stopped each rank.
"""

import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from ranks import read_arguments, write_result
from states import copy_of, same, state_of
from tiny import step_sequences, train_config
from torch import Tensor

from megatron_rl.algorithms.losses import TokenLoss, sft_loss
from megatron_rl.config.schema import TrainConfig
from megatron_rl.errors import RunStopped
from megatron_rl.guards import History, Trip, check_guards
from megatron_rl.parallel import Parallel, setup_parallel
from megatron_rl.policy.batch import MicroBatch
from megatron_rl.policy.model import Architecture
from megatron_rl.policy.policy import Policy, step_metrics
from megatron_rl.train import train

RANK = int(os.environ["RANK"])
PRECISIONS: dict[str, dict[str, Any]] = {
    "fp32": {"policy__precision": "fp32"},
    "bf16": {"policy__precision": "bf16"},
    "small_gradients": {"policy__precision": "bf16", "policy__grad_reduce_in_fp32": False},
}
STEPS = 6

Sums = tuple[Tensor, dict[str, Tensor]]


# Losses that go wrong --------------------------------------------------------------------------------------------


def nan_loss(log_probs_T: Tensor, entropy_T: Tensor, batch: MicroBatch) -> Sums:
    """On rank 1 alone."""
    loss, sums = sft_loss(log_probs_T, entropy_T, batch)
    factor = torch.nan if RANK == 1 else 1.0
    return loss * factor, sums | {"loss": sums["loss"] * factor}


def nan_gradient(log_probs_T: Tensor, entropy_T: Tensor, batch: MicroBatch) -> Sums:
    """On rank 1 alone, of a loss that is as ever: the root of 0 has no derivative."""
    loss, sums = sft_loss(log_probs_T, entropy_T, batch)
    return (loss + (0 * log_probs_T).sqrt().sum() if RANK == 1 else loss), sums


def spike(log_probs_T: Tensor, entropy_T: Tensor, batch: MicroBatch) -> Sums:
    loss, sums = sft_loss(log_probs_T, entropy_T, batch)
    return loss * 1000, sums


SPOILT: dict[str, TokenLoss] = {"nan_loss": nan_loss, "nan_gradient": nan_gradient, "spike": spike}


# One update at a time --------------------------------------------------------------------------------------------


def exercise(arguments: dict[str, Any]) -> dict[str, Any]:
    layout = {
        "cluster__gpus_per_node": arguments["ranks"],
        "policy__tensor_model_parallel_size": arguments["tp"],
        "guards__max_grad_norm_ratio": 100.0,
    }
    parallel = setup_parallel(train_config(arguments["model"], **layout))
    result: dict[str, Any] = {}
    for name, changes in PRECISIONS.items():
        config = train_config(arguments["model"], **layout, **changes)
        found = spoil(config, parallel)
        found["steps_are_megatrons"] = {
            str(limit): steps_are_megatrons(config, parallel, limit) for limit in (0.0, 0.01)
        }
        result[name] = found
    return result


def spoil(config: TrainConfig, parallel: Parallel) -> dict[str, Any]:
    """A policy with refused updates before its first step and after `STEPS`, and one that has never met any."""
    refusing, plain = new_policy(config, parallel), new_policy(config, parallel)
    result: dict[str, Any] = {"first": refuse_all(refusing, config, ())}
    for policy in (refusing, plain):
        policy.sharded_state(with_optimizer=True)  # what a checkpoint does to an optimizer without moments
    norms, _ = (train_some(policy) for policy in (refusing, plain))
    result["later"] = refuse_all(refusing, config, norms)
    for policy in (refusing, plain):
        policy.train_step(step_sequences(STEPS, sft=True), sft_loss)
    result["goes_on_the_same"] = on_all_ranks(same(state_of(refusing), state_of(plain)))
    return result


def train_some(policy: Policy) -> tuple[float, ...]:
    """The gradient norms of `STEPS` steps."""
    return tuple(policy.train_step(step_sequences(step, sft=True), sft_loss)["grad_norm"] for step in range(STEPS))


def refuse_all(policy: Policy, config: TrainConfig, norms: tuple[float, ...]) -> dict[str, Any]:
    def check(metrics: Mapping[str, float]) -> None:
        check_guards(step_metrics(metrics), config, lambda: History(norms))

    result: dict[str, Any] = {}
    for name, loss in SPOILT.items():
        if name == "spike" and not norms:
            continue
        before, message = copy_of(state_of(policy)), ""
        try:
            policy.train_step(step_sequences(1, sft=True), loss, check)
        except Trip as trip:
            message = f"{trip.guard}: {trip}"
        messages, unchanged = on_all_ranks(message), on_all_ranks(same(before, state_of(policy)))
        result[name] = {"messages": messages, "unchanged": unchanged}
    return result


def steps_are_megatrons(config: TrainConfig, parallel: Parallel, limit: float) -> list[bool]:
    """Three steps, with gradients clipped to `limit`, are those of Megatron's `optimizer.step()`."""
    changed = replace(config.policy, optimizer=replace(config.policy.optimizer, clip_grad=limit))
    ours, theirs = (new_policy(replace(config, policy=changed), parallel) for _ in range(2))
    theirs._clip_grads = float  # type: ignore[method-assign]  # in place, so not before Megatron's step
    norms_agree = True
    for step in range(3):
        sequences = step_sequences(step, sft=True)
        norm = ours.train_step(sequences, sft_loss)["grad_norm"]
        with suppress(ZeroDivisionError):
            theirs.train_step(sequences, sft_loss, forbid)
        _, their_norm, _ = theirs.optimizer.step()
        theirs.skip_updates(1)
        norms_agree &= norm == their_norm
    return on_all_ranks(norms_agree and same(state_of(ours), state_of(theirs)))


def forbid(metrics: Mapping[str, float]) -> None:
    raise ZeroDivisionError


def new_policy(config: TrainConfig, parallel: Parallel) -> Policy:
    folder = Path(str(config.policy.model_name))
    policy = Policy(config.policy, Architecture.of_folder(folder, config.policy), parallel)
    policy.load_hf(folder)
    return policy


def on_all_ranks(value: Any) -> list[Any]:
    found: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(found, value)
    return found


# A whole stage ---------------------------------------------------------------------------------------------------


def run_stage(config: TrainConfig, spoilt: Mapping[str, str], folder: Path) -> None:
    """Train, with a spoilt loss in some steps; every rank writes what stopped it."""
    train_step, message = Policy.train_step, ""

    def spoil_some(policy: Policy, sequences: Any, loss: TokenLoss, check: Any = None) -> dict[str, float]:
        way = spoilt.get(str(policy.num_updates))
        return train_step(policy, sequences, loss if way is None else SPOILT[way], check)

    Policy.train_step = spoil_some  # type: ignore[method-assign]
    try:
        train(config)
    except RunStopped as error:
        message = str(error)
    (folder / f"stopped_{RANK}.txt").write_text(message)


def main() -> None:
    arguments, folder = read_arguments()
    if arguments["case"] == "policy":
        torch.use_deterministic_algorithms(True)
        result = exercise(arguments)
        if RANK == 0:
            write_result(folder, result)
        dist.barrier()
        dist.destroy_process_group()
        return
    config = train_config(arguments["model"], **arguments["settings"])
    config = replace(config, data=replace(config.data, path=arguments["data"]), output_dir=str(folder), name="run")
    run_stage(config, arguments["spoilt"], folder)
    if RANK == 0:
        write_result(folder, {})


if __name__ == "__main__":
    main()
