"""Held-out accuracy during training."""

import statistics
from typing import Any

from megatron_rl.experience import Experience, ScoredSample
from megatron_rl.rollout.samples import Sampling
from megatron_rl.stage import PromptSet, Stage
from verifiers.verdict import Verdict


def validate(stage: Stage, step: int) -> dict[str, float]:
    """Accuracy of the engines' current weights on every held-out set; called by all ranks together.

    Returns:
        `validation/NAME/accuracy` (and `pass_k` with several samples per prompt) for each set; the set named like the
        run's domain is also `validation/accuracy`.
    """
    settings, generation = stage.config.validation, stage.config.generation
    assert stage.experience is not None
    assert generation is not None
    sampling = Sampling(settings.temperature, settings.top_p, -1, generation.max_new_tokens)
    metrics: dict[str, float] = {}
    for name, prompt_set in stage.validation_sets.items():
        with stage.phase("validation"):
            experience = stage.experience.collect(
                prompt_set.problems,
                prompt_set.prompts,
                settings.num_generations_per_prompt,
                sampling,
                # Not of the step: the same noise every time, so that only the policy differs.
                seed=f"{stage.config.seed}/validation/{name}",
                on_progress=stage.show,
            )
        records = [sample_record(sample, prompt_set, step, name) for sample in experience.samples]
        stage.log_samples(f"validation_{name}_step_{step}", records)
        for metric, value in accuracies(experience).items():
            metrics[f"validation/{name}/{metric}"] = value
            if name == stage.config.data.domain.value:
                metrics[f"validation/{metric}"] = value
    return metrics


def accuracies(experience: Experience) -> dict[str, float]:
    """Mean reward over prompts; with several samples per prompt also the share of prompts with at least one pass."""
    groups: dict[int, list[float]] = {}
    for sample in experience.samples:
        if sample.result.verdict is not Verdict.INFRA_ERROR:
            groups.setdefault(sample.prompt_index, []).append(sample.reward)
    if not groups:
        return {}
    found = {"accuracy": statistics.fmean(statistics.fmean(rewards) for rewards in groups.values())}
    if max(len(rewards) for rewards in groups.values()) > 1:
        found["pass_k"] = statistics.fmean(max(rewards) for rewards in groups.values())
    return found


def sample_record(
    sample: ScoredSample, prompt_set: PromptSet, step: int, set_name: str, advantage: float | None = None
) -> dict[str, Any]:
    """One line of `samples/*.jsonl`."""
    problem = prompt_set.problems[sample.prompt_index]
    return {
        "step": step,
        "set": set_name,
        "id": problem.id,
        "sample": sample.sample.request.sample_index,
        "prompt": problem.question,
        "response": sample.sample.text,
        "verdict": sample.result.verdict.value,
        "reward": sample.reward,
        "advantage": advantage,
        "extracted": sample.result.extracted,
        "detail": sample.result.detail,
        "response_tokens": len(sample.sample.tokens),
        "truncated": sample.sample.truncated,
        "policy_version": sample.sample.policy_version,
    }
