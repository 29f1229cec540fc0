"""Why the code verifier and LiveCodeBench's checker judge a program differently, for `agree_code.py`."""

import re
from dataclasses import dataclass

from code_cases import Case, run_python
from verify_code_peer import NAMES

from verifiers.verdict import Result, Verdict


@dataclass(frozen=True, slots=True)
class Difference:
    """A case that the two judge differently. `python` is what running it says."""

    case: Case
    ours: Result
    theirs: str
    python: bool
    kind: str

    @property
    def passed(self) -> bool:
        return self.ours.verdict is Verdict.PASS


@dataclass(frozen=True, slots=True)
class Sign:
    """What to recognise a kind of difference by; all of it must be there.

    Attributes:
        theirs: matches LiveCodeBench's word on the failure.
        code: matches the program.
        ours: matches our word on the failure.
        value: what `PROBE` finds in the returned values.
    """

    theirs: str = ""
    code: str = ""
    ours: str = ""
    value: str = ""

    def fits(self, difference: Difference) -> bool:
        where = [(self.theirs, difference.theirs), (self.code, difference.case.code)]
        where.append((self.ours, difference.ours.detail))
        found = all(re.search(pattern, text, re.MULTILINE) for pattern, text in where)
        return found and (not self.value or self.value in _value_kinds(difference.case))


@dataclass(frozen=True, slots=True)
class Kind:
    """A reason why the two differ, for people, and whether it is ours that accepts."""

    reason: str
    ours_passes: bool
    signs: tuple[Sign, ...]


STATE = "state of other tests"
_EMPTY_OUTPUT = r"Wrong answer at output_line_idx=0:  !="
KINDS: dict[str, Kind] = {
    STATE: Kind("all tests run in one process: what a program leaves behind meets the next test", True, ()),
    "nested tuples": Kind("only the outermost tuple of a value counts as a list there", True, (Sign(value="tuple"),)),
    "keys of a dict": Kind('JSON has only strings as keys; there 1 and "1" differ', True, (Sign(value="key"),)),
    "import added": Kind(
        "the imports that it puts before every program hide built-ins, three-argument pow among them",
        True,
        (Sign(theirs=r"expected 2 arguments, got 3|required argument 'mod'|'dict' object has no attribute"),),
    ),
    "package": Kind("its environment lacks a package", True, (Sign(theirs="No module named"),)),
    "names taken away": Kind(
        "it removes quit, help, parts of os, shutil and subprocess, and the module resource",
        True,
        (Sign(theirs="'NoneType' object is not callable"), Sign(theirs="None in sys.modules")),
    ),
    "not a module": Kind(
        "stdin programs become the body of a function: global statements, pickle, `from __future__`, the docstring "
        "and a class Solution break",
        True,
        (
            Sign(theirs=r"NameError|nonlocal"),
            Sign(theirs=r"from __future__|has no attribute 'Solution'|Can't pickle|__main__|'__dict__'"),
            Sign(theirs="AssertionError", code=r"\A\s*[\"']{3}"),
        ),
    ),
    "main guard": Kind(
        "`__name__` is not `__main__`; it unwraps one guard at the end, spelt in one way",
        True,
        (Sign(theirs="Wrong answer", code="__name__|__main__"),),
    ),
    "after the end": Kind(
        "threads that are not joined, exit handlers and destructors have not run when it looks at the output",
        True,
        (Sign(theirs=_EMPTY_OUTPUT, code=r"Thread|atexit|__del__|finalize"),),
    ),
    "standard output": Kind(
        "sys.stdout is a StringIO: no buffer, no descriptor, and what is written past it is lost",
        True,
        (
            Sign(theirs=r"StringIO|Capturing"),
            Sign(theirs=_EMPTY_OUTPUT, code=r"os\.p?writev?|os\.dup|fdopen|open\(1|stdout"),
        ),
    ),
    "end of the process": Kind(
        "os._exit, or a stack of 8 MB that overflows, ends the process that holds its results",
        True,
        (Sign(theirs="no results"),),
    ),
    "no arguments": Kind(
        "a function without arguments has an empty input, which it reads as JSON",
        True,
        (Sign(theirs="Expecting value: line 1 column 1"),),
    ),
    "class by its text": Kind(
        "it looks for a method if the source holds the words class Solution, else for a function",
        True,
        (Sign(theirs="cannot unpack non-iterable NoneType|Wrong", code="Solution"),),
    ),
    "standard input": Kind(
        "sys.stdin is an object of its own: no iteration, no descriptor, `read(n)` gives all, `readline` loses the "
        "line end, `buffer.readline` always gives the first line, an empty line or the end raises; open() reads "
        "nothing, or the input whatever the file",
        True,
        (
            Sign(theirs=r"Mock(Stdin|Buffer)|UnsupportedOperation|StopIteration|EOFError"),
            Sign(code=r"open\(0|os\.p?readv?\b|/dev/stdin|/fd/0|fileinput|mmap|\.buffer|stdin\.\w+|stdin\)|Path\("),
        ),
    ),
    "lines of standard input": Kind(
        "`readlines` there gives a line more, `read` and `readline` other white space", False, (Sign(code=r"stdin\."),)
    ),
    "exit status": Kind(
        "SystemExit counts as a good end there, whatever its status", False, (Sign(ours="exit status", code="exit"),)
    ),
    "name never imported": Kind(
        "stdin programs find the names of some modules there that they never imported",
        False,
        (Sign(ours="NameError"),),
    ),
    "not the main module": Kind(
        "`__name__` is not `__main__` there, and a guard at the end is taken off", False, (Sign(code="__name__"),)
    ),
    "caught alarm": Kind(
        "its time limit is an exception in the program, which `except` and `finally` can stop",
        False,
        (Sign(ours="stopped after", code="except|finally"),),
    ),
    "recursion": Kind(
        "its recursion limit is 50,000 for stdin programs too; Python's is 1,000", False, (Sign(ours="RecursionError"),)
    ),
}
UNKNOWN = "no known reason"

PROBE = """
def _kinds(value, top=True):
    if isinstance(value, tuple) and not top:
        yield "tuple"
    if isinstance(value, (list, tuple)):
        for part in value:
            yield from _kinds(part, False)
    if isinstance(value, dict):
        for key, part in value.items():
            if not isinstance(key, str):
                yield "key"
            yield from _kinds(part, False)
import json as _json, sys as _sys
for _line in _sys.stdin.read().split("\\n\\n"):
    print(*_kinds({}(*map(_json.loads, _line.splitlines()))))
"""


def _value_kinds(case: Case) -> set[str]:
    """What the function's values hold on the tests that JSON cannot tell."""
    if case.fn_name is None:
        return set()
    name = f"Solution().{case.fn_name}" if "class Solution" in case.code else case.fn_name
    text = "\n\n".join(test["input"] for test in case.tests)
    return set(run_python(f"{NAMES}exec({case.code!a})\n{PROBE.format(name)}", text).split())


def kind_of(difference: Difference) -> str:
    """The first kind that fits, of those for whoever accepts."""
    for name, kind in KINDS.items():
        if kind.ours_passes is difference.passed and any(sign.fits(difference) for sign in kind.signs):
            return name
    return UNKNOWN
