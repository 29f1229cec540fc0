"""Generate and score: every sample goes to a verifier the moment it ends, while the others still generate."""

import itertools
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Protocol, TypeVar

import torch.distributed as dist

from megatron_rl.config.schema import VerifierConfig
from megatron_rl.data.problems import Problem
from megatron_rl.errors import InputError, RunStopped
from megatron_rl.parallel import broadcast_object, stop_if_preempted
from megatron_rl.processes import deadline
from megatron_rl.rollout.samples import Sample, Sampling
from verifiers.metrics import PoolMetrics
from verifiers.remote import open_pool
from verifiers.tasks import CodeTask, MathTask
from verifiers.verdict import Result, Verdict

T = TypeVar("T")
OnProgress = Callable[[str, int, int], None]
"""(phase, samples done, samples in all)."""

_VERDICTS, _VERDICTS_SECONDS = "verdicts from the verifier pool", 3600
"""The pool kills at every task's own deadline; this one only catches a pool that has itself gone wrong."""


@dataclass(frozen=True, slots=True)
class ScoredSample:
    """A sample, its problem's place in the step, and what the verifier said."""

    sample: Sample
    result: Result

    @property
    def reward(self) -> float:
        """1 for a pass, else 0."""
        return self.result.reward

    @property
    def prompt_index(self) -> int:
        """Position of its prompt in the step's list."""
        return self.sample.request.prompt_index


@dataclass(frozen=True, slots=True)
class Experience:
    """All samples of a step, in the order of prompts and groups, the same on every rank.

    Attributes:
        samples: scored samples, those of an infra error included.
        pools: what each pool of verifiers did meanwhile.
        generation_seconds, verification_wait_seconds: until the last sample ended, and from there to the last verdict.
        engine_restarts, engine_recovery_seconds: since the last step: engines that died, and the time until each had
            been replaced, summed up.
    """

    samples: list[ScoredSample]
    pools: list[PoolMetrics]
    generation_seconds: float
    verification_wait_seconds: float
    engine_restarts: int
    engine_recovery_seconds: float

    @classmethod
    def joined(cls, parts: Sequence["Experience"], prompts_per_part: int) -> "Experience":
        """Of several batches of a step as of one; the prompts of each follow on those of the one before."""
        return cls(
            samples=[
                replace(scored, sample=replace(scored.sample, request=scored.sample.request.moved(number)))
                for number, part in zip(itertools.count(0, prompts_per_part), parts, strict=False)
                for scored in part.samples
            ],
            pools=[pool for part in parts for pool in part.pools],
            generation_seconds=sum(part.generation_seconds for part in parts),
            verification_wait_seconds=sum(part.verification_wait_seconds for part in parts),
            engine_restarts=sum(part.engine_restarts for part in parts),
            engine_recovery_seconds=sum(part.engine_recovery_seconds for part in parts),
        )


class Generates(Protocol):
    """What `Rollout` is to an `ExperienceMaker`; the methods are called by all ranks together."""

    leads: bool
    """This rank is given samples."""

    @property
    def generate(self) -> Callable[..., None]: ...

    def take_recoveries(self) -> tuple[int, float]: ...


class ExperienceMaker:
    """Joins the rollout with a pool of verifiers on every rank that leads an engine.

    Raises:
        InputError: there is no verifier server, or it does not fit.
    """

    def __init__(self, rollout: Generates, config: VerifierConfig) -> None:
        self._rollout, self._config = rollout, config
        self._pool = None
        if rollout.leads:
            secret_file = None if config.secret_file is None else Path(config.secret_file)
            try:
                self._pool = open_pool(config.num_workers, config.address, secret_file, config.min_isolation)
            except (ValueError, OSError) as error:
                raise InputError(f"verifier: {error}") from error

    def collect(
        self,
        problems: Sequence[Problem],
        prompts: Sequence[Sequence[int]],
        samples_per_prompt: int,
        sampling: Sampling,
        seed: str,
        on_progress: OnProgress,
        may_stop: bool = False,
        expected_lengths: Sequence[float] = (),
        known: Sequence[ScoredSample] = (),
        keep: Callable[[ScoredSample], None] = lambda sample: None,
        only_text: bool = False,
    ) -> Experience:
        """Generate and verify; called by all ranks together.

        Args:
            problems, prompts: the step's problems and their prompts' token ids, in the same order.
            seed: from which every sample's own seed is derived.
            may_stop: heed a request to stop.
            expected_lengths: of the responses to each prompt, in tokens; the longest start first. Empty: in order.
            known: on the main rank, samples of an earlier start that are not made again.
            keep: given every new sample of this rank the moment it has its verdict, by any thread.
            only_text: drop tokens and log-probs, of which an evaluation has billions, and give no rank but the main one
                the samples of the others.

        Raises:
            RunStopped: an engine dies again and again, or a sample cannot be kept.
            Preempted: on all ranks; nothing of what was generated is kept.
        """
        total = len(problems) * samples_per_prompt
        done = broadcast_object(frozenset((s.prompt_index, s.sample.request.sample_index) for s in known))
        samples: list[Sample] = []
        verdicts: list[Future[Result]] = []

        settled = threading.Semaphore(0)
        lost: list[OSError] = []

        def try_to_keep(sample: Sample, verdict: Future[Result]) -> None:
            try:
                if not verdict.cancelled() and verdict.exception() is None:  # else whoever waits for it is told
                    keep(ScoredSample(sample, verdict.result()))
            except OSError as error:  # which a future would swallow
                lost.append(error)
            finally:
                settled.release()

        def on_sample(sample: Sample) -> None:
            if lost:
                raise RunStopped(f"samples cannot be kept: {lost[0]}; make room and start the same command again")
            if only_text:
                sample = sample.without_tokens()
            samples.append(sample)
            verdict = self._verify(problems[sample.request.prompt_index], sample)
            verdict.add_done_callback(partial(try_to_keep, sample))
            verdicts.append(verdict)

        if self._pool is not None:
            self._pool.metrics()  # from here on
        begin = time.monotonic()
        on_progress("generating", len(done), total)
        try:
            self._rollout.generate(
                prompts,
                samples_per_prompt,
                sampling,
                seed,
                on_sample,
                on_count=lambda count: on_progress("generating", len(done) + count, total),
                may_stop=may_stop,
                expected_lengths=expected_lengths,
                done=done,
            )
        except RunStopped:
            with deadline(_VERDICTS_SECONDS, _VERDICTS):
                for _ in verdicts:  # what there is, is kept all the same
                    settled.acquire()
            raise
        if may_stop:
            stop_if_preempted()
        generated = time.monotonic()
        on_progress("verifying", len(done) + sum(v.done() for v in verdicts), total)
        with deadline(_VERDICTS_SECONDS, _VERDICTS):
            scored = [ScoredSample(s, v.result()) for s, v in zip(samples, verdicts, strict=True)]
        scored += known
        verified = time.monotonic()
        mine = (scored, None if self._pool is None else self._pool.metrics(), *self._rollout.take_recoveries())
        parts, pools, restarts, recoveries = zip(*_gathered(mine, on_all=not only_text), strict=True)
        return Experience(
            samples=sorted(
                (s for part in parts for s in part), key=lambda s: (s.prompt_index, s.sample.request.sample_index)
            ),
            pools=[metrics for metrics in pools if metrics is not None],
            generation_seconds=generated - begin,
            verification_wait_seconds=verified - generated,
            engine_restarts=sum(restarts),
            engine_recovery_seconds=sum(recoveries),
        )

    def close(self) -> None:
        """End the verifier workers."""
        if self._pool is not None:
            self._pool.close()

    def _verify(self, problem: Problem, sample: Sample) -> Future[Result]:
        assert self._pool is not None
        if sample.truncated:  # counts as wrong, whatever it had written so far
            done: Future[Result] = Future()
            done.set_result(Result(Verdict.NO_ANSWER, None, 0.0, "truncated"))
            return done
        return self._pool.submit(verification_task(problem, sample.text, self._config))


def _gathered(mine: T, on_all: bool) -> list[T]:
    """Of all ranks; without `on_all` elsewhere than on the main one nothing but a rank's own."""
    everyone = [mine] * dist.get_world_size()
    if on_all:
        dist.all_gather_object(everyone, mine)
        return everyone
    is_main = dist.get_rank() == 0
    dist.gather_object(mine, everyone if is_main else None)
    return everyone if is_main else [mine]


def verification_task(problem: Problem, response: str, config: VerifierConfig) -> MathTask | CodeTask:
    """What a verifier worker has to do for one response."""
    if problem.tests is not None:
        return CodeTask(
            response,
            problem.tests,
            fn_name=problem.fn_name,
            starter_code=problem.starter_code,
            timeout=config.code_timeout_seconds,
            budget=config.code_budget_seconds,
            longest_first=config.longest_tests_first,
            min_isolation=config.min_isolation,
        )
    assert problem.answer is not None
    return MathTask(response, problem.answer)
