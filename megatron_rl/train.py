"""One stage of training: for every step generate, score, weigh, update, sync, save and log.

    prompts -> rollout -> verifiers -> advantages -> policy update -> weight sync -> rollout of the next step
               `experience`            `advantages`  `policy`         `rollout`

A step's line in the metrics is written before its checkpoint, so a checkpoint never lacks its history; what a killed
run logged beyond its last checkpoint is dropped and done again, with the same result.
"""

import math
import time
from collections.abc import Callable, Sequence
from functools import partial

import torch.distributed as dist

from converters.hf_config import HF_FILES
from megatron_rl.algorithms.losses import sft_loss
from megatron_rl.checkpoint.retention import remove_old_checkpoints
from megatron_rl.config.schema import Algorithm, TrainConfig
from megatron_rl.data.scores import write_scores
from megatron_rl.errors import Preempted, RunStopped
from megatron_rl.grpo import grpo_step
from megatron_rl.guards import Records, guarded_update
from megatron_rl.model_card import MODEL_CARD, model_card
from megatron_rl.parallel import any_rank, broadcast_object, by_main, stop_if_preempted
from megatron_rl.policy.batch import TrainSequence
from megatron_rl.preemption import is_requested
from megatron_rl.rollout.rollout import Rollout
from megatron_rl.stage import Stage, open_stage
from megatron_rl.summary import write_stage_summary
from megatron_rl.validate import validate


def train(config: TrainConfig) -> None:
    """Run a stage on this rank from its newest checkpoint to its last step.

    Raises:
        InputError: what the user can fix.
        RunStopped: a guard found the run broken.
        Preempted: the run was told to stop.
    """
    begin = time.monotonic()
    with open_stage(config) as stage:
        if stage.rollout is not None:
            sync(stage, stage.rollout, stage.start_step)
        validate_first(stage)
        run_steps(stage, sft_step if config.algorithm is Algorithm.SFT else grpo_step)
        if stage.exporter is not None:
            if stage.exporter.step != config.max_num_steps:  # an earlier start had made the last step
                stage.exporter.start(config.max_num_steps, stage.run.hf)
            stage.show("exporting")
            stage.exporter.wait()
        if stage.parallel.is_main:
            write_stage_summary(stage, time.monotonic() - begin)
        dist.barrier()  # a launcher may end the others as soon as the first has ended


def validate_first(stage: Stage) -> None:
    """Before the first step, or what the last one of an earlier start, told to stop, has left out.

    Raises:
        Preempted: told to stop again.
    """
    step = stage.start_step
    if not validation_is_due(stage, step):
        return
    if step == 0:
        report_step(stage, 0, validate(stage, 0))
    else:
        lines = broadcast_object([line for line in stage.run.metric_lines() if line["step"] == step])
        if lines and not any(name.startswith("validation/") for name in lines[-1]):
            metrics = validate(stage, step)
            by_main(partial(_complete, stage, step, metrics))
    stage.timings.clear()
    stage.memory.clear()


def _complete(stage: Stage, step: int, metrics: dict[str, float]) -> None:
    """Line and card of a step that was saved before it was validated."""
    assert stage.logger is not None
    stage.logger.complete(metrics)
    card = stage.run.checkpoint(step) / MODEL_CARD
    card.write_text(model_card(stage.config, stage.run, step), encoding="utf-8")


def validation_is_due(stage: Stage, step: int) -> bool:
    """After `step` steps."""
    config = stage.config.validation
    is_last = step == stage.config.max_num_steps
    in_period = step > 0 and config.period > 0 and step % config.period == 0
    return bool(stage.validation_sets) and (in_period or (step == 0 and config.at_start) or (is_last and config.at_end))


def run_steps(stage: Stage, run_step: Callable[[Stage, int], dict[str, float]]) -> None:
    """All steps that are left.

    Raises:
        RunStopped: a guard found the run broken.
        Preempted: this rank or another was told to stop; what had been done is saved.
    """
    done, last = stage.start_step, stage.config.max_num_steps
    order = stage.stream.state()
    try:
        for step in range(stage.start_step, last):
            try:
                metrics = run_step(stage, step)
            except RunStopped:
                stage.journal.drop(step)
                raise
            if not stage.writer.is_writing():
                finish_save(stage)
            done, order = step + 1, stage.stream.state()
            finish_step(stage, done, metrics)
            if done < last:
                stop_if_preempted()
    except Preempted:
        stage.stream.restore(order)  # what the step that was cut short had taken
        finish_save(stage)
        if done > stage.start_step and not stage.run.has_checkpoint(done):
            save(stage, done)
            finish_save(stage)
        raise Preempted(f"told to stop after step {done}, which is saved; start the same command again") from None


def sft_step(stage: Stage, step: int) -> dict[str, float]:
    """One optimizer step of supervised fine-tuning; the loss is the mean over the batch's response tokens.

    Raises:
        RunStopped: a guard says so.
    """
    assert stage.config.sft is not None
    indices = stage.stream.take(stage.config.sft.global_batch_size)
    tokens = sum(len(stage.responses[i]) for i in indices)
    with stage.phase("policy_training"):
        if stage.rollout is not None:  # for validation
            stage.rollout.sleep()
        sequences = [
            TrainSequence(stage.train_set.prompts[i] + stage.responses[i], len(stage.train_set.prompts[i]), 1 / tokens)
            for i in indices
        ]
        update = partial(stage.policy.train_step, sequences, sft_loss)
        metrics = guarded_update(stage, step, {}, update, partial(describe_examples, stage, step, indices, sequences))
    return metrics | {"performance/tokens": float(tokens)}


def describe_examples(
    stage: Stage, step: int, indices: Sequence[int], sequences: Sequence[TrainSequence]
) -> tuple[Records, str]:
    """Examples that are not trained on, the least likely first, and that one for people; called by all ranks
    together."""
    means = [sum(values) / len(values) for values in stage.policy.log_probs(sequences)]
    order = sorted(range(len(means)), key=lambda i: means[i] if math.isfinite(means[i]) else -math.inf)
    ids = [stage.train_set.problems[i].id for i in indices]
    records: Records = [
        {"step": step + 1, "id": ids[i], "response_tokens": len(stage.responses[indices[i]]), "mean_log_prob": means[i]}
        for i in order
    ]
    return records, f"example {ids[order[0]]!r} with a mean log-prob of {means[order[0]]:.6g}"


def finish_step(stage: Stage, step: int, metrics: dict[str, float]) -> None:
    """Sync, validate, log and save, after `step` optimizer steps.

    Raises:
        Preempted: there was no time to validate; the next start does it.
    """
    config, last, validates = stage.config, step == stage.config.max_num_steps, validation_is_due(stage, step)
    # Told to stop, there is nothing to sync for; SIGTERM may have ended the engines, too.
    stops = any_rank(is_requested())
    generates_next = config.algorithm is Algorithm.GRPO and not last
    if stage.rollout is not None and (validates or generates_next) and not stops:
        with stage.phase("weight_sync"):
            sync(stage, stage.rollout, step)
    if validates and not stops:
        try:
            metrics |= validate(stage, step)
        except Preempted:
            stops = True
    metrics |= _timings(stage, metrics.pop("performance/tokens"))
    report_step(stage, step, metrics)
    if validates and stops:
        raise Preempted("told to stop")
    if last or step % config.checkpointing.save_period == 0:
        begin = time.monotonic()
        save(stage, step)
        if last:
            finish_save(stage)
        stage.timings["checkpoint"] = time.monotonic() - begin  # shown in the next step's line


def sync(stage: Stage, rollout: Rollout, step: int) -> None:
    """Make ready for generation with the weights after `step` optimizer steps."""
    if stage.config.policy.offload_during_generation:
        stage.policy.offload()
    rollout.sync(step)


def save(stage: Stage, step: int) -> None:
    """Begin the checkpoint of `step`; it is written while training goes on."""
    stage.show("saving")
    finish_save(stage)
    card = model_card(stage.config, stage.run, step) if stage.parallel.is_main else ""
    if stage.parallel.is_main and stage.pass_rates:
        try:
            write_scores(stage.run.problems, stage.train_set.problems, stage.pass_rates, stage.lengths)
        except OSError as error:
            stage.warn(f"step {step}: {stage.run.problems} is not written: {error}")
    stage.writer.start(stage.policy, step, stage.config.seed, stage.folder, card, stage.history())


def finish_save(stage: Stage) -> None:
    """Wait for the checkpoint that is being written, have it exported if the run is, and remove those it makes
    superfluous."""
    step = stage.writer.finish()
    if step is None or not stage.parallel.is_main:
        return
    stage.journal.forget(step)
    config, run, exporter = stage.config, stage.run, stage.exporter
    last = step == config.max_num_steps
    if exporter is not None and (last or not exporter.is_busy()):
        exporter.start(step, run.hf if last else run.checkpoint(step) / HF_FILES)
    exported = exporter.step if exporter is not None and exporter.is_busy() else None
    remove_old_checkpoints(run, config.checkpointing, exported)


def report_step(stage: Stage, step: int, metrics: dict[str, float]) -> None:
    """Write and show a step's metrics.

    Raises:
        RunStopped: on all ranks, if they cannot be written.
    """

    def report() -> None:
        assert stage.logger is not None
        assert stage.progress is not None
        stage.logger.log(step, metrics)
        stage.progress.step(step, metrics)

    by_main(report)


def _timings(stage: Stage, tokens: float) -> dict[str, float]:
    """The step's timings, memory and speed; starts the next step's."""
    seconds = sum(stage.timings.values())
    found = {f"timing/{name}": value for name, value in stage.timings.items()}
    found |= {f"memory/after_{name}_gib": value for name, value in stage.memory.items()}
    stage.timings.clear()
    stage.memory.clear()
    per_rank = tokens / seconds / stage.parallel.world_size
    return found | {"timing/total_step_time": seconds, "performance/tokens_per_sec_per_gpu": per_rank}
