"""What an evaluation tells: of a whole benchmark, and of every problem."""

import statistics
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from megatron_rl.config.schema import Domain
from megatron_rl.data.problems import Problem
from megatron_rl.errors import RunStopped
from megatron_rl.evaluation.metrics import Answer, avg_at_k, maj_at_k, pass_at_k
from verifiers.math.compare import equivalent
from verifiers.verdict import Verdict

if TYPE_CHECKING:  # with it comes torch
    from megatron_rl.experience import Experience


def figures_of(experience: "Experience", problems: Sequence[Problem]) -> dict[str, Any]:
    """Of one benchmark; samples that could not be verified count for nothing but the verdicts."""
    samples = experience.samples
    groups = [*answers_of(experience).values()]
    if not groups:
        raise RunStopped(f"no sample could be verified; the last said: {samples[-1].result.detail!r}")
    accuracy, fewest = avg_at_k(groups), min(map(len, groups))
    is_math = all(problem.domain is Domain.MATH for problem in problems)
    return {
        "prompts": len(problems),
        "samples_per_prompt": len(samples) // len(problems),
        "accuracy": accuracy.value,
        "accuracy_error": accuracy.error,
        "pass_at": {str(k): pass_at_k(groups, k).value for k in _powers_of_two(fewest)},
        **({"majority": maj_at_k(groups, equivalent).value} if is_math else {}),
        "verdicts": dict(Counter(sample.result.verdict.value for sample in samples)),
        "length_mean": statistics.fmean(sample.sample.length for sample in samples),
        "truncated_fraction": sum(sample.sample.truncated for sample in samples) / len(samples),
        "seconds": round(experience.generation_seconds + experience.verification_wait_seconds, 1),
    }


def problem_figures(experience: "Experience", problems: Sequence[Problem]) -> list[dict[str, Any]]:
    """Of every problem with a sample that could be verified: what difficulty is told by."""
    lengths: dict[int, list[int]] = {}
    for sample in experience.samples:
        lengths.setdefault(sample.prompt_index, []).append(sample.sample.length)
    found = []
    for index, answers in answers_of(experience).items():
        is_math = problems[index].domain is Domain.MATH
        found.append(
            {
                "id": problems[index].id,
                "samples": len(answers),
                "pass_rate": avg_at_k([answers]).value,
                "majority": maj_at_k([answers], equivalent).value if is_math else None,
                "length_mean": statistics.fmean(lengths[index]),
            }
        )
    return found


def answers_of(experience: "Experience") -> dict[int, list[Answer]]:
    """By prompt, in order: of the samples that could be verified."""
    found: dict[int, list[Answer]] = {}
    for sample in experience.samples:
        if sample.result.verdict is not Verdict.INFRA_ERROR:
            answer = Answer(sample.result.extracted, sample.result.verdict is Verdict.PASS)
            found.setdefault(sample.prompt_index, []).append(answer)
    return found


def _powers_of_two(most: int) -> list[int]:
    return [1 << n for n in range(most.bit_length())]
