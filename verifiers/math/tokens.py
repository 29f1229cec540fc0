r"""LaTeX or plain text to canonical tokens: one spelling for everything that is written in several ways.

`\dfrac12`, `\tfrac{1}{2}` and `½` all start with the token `frac`; spacing, `\left`, dollar signs and fonts
leave nothing behind. Two answers with equal tokens are equal.
"""

import re
import unicodedata
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache

from verifiers.math.nodes import Unreadable
from verifiers.math.spelling import (
    ALIASES,
    CHARACTERS,
    FUNCTIONS,
    GREEK,
    MARKS,
    PLAIN_WORDS,
    SILENT,
    SUBSCRIPTS,
    SUPERSCRIPTS,
)
from verifiers.math.units import is_unit, is_unit_word

MAX_CHARS = 4_000
CACHED = 512  # references come back once for each sample of their group


class Kind(Enum):
    """What a token is. `WORD` is text or a unit; `COMMAND` a function, constant or other name."""

    NUMBER = 1
    LETTER = 2
    COMMAND = 3
    WORD = 4
    MARK = 5


@dataclass(frozen=True, slots=True)
class Token:
    """One canonical token."""

    kind: Kind
    text: str


_TOKEN = re.compile(
    r"""
    (?P<bar>\\(?:left|right)\s*(?:\||\\[lr]?vert(?![a-zA-Z])))
  | (?P<space>\s+ | ~ | \\[ ,;:!\n] | \$ | \\[()\[\]] | \\(?:left|right)(?![a-zA-Z])\s*\.?
        | \\(?:color|textcolor)\s*\{[^{}]*\}
        | \\[hv]space\*?\s*\{[^{}]*\} | \\phantom\s*\{[^{}]*\})
  | (?:\\text\s*\{)?(?P<numeral>(?=\d*[A-Fa-f])[\dA-Fa-f]{2,}+)\}?(?=_\{?1[1-6]\b)
  | (?P<number>
        \d{1,3}(?:(?:\{,\}|\\[,!;:\ ]|,\\!\ ?|\ |~)\d{3}(?!\d))+(?:\.\d+)?
      | (?:\d+\.?\d*|\.\d+)
        (?:\\(?:overline|bar)\s*\{\d+\} | (?:\\dot\s*\{?\d\}?\d*){1,2} | (?:[eE][-+]?\d+(?![\da-zA-Z]))?) )
  | (?P<text>\\(?:text(?:bf|it|rm|normal|sf|tt|up)?|mbox|hbox|mathrm|rm|operatorname\*?)
        \s*\{(?P<content>(?:[^{}]|\{[^{}]*\})*+)\})
  | \\(?:mathbf|hat|vec|boldsymbol)(?:\s*\{\s*\\?|\s+\\?)(?P<unit>[ijk])(?:math)?(?![a-zA-Z])\s*\}?
  | \\begin\s*\{(?P<begin>\w+\*?)\}(?:\s*\{[lcr|@!\s]*\})?
  | \\end\s*\{(?P<end>\w+\*?)\}
  | \\mathbb\s*\{?\s*(?P<blackboard>[A-Z])\s*\}?
  | (?P<unequal>\\not\s*=)
  | \\(?P<command>[a-zA-Z]+)\*?
  | (?P<mark>\\[\\{}%$|\#&_] | \.\.\. | <= | >= | != | == | := | =< | \*\* | \S)
    """,
    re.VERBOSE,
)
_WORD_PREFIX = re.compile("(" + "|".join(sorted(FUNCTIONS, key=len, reverse=True)) + r"|pi)([a-z]?)")
_LETTERS = re.compile(r"[A-Za-z]+")
_SI = {  # units that are one capital
    "N": "newton",
    "J": "joule",
    "W": "watt",
    "V": "volt",
    "K": "kelvin",
    "A": "ampere",
    "C": "coulomb",
    "F": "farad",
    "H": "henry",
    "T": "tesla",
}
_QUANTIFIERS = ("for all", "for any", "for every", "for each")
_PI = Token(Kind.COMMAND, "pi")
_TIMES = frozenset(("min", "sec"))  # units of time after a value, else functions
_SPEED = re.compile(r"(mm|cm|m|km|ft|mi)\s*/\s*(s|sec|min|h|hr)(?![A-Za-z])")
_HEXADECIMAL = re.compile(r"[A-Fa-f][\dA-Fa-f]++_\{?1[1-6]\b")
_UNIT = re.compile(r"([a-z]+)(?:\s*/\s*([a-z]+))?(?:\^\{?(\d)\}?)?")
_OVERLINE = "\u0305"  # combining
_OVERLINED = re.compile(f"(?:\\d{_OVERLINE})+")
_SCRIPTS = re.compile(f"([{SUPERSCRIPTS}]+)|([{SUBSCRIPTS}]+)")
_REPEATING = re.compile(r"\\(?:overline|bar)\s*\{(\d+)\}|\\dot\s*\{?(\d)\}?(?:(\d*)\\dot\s*\{?(\d)\}?)?")
_E_MINUS = re.compile(r"(?!1e)\d+[eE][-+]\d")
_ELLIPSIS_END = re.compile(r"\.\.\.\s*$")
_ORDINAL = re.compile(
    r"(?<=\d)(?:\s*\^\s*\{?\s*\\text\s*\{\s*(?:st|nd|rd|th)\s*\}\}?|\^\{th\}|(?:(?<=1)st|(?<=2)nd|(?<=3)rd|th)(?=\}?\s*$))"
)
_COMBINATIONS = re.compile(r"(?:\{\})?[_^]\{?(\d+)\}?\s*C_\{?(\d+)\}?")
_RANGE = re.compile("(?<=\\d)\\s*[\u2013\u2014]\\s*(?=\\d)")  # a dash between numbers is no minus
_DOTS = re.compile(r"\.\.\.|\\[lc]?dots(?![a-zA-Z])")
_RECURRING = re.compile(r"(\d)\1\1+\Z")
_UNIT_END = re.compile(r"(?:\^\{?\d\}?)?\s*\$?")  # what may follow a unit at the end
_SPACED_UNIT = frozenset(("m", "g", "s", "h", "L", "in"))
_COMMA_GROUPS = re.compile(r"(?:,\d{3})++(?![\d]|,\d)(?:\.\d+)?")
_OPENING, _CLOSING = frozenset(("(", "[", "\\{")), frozenset((")", "]", "\\}"))
_TEXT_SEPARATORS = frozenset(("and", "or", ",", ";", ", and", ", or", "where", ", where", "for", "with"))


@lru_cache(maxsize=CACHED)
def clean(text: str) -> str:
    """NFKC text without invisible characters and with one character for each mathematical sign.

    Raises Unreadable if the text is longer than `MAX_CHARS`.
    """
    if len(text) > MAX_CHARS:
        raise Unreadable("too long")
    text = re.sub(r"(?<=\d)\{:\}", ":", text)
    text = _ELLIPSIS_END.sub(r"\\dots", text)
    text = _ORDINAL.sub("", _COMBINATIONS.sub(r"\\binom{\1}{\2}", text))
    if not text.isascii():
        text = _RANGE.sub(r" \\to ", text)
        text = _SCRIPTS.sub(_script, _OVERLINED.sub(lambda m: rf"\overline{{{m[0].replace(_OVERLINE, '')}}}", text))
        text = unicodedata.normalize("NFKC", text.translate(CHARACTERS)).translate(CHARACTERS)
        text = "".join(c for c in text if unicodedata.category(c) not in ("Cf", "Mn"))
    text = "".join(c for c in text if c >= " " or c in "\n\t").strip()
    text = text.strip('*`"') if text[:1] in '*`"' else text
    while text.endswith((".", ",", ";", "。")) and not text.endswith("\\,"):
        text = text[:-1].rstrip()
    return text


def _script(match: re.Match[str]) -> str:
    return f"{'^' if match[1] else '_'}{{{unicodedata.normalize('NFKC', match[0])}}}"


@lru_cache(maxsize=CACHED)
def tokenize(text: str) -> tuple[Token, ...]:
    """The canonical tokens of cleaned text. Raises Unreadable for characters that no answer holds."""
    return tuple(_Tokenizer(text).run())


class _Tokenizer:
    def __init__(self, text: str) -> None:
        self.text = text
        self.tokens: list[Token] = []
        self.brackets = 0  # inside them a comma separates, outside it may group thousands
        self.spaced = False

    def run(self) -> list[Token]:
        at = 0
        while at < len(self.text):
            if self._after_value() and (speed := _SPEED.match(self.text, at)):
                self._unit(speed[1], speed[2], None)
                at = speed.end()
            elif (letters := _LETTERS.match(self.text, at)) and not _HEXADECIMAL.match(self.text, at):
                at = letters.end()
                self._letters(letters.group(), self.text[at : at + 8])
            else:
                match = _TOKEN.match(self.text, at)
                if match is None:
                    raise Unreadable(f"unexpected {self.text[at]!r}")
                at = self._one(match)
            self.spaced = self.text[at - 1].isspace()
        return self.tokens

    def _one(self, match: re.Match[str]) -> int:
        """Add what one match stands for; return where to go on."""
        kind, text = match.lastgroup, match.group()
        if kind == "number":
            return self._number(match)
        if kind in ("text", "content"):
            content = match.group("content")
            name = ALIASES.get(content.strip(), content.strip())
            if text.startswith(r"\operatorname") and name not in FUNCTIONS and len(name) > 1:
                self._add(Kind.COMMAND, f"called {name}")
            else:
                self._text(name if name in FUNCTIONS else content)
        elif kind in ("begin", "end"):
            self._add(Kind.COMMAND, f"{kind} {match.group(kind)}")
        elif kind == "blackboard":
            self._add(Kind.COMMAND, match.group("blackboard") * 2)
        elif kind == "bar":
            self._add(Kind.MARK, "|left" if text.startswith(r"\left") else "|right")
        elif kind == "unequal":
            self._mark("!=")
        elif kind == "unit":
            self._add(Kind.COMMAND, f"unit {match.group(kind)}")
        elif kind == "numeral":
            self._add(Kind.NUMBER, match.group(kind).upper())
        elif kind == "command":
            self._command(match.group("command"))
        elif kind == "mark":
            self._mark(MARKS.get(text, text))
        return match.end()

    def _number(self, match: re.Match[str]) -> int:
        text, at = match.group(), match.end()
        if not self.brackets and text.isdigit() and len(text) <= 3:
            groups = _COMMA_GROUPS.match(self.text, at)
            if groups:
                text, at = text + groups.group(), groups.end()
        if _E_MINUS.fullmatch(text) and text != self.text:
            text, at = text[: -len("e+1")], at - len("e+1")  # 2e+1 among other terms is no literal
        if "\\" in text and "." in text and (period := _REPEATING.search(text)):
            text = text[: period.start()] + f"({''.join(filter(None, period.groups()))})"
        else:
            text = re.sub(r"[^\d.eE+-]", "", text)
        if text.endswith("."):
            text = text[:-1]
        if "." in text and (dots := _DOTS.match(self.text, at)):
            digit = _RECURRING.search(text)
            if digit is None:
                raise Unreadable("digits that go on")
            text, at = f"{text}({digit[1]})", dots.end()  # 0.333...
        self._add(Kind.NUMBER, text)
        return at

    def _text(self, content: str) -> None:
        content = content.strip(" ~\\,")
        word = content.casefold().removesuffix(" and")
        if word == "choose":
            self._add(Kind.COMMAND, word)
        elif word in _TEXT_SEPARATORS or word.startswith(_QUANTIFIERS):
            self._add(Kind.MARK, ",")
        elif word == "to":
            self._add(Kind.MARK, ":")
        elif word in FUNCTIONS and not (word in _TIMES and self._after_value()):
            self._add(Kind.COMMAND, word)
        elif self.tokens and (unit := _UNIT.fullmatch(word)) and (unit[2] or unit[3]):
            self._unit(*unit.groups())
        elif any(c.isdigit() for c in content):
            self.tokens.extend(tokenize(content))
        elif word in GREEK or word == "pi":
            self._add(Kind.COMMAND, word)
        elif (
            word == "e" or word == "i" or (len(word) == 1 and self.tokens and content not in _SI and not is_unit(word))
        ):
            self._add(Kind.LETTER, content)
        elif content in _SI and self._after_value():
            self._add(Kind.WORD, _SI[content])
        elif content.startswith("(") and self._after_value():
            self._add(Kind.WORD, "remark")
        elif word:
            self._add(Kind.WORD, word.strip("().,:; ") if len(word) > 1 else content)

    def _unit(self, above: str, below: str | None, power: str | None) -> None:
        """`m/s^2`."""
        self._add(Kind.WORD, above)
        if below:
            self._add(Kind.MARK, "/")
            self._add(Kind.WORD, below)
        if power:
            self._add(Kind.MARK, "^")
            self._add(Kind.NUMBER, power)

    def _command(self, name: str) -> None:
        name = ALIASES.get(name, name)
        if name in SILENT:
            return
        if not name.isalnum():
            self._mark(name)
        else:
            self._add(Kind.COMMAND, name)

    def _mark(self, mark: str) -> None:
        if mark in _OPENING:
            self.brackets += 1
        elif mark in _CLOSING:
            self.brackets -= 1
        self._add(Kind.MARK, mark)

    def _letters(self, run: str, following: str) -> None:
        word = run.casefold()
        if self._is_ending_unit(run, following):
            self._add(Kind.WORD, word)
        elif run in GREEK and self._after_value():
            self._command(run)
        elif run in FUNCTIONS or word in PLAIN_WORDS:
            self._command(PLAIN_WORDS.get(word, run))
        elif self._after_value() and (is_unit_word(word) or (self.spaced and len(run) >= 4 and run.islower())):
            self._add(Kind.WORD, word)
        elif prefix := _WORD_PREFIX.fullmatch(run):
            self._add(Kind.COMMAND, prefix.group(1))
            if prefix.group(2):
                self._add(Kind.LETTER, prefix.group(2))
        else:
            for letter in run:
                self._add(Kind.LETTER, letter)

    def _is_ending_unit(self, run: str, following: str) -> bool:
        """Whether `m` or `sec`, which may mean something else, is the unit of the number before it."""
        if run in _TIMES:
            return self._after_value() and not following.lstrip(" .)}$")
        is_after_number = self.spaced and len(self.tokens) == 1 and self.tokens[0].kind is Kind.NUMBER
        return run in _SPACED_UNIT and is_after_number and _UNIT_END.fullmatch(following) is not None

    def _after_value(self) -> bool:
        if not self.tokens:
            return False
        last = self.tokens[-1]
        return (
            last.kind in (Kind.NUMBER, Kind.WORD)
            or last == _PI
            or (last.kind is Kind.MARK and last.text in (")", "}", "$", "/"))
        )

    def _add(self, kind: Kind, text: str) -> None:
        self.tokens.append(Token(kind, text))
