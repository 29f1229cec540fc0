"""Steps that look at the reference answer."""

from dataclasses import dataclass

from megatron_rl.curation.sources import Candidate
from megatron_rl.curation.step import Step
from verifiers.math import why_unreadable

_SHOWN_CHARACTERS = 60


@dataclass
class LongAnswer(Step):
    """References that are too long for two ways to write one answer to be told from two answers."""

    max_characters: int = 100

    def why_not(self, candidate: Candidate) -> str | None:
        count = len(candidate.problem.answer or "")
        return f"{count} characters" if count > self.max_characters else None


@dataclass
class UnreadableAnswer(Step):
    """References that the verifier cannot read: only the same text would meet them."""

    def why_not(self, candidate: Candidate) -> str | None:
        reason = why_unreadable(candidate.problem.answer or "")
        return reason and f"{candidate.problem.answer!r:.{_SHOWN_CHARACTERS}}: {reason}"
