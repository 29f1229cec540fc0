"""Steps that look at the reference answer."""

from dataclasses import dataclass

from megatron_rl.data.problems import Problem
from verifiers.math import why_unreadable

_SHOWN_CHARACTERS = 60


@dataclass
class LongAnswer:
    """References that are too long for two ways to write one answer to be told from two answers."""

    max_characters: int = 100

    def why_not(self, problem: Problem) -> str | None:
        count = len(problem.answer or "")
        return f"{count} characters" if count > self.max_characters else None


@dataclass
class UnreadableAnswer:
    """References that the verifier cannot read: only the same text would meet them."""

    def why_not(self, problem: Problem) -> str | None:
        reason = why_unreadable(problem.answer or "")
        return reason and f"{problem.answer!r:.{_SHOWN_CHARACTERS}}: {reason}"
