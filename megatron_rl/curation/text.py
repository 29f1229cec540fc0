"""Problem statements as words: what the steps that compare texts compare."""

import re
import unicodedata

MAX_CHARACTERS = 20_000
"""Of a statement that patterns are looked for in: some take the square of its length."""
_WORD = re.compile(r"[^\W_]+")
_DRAWING_BEGIN, _DRAWING_END = "[asy]", "[/asy]"
_FORMULA = re.compile(r"\$\$.*?\$\$|\$[^$]*\$|\\\[.*?\\\]|\\\(.*?\\\)|\\begin\{(\w+\*?)\}.*?\\end\{\1\}", re.DOTALL)
_COMMAND = re.compile(r"\\[a-zA-Z]+")
_PROSE = re.compile(r"[^\W\d_]{2,}")


def words(text: str) -> list[str]:
    """Runs of letters and digits, in lower case; spaces, punctuation and LaTeX's signs only separate them.

    >>> words("Compute $\\\\frac{1}{2}+X_1$.")
    ['compute', 'frac', '1', '2', 'x', '1']
    """
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text).casefold()
    return _WORD.findall(text.lower())


def without_drawings(text: str) -> str:
    """Without the code of drawings, in which letters and numbers have no meaning of their own."""
    parts, end = [], 0
    while (begin := text.find(_DRAWING_BEGIN, end)) >= 0:
        parts.append(text[end:begin])
        end = text.find(_DRAWING_END, begin)
        if end < 0:
            return " ".join(parts)
        end += len(_DRAWING_END)
    return " ".join([*parts, text[end:]])


def prose(text: str) -> str:
    """What is left of a statement without formulas, drawings and single letters."""
    text = without_drawings(text)[:MAX_CHARACTERS]
    for what in (_FORMULA, _COMMAND):
        text = what.sub(" ", text)
    return " ".join(_PROSE.findall(text))
