"""The figures of a model beside those of the paper (arXiv 2505.16400, table 2)."""

from collections.abc import Iterable, Mapping
from typing import Any

from megatron_rl.evaluation.benchmarks import BENCHMARKS

REPORTED: dict[str, dict[str, float]] = {
    "DeepSeek-R1-Distill-Qwen-7B": {"aime24": 55.5, "aime25": 39.0, "math500": 92.8},
    "AceReason-Nemotron-7B": {"aime24": 69.0, "aime25": 53.6, "math500": 94.1},
    "DeepSeek-R1-Distill-Qwen-14B": {"aime24": 69.7, "aime25": 50.2, "math500": 93.9},
    "AceReason-Nemotron-14B": {"aime24": 78.6, "aime25": 67.4, "math500": 95.0},
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
