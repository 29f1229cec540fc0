"""The gate between engine and policy, on a real engine.

Arguments: `model`, `data` (a file of problems), `case`:

- `gate`: batches of a policy that has left its engine behind, and what they did to it;
- `train`: a whole stage with `settings` (dotted keys with `__`), of whose weight syncs those of the versions `wrong`
  bring weights that are off by 1%. The result is what stopped it.

The advantages alternate, with `sparse` those of every other prompt: a random model solves nothing.
"""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import replace
from typing import Any

import torch
from ranks import read_arguments, write_result
from states import copy_of, same, state_of
from tiny import step_sequences, train_config

import megatron_rl.grpo
from megatron_rl.algorithms.losses import policy_gradient_loss
from megatron_rl.config.schema import OnTrip, TrainConfig
from megatron_rl.errors import RunStopped
from megatron_rl.experience import ScoredSample
from megatron_rl.policy.policy import Policy
from megatron_rl.rollout.rollout import Rollout
from megatron_rl.stage import Stage, open_stage
from megatron_rl.train import train


def alternating_advantages(samples: Sequence[ScoredSample], *_: Any) -> list[float]:
    return [1.0 if number % 2 else -0.5 for number in range(len(samples))]


def sparse_advantages(samples: Sequence[ScoredSample], *_: Any) -> list[float]:
    every = alternating_advantages(samples)
    return [0.0 if s.prompt_index % 2 else advantage for s, advantage in zip(samples, every, strict=True)]


# A stage whose engine gets wrong weights -------------------------------------------------------------------------


def run_stage(config: TrainConfig, wrong: Sequence[int]) -> str:
    """Train; the message of the guard that stopped it, or nothing."""
    sync = Rollout.sync

    def sync_wrongly(rollout: Rollout, version: int) -> None:
        with weights_off_by_1_percent(rollout) if version in wrong else nullcontext():
            sync(rollout, version)

    Rollout.sync = sync_wrongly  # type: ignore[method-assign]
    try:
        train(config)
    except RunStopped as error:
        return str(error)
    return ""


@contextmanager
def weights_off_by_1_percent(rollout: Rollout) -> Iterator[None]:
    assert rollout._export is not None
    weights = [weight for held in rollout._export._local.values() for _, weight in held]
    right = [weight.clone() for weight in weights]
    multiply_by_noise(weights, 0.01)
    yield
    for weight, value in zip(weights, right, strict=True):
        weight.copy_(value)


# Batches that must not be trained on -----------------------------------------------------------------------------


def try_gate(config: TrainConfig) -> dict[str, Any]:
    with open_stage(config) as stage:
        assert stage.rollout is not None
        stage.rollout.sync(0)
        result: dict[str, Any] = {"healthy": megatron_rl.grpo.grpo_step(stage, 0)}
        result["behind"] = refused(stage, 1)  # a large update, of which the engine has not heard
        claim_version(stage.rollout, 1)
        result["stale"] = refused(stage, 1)
        stage.rollout.sync(2)
        multiply_by_noise((weight.data for weight in stage.policy.chunks[0].parameters()), 0.01)
        stage.policy.optimizer.reload_model_params()
        result["perturbed"] = refused(stage, 2)
        stage.rollout.sync(3)
        result["synced_again"] = megatron_rl.grpo.grpo_step(stage, 3)
        stage.rollout.sync(4)
        result["second_update_is_nan"] = skip_the_second_update(stage, 4)
        next(stage.policy.chunks[0].parameters()).data.view(-1)[0] = torch.nan
        result["nan"] = refused(stage, 4)
        result["update_after_refusal"] = update_after_refusal(stage)
    return result


def skip_the_second_update(stage: Stage, step: int) -> dict[str, Any]:
    """A step of two updates, of which the second is refused and skipped."""
    config, train_step = stage.config, Policy.train_step
    assert config.grpo is not None
    made, count = [], stage.policy.num_updates
    guards = replace(config.guards, on_trip=OnTrip.SKIP)
    stage.config = replace(config, grpo=replace(config.grpo, updates_per_batch=2), guards=guards)

    def spoil_the_second(policy: Policy, sequences: Any, loss: Any, check: Any) -> dict[str, float]:
        if policy.num_updates > count:
            return train_step(policy, sequences, nan_loss, check)
        made.append(train_step(policy, sequences, loss, check))
        return made[-1]

    Policy.train_step = spoil_the_second  # type: ignore[assignment]
    metrics = megatron_rl.grpo.grpo_step(stage, step)
    Policy.train_step, stage.config = train_step, config  # type: ignore[method-assign]
    return {"made": len(made), "skipped": metrics["train/skipped_update"], "updates": stage.policy.num_updates}


def nan_loss(*arguments: Any) -> Any:
    loss, sums = policy_gradient_loss(*arguments)
    return loss * torch.nan, sums | {"loss": sums["loss"] * torch.nan}


def claim_version(rollout: Rollout, version: int) -> None:
    """The engine says that it has weights of which it has not heard."""
    assert rollout._engine is not None
    rollout._engine.version = version
    rollout._engine._set_version()


def refused(stage: Stage, step: int) -> dict[str, Any]:
    """A step that must be refused: the message, and whether policy, optimizer and learning rate are the same bits."""
    before = copy_of(state_of(stage.policy))
    try:
        megatron_rl.grpo.grpo_step(stage, step)
    except RunStopped as error:
        return {"message": str(error), "unchanged": same(before, state_of(stage.policy))}
    return {"message": "", "unchanged": same(before, state_of(stage.policy))}


def update_after_refusal(stage: Stage) -> dict[str, bool]:
    """An update after a refused one gives the same bits as without it, and the refused one alone changes none."""
    policies = [Policy(stage.config.policy, stage.policy.architecture, stage.parallel) for _ in range(3)]
    for policy in policies:
        policy.load_hf(stage.folder)
    refusing, plain, untouched = policies
    with suppress(ZeroDivisionError):
        refusing.train_step(step_sequences(0, sft=False), policy_gradient_loss, forbid)
    unchanged = same(state_of(refusing), state_of(untouched))
    for policy in (refusing, plain):
        policy.train_step(step_sequences(1, sft=False), policy_gradient_loss)
    return {
        "unchanged": unchanged,
        "same": same(state_of(refusing), state_of(plain)),
        "moved": not same(state_of(plain), state_of(untouched)),
    }


def forbid(metrics: Mapping[str, float]) -> None:
    raise ZeroDivisionError


def multiply_by_noise(weights: Iterable[torch.Tensor], share: float) -> None:
    """Every weight times 1 + share x normal noise."""
    noise = torch.Generator().manual_seed(1)
    for weight in weights:
        weight *= 1 + share * torch.randn(weight.shape, generator=noise)


def main() -> None:
    arguments, folder = read_arguments()
    megatron_rl.grpo.sample_advantages = sparse_advantages if arguments.get("sparse") else alternating_advantages
    config = train_config(arguments["model"], **arguments["settings"])
    config = replace(config, data=replace(config.data, path=arguments["data"]), output_dir=str(folder), name="run")
    found = try_gate(config) if arguments["case"] == "gate" else run_stage(config, arguments["wrong"])
    if os.environ["RANK"] == "0":
        write_result(folder, found)


if __name__ == "__main__":
    main()
