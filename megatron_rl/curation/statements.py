"""Steps that look at a statement alone.

What it asks for is told by how such statements are worded: the patterns know English, and err on the side of leaving a
problem out, since a reference that a right answer does not match teaches the opposite.
"""

import re
from dataclasses import dataclass

from megatron_rl.curation.sources import Candidate
from megatron_rl.curation.step import Step
from megatron_rl.curation.text import prose, without_drawings, words

_SHOWN_CHARACTERS = 60


@dataclass
class Length(Step):
    """Statements that are too short to pose a problem, or too long to be one."""

    min_words: int = 4
    max_words: int = 1000

    def why_not(self, candidate: Candidate) -> str | None:
        count = len(words(candidate.problem.question))
        return None if self.min_words <= count <= self.max_words else f"{count} words"


@dataclass
class Language(Step):
    """Statements in another language than English."""

    min_probability: float = 0.5
    """Of the other language, by the prose without formulas; of a few words none is certain."""

    def why_not(self, candidate: Candidate) -> str | None:
        from py3langid.langid import MODEL_FILE, LanguageIdentifier

        if not hasattr(self, "_identifier"):
            self._identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
        language, probability = self._identifier.classify(prose(candidate.problem.question))
        if language == "en" or probability < self.min_probability:
            return None
        return f"language {language} ({probability:.2f})"


class Worded(Step):
    """A statement in which one of some patterns is found."""

    PATTERNS: tuple[re.Pattern[str], ...]

    def why_not(self, candidate: Candidate) -> str | None:
        text = self.searched(candidate.problem.question)
        for pattern in self.PATTERNS:
            if found := pattern.search(text):
                return " ".join(found.group().split())[:_SHOWN_CHARACTERS]
        return None

    def searched(self, statement: str) -> str:
        """What the patterns are looked for in."""
        return without_drawings(statement)


def any_case(*patterns: str) -> tuple[re.Pattern[str], ...]:
    return tuple(re.compile(pattern, re.IGNORECASE | re.DOTALL | re.MULTILINE) for pattern in patterns)


_ASKS = r"(?:\?|\b(?:find|determine|compute|calculate|evaluate|what|how|which|prove|show|give|state|solve|express)\b)"


def _parts(first: str, second: str) -> str:
    """Two marked parts, the first of which asks for something: conditions are numbered, too."""
    return rf"{first}(?:(?!{second}).)*?{_ASKS}.*?{second}"


@dataclass
class MultiPart(Worded):
    """Several questions in one, of which one reference can answer but one."""

    PATTERNS = any_case(
        *(
            _parts(rf"(?<![\w)\\])\({a}\)\s", rf"(?<![\w)\\])\({b}\)\s")
            for a, b in (("a", "b"), ("i", "ii"), ("1", "2"))
        ),
        *(_parts(rf"^\s*{a}[.)]\s", rf"^\s*{b}[.)]\s") for a, b in (("a", "b"), ("i", "ii"), ("1", "2"))),
        r"\bpart\s+\(?(?:a|i|1)\b.*?\bpart\s+\(?(?:b|ii|2)\b",
        r"\bthe following (?:two|three|four) questions",
    )


@dataclass
class MultipleChoice(Worded):
    """A choice among given answers, which a guess meets too often."""

    PATTERNS = (
        re.compile(r"\(A\).*?\(B\).*?\(C\)", re.DOTALL),
        re.compile(r"(?<!\w)A[.):]\s.*?(?<!\w)B[.):]\s.*?(?<!\w)C[.):]\s", re.DOTALL),
        *any_case(
            r"\\text(?:bf|rm|sf)?\s*\{\s*\(?A\)?.*?\\text(?:bf|rm|sf)?\s*\{\s*\(?B\)?",
            r"\b(?:which|how many) (?:one )?of the following\b",
            r"\b(?:choose|select|pick) the (?:correct|right|best)\b",
        ),
    )


@dataclass
class TrueFalse(Worded):
    """A question that is answered by yes or no."""

    PATTERNS = any_case(r"\btrue or false\b", r"\byes or no\b", r"\banswer (?:with )?(?:yes|true)\b")
    ANSWERS = frozenset({"true", "false", "yes", "no", "correct", "incorrect"})

    def why_not(self, candidate: Candidate) -> str | None:
        answer = re.sub(r"\\text\w*|[{}$.\s]", "", candidate.problem.answer or "").lower()
        return f"answer {candidate.problem.answer!r}" if answer in self.ANSWERS else super().why_not(candidate)


@dataclass
class Proof(Worded):
    """A proof, of which a reference answer says nothing."""

    PATTERNS = any_case(
        r"\b(?:prove|disprove)\b(?! (?:useful|helpful|to be))",
        r"(?:^|[.:;?!,] |\b(?:and|then|to) )(?:show|demonstrate|verify|justify|explain) (?:that|why)\b",
        r"\b(?:give|provide|write) an? (?:rigorous |formal )?proof\b",
    )


@dataclass
class Figure(Worded):
    """A statement that needs a picture."""

    PATTERNS = any_case(
        r"\[asy\]",
        r"\\includegraphics|\\begin\{tikzpicture\}|!\[[^\]]*\]\(|<img\b",
        r"\b(?:figure|diagram|picture|drawing|image|chart)s?\b[^.?!]{0,30}?\b(?:below|above|shown|right|left|following)\b",
        r"\b(?:shown|seen|depicted|pictured|drawn|illustrated|indicated|given|marked|labell?ed)\b[^.?!]{0,30}?"
        r"\b(?:figure|diagram|picture|drawing|image|chart)\b",
        r"\b(?:as|in|from|the) (?:the |this )?(?:figure|diagram|picture|drawing)s?\b",
        r"\b(?:graph|table|grid|map) (?:shown |given )?(?:below|above)\b",
        r"\bas (?:shown|pictured|depicted|illustrated)\b(?! that)",
    )

    def searched(self, statement: str) -> str:
        return statement
