"""Whether a file of problems can be trained on: that it loads, and that its references can be met."""

from collections.abc import Sequence
from pathlib import Path

from omegaconf import OmegaConf
from rich.console import Console
from rich.progress import track

from megatron_rl.config.loader import parse_overrides, refusals
from megatron_rl.config.schema import DataConfig
from megatron_rl.data.problems import Problem, load_problems
from verifiers.math import why_unreadable


def load_checked(path: Path, overrides: Sequence[str]) -> tuple[list[Problem], list[tuple[Problem, str]]]:
    """The problems of a file, and those whose reference answer only the same text can meet, each with the reason.

    `overrides` are `key=value` of the schema's data section.

    Raises:
        InputError: an unknown key, a wrong value, or what `load_problems` raises.
    """
    with refusals(f"data check: {' '.join(overrides)}"):
        merged = OmegaConf.merge(OmegaConf.structured(DataConfig), parse_overrides(overrides), {"path": str(path)})
        config = OmegaConf.to_object(merged)
    assert isinstance(config, DataConfig)
    problems = load_problems(config)
    reasons = [
        (problem, why_unreadable(problem.answer))
        for problem in track(problems, f"reading {path.name}", console=Console(stderr=True), transient=True)
        if problem.answer is not None
    ]
    return problems, [(problem, reason) for problem, reason in reasons if reason is not None]
