"""The step that goes by how a model did on a problem."""

import random
from dataclasses import dataclass
from pathlib import Path

from omegaconf import MISSING

from megatron_rl.curation.sources import Candidate
from megatron_rl.curation.step import Step
from megatron_rl.data.scores import read_scores
from megatron_rl.errors import InputError


@dataclass
class Difficulty(Step):
    """Problems that a model found too easy or too hard, or answered too shortly; or that it has not been asked."""

    scores: str = MISSING
    """`problems.jsonl` of an evaluation on the source, or of a run that trained on it."""
    min_pass_rate: float = 0.0
    max_pass_rate: float = 1.0
    """The paper's stage sets, by 16 attempts: easy 14/16, medium 10/16, hard 6/16 (arXiv 2505.16400, section 3.1)."""
    right_majority: bool = False
    """The most frequent answer must be right: else the reference is thought to be wrong."""
    min_tokens: float = 0.0
    """Of the responses' mean length."""
    thinned_below_tokens: float = 0.0
    """Of problems with shorter responses, those above `min_tokens`, only a share stays."""
    thinned_share: float = 0.5
    seed: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.min_pass_rate <= self.max_pass_rate <= 1:
            rates = f"min_pass_rate={self.min_pass_rate}, max_pass_rate={self.max_pass_rate}"
            raise InputError(f"difficulty: {rates}; they are shares from 0 to 1, the first not above the second")
        self._scores = read_scores(Path(self.scores))

    def why_not(self, candidate: Candidate) -> str | None:
        identifier = candidate.problem.id.removeprefix(f"{candidate.source}/")
        if identifier not in self._scores:
            return "not scored"
        score = self._scores[identifier]
        rate, tokens = score.pass_rate, score.length_mean
        if not self.min_pass_rate <= rate <= self.max_pass_rate:
            return f"passed in {rate:.1%} of the attempts"
        if self.right_majority and score.majority != 1:
            # Of code there is none, and a run of training does not tell it.
            return "no majority is known" if score.majority is None else "the majority does not answer so"
        if tokens < self.min_tokens:
            return f"{tokens:.0f} tokens"
        draw = random.Random(f"{self.seed} {identifier}").random()
        is_thinned = tokens < self.thinned_below_tokens and draw >= self.thinned_share
        return f"{tokens:.0f} tokens, thinned" if is_thinned else None
