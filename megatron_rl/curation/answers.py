"""Steps that look at the reference answer."""

import re
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
    """References that the verifier cannot read, since only the same text would meet them, or that are none."""

    PLACEHOLDERS = frozenset({"proof", "notfound", "none", "nan", "null", "error", "unknown", "seesolution"})
    """By letters and digits. NuminaMath 1.5 has the first two words, and not only where a proof is asked for."""

    def why_not(self, candidate: Candidate) -> str | None:
        answer = candidate.problem.answer or ""
        words = re.sub(r"\\text\w*|[^a-z0-9]", "", answer.lower())
        is_none = words in self.PLACEHOLDERS or re.fullmatch(r"\W*n/a\W*", answer, re.IGNORECASE)
        reason = "no answer" if is_none else why_unreadable(answer)
        return reason and f"{answer!r:.{_SHOWN_CHARACTERS}}: {reason}"
