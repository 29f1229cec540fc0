"""Generate and score: every sample goes to a verifier the moment it ends, while the others still generate."""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass

import torch.distributed as dist

from megatron_rl.config.schema import VerifierConfig
from megatron_rl.data.problems import Problem
from megatron_rl.parallel import stop_if_preempted
from megatron_rl.processes import deadline
from megatron_rl.rollout.rollout import Rollout
from megatron_rl.rollout.samples import Sample, Sampling
from verifiers.pool import VerifierPool
from verifiers.tasks import CodeTask, MathTask
from verifiers.verdict import Result, Verdict

OnProgress = Callable[[str, int, int], None]
"""(phase, samples done, samples in all)."""


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
        generation_seconds, verification_wait_seconds: until the last sample ended, and from there to the last verdict.
    """

    samples: list[ScoredSample]
    generation_seconds: float
    verification_wait_seconds: float


class ExperienceMaker:
    """Joins the rollout with a pool of verifiers on every rank that leads an engine."""

    def __init__(self, rollout: Rollout, config: VerifierConfig) -> None:
        self._rollout, self._config = rollout, config
        self._pool = VerifierPool(config.num_workers) if rollout.leads else None

    def collect(
        self,
        problems: Sequence[Problem],
        prompts: Sequence[Sequence[int]],
        samples_per_prompt: int,
        sampling: Sampling,
        seed: str,
        on_progress: OnProgress,
        may_stop: bool = False,
    ) -> Experience:
        """Generate and verify; called by all ranks together.

        Args:
            problems, prompts: the step's problems and their prompts' token ids, in the same order.
            seed: from which every sample's own seed is derived.
            may_stop: heed a request to stop.

        Raises:
            Preempted: on all ranks; nothing of what was generated is kept.
        """
        total = len(problems) * samples_per_prompt
        samples: list[Sample] = []
        verdicts: list[Future[Result]] = []

        def on_sample(sample: Sample) -> None:
            samples.append(sample)
            verdicts.append(self._verify(problems[sample.request.prompt_index], sample))
            on_progress("generating", len(samples), total)

        begin = time.monotonic()
        self._rollout.generate(prompts, samples_per_prompt, sampling, seed, on_sample, may_stop)
        if may_stop:
            stop_if_preempted()
        generated = time.monotonic()
        on_progress("verifying", sum(v.done() for v in verdicts), total)
        # The pool kills at every task's own deadline; this one only catches a pool that has itself gone wrong.
        with deadline(3600, "verdicts from the verifier pool"):
            scored = [ScoredSample(s, v.result()) for s, v in zip(samples, verdicts, strict=True)]
        verified = time.monotonic()
        everyone: list[list[ScoredSample]] = [[]] * dist.get_world_size()
        dist.all_gather_object(everyone, scored)
        merged = sorted(
            (s for part in everyone for s in part), key=lambda s: (s.prompt_index, s.sample.request.sample_index)
        )
        return Experience(merged, generated - begin, verified - generated)

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
        return self._pool.submit(verification_task(problem, sample.text, self._config.code_timeout_seconds))


def verification_task(problem: Problem, response: str, code_timeout_seconds: float) -> MathTask | CodeTask:
    """What a verifier worker has to do for one response."""
    if problem.tests is not None:
        return CodeTask(
            response,
            problem.tests,
            fn_name=problem.fn_name,
            starter_code=problem.starter_code,
            timeout=code_timeout_seconds,
        )
    assert problem.answer is not None
    return MathTask(response, problem.answer)
