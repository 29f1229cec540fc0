"""The program in a response: the last fenced Python block after the last `</think>`.

Rules, all decided in one pass over the lines (linear time, whatever the text):

- Only what follows the last `</think>` counts. Without `</think>` there is no answer: the model was
  still thinking when it was cut off.
- A fence opens with three or more backticks at the start of a line, after any indentation. A Python
  fence names `python`, `python3` or `py` (any case) as its first word, and may also end a line of prose.
- Other languages, and fences without a language, are never the answer; they are tracked so that their
  closing lines are not taken for openings. The prompt asks for a `python` fence and this is what earns.
- A fence closes at a line that holds nothing but backticks, at least as many as opened it.
- Several blocks: the last closed one counts. A fence that never closes is not a block (the response
  was cut off inside it), and neither is one in which another Python fence opens.
- An indented fence (in a list, say) takes that much indentation, at most, off each of its lines.
"""

_THINK_END = "</think>"
_PYTHON = frozenset({"python", "python3", "py"})
_FENCE = "```"


def extract_program(response: str) -> str | None:
    """The program that `response` answers with, or None if it has none. Never raises on any text."""
    _, mark, answer = response.rpartition(_THINK_END)
    if not mark:
        return None
    program: str | None = None
    ticks = 0  # backticks of the open fence, 0 when none is open
    is_python = False
    indent = 0
    body: list[str] = []
    for line in answer.split("\n"):
        if _FENCE in line:
            opened = _python_fence(line)
            if opened is not None:
                indent, ticks = opened
                is_python, body = True, []
                continue
            stripped = line.strip()
            run = len(stripped) - len(stripped.lstrip("`"))
            if ticks and run == len(stripped) and run >= ticks:
                if is_python:
                    program = "\n".join(body)
                ticks = 0
                continue
            if not ticks and run >= len(_FENCE) and "`" not in stripped[run:]:
                ticks, is_python = run, False
                continue
        if ticks and is_python:
            body.append(_dedent(line.removesuffix("\r"), indent))
    return program


def _python_fence(line: str) -> tuple[int, int] | None:
    """Indentation and number of backticks of the Python fence that `line` opens, or None."""
    start = line.rfind(_FENCE) + len(_FENCE)
    language = line[start:].split(None, 1)
    if not language or language[0].lower() not in _PYTHON:
        return None
    before = line[:start].rstrip("`")
    return (len(before) if before.isspace() else 0), start - len(before)


def _dedent(line: str, indent: int) -> str:
    """`line` without its first `indent` characters of white space (fewer if it has fewer)."""
    blank = len(line) - len(line.lstrip())
    return line[min(indent, blank) :]
