"""Guards: an update that looks wrong is not made.

    forward, backward, gradient norm -> metrics -> guards -> optimizer step
                                                      |
                                                    Trip -> the samples are written out -> stop, or skip

What is known of a batch before its update is looked at before it, so that a batch without an update is, too. Every rank
has the same metrics, and the main rank's history: all of them come to the same end, a resumed run's as well.
"""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

from megatron_rl.config.schema import MIN_GRAD_NORMS, OnTrip, TrainConfig
from megatron_rl.errors import RunStopped
from megatron_rl.mismatch import mismatch_bound
from megatron_rl.parallel import broadcast_object
from megatron_rl.policy.policy import StepCheck, step_metrics
from megatron_rl.stage import Stage

Metrics = Mapping[str, float]
Records = list[dict[str, Any]]

SKIPPED = "train/skipped_update"


@dataclass(frozen=True, slots=True)
class History:
    """What guards know of the steps up to now.

    Attributes:
        grad_norms: of the last steps that made an update with a gradient, at most `guards.grad_norm_window`.
        skipped: steps in a row, up to now, whose update was skipped.
        uniform: steps in a row, up to now, in which all samples had the same reward.
        had_spread: in a step before those they had not.
    """

    grad_norms: tuple[float, ...] = ()
    skipped: int = 0
    uniform: int = 0
    had_spread: bool = False

    @classmethod
    def of(cls, lines: Sequence[Mapping[str, float | None]], window: int) -> "History":
        """From the run's metrics, in which a number that is not finite is None."""
        norms = [line.get("train/grad_norm") for line in lines if not line.get(SKIPPED)]
        rewards = [line["train/reward"] for line in lines if "train/reward" in line]
        uniform = _length(takewhile(_is_uniform, reversed(rewards)))
        return cls(
            grad_norms=tuple([norm for norm in norms if norm][-window:]),
            skipped=_length(takewhile(lambda line: line.get(SKIPPED), reversed(lines))),
            uniform=uniform,
            had_spread=uniform < len(rewards),
        )


class Trip(Exception):
    """A guard refuses an update.

    Attributes:
        guard: its name.
        metrics: what it was shown.
        remedy: for people, between "The update was not made; " and " and start the same command again".
    """

    def __init__(self, guard: str, what: str, remedy: str, metrics: Metrics) -> None:
        super().__init__(what)
        self.guard, self.remedy, self.metrics = guard, remedy, dict(metrics)


# The guards: what is wrong and what to do, or None ---------------------------------------------------------------

Finding = tuple[str, str] | None
ReadHistory = Callable[[], History]


def not_finite(metrics: Metrics, config: TrainConfig, history: ReadHistory) -> Finding:
    """NaN or infinity; one log-prob that is either makes the loss so."""
    for name in ("train/loss", "train/entropy", "train/grad_norm"):
        if not math.isfinite(metrics.get(name, 0.0)):
            return (
                f"{name}={metrics[name]} is no finite number",
                "if the same step does it again lower policy.optimizer.lr, else look for a faulty device,",
            )
    return None


def mismatch(metrics: Metrics, config: TrainConfig, history: ReadHistory) -> Finding:
    """The engine does not sample the policy; a batch's later updates, which have no such metric, always pass."""
    error = metrics.get("train/token_mult_prob_error")
    if error is None or error <= mismatch_bound(config):
        return None
    return (
        f"train/token_mult_prob_error={error:.6g} is not within "
        f"grpo.max_token_mult_prob_error={mismatch_bound(config)}: the engine does not sample the policy that is "
        "trained (stale weights, another temperature, or too low a precision)",
        "mend the cause",
    )


def grad_norm(metrics: Metrics, config: TrainConfig, history: ReadHistory) -> Finding:
    """A gradient norm far above the last ones."""
    norm, most = metrics.get("train/grad_norm"), config.guards.max_grad_norm_ratio
    if norm is None or most is None or len(norms := history().grad_norms) < MIN_GRAD_NORMS:
        return None
    usual = statistics.median(norms)
    if norm <= most * usual:
        return None
    return (
        f"train/grad_norm={norm:.6g} is {norm / usual:.6g} times {usual:.6g}, the median of the last {len(norms)} "
        f"updates, above guards.max_grad_norm_ratio={most}",
        "lower policy.optimizer.lr, or raise the bound,",
    )


def entropy(metrics: Metrics, config: TrainConfig, history: ReadHistory) -> Finding:
    """A policy that has narrowed down, or come apart."""
    value, least, most = metrics.get("train/entropy"), config.guards.min_entropy, config.guards.max_entropy
    if value is not None and least is not None and value < least:
        return (
            f"train/entropy={value:.6g} is below guards.min_entropy={least}",
            "raise grpo.entropy_bonus or generation.temperature, or lower the bound,",
        )
    if value is not None and most is not None and value > most:
        return (
            f"train/entropy={value:.6g} is above guards.max_entropy={most}",
            "lower policy.optimizer.lr or generation.temperature, or raise the bound,",
        )
    return None


def truncated(metrics: Metrics, config: TrainConfig, history: ReadHistory) -> Finding:
    """Responses that do not end."""
    share, most = metrics.get("generation/truncated_fraction"), config.guards.max_truncated_fraction
    if share is None or most is None or share <= most:
        return None
    return (
        f"generation/truncated_fraction={share:.6g} is above guards.max_truncated_fraction={most}",
        "raise generation.max_new_tokens, or the bound,",
    )


def uniform_reward(metrics: Metrics, config: TrainConfig, history: ReadHistory) -> Finding:
    """Rewards that have suddenly become all 0 or all 1."""
    reward, most = metrics.get("train/reward"), config.guards.max_uniform_reward_steps
    if reward is None or most is None or not _is_uniform(reward):
        return None
    past = history()
    if not past.had_spread or past.uniform < most:
        return None
    return (
        f"train/reward={reward:g} of every sample, as in the {past.uniform} steps before, more in a row than "
        f"guards.max_uniform_reward_steps={most}, though rewards had differed",
        "mend the verifier or the data, or raise the bound,",
    )


GUARDS = {
    "not_finite": not_finite,
    "mismatch": mismatch,
    "grad_norm": grad_norm,
    "entropy": entropy,
    "truncated": truncated,
    "uniform_reward": uniform_reward,
}


def check_guards(metrics: Metrics, config: TrainConfig, history: ReadHistory) -> None:
    """Let an update be made, as far as these of its metrics go.

    Args:
        history: called only by a guard that needs it, then on all ranks together.

    Raises:
        Trip: the first guard that has something against it.
    """
    for name, guard in GUARDS.items():
        found = guard(metrics, config, history)
        if found is not None:
            raise Trip(name, *found, metrics)


# An update with guards -------------------------------------------------------------------------------------------


def guarded_update(
    stage: Stage,
    step: int,
    batch_metrics: Metrics,
    make: Callable[[StepCheck], dict[str, float]],
    describe: Callable[[], tuple[Records, str]],
) -> dict[str, float]:
    """Make the updates of a batch, or refuse them; called by all ranks together.

    Args:
        batch_metrics: what is known before.
        make: the updates; what it is given goes to `Policy.train_step`.
        describe: the samples for `samples/GUARD_step_N.jsonl`, and in one line the worst of them by their log-probs.

    Returns:
        The updates' metrics, under the names of a step's.

    Raises:
        RunStopped: a refused batch is to stop the run, or too many in a row were skipped.
    """

    def history() -> History:
        return read_history(stage)

    def check(update_metrics: Metrics) -> None:
        check_guards(step_metrics(update_metrics), stage.config, history)

    try:
        check_guards(batch_metrics, stage.config, history)
        return step_metrics(make(check)) | {SKIPPED: 0.0}
    except Trip as trip:
        return _refuse(stage, step, trip, *describe())


def _refuse(stage: Stage, step: int, trip: Trip, records: Records, worst: str) -> dict[str, float]:
    guards, name = stage.config.guards, f"{trip.guard}_step_{step + 1}"
    stage.log_samples(name, records)
    what = f"step {step + 1}: {trip}"
    where = f"all samples: {stage.run.samples(name)}"
    if trip.guard in ("not_finite", "mismatch"):
        where = f"worst: {worst}; {where}"
    updates, skipped = stage.config.updates_per_step, read_history(stage).skipped
    if guards.on_trip is OnTrip.STOP or skipped >= guards.max_consecutive_skips:
        before = f", after {skipped} skipped in a row" if skipped else ""
        raise RunStopped(
            f"{what}; {where}. The update was not made{before}; {trip.remedy} and start the same command again"
        )
    stage.warn(f"{what}; batch skipped ({skipped + 1} in a row, at most {guards.max_consecutive_skips}); {where}")
    # The learning rate goes by batch: a resumed run, which knows only the step, has the same.
    stage.policy.skip_updates((step + 1) * updates - stage.policy.num_updates)
    return trip.metrics | {SKIPPED: 1.0}


def read_history(stage: Stage) -> History:
    """From the run's metrics, which a resumed run has too; called by all ranks together."""
    lines = stage.run.metric_lines() if stage.parallel.is_main else []
    return broadcast_object(History.of(lines, stage.config.guards.grad_norm_window))


def _is_uniform(reward: float | None) -> bool:
    """A sample's reward is 0 or 1: only if all have the same is their mean."""
    return reward in (0.0, 1.0)


def _length(items: Any) -> int:
    return sum(1 for _ in items)
