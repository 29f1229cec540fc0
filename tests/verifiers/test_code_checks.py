"""Checks: tests that are Python, which follow the program in its process."""

import time
from typing import Any

import pytest
from test_code import HOSTILE, HOSTILE_FUNCTIONS, SECRET, respond

from verifiers import Verdict
from verifiers.code import verify_code
from verifiers.code.values import as_data
from verifiers.verdict import Result

DOUBLES = "for x in (0, 1, 2.5, 'a'):\n    assert f(x) == 2 * x, f'{x!r} twice'"


def check_test(source: str) -> dict[str, str]:
    return {"input": source, "output": "", "testtype": "check"}


def judge(program: str, *checks: str, fn_name: str | None = "f", **settings: Any) -> Result:
    return verify_code(respond(program), [check_test(check) for check in checks], fn_name=fn_name, **settings)


@pytest.mark.parametrize(
    ("program", "check"),
    [
        ("def f(x): return x + x", DOUBLES),
        ("from __future__ import annotations\n\ndef f(x: Number): return x + x", DOUBLES),
        ("f = lambda x: x + x", DOUBLES),
        ("import functools\n\n@functools.lru_cache\ndef f(x): return x + x", DOUBLES),
        ("if __name__ == '__main__': 1 / 0\ndef f(x): return x + x", DOUBLES),
        ("print('example')\ndef f(x): return x + x", DOUBLES),
        ("from collections import Counter\ndef f(x): return Counter(x)", "assert f('aab') == {'a': 2, 'b': 1}"),
        ("from collections import namedtuple\nP = namedtuple('P', 'x y')\ndef f(x): return {P(x, x)}",
         "assert f(1) == {(1, 1)}"),
        ("from enum import IntEnum\nE = IntEnum('E', 'a b')\ndef f(x): return [E.a, E.b]", "assert f(0) == [1, 2]"),
        ("def f(n): yield from range(n)", "assert list(f(3)) == [0, 1, 2]"),
        ("def f(x): x.append(1)", "x = []\nassert f(x) is None\nassert x == [1]"),
        ("class Node:\n    def __init__(self, value): self.value = value\ndef f(node): return node.value",
         "node = Node(3)\nassert f(node) == 3"),
        ("def f(x): raise ValueError", "try:\n    f(0)\nexcept ValueError:\n    pass\nelse:\n    assert False"),
        ("def f(n): return n if n == 0 else f(n - 1)", "assert f(20_000) == 0"),
        ("import math\nmath.pi = 3\ndef f(): return 1", "import math\nassert math.pi > 3.1 and f() == 1"),
    ],
)  # fmt: skip
def test_a_right_program_passes(program: str, check: str) -> None:
    result = judge(program, check, check)
    assert result.verdict is Verdict.PASS, result.detail


@pytest.mark.parametrize(
    ("program", "verdict", "detail"),
    [
        ("def f(x): return x", Verdict.WRONG, "exit status 1: AssertionError: 1 twice"),
        ("def f(x): return x / 0", Verdict.RUNTIME_ERROR, "exit status 1: ZeroDivisionError: division by zero"),
        ("def g(x): return 2 * x", Verdict.RUNTIME_ERROR, "exit status 1: NameError: name 'f' is not defined"),
        ("def f(x) return 2", Verdict.RUNTIME_ERROR, "SyntaxError: expected ':' (main.py, line 1)"),
        ("1 / 0\ndef f(x): return 2 * x", Verdict.RUNTIME_ERROR, "exit status 1: ZeroDivisionError: division by zero"),
        ("def f(x): return math.floor(2 * x)", Verdict.RUNTIME_ERROR, "exit status 1: NameError: name 'math'"),
        ("import ctypes\ndef f(x): ctypes.string_at(0)", Verdict.RUNTIME_ERROR, "killed by signal 11"),
    ],
)
def test_a_wrong_program_is_told_why(program: str, verdict: Verdict, detail: str) -> None:
    result = judge(program, DOUBLES)
    assert result.verdict is verdict
    assert result.detail.startswith(f"test 1 of 1: {detail}")


def test_the_check_that_fails_is_named() -> None:
    result = judge("def f(x): return x", "assert f(1) == 1", "assert f(2) == 3", "assert f(3) == 3")
    assert (result.verdict, result.detail) == (Verdict.WRONG, "test 2 of 3: exit status 1: AssertionError")


@pytest.mark.parametrize(
    "program", ["def f():\n    while True: pass", "while True: pass", "import time\ntime.sleep(60)"]
)
def test_program_and_check_share_the_time(program: str) -> None:
    start = time.monotonic()
    result = judge(program, "assert f() is None", timeout=0.5)
    assert (result.verdict, result.detail.partition(" after")[0]) == (Verdict.TIMEOUT, "test 1 of 1: stopped")
    assert time.monotonic() - start < 5


def test_each_check_has_its_own_time() -> None:
    program = "import time\ndef f(seconds): time.sleep(seconds)"
    assert judge(program, *["f(0.3)"] * 4, timeout=1.0).verdict is Verdict.PASS


CHEATS = {
    "exits": "import sys\nsys.exit()",
    "exits when called": "import sys\ndef f(x): sys.exit(0)",
    "exits at once": "import os\nos._exit(0)",
    "exits at once when called": "import os\ndef f(x): os._exit(0)",
    "ends in a handler": "import atexit, os\natexit.register(os._exit, 0)\ndef f(x): raise SystemExit",
    "catches everything": "def f(x):\n    try: return 1 / 0\n    except BaseException: return None",
    "hides that it failed": "import sys\nsys.excepthook = lambda *_: None\ndef f(x): return 0",
    "exits from the hook": "import os, sys\nsys.excepthook = lambda *_: os._exit(0)\ndef f(x): return 0",
    "another AssertionError": "class AssertionError(Exception): pass\ndef f(x): return 0",
    "AssertionError that is none": "AssertionError = type(None)\ndef f(x): return 0",
    "built-in AssertionError": "import builtins\nbuiltins.AssertionError = SystemExit\ndef f(x): return 0",
    "a name of its own": "def abs(x): return 0\ndef f(x): return 0",
    "a built-in": "import builtins\nbuiltins.abs = lambda x: 0\ndef f(x): return 0",
    "a built-in when called": "import builtins\ndef f(x):\n    builtins.abs = None\n    return 0",
    "a module's function": "import math\nmath.isclose = lambda *_, **__: True\ndef f(x): return 0",
    "a module": "import sys, types\nsys.modules['math'] = types.SimpleNamespace(isclose=max)\ndef f(x): return 0",
    "starter code's name": "def close(a, b): return True\ndef f(x): return 0",
    "equal to everything": "class E:\n    def __eq__(self, _): return True\ndef f(x): return E()",
    "equal to everything within": "class E:\n    def __eq__(self, _): return True\ndef f(x): return [E()]",
    "list of its own": "class L(list):\n    def __eq__(self, _): return True\ndef f(x): return L()",
    "text of its own": "class S(str):\n    def __eq__(self, _): return True\n    def __str__(self): return self\n"
    "def f(x): return S()",
    "number of its own": "class N(float):\n    def __eq__(self, _): return True\n    def __sub__(self, _): return 0.0\n"
    "def f(x): return N()",
    "class of its own": "class f:\n    def __init__(self, _): pass\n    def __eq__(self, _): return True",
    "class that says it is built in": "class M(type):\n    __flags__ = 1 << 8\n"
    "class E(metaclass=M):\n    def __eq__(self, _): return True\ndef f(x): return E()",
    "somebody else's class": "from unittest.mock import ANY\ndef f(x): return ANY",
    "generator": "from unittest.mock import ANY\ndef f(x): yield ANY",
    "reads what it is given": "import os\ntext = os.pread(4, 1 << 20, 0).partition(b'\\0')\n"
    "os.write(5, b'=\"' + text[0] + b'\"\\n')\nos._exit(0)",
    "answers for the check": "import os\nos.write(5, b'=\"\"\\n=true\\n')\nos.write(3, b'0 0')\nos._exit(0)",
}
CHECKS = (
    "assert f(1) == 2",
    "assert f(1) == [2]",
    "assert list(f(1)) == [2]",
    "assert abs(f(1) - 2) < 1e-6",
    "import math\nassert math.isclose(f(1), 2)",
    "assert close(f(1), 2)",
    "if f(1) != 2: raise AssertionError",
    "try:\n    assert f(1) == 2\nexcept AssertionError:\n    raise",
)


@pytest.mark.parametrize("name", CHEATS)
def test_no_program_passes_by_a_trick(name: str) -> None:
    starter = "def close(a, b): return a == b\n"
    for check in CHECKS:
        result = judge(CHEATS[name], check, starter_code=starter)
        assert result.verdict in (Verdict.WRONG, Verdict.RUNTIME_ERROR), check


@pytest.mark.parametrize("name", HOSTILE_FUNCTIONS)
def test_hostile_functions_fail_checks(name: str) -> None:
    result = judge(HOSTILE[name], f"assert answer(1) == {SECRET}", fn_name="answer", timeout=0.4)
    assert result.verdict in (Verdict.WRONG, Verdict.TIMEOUT, Verdict.RUNTIME_ERROR)


def test_the_starter_code_is_there_if_it_can_run() -> None:
    starter = "from math import pi\n\ndef half(x): return x / 2\n\ndef f(x: float) -> float:\n    'of x'"
    program = "def f(x): return half(pi * x)"
    assert judge(program, "assert f(2) == half(2 * pi)", starter_code=starter, fn_name=None).verdict is Verdict.PASS
    assert judge("1", "assert f(2) == 3", starter_code=starter).verdict is Verdict.WRONG
    header = "def f(x: float) -> float:\n    "
    assert judge("def f(x): return x", "assert f(2) == 2", starter_code=header).verdict is Verdict.PASS


def test_the_function_may_have_a_built_ins_name() -> None:
    program = "def sum(a, b): return a + b"
    assert judge(program, "assert sum(1, 2) == 3", fn_name="sum").verdict is Verdict.PASS
    assert judge(program, "assert sum([1, 2]) == 3", fn_name=None).verdict is Verdict.PASS


def test_all_kinds_of_test_in_turn() -> None:
    program = "def f(x): return x + 1\nif __name__ == '__main__': print(f(int(input())))"
    tests = [
        {"input": "1", "output": "2", "testtype": "stdin"},
        check_test("assert f(1) == 2"),
        {"input": "1", "output": "2", "testtype": "functional"},
    ]
    assert verify_code(respond(program), tests * 3, fn_name="f").verdict is Verdict.PASS


def test_a_check_finds_nothing_of_an_earlier_one() -> None:
    program = "import os\nseen = os.listdir('.')\nopen('x', 'w')\ndef f(): return len(seen)"
    assert judge(program, *["assert f() == 0"] * 5).verdict is Verdict.PASS
    assert judge(program, "assert f() == 0", "assert f() == 1").detail.startswith("test 2 of 2")


@pytest.mark.parametrize(("source", "words"), [("assert", "SyntaxError: "), ("x = '\0'", ".* null bytes")])
def test_a_check_that_is_not_python_raises(source: str, words: str) -> None:
    with pytest.raises(ValueError, match=f"test 2: its input is not Python: {words}"):
        judge("def f(): pass", "f()", source)


def test_data_is_what_it_was() -> None:
    for value in (None, True, 1, 1.5, 2j, "a", b"a", (1, [2, {3}], {"a": frozenset({4})}), range(3), len, int):
        assert as_data(value) == value
        assert type(as_data(value)) is type(value)
