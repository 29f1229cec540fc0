"""Finding the answer in a response, in one linear pass over a bounded tail."""

import re
from typing import Literal

Extract = Literal["strict", "anywhere"]

THINK_END = "</think>"
TAIL_CHARS = 100_000
SENTENCE_CHARS = 300

_BRACES_AND_BOXES = re.compile(r"\\(?:boxed|fbox)\s*\{|\\[\\{}]|[{}]")
_BARE_BOX = re.compile(r"\\boxed\s*([-+]?[0-9.][^\s$\\]*)")
_GSM8K = re.compile(r"####[ \t]*([^\n]+)")
_ANSWER_IS = re.compile(r"answer(?: is|:)[ \t]*:?", re.IGNORECASE)
_MATH_SPAN = re.compile(r"^[^\n$]{0,20}?(?<!\\)\$([^$\n]+)\$(?!\d)")
_SENTENCE_END = re.compile(r"\n|[.!?](?:\s|$)")
_NUMBER = re.compile(r"(?:(?<![\w)])-)?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?(?:/\d+)?")


def extract_answer(response: str, mode: Extract = "strict") -> str | None:
    r"""The answer that a response gives, or None if it gives none.

    `strict` is the rule of training: the last balanced, non-empty `\boxed{}` (or `\fbox{}`) after the
    last `</think>`; a response that never closes its reasoning has no answer. `anywhere` is the rule of
    evaluation: the last box anywhere, else GSM8K's `#### N`, else what follows "the answer is", else the
    last number. Only the last `TAIL_CHARS` characters are read.
    """
    if mode == "anywhere":
        tail = response[-TAIL_CHARS:]
        return _last_box(tail) or _stated_answer(tail) or _last_number(tail)
    if mode != "strict":
        raise ValueError(f"extract must be 'strict' or 'anywhere', not {mode!r}")
    end_of_reasoning = response.rfind(THINK_END)
    if end_of_reasoning < 0:
        return None
    start = max(end_of_reasoning + len(THINK_END), len(response) - TAIL_CHARS)
    return _last_box(response[start:])


def _last_box(text: str) -> str | None:
    if "\\boxed" not in text and "\\fbox" not in text:
        return None
    open_braces: list[tuple[int, bool]] = []  # (where its content starts, whether it is a box)
    last = None
    for match in _BRACES_AND_BOXES.finditer(text):
        token = match.group()
        if token == "}":
            if open_braces:
                start, is_box = open_braces.pop()
                content = text[start : match.start()].strip() if is_box else ""
                last = content or last
        elif token[-1] == "{" and token != "\\{":
            open_braces.append((match.end(), token != "{"))
    if last is None:
        for match in _BARE_BOX.finditer(text):
            last = match.group(1).rstrip(".,;") or last
    return last


def _stated_answer(text: str) -> str | None:
    """What follows the last `####`, or else the last "answer is" or "answer:"."""
    last = None
    for match in _GSM8K.finditer(text):
        last = match.group(1).strip()
    if last:
        return last
    end = -1
    for match in _ANSWER_IS.finditer(text):
        end = match.end()
    if end < 0:
        return None
    sentence = text[end : end + SENTENCE_CHARS].lstrip(" \t\n*:")
    if span := _MATH_SPAN.match(sentence):
        return span.group(1).strip() or None
    stop = _SENTENCE_END.search(sentence)
    return sentence[: stop.start() if stop else None].strip(" \t*") or None


def _last_number(text: str) -> str | None:
    last = None
    for match in _NUMBER.finditer(text):
        last = match.group()
    return last
