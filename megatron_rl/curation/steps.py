"""The steps by their names in a recipe. A step's fields are its settings there."""

from collections.abc import Mapping
from typing import Any, cast

from omegaconf import OmegaConf

from megatron_rl.config.loader import refusals
from megatron_rl.curation.answers import LongAnswer, UnreadableAnswer
from megatron_rl.curation.code import DatedAfter, GoldenSolution, Interactive, SpecialJudge, WeakTests
from megatron_rl.curation.decontamination import Decontamination
from megatron_rl.curation.difficulty import Difficulty
from megatron_rl.curation.duplicates import ExactDuplicates, NearDuplicates
from megatron_rl.curation.statements import Figure, Language, Length, MultiPart, MultipleChoice, Proof, TrueFalse
from megatron_rl.curation.step import Step
from megatron_rl.errors import InputError

STEPS: Mapping[str, type[Step]] = {
    "length": Length,
    "language": Language,
    "multi_part": MultiPart,
    "multiple_choice": MultipleChoice,
    "true_false": TrueFalse,
    "proof": Proof,
    "figure": Figure,
    "long_answer": LongAnswer,
    "unreadable_answer": UnreadableAnswer,
    "special_judge": SpecialJudge,
    "interactive": Interactive,
    "weak_tests": WeakTests,
    "golden_solution": GoldenSolution,
    "dated_after": DatedAfter,
    "difficulty": Difficulty,
    "exact_duplicates": ExactDuplicates,
    "near_duplicates": NearDuplicates,
    "decontamination": Decontamination,
}


def make_step(name: str, settings: Mapping[str, Any]) -> Step:
    """The step of that name, for one run.

    Raises:
        InputError: an unknown name or setting, or what the step needs cannot be read.
    """
    if name not in STEPS:
        raise InputError(f"steps.{name}: no such step; there are {', '.join(STEPS)}")
    with refusals(f"steps.{name}"):
        merged = OmegaConf.merge(OmegaConf.structured(STEPS[name]), dict(settings))
        return cast(Step, OmegaConf.to_object(merged))
