"""Held-out accuracy during training."""

from typing import Any

from megatron_rl.evaluation.figures import answers_of
from megatron_rl.evaluation.metrics import avg_at_k, pass_at_k
from megatron_rl.experience import Experience, ScoredSample
from megatron_rl.rollout.samples import Sampling
from megatron_rl.stage import PromptSet, Stage


def validate(stage: Stage, step: int) -> dict[str, float]:
    """Accuracy of the engines' current weights on every held-out set; called by all ranks together.

    Returns:
        `validation/NAME/accuracy` and what else `accuracies` has, for each set; those of the set named like the run's
        domain are also `validation/accuracy` and so on.

    Raises:
        Preempted: on all ranks.
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
                may_stop=True,
            )
        records = [sample_record(sample, prompt_set, step, name) for sample in experience.samples]
        stage.log_samples(f"validation_{name}_step_{step}", records)
        for metric, value in accuracies(experience).items():
            metrics[f"validation/{name}/{metric}"] = value
            if name == stage.config.data.domain.value:
                metrics[f"validation/{metric}"] = value
    return metrics


def accuracies(experience: Experience) -> dict[str, float]:
    """`accuracy` and its standard error as an evaluation has them; with k samples per prompt also pass@k, as `pass_k`,
    where k is the fewest that could be verified of any prompt. Empty if none could."""
    groups = [*answers_of(experience).values()]
    if not groups:
        return {}
    accuracy, fewest = avg_at_k(groups), min(map(len, groups))
    found = {"accuracy": accuracy.value, "accuracy_error": accuracy.error}
    return found | ({"pass_k": pass_at_k(groups, fewest).value} if fewest > 1 else {})


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
        "response_tokens": sample.sample.length,
        "truncated": sample.sample.truncated,
        "policy_version": sample.sample.policy_version,
    }
