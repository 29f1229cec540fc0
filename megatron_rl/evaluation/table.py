"""The figures of a model beside those of the paper (arXiv 2505.16400, table 2)."""

from collections.abc import Iterable, Mapping
from typing import Any

from megatron_rl.evaluation.benchmarks import BENCHMARKS

_BENCHMARKS = ("aime24", "aime25", "math500", "livecodebench_v5", "livecodebench_v6")
REPORTED: dict[str, dict[str, float]] = {
    model: dict(zip(_BENCHMARKS, accuracies, strict=True))
    for model, accuracies in {
        "DeepSeek-R1-Distill-Qwen-7B": (55.5, 39.0, 92.8, 37.6, 34.1),
        "AceReason-Nemotron-7B": (69.0, 53.6, 94.1, 51.8, 44.1),
        "DeepSeek-R1-Distill-Qwen-14B": (69.7, 50.2, 93.9, 53.1, 47.9),
        "AceReason-Nemotron-14B": (78.6, 67.4, 95.0, 61.1, 54.9),
    }.items()
}
"""Accuracies in percent by model and benchmark."""


def title(benchmark: str) -> str:
    """As tables have it."""
    return BENCHMARKS[benchmark].title if benchmark in BENCHMARKS else benchmark


def reported(benchmarks: Iterable[str]) -> dict[str, dict[str, float]]:
    """`REPORTED` of these benchmarks only, without the models of which there is nothing."""
    rows = {
        model: {name: figures[name] for name in benchmarks if name in figures} for model, figures in REPORTED.items()
    }
    return {f"{model} (paper)": figures for model, figures in rows.items() if figures}


def markdown_table(model: str, figures: Mapping[str, Mapping[str, Any]]) -> str:
    """Accuracies in percent with their standard errors, and below them what the paper reports of the same benchmarks.

    Args:
        figures: of each benchmark, by its name.
    """
    titles = [f"{title(name)} avg@{one['samples_per_prompt']}" for name, one in figures.items()]
    own = [f"{100 * one['accuracy']:.1f} ± {100 * one['accuracy_error']:.1f}" for one in figures.values()]
    lines = [["model", *titles], ["---"] * (1 + len(titles)), [model, *own]]
    for other, percents in reported(figures).items():
        lines.append([other, *(f"{percents[name]:.1f}" if name in percents else "" for name in figures)])
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)
