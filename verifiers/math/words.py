"""Answers that are text: words, lists of words, choices, times of day, phrases that stand for a sign."""

import re

from verifiers.math.spelling import PHRASES

_TEXT_COMMAND = re.compile(r"\\(?:text(?:bf|it|rm)?|mbox|mathrm|mathbf)\s*\{([^{}]*)\}|\\[ ,;:!]|\$")
_PREAMBLE = re.compile(
    r"^\\text\s*\{\s*(?:there (?:is|are)|all|(?:the )?(?:final )?answer:?|"
    r"(?!.*\b(?:not|wrong|incorrect|never)\b)[\w ]* (?:is|are|equals):?|)\s*\}\s*(?=\S)",
    re.IGNORECASE,
)
_IMPLIES = re.compile(r"\\(?:implies|Rightarrow|Longrightarrow|therefore)(?![a-zA-Z])|⇒|∴")
_LABEL = re.compile(
    r"(?:\\(?:text(?:bf|it|rm)?|mathrm|mathbf|mbox)\s*\{\s*)?\(([A-J])\)(?:\s*\}|\\?[ ,;:!~]|\\q?quad)+\s*(?=\S)"
)
_CHOICE = re.compile(r"(?:(?:[Oo]ption|[Cc]hoice)\s+)?\(?([A-J])\)?")
_LEADING_CHOICE = re.compile(
    r"(?:(?:option|choice)\s+)?(?:\(([A-Ja-j])\)|((?-i:[A-J]))(?:[).:]|$))"
    r"(?!\s*(?:[-+*/^_=<>,;&({}]|(?:or|and|is|not)\b))(?!.*\b(?:wrong|incorrect|false)\b)(?!.*(?-i:\b[A-J]\b))",
    re.IGNORECASE | re.DOTALL,
)
_WORDS = re.compile(r"[A-Za-z][A-Za-z'.,; -]*|[A-Z][a-z]{2,} \d{1,2}")  # the last: October 30
_SEPARATOR = re.compile(r"\s*(?:[,;]|\band\b)\s*")
_PARTS = re.compile(r"[- '.]+")
_ARTICLE = re.compile(r"(?:an?|the) (?=\w{2})")
_PRODUCT = re.compile(r"[a-z]{1,3}")  # letters that may be a product
_TIME = re.compile(r"(\d{1,2})(?:\s*:\s*(\d\d))?(?:\s*:\s*(\d\d))?\s*([ap])\.?\s*m\.?", re.IGNORECASE)


def phrase(text: str) -> str:
    """The sign that a whole answer in words stands for, or the conclusion, without "the answer is"."""
    text = _PREAMBLE.sub("", _IMPLIES.split(text)[-1].strip())
    return PHRASES.get(" ".join(_unwrapped(text).casefold().replace("-", "").split()), text)


def without_label(text: str, other: str) -> str:
    r"""`\text{(B)}\ 12` as `12`, where the other text has no such label of a choice."""
    label = _LABEL.match(text)
    if label is None or _LABEL.match(other) or _CHOICE.fullmatch(_unwrapped(other)):
        return text
    return text[label.end() :]


def both_words(answer: str, reference: str) -> bool | None:
    """Decides if both are words: "east", "no solution", "red, green and blue" in any order, "3:30 p.m."; else None.

    Case, hyphens and articles do not matter.
    """
    pair = _unwrapped(answer), _unwrapped(reference)
    times = [_TIME.fullmatch(text) for text in pair]
    if times[0] and times[1]:
        return _clock(times[0]) == _clock(times[1])
    lists = [_word_list(text) for text in pair]
    if None in lists or (_PRODUCT.fullmatch(answer) and _PRODUCT.fullmatch(reference)):
        return None
    return lists[0] == lists[1]


def same_choice(answer: str, reference: str) -> bool:
    """Multiple choice: the reference is one letter A to J, the answer starts with it, as in `(C) 12`."""
    wanted = _CHOICE.fullmatch(_unwrapped(reference))
    if wanted is None:
        return False
    given = _LEADING_CHOICE.match(_unwrapped(answer))
    return given is not None and wanted[1].upper() == (given[1] or given[2]).upper()


def _unwrapped(text: str) -> str:
    r"""Text without `\text{}` around its parts, dollars and outer braces."""
    return _TEXT_COMMAND.sub(lambda m: m.group(1) or " ", text).strip(" {}.")


def _clock(time: re.Match[str]) -> tuple[int, int, int, str]:
    return int(time[1]), int(time[2] or 0), int(time[3] or 0), time[4].casefold()


def _word_list(text: str) -> list[str] | None:
    """The words between commas and "and", sorted; None if they may be letters that stand for numbers, or too short."""
    if not _WORDS.fullmatch(text) or len(text) < 3:
        return None
    items = [item for item in _SEPARATOR.split(text) if item]
    if not any(max(map(len, _PARTS.split(item))) > 2 for item in items) and not all(map(str.isupper, items)):
        return None
    return sorted(item if item.isupper() and len(item) < 4 else _ARTICLE.sub("", _plain(item)) for item in items)


def _plain(word: str) -> str:
    return " ".join(word.casefold().removesuffix(" only").replace("-", " ").replace(".", "").split())
