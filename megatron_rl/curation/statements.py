"""Steps that look at a statement alone.

What it asks for is told by how such statements are worded: the patterns know English, and err on the side of leaving a
problem out, since a reference that a right answer does not match teaches the opposite.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

from megatron_rl.curation.sources import Candidate
from megatron_rl.curation.step import Step
from megatron_rl.curation.text import MAX_CHARACTERS, prose, without_drawings, words

_SHOWN_CHARACTERS = 60


@dataclass
class Length(Step):
    """Statements that are too short to pose a problem, or too long to be one."""

    min_words: int = 4
    max_words: int = 1000
    max_characters: int = MAX_CHARACTERS

    def why_not(self, candidate: Candidate) -> str | None:
        if len(candidate.problem.question) > self.max_characters:
            return f"{len(candidate.problem.question)} characters"
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
        text = self.searched(candidate.problem.question)[:MAX_CHARACTERS]
        for pattern in self.PATTERNS:
            if found := pattern.search(text):
                return " ".join(found.group().split())[:_SHOWN_CHARACTERS]
        return None

    def searched(self, statement: str) -> str:
        """What the patterns are looked for in."""
        return without_drawings(statement)


def any_case(*patterns: str) -> tuple[re.Pattern[str], ...]:
    return tuple(re.compile(pattern, re.IGNORECASE | re.DOTALL | re.MULTILINE) for pattern in patterns)


def _in_order(text: str, marks: Sequence[re.Pattern[str]]) -> list[re.Match[str]]:
    """The first place of the first mark, of the next one after it, and so on; empty if one is missing."""
    found: list[re.Match[str]] = []
    for mark in marks:
        match = mark.search(text, found[-1].end() if found else 0)
        if match is None:
            return []
        found.append(match)
    return found


def _marks(form: str, *names: str) -> list[re.Pattern[str]]:
    """`form` with each of the names for its @."""
    return [re.compile(form.replace("@", name), re.MULTILINE) for name in names]


_VERB = r"\b(?:find|determine|compute|calculate|evaluate|prove|state|solve)\b"
_ASKS, _ASKS_FOR = re.compile(rf"\?|{_VERB}", re.IGNORECASE), re.compile(rf"{_VERB}\s*\Z", re.IGNORECASE)
_PART_NAMES = (("a", "b"), ("i", "ii"), ("1", "2"), ("I", "II"), (r"\u2160", r"\u2161"))


@dataclass
class MultiPart(Step):
    """Several questions in one, of which one reference can answer but one. Conditions are numbered, too: the first part
    must ask for something, or what stands right before it."""

    FORMS = r"(?<![\w)\\])[(\uff08]@[)\uff09]\$?(?=\s|[A-Z])", r"^[ \t]*@[.)]\s", r"\b[Pp]art\s+\(?@\b"
    CIRCLED = _marks("@", r"\u2460", r"\u2461")
    MARKS = (*(_marks(form, *names) for form, names in product(FORMS, _PART_NAMES)), CIRCLED)

    def why_not(self, candidate: Candidate) -> str | None:
        text = without_drawings(candidate.problem.question)[:MAX_CHARACTERS]
        for marks in self.MARKS:
            if found := _in_order(text, marks):
                first, second = found
                before = text[max(0, first.start() - 15) : first.start()]
                if _ASKS.search(text, first.end(), second.start()) or _ASKS_FOR.search(before):
                    return " ".join(text[first.start() : second.end()].split())[:_SHOWN_CHARACTERS]
        return None


@dataclass
class MultipleChoice(Worded):
    """A choice among given answers, which a guess meets too often."""

    PATTERNS = any_case(
        r"\b(?:which|how many) (?:one )?of the following\b", r"\b(?:choose|select|pick) the (?:correct|right|best)\b"
    )
    MARKS = (
        _marks(r"\(@\)", "A", "B", "C"),
        _marks(r"(?<!\w)@[.):]\s", "A", "B", "C"),
        _marks(r"\\text\w*\s*\{\s*\(?@\)?", "A", "B"),
    )
    LETTERS = (
        _marks(r"\(@\)", "a", "b", "c"),
        _marks(r"(?<!\w)[*$]*@[*$]*\s*[.):\uff0e\uff1a\u3001]", "A", "B", "C"),
        _marks(r"\*\*@\*\*", "A", "B", "C"),
    )
    """Options only where the reference is a letter: parts and vertices have such names, too."""

    def why_not(self, candidate: Candidate) -> str | None:
        text = self.searched(candidate.problem.question)[:MAX_CHARACTERS]
        answer = re.sub(r"\\text\w*|[{}()$.\s]", "", candidate.problem.answer or "")
        marks = (*self.MARKS, *self.LETTERS) if answer in list("ABCDEabcde") else self.MARKS
        for each in marks:
            if found := _in_order(text, each):
                return " ".join(match.group().strip() for match in found)
        return super().why_not(candidate)


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
        r"\\includegraphics|\\begin\{tikzpicture\}|!\[[^\]]*\]\(|<(?:img|image)\b",
        r"\b(?:figure|diagram|picture|image|chart)s?\b[^.?!]{0,30}?\b(?:below|above|shown)\b",
        r"\b(?:shown|seen|depicted|pictured|illustrated|indicated|marked|labell?ed)\b[^.?!]{0,30}?"
        r"\b(?:figure|diagram|picture|image|chart)\b",
        r"\b(?:in|from|see|of) (?:the |this )?(?:figure|diagram)\b(?! (?:bounded|enclosed|formed|limited)\b)",
        r"\b(?:accompanying|adjacent) (?:figure|diagram)\b",
        r"\bgraph\b[^.?!]{0,60}\b(?:is|are) shown\b|\b(?:graph|grid|map) (?:shown |given )?(?:below|above)\b",
        r"\b(?:below|above) is an? (?:figure|diagram|picture|image)\b",
        r"\bas (?:shown|pictured|depicted|illustrated)\b(?! that)",
    )

    def searched(self, statement: str) -> str:
        return statement
