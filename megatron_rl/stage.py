"""Everything a stage of training works with, set up in order and taken down in any case."""

import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch.distributed as dist
from transformers import PreTrainedTokenizerFast

from megatron_rl.checkpoint.reader import load_history, load_weights, resume
from megatron_rl.checkpoint.writer import CheckpointWriter
from megatron_rl.config.loader import save_config
from megatron_rl.config.schema import Algorithm, DataConfig, TrainConfig
from megatron_rl.data.problems import Problem, load_problems
from megatron_rl.data.prompts import (
    check_example_lengths,
    check_prompt_lengths,
    encode_prompt,
    encode_response,
    load_tokenizer,
)
from megatron_rl.data.scores import scores_of
from megatron_rl.data.scratch import make_model_folder
from megatron_rl.data.stream import ProblemStream, epoch_filter
from megatron_rl.device import used_memory_gib
from megatron_rl.experience import ExperienceMaker
from megatron_rl.export import BackgroundExport
from megatron_rl.journal import StepJournal
from megatron_rl.logger import MetricsLogger
from megatron_rl.parallel import Parallel, broadcast_object, by_main, leave_parallel, setup_parallel
from megatron_rl.policy.kernels import kernels_in_use
from megatron_rl.policy.model import Architecture
from megatron_rl.policy.policy import Policy
from megatron_rl.processes import deadline
from megatron_rl.progress import Progress
from megatron_rl.pulse import tick
from megatron_rl.rollout.rollout import Rollout
from megatron_rl.run_folder import RunFolder, find_checkpoint
from megatron_rl.watchdog import watch


@dataclass(frozen=True, slots=True)
class PromptSet:
    """Problems and their prompts' token ids, in the same order."""

    problems: list[Problem]
    prompts: list[list[int]]

    def take(self, indices: Sequence[int]) -> "PromptSet":
        """The problems at `indices`."""
        return PromptSet([self.problems[i] for i in indices], [self.prompts[i] for i in indices])


@dataclass(slots=True)
class Stage:
    """One stage of training, on this rank.

    Attributes:
        responses: SFT only: token ids of every training problem's response.
        rollout, experience: None where the stage never generates.
        logger, exporter, progress: None on all ranks but the main one; the second also where nothing is exported.
        start_step: optimizer steps made before this start.
        timings: seconds of the current step by phase.
        memory: GiB in use at the end of each phase of the current step, on the main rank.
        stream: the training problems in the order of the run, by their index.
        lengths: mean length of the last responses to each training problem, in tokens, by its index.
        pass_rates: of the last samples of each, from 0 to 1.
    """

    config: TrainConfig
    run: RunFolder
    parallel: Parallel
    folder: Path
    policy: Policy
    start_step: int
    train_set: PromptSet
    responses: list[list[int]]
    validation_sets: dict[str, PromptSet]
    rollout: Rollout | None
    experience: ExperienceMaker | None
    writer: CheckpointWriter
    journal: StepJournal
    logger: MetricsLogger | None
    exporter: BackgroundExport | None
    progress: Progress | None
    stream: ProblemStream
    timings: dict[str, float] = field(default_factory=dict)
    memory: dict[str, float] = field(default_factory=dict)
    lengths: dict[int, float] = field(default_factory=dict)
    pass_rates: dict[int, float] = field(default_factory=dict)

    def expected_lengths(self, indices: Sequence[int]) -> list[float]:
        """Of the responses to training problems, as in an earlier epoch; the mean where a problem is new. Empty if all
        are."""
        known = [self.lengths[index] for index in indices if index in self.lengths]
        return [self.lengths.get(index, statistics.fmean(known)) for index in indices] if known else []

    def history(self) -> dict[str, Any]:
        """What of the run's past its future depends on, besides weights and optimizer; JSON."""
        return {"order": self.stream.state(), "lengths": self.lengths, "pass_rates": self.pass_rates}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time a phase of the step and show it."""
        self.show(name)
        begin = time.monotonic()
        yield
        self.end_phase(name, time.monotonic() - begin)

    def end_phase(self, name: str, seconds: float) -> None:
        """Note how long a phase took, and how much memory is in use after it."""
        self.timings[name] = self.timings.get(name, 0.0) + seconds
        if self.logger is not None:
            self.memory[name] = used_memory_gib(self.parallel.device)

    def show(self, phase: str, done: int | None = None, total: int | None = None) -> None:
        """Show what the stage is doing."""
        tick(phase)
        if self.progress is not None:
            self.progress.phase(phase, done, total)

    def warn(self, message: str) -> None:
        """Say something to people, on one line."""
        if self.progress is not None:
            self.progress.warn(message)

    def log_samples(self, name: str, records: list[dict[str, Any]]) -> None:
        """Write `samples/NAME.jsonl`."""
        if self.logger is None:
            return
        try:
            self.logger.log_samples(name, records)
        except OSError as error:
            self.warn(f"samples of {name} are not written: {error}")


@contextmanager
def open_stage(config: TrainConfig) -> Iterator[Stage]:
    """Join the job, load data, model and the newest checkpoint, start the engines; undo it all at the end.

    Raises:
        InputError: whatever of it the user can fix.
    """
    run = RunFolder(Path(config.run_dir))
    with ExitStack() as stack:
        with deadline(config.cluster.timeout_minutes * 60, "the other ranks, at the start"):  # before they are watched
            parallel = setup_parallel(config)
            stack.callback(leave_parallel)
            by_main(lambda: stack.enter_context(run.locked()))
            stack.enter_context(watch(parallel, run, config.cluster))
        folder = _model_folder(config, run, parallel)
        tokenizer = load_tokenizer(folder)
        train_set, responses = _training_data(config, tokenizer)
        validation_sets = {name: _prompt_set(config, data, tokenizer) for name, data in config.validation.data.items()}
        policy, start_step = _policy(config, run, folder, parallel)
        rollout = _rollout(config, folder, parallel, policy)
        writer = CheckpointWriter(run, parallel, config.cluster.timeout_minutes * 60)
        stack.callback(writer.close)
        experience = None
        if rollout is not None:
            stack.callback(rollout.close)
            experience = ExperienceMaker(rollout, config.verifier)
            stack.callback(experience.close)
        journal = StepJournal(run.journal, config, parallel.is_main, start_step)
        logger = exporter = progress = None
        if parallel.is_main:
            run.path.mkdir(parents=True, exist_ok=True)
            save_config(config, run.config)
            logger = stack.enter_context(MetricsLogger(config, run.path, start_step))
            progress = stack.enter_context(Progress(config.name, config.max_num_steps, start_step))
            exporter = BackgroundExport(run, progress.warn) if config.checkpointing.export_hf else None
            parts = ", ".join(f"{part} {library}" for part, library in kernels_in_use(policy).items())
            progress.note(f"kernels: {parts}")
            if journal.steps:
                known = f"step {start_step + 1}" + (f" to {start_step + journal.steps}" if journal.steps > 1 else "")
                progress.note(f"journal: the samples of {known} are there from an earlier start")
        history = load_history(run.checkpoint(start_step)) if start_step else _known_scores(config, train_set.problems)
        pass_rates = _by_problem(history.get("pass_rates", {}))
        yield Stage(
            config=config,
            run=run,
            parallel=parallel,
            folder=folder,
            policy=policy,
            start_step=start_step,
            train_set=train_set,
            responses=responses,
            validation_sets=validation_sets,
            rollout=rollout,
            experience=experience,
            writer=writer,
            journal=journal,
            logger=logger,
            exporter=exporter,
            progress=progress,
            stream=_stream(config, len(train_set.problems), pass_rates, history.get("order"), start_step),
            lengths=_by_problem(history.get("lengths", {})),
            pass_rates=pass_rates,
        )


def _stream(
    config: TrainConfig, num_problems: int, pass_rates: dict[int, float], order: dict[str, Any] | None, step: int
) -> ProblemStream:
    stream = ProblemStream(num_problems, config.seed, config.data.shuffle)
    if config.grpo is not None and config.grpo.epoch_filter:
        stream.keep = epoch_filter(config.grpo, pass_rates, config.seed)
    if order is not None:
        stream.restore(order)
    else:
        stream.take(step * config.batch_size)
    return stream


def _known_scores(config: TrainConfig, problems: list[Problem]) -> dict[str, Any]:
    """A history of nothing but these."""
    if config.grpo is None or config.grpo.problem_scores is None:
        return {}
    scores = scores_of(problems, Path(config.grpo.problem_scores))
    return {
        "lengths": {place: score.length_mean for place, score in scores.items()},
        "pass_rates": {place: score.pass_rate for place, score in scores.items()},
    }


def _by_problem(values: dict[Any, float]) -> dict[int, float]:
    return {int(index): value for index, value in values.items()}


def _model_folder(config: TrainConfig, run: RunFolder, parallel: Parallel) -> Path:
    if config.policy.model_name is not None:
        return Path(config.policy.model_name)
    assert config.policy.from_scratch is not None
    if parallel.is_main:
        run.path.mkdir(parents=True, exist_ok=True)
        if not run.model.is_dir():
            make_model_folder(config.policy.from_scratch, run.model, config.seed)
    dist.barrier()
    return run.model


def _training_data(config: TrainConfig, tokenizer: PreTrainedTokenizerFast) -> tuple[PromptSet, list[list[int]]]:
    if config.algorithm is Algorithm.GRPO:
        return _prompt_set(config, config.data, tokenizer), []
    problems = load_problems(config.data, need_response=True)
    prompts = [encode_prompt(tokenizer, problem) for problem in problems]
    responses = [encode_response(tokenizer, problem) for problem in problems]
    lengths = [len(prompt) + len(response) for prompt, response in zip(prompts, responses, strict=True)]
    check_example_lengths(config.data.path, problems, lengths, config.policy.max_total_sequence_length)
    return PromptSet(problems, prompts), responses


def _prompt_set(config: TrainConfig, data: DataConfig, tokenizer: PreTrainedTokenizerFast) -> PromptSet:
    assert config.generation is not None
    problems = load_problems(data)
    if data is not config.data and config.validation.max_prompts is not None:
        problems = problems[: config.validation.max_prompts]
    prompts = [encode_prompt(tokenizer, problem) for problem in problems]
    context = config.policy.max_total_sequence_length
    check_prompt_lengths(data.path, problems, prompts, context, config.generation.max_new_tokens)
    return PromptSet(problems, prompts)


def _policy(config: TrainConfig, run: RunFolder, folder: Path, parallel: Parallel) -> tuple[Policy, int]:
    architecture = Architecture.of_folder(folder, config.policy)
    policy = Policy(config.policy, architecture, parallel)
    has_reference = config.grpo is not None and config.grpo.reference_policy_kl_penalty > 0
    if has_reference or not broadcast_object(run.checkpoints()):
        if config.policy.from_checkpoint is not None:
            load_weights(find_checkpoint(Path(config.policy.from_checkpoint)), policy)
        else:
            policy.load_hf(folder)
    if has_reference:
        policy.keep_reference()
    return policy, resume(run, policy, config.updates_per_step)


def _rollout(config: TrainConfig, folder: Path, parallel: Parallel, policy: Policy) -> Rollout | None:
    if config.generation is None or not (config.algorithm is Algorithm.GRPO or config.validates):
        return None
    context = config.policy.max_total_sequence_length
    return Rollout(folder, config.generation, config.policy.precision, parallel, policy.export(), context)
