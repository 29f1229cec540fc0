"""The code verifier: verdicts, isolation, the sandbox's life."""

import importlib.util
import json
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from glob import glob
from pathlib import Path
from typing import Any

import pytest

from verifiers import Verdict
from verifiers.code import isolation, sandbox, verify_code
from verifiers.code.compare import same_output
from verifiers.pool import VerifierPool
from verifiers.tasks import CodeTask

Test = dict[str, str]
SECRET = "7391846520"
DATA = Path(__file__).resolve().parents[3] / "shared" / "data"


def stdin_test(text: str, output: str) -> Test:
    return {"input": text, "output": output, "testtype": "stdin"}


def function_test(arguments: list[object], output: object) -> Test:
    lines = "\n".join(json.dumps(argument) for argument in arguments)
    return {"input": lines, "output": json.dumps(output), "testtype": "functional"}


def table(name: str, test: Callable[[Any, Any], Test], default: list[Test]) -> dict[str, tuple[str, list[Test]]]:
    """The programs in a text file and their tests, each below a line `=== title | input | output | input | ...`."""
    _, *parts = (Path(__file__).parent / name).read_text().split("\n=== ")
    rows = {}
    for part in parts:
        heading, _, program = part.partition("\n")
        title, *texts = heading.split(" | ")
        values = [json.loads(text) for text in texts]
        assert title not in rows, f"{name}: two programs are called {title}"
        rows[title] = program, [test(*pair) for pair in zip(values[::2], values[1::2], strict=True)] or default
    return rows


SUM = [stdin_test("3\n1 2 3\n", "6\n")]
TWO_SUM = [function_test([[2, 7, 11], 9], [0, 1]), function_test([[3, 3], 6], [0, 1])]
IDIOMS = table("code_idioms.txt", stdin_test, SUM)
IDIOMS["crlf"] = "input()\r\nprint(sum(map(int, input().split())))\r", SUM
IDIOMS["byte order mark"] = "\ufeffinput()\nprint(sum(map(int, input().split())))", SUM
FUNCTIONS = table("code_functions.txt", function_test, TWO_SUM)
PACKAGES = [name for name in ("numpy", "sympy") if importlib.util.find_spec(name) is None]
HOSTILE = {
    **{name: program for name, (program, _) in table("code_hostile.txt", stdin_test, []).items()},
    "null bytes": f"print('{SECRET}')\x00",
    "lone surrogate": f"print('{SECRET}\ud800')",
    "recursion of the parser": "x = " + "(" * 20_000 + ")" * 20_000,
    "minus signs": "x = " + "-" * 50_000 + "1",
    "attribute chain": "x = 0\nx" + ".a" * 100_000,
    "lambda chain": "x = " + "lambda: " * 5_000 + "0",
    "sum of many": "x = " + "+".join("1" * 200_000),
    "else chain": "x = " + "0 if x else " * 20_000 + "0",
    "constant bomb": "x = " + "9" * 4000 + "**" + "9" * 4000,
    "huge source": "x = 0\n" * 300_000 + f"print('{SECRET}')",
}
HOSTILE_FUNCTIONS = (
    *("flood in function", "early exit", "early exit in constructor", "fake verdicts", "equal to everything"),
    *("list equal to everything", "object equal to everything", "patched builtins", "expected output in objects"),
    *("dictionary without end", "value nested without end", "value in a circle", "value too long"),
    *("value with a made-up form", "encoder of its own", "other tests in memory", "frames of the parent"),
)
OTHERS: set[int] = set()  # processes of other test modules


def respond(program: str) -> str:
    return f"<think>\nhm\n</think>\nHere it is.\n```python\n{program}\n```\nDone."


def judge(program: str, tests: list[Test], fn_name: str | None = None, timeout: float = 5.0) -> Verdict:
    return verify_code(respond(program), tests, fn_name=fn_name, timeout=timeout).verdict


def state(pid: int) -> str:
    """The state letter of a process; Z if it has ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "Z"


def children(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def descendants() -> list[int]:
    """Living processes below this one."""
    found: list[int] = []
    todo = children(os.getpid())
    while todo:
        pid = todo.pop()
        if state(pid) != "Z":
            found.append(pid)
            todo += children(pid)
    return found


@pytest.fixture(params=["strongest", "no namespaces"])
def level(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Both levels of isolation, whatever this machine allows."""
    if request.param == "strongest":
        yield request.param
        return
    with without_namespaces(monkeypatch):
        yield request.param


class without_namespaces:
    """A context in which the current sandbox is one without namespaces, kept warm between uses."""

    warm: sandbox.Sandbox | None = None

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.monkeypatch = monkeypatch

    def __enter__(self) -> None:
        cls = type(self)
        if cls.warm is None:
            cls.warm = sandbox.Sandbox(namespaces=False)
        self.monkeypatch.setattr(sandbox, "_current", (os.getpid(), cls.warm))
        self.monkeypatch.setattr(sandbox, "_strongest", self.start)

    def start(self) -> sandbox.Sandbox:
        type(self).warm = sandbox.Sandbox(namespaces=False)
        return type(self).warm

    def __exit__(self, *_: object) -> None:
        if sandbox._current is None:
            type(self).warm = None


@pytest.fixture(scope="module", autouse=True)
def _nothing_left_at_the_end() -> Iterator[None]:
    OTHERS.update(descendants())
    yield
    if without_namespaces.warm is not None:
        without_namespaces.warm.close()
    sandbox.close_sandbox()
    assert not set(descendants()) - OTHERS


# --- honest programs ------------------------------------------------------------------------------------------------


def installed(program: str) -> bool:
    return not any(f"import {name}" in program or f"from {name}" in program for name in PACKAGES)


@pytest.mark.parametrize("name", IDIOMS)
def test_idiom_passes(name: str) -> None:
    program, tests = IDIOMS[name]
    if not installed(program):
        pytest.skip("its package is not installed")
    result = verify_code(respond(program), tests)
    assert result.verdict is Verdict.PASS, result.detail
    assert result.extracted is not None
    assert 0 < result.seconds < 5


def test_idioms_pass_without_namespaces(monkeypatch: pytest.MonkeyPatch) -> None:
    # as root, where the interpreter lies in a folder that only root may enter: they import what is not loaded yet
    unavailable = {"lazy import", "arguments", "database", "numpy everything"}
    with without_namespaces(monkeypatch):
        assert isolation().level != "namespaces"
        failed = {
            name
            for name, (program, tests) in IDIOMS.items()
            if installed(program) and judge(program, tests) is not Verdict.PASS
        }
    assert failed <= unavailable


def as_contests_run_it() -> None:
    hard = resource.getrlimit(resource.RLIMIT_STACK)[1]
    resource.setrlimit(resource.RLIMIT_STACK, (hard, hard))


@pytest.mark.long
@pytest.mark.rare  # of the tables, not of our code
@pytest.mark.parametrize("name", IDIOMS)
def test_idiom_is_right(name: str, tmp_path: Path) -> None:
    """The plain interpreter, reading a file: what this table holds for right is not the sandbox's opinion."""
    program, tests = IDIOMS[name]
    if not installed(program):
        pytest.skip("its package is not installed")
    (tmp_path / "main.py").write_bytes(program.encode())
    for test in tests:
        with tempfile.TemporaryFile() as stdin:
            stdin.write(test["input"].encode())
            stdin.seek(0)
            done = subprocess.run(
                [sys.executable, "main.py"],
                cwd=tmp_path,
                stdin=stdin,
                capture_output=True,
                env={"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", "PYTHONINTMAXSTRDIGITS": "50000"},
                preexec_fn=as_contests_run_it,
                timeout=60,
                check=False,
            )
        assert (done.returncode, same_output(test["output"], done.stdout)) == (0, True), done


WRONG = {
    "wrong": ("print(5)", Verdict.WRONG),
    "silent": ("x = 6", Verdict.WRONG),
    "extra line": ("print(6)\nprint(6)", Verdict.WRONG),
    "prompt printed": ("input('n?')\nprint(6)", Verdict.WRONG),
    "syntax error": ("print(6", Verdict.RUNTIME_ERROR),
    "indentation error": ("  x = 1\nprint(6)", Verdict.RUNTIME_ERROR),
    "exception after output": ("print(6)\n1 / 0", Verdict.RUNTIME_ERROR),
    "non-zero exit": ("print(6)\nimport sys\nsys.exit(1)", Verdict.RUNTIME_ERROR),
    "exit with words": ("print(6)\nexit('bad')", Verdict.RUNTIME_ERROR),
    "reads too much": ("input()\ninput()\ninput()", Verdict.RUNTIME_ERROR),
    "missing module": ("import no_such_module", Verdict.RUNTIME_ERROR),
    "undeclared name": ("print(math.floor(6))", Verdict.RUNTIME_ERROR),
    "output lost": ("import os\nprint(6)\nos.close(1)", Verdict.RUNTIME_ERROR),
    "killed": ("import ctypes\nctypes.string_at(0)", Verdict.RUNTIME_ERROR),
    "too much memory": ("x = bytearray(1 << 31)", Verdict.RUNTIME_ERROR),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_program(name: str) -> None:
    program, verdict = WRONG[name]
    result = verify_code(respond(program), SUM)
    assert result.verdict is verdict, result.detail
    assert result.detail
    assert result.reward == 0


def test_no_answer() -> None:
    result = verify_code("no thinking end ```python\nprint(6)\n```", SUM)
    assert (result.verdict, result.extracted) == (Verdict.NO_ANSWER, None)


def test_time_limit_is_per_test() -> None:
    program = "import time\ntime.sleep(float(input()))\nprint(1)"
    tests = [stdin_test("0.3", "1")] * 4
    assert judge(program, tests, timeout=1.0) is Verdict.PASS
    start = time.monotonic()
    result = verify_code(respond(program), [*tests, stdin_test("60", "1"), *tests], timeout=0.6)
    assert result.verdict is Verdict.TIMEOUT
    assert result.detail.startswith("test 5 of 9")
    assert time.monotonic() - start < 5


def test_stops_at_first_failure() -> None:
    tests = [stdin_test("1", "1"), stdin_test("2", "1"), stdin_test("3", "1")]
    result = verify_code(respond("import time\nx = input()\nprint(x)\ntime.sleep(3 * (x == '3'))"), tests)
    assert (result.verdict, result.detail.split(":")[0]) == (Verdict.WRONG, "test 2 of 3")
    assert result.seconds < 2


def test_large_input_and_output() -> None:
    text = "\n".join(map(str, range(300_000)))
    assert judge("import sys\nsys.stdout.write(sys.stdin.read())", [stdin_test(text, text)]) is Verdict.PASS


UNKEPT = {  # what a program does in each test; in the next it must find nothing of it
    "files": "import os\nassert os.listdir('.') == []\nopen('x', 'w')",
    "a constant": "import math\nassert math.pi > 3\nmath.pi = 0",
    "built-ins": "import builtins\nassert not hasattr(builtins, 'x')\nbuiltins.x = 0",
    "the folder": "import os\nassert os.getcwd() != '/'\nos.chdir('/')",
    "a thread": "import threading as t\nassert t.active_count() == 1\nt.Thread(target=sum, args=([],)).start()",
    "a thread in the background": "import threading as t, time\nassert t.active_count() == 1\n"
    "t.Thread(target=time.sleep, args=(9,), daemon=True).start()",
    "a pool": "import concurrent.futures as c\nc.ThreadPoolExecutor(1).submit(print, end='')",
    "an alarm": "import signal, time\nsignal.signal(14, lambda *_: 1 / 0)\nsignal.setitimer(signal.ITIMER_REAL, 0.01)"
    "\nif hasattr(signal, 'x'): time.sleep(0.1)\nsignal.x = 0",
    "exit handlers": "import atexit, sys\nassert not hasattr(sys, 'x')\natexit.register(print, end='')",
    "recursion": "import sys\nassert sys.getrecursionlimit() == 1000\nsys.setrecursionlimit(10 ** 6)",
    "digits": "import sys\nassert sys.get_int_max_str_digits() == 50000\nsys.set_int_max_str_digits(0)",
    "stacks": "import threading\nassert threading.stack_size(1 << 26) == 0",
    "the collector": "import gc\nassert gc.isenabled()\ngc.disable()",
    "arguments": "import sys\nassert len(sys.argv) == 1\nsys.argv.append('')",
    "closed streams": "import sys\nprint(1)\nsys.stdin.close()\nsys.stdout.close()\nsys.exit()",
    "closed descriptors": "import os, sys\nprint(1)\nos.closerange(3, 64)\nsys.exit()",
    "an exit at once": "import os\nprint(1, flush=True)\nos._exit(0)",
    "memory": "import sys\nsys.x = getattr(sys, 'x', []) + [bytearray(1 << 28)]",
    "what it read": "import sys\nassert sys.stdin.read() == '1'",
    "module names": "assert 'x' not in globals()\nx = 1",
}


@pytest.mark.parametrize("name", UNKEPT)
def test_nothing_is_kept_between_tests(name: str, level: str) -> None:
    program = f"{UNKEPT[name]}\nprint(1)"
    result = verify_code(respond(program), [stdin_test("1", "1")] * 5)
    assert result.verdict is Verdict.PASS, result.detail


def test_tests_share_a_process() -> None:
    program = "import sys\nsys.count = getattr(sys, 'count', 0) + 1\nprint(sys.count)"
    assert judge(program, [stdin_test("", str(n)) for n in (1, 2, 3)]) is Verdict.PASS
    program = "import sys\nsys.count = getattr(sys, 'count', 0) + 1\ndef f(): return sys.count"
    assert judge(program, [function_test([], n) for n in (1, 2, 3)], "f") is Verdict.PASS


def test_both_kinds_of_test_in_turn() -> None:
    program = "def f(x): return x + 1\nif __name__ == '__main__': print(f(int(input())))"
    assert judge(program, [stdin_test("1", "2"), function_test([2], 3)] * 3, "f") is Verdict.PASS


REMAINS = {  # each prints 1 where it finds what it did in an earlier test
    "files": "import os\nprint(len(os.listdir('.')))\nopen('x', 'w')",
    "built-ins": "import builtins\nprint(int(hasattr(builtins, 'x')))\nbuiltins.x = 0",
    "a thread": "import threading as t, time\nprint(t.active_count() - 1)\n"
    "t.Thread(target=time.sleep, args=(9,), daemon=True).start()",
    "the folder": "import os\nprint(int(os.getcwd() == '/'))\nos.chdir('/')",
    "recursion": "import sys\nprint(int(sys.getrecursionlimit() > 1000))\nsys.setrecursionlimit(10 ** 6)",
    "module names": "print(int('x' in globals()))\nx = 1",
}


@pytest.mark.parametrize("name", REMAINS)
def test_no_program_is_right_by_what_it_left(name: str) -> None:
    result = verify_code(respond(REMAINS[name]), [stdin_test("", "0"), stdin_test("", "1")])
    assert (result.verdict, result.detail.split(":")[0]) == (Verdict.WRONG, "test 2 of 2")


# --- functions ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FUNCTIONS)
def test_function_passes(name: str, level: str) -> None:
    program, tests = FUNCTIONS[name]
    if not installed(program):
        pytest.skip("its package is not installed")
    result = verify_code(respond(program), tests, fn_name="f")
    assert result.verdict is Verdict.PASS, result.detail


PLAIN_CALL = """
import json, sys, types
from string import *; from re import *; from datetime import *; from collections import *; from heapq import *
from bisect import *; from copy import *; from math import *; from random import *; from statistics import *
from itertools import *; from functools import *; from operator import *; from io import *; from sys import *
from json import *; from builtins import *; from typing import *
import collections, datetime, functools, heapq, itertools, json, math, random, re, string, sys
sys.setrecursionlimit(50000)
module = sys.modules["solution"] = types.ModuleType("solution")
names = vars(module)
names.update({name: value for name, value in globals().items() if not name.startswith("__")})
names["__builtins__"] = sys.modules["builtins"]
exec(open("main.py").read(), names)
f = names["Solution"]().f if hasattr(names.get("Solution"), "f") else names["f"]
arguments = [json.loads(line) for line in open("input").read().split("\\n") if line]
number = lambda n: n.item() if hasattr(n, "item") else int(n) if n == int(n) else float(n)
open("output", "w").write(json.dumps(f(*arguments), default=number))
"""


@pytest.mark.long
@pytest.mark.rare  # of the tables, not of our code
@pytest.mark.parametrize("name", FUNCTIONS)
def test_function_is_right(name: str, tmp_path: Path) -> None:
    """The plain interpreter's opinion, as for the idioms."""
    program, tests = FUNCTIONS[name]
    if not installed(program):
        pytest.skip("its package is not installed")
    (tmp_path / "main.py").write_text(program)
    for test in tests:
        (tmp_path / "input").write_text(test["input"])
        command = [sys.executable, "-X", "utf8", "-c", PLAIN_CALL]
        subprocess.run(
            command, cwd=tmp_path, capture_output=True, preexec_fn=as_contests_run_it, timeout=60, check=True
        )
        assert json.loads((tmp_path / "output").read_text()) == json.loads(test["output"])


WRONG_FUNCTIONS = {
    "wrong": ("def f(nums, target): return [1, 0]", Verdict.WRONG),
    "none": ("def f(nums, target): pass", Verdict.WRONG),
    "set": ("def f(nums, target): return {0, 1}", Verdict.WRONG),
    "generator": ("def f(nums, target): yield from (0, 1)", Verdict.WRONG),
    "missing": ("def g(nums, target): return [0, 1]", Verdict.RUNTIME_ERROR),
    "arity": ("def f(nums): return [0, 1]", Verdict.RUNTIME_ERROR),
    "raises": ("def f(nums, target): return nums[9]", Verdict.RUNTIME_ERROR),
    "exits": ("def f(nums, target): exit()", Verdict.RUNTIME_ERROR),
    "exits at once": ("import os\nos._exit(0)", Verdict.RUNTIME_ERROR),
    "loops": ("def f(nums, target):\n    while True: pass", Verdict.TIMEOUT),
    "text": ("def f(nums, target): return '[0, 1]'", Verdict.WRONG),
}


@pytest.mark.parametrize("name", WRONG_FUNCTIONS)
def test_wrong_function(name: str) -> None:
    program, verdict = WRONG_FUNCTIONS[name]
    assert judge(program, TWO_SUM, fn_name="f", timeout=0.5) is verdict


def test_function_name_from_starter_code() -> None:
    starter = "class Solution:\n    def add(self, a: int, b: int) -> int:\n        "
    response = respond("class Solution:\n    def add(self, a, b): return a + b")
    assert verify_code(response, [function_test([1, 2], 3)], starter_code=starter).verdict is Verdict.PASS


def test_function_without_arguments_and_huge_integers() -> None:
    assert (
        judge("def f(): return 10 ** 6000", [function_test([], 0) | {"output": "1" + "0" * 6000}], "f") is Verdict.PASS
    )


def echo(values: list[object]) -> list[Test]:
    return [function_test([value], value) for value in values]


def test_functions_each_have_their_own_time() -> None:
    program = "import time\ndef f(x):\n    time.sleep(x)\n    return x"
    assert judge(program, echo([0.2] * 7), "f", timeout=0.6) is Verdict.PASS
    result = verify_code(respond(program), echo([0.1] * 6 + [60] + [0.1] * 3), fn_name="f", timeout=0.6)
    assert (result.verdict, result.detail.split(":")[0]) == (Verdict.TIMEOUT, "test 7 of 10")
    assert result.seconds < 5


@pytest.mark.parametrize(
    ("program", "verdict"),
    [
        ("def f(x): return x if x < 30 else 0", Verdict.WRONG),
        ("def f(x): return x if x < 30 else object()", Verdict.WRONG),
        ("def f(x): return x if x < 30 else 1 / 0", Verdict.RUNTIME_ERROR),
        ("import os\ndef f(x): return x if x < 30 else os._exit(0)", Verdict.RUNTIME_ERROR),
        ("import ctypes\ndef f(x): return x if x < 30 else ctypes.string_at(0)", Verdict.RUNTIME_ERROR),
    ],
)
def test_the_function_test_that_fails_is_named(program: str, verdict: Verdict) -> None:
    result = verify_code(respond(program), echo([*range(40)]), fn_name="f")
    assert (result.verdict, result.detail.split(":")[0]) == (verdict, "test 31 of 40"), result.detail


def test_no_function_finds_what_it_left() -> None:
    program = "import os\ndef f():\n    n = len(os.listdir('.'))\n    open('x', 'w')\n    return n"
    assert judge(program, [function_test([], 0)] * 9, "f") is Verdict.PASS
    result = verify_code(respond(program), [*[function_test([], 0)] * 2, function_test([], 1)], fn_name="f")
    assert (result.verdict, result.detail.split(":")[0]) == (Verdict.WRONG, "test 3 of 3")


def test_a_function_is_not_blamed_for_what_it_left() -> None:
    program = "import math\ndef f():\n    assert math.pi > 3\n    math.pi = 0\n    return 0"
    assert judge(program, [function_test([], 0)] * 9, "f") is Verdict.PASS


# --- bad tests ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tests", "words"),
    [
        ([], "no tests"),
        ([{"input": "", "testtype": "stdin"}], "test 1: 'output' must be a string"),
        ([{"input": "", "output": None, "testtype": "stdin"}], "got None"),
        ([{"input": "", "output": "", "testtype": "files"}], "must be one of stdin, functional, check, got 'files'"),
        ([*SUM, {"input": "{", "output": "1", "testtype": "functional"}], r"test 2: '{' is not JSON"),
        ([{"input": "1", "output": "", "testtype": "functional"}], "test 1: '' is not JSON"),
    ],
)
def test_unusable_tests_raise(tests: list[Test], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        verify_code(respond("print(6)"), tests, fn_name="f")


def test_missing_function_name_raises() -> None:
    with pytest.raises(ValueError, match="fn_name"):
        verify_code(respond("def f(): pass"), [function_test([], 0)])


@pytest.mark.parametrize("timeout", [0, -1, float("nan"), float("inf")])
def test_unusable_timeout_raises(timeout: float) -> None:
    with pytest.raises(ValueError, match="timeout"):
        verify_code(respond("print(6)"), SUM, timeout=timeout)


# --- hostile programs -----------------------------------------------------------------------------------------------


MARK = "left-behind"  # the name that hostile programs give to what they make


def leftovers() -> list[str]:
    """What programs left on this machine: files, shared memory, queues, abstract sockets, names of processes."""
    found = [str(path) for folder in ("/tmp", "/var/tmp", "/dev/shm") for path in Path(folder).glob(f"*{MARK}*")]
    for table_of_kernel in ("sysvipc/shm", "sysvipc/sem", "sysvipc/msg", "net/unix", "keys"):
        path = Path("/proc", table_of_kernel)
        lines = path.read_text().splitlines() if path.exists() else []
        found += [line for line in lines if MARK in line or str(0x5EED) in line.split()[:1]]
    current = sandbox._current[1] if sandbox._current is not None else None
    if current is not None and current._base is not None:
        for pattern in ("*", "scratch/*"):  # glob, because the scratch folder may be on its way from old to new
            inside = glob(pattern, root_dir=current._base, include_hidden=True)
            found += [path for path in inside if path != "scratch"]
    return found


def mounts() -> str:
    return Path("/proc/self/mounts").read_text()


def assert_unharmed() -> None:
    """The next honest program passes; only the keeper and the server of each sandbox are alive; nothing is left."""
    assert judge(IDIOMS["input"][0], SUM) is Verdict.PASS
    assert leftovers() == []
    deadline = time.monotonic() + 2
    while len(set(descendants()) - OTHERS) > 4:  # the program process takes a moment to end
        assert time.monotonic() < deadline
        time.sleep(0.001)


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_program(name: str, level: str) -> None:
    mounted = mounts()
    start = time.monotonic()
    verdict = judge(HOSTILE[name], [stdin_test("1\n", SECRET)], timeout=0.4)
    assert verdict in (Verdict.WRONG, Verdict.TIMEOUT, Verdict.RUNTIME_ERROR)
    assert time.monotonic() - start < 15  # a busy machine; alone, within a second
    assert_unharmed()
    assert mounts() == mounted


@pytest.mark.parametrize("name", HOSTILE_FUNCTIONS)
def test_hostile_function(name: str, level: str) -> None:
    verdict = judge(HOSTILE[name], [function_test([1], SECRET)], fn_name="answer", timeout=0.4)
    assert verdict in (Verdict.WRONG, Verdict.TIMEOUT, Verdict.RUNTIME_ERROR)
    assert_unharmed()


def test_hostile_exit_in_destructor_of_value() -> None:
    program = "class D(dict):\n    def items(self): return [('a', 1)]\ndef f(): return D()"
    assert judge(program, [function_test([], {"b": 1})], "f") is Verdict.WRONG


LATER = "if input() == '0': exit(print(0))\n"  # harmless in the first test
LATER_TESTS = [stdin_test("0\n", "0"), stdin_test("1\n", SECRET)]


def test_honest_programs_pass_beside_hostile_ones() -> None:
    honest = [IDIOMS[name] for name in ("input", "read", "class", "thread pool", "recursion", "scratch file", "numpy")]
    honest = [(program, tests) for program, tests in honest if installed(program)]
    with VerifierPool(2) as pool:
        futures = []
        for number, program in enumerate(HOSTILE.values()):
            right, tests = honest[number % len(honest)]
            bad = pool.submit(CodeTask(respond(LATER + program), LATER_TESTS, timeout=0.3))
            futures.append((bad, pool.submit(CodeTask(respond(right), tests, timeout=5.0))))
        for name, (bad, good) in zip(HOSTILE, futures, strict=True):
            assert good.result(120).verdict is Verdict.PASS, f"beside {name}: {good.result().detail}"
            assert bad.result(120).verdict in (Verdict.WRONG, Verdict.TIMEOUT, Verdict.RUNTIME_ERROR), name
    assert_unharmed()


def test_isolation_is_described(level: str) -> None:
    found = isolation()
    assert found.level in ("namespaces", "landlock", "seccomp", "limits")
    assert "limits" in found.in_force
    assert (found.level == "namespaces") == ("namespaces" in found.in_force)


# --- the sandbox's life ---------------------------------------------------------------------------------------------


def test_sandbox_is_replaced_when_it_dies() -> None:
    assert_unharmed()
    assert sandbox._current is not None
    os.kill(sandbox._current[1]._process.pid, signal.SIGKILL)
    assert_unharmed()


def test_works_from_threads() -> None:
    verdicts: list[Verdict] = []
    threads = [threading.Thread(target=lambda: verdicts.append(judge(IDIOMS["read"][0], SUM))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert verdicts == [Verdict.PASS] * 3


def _judge_in_fork(program: str) -> None:
    raise SystemExit(0 if judge(program, SUM) is Verdict.PASS else 1)


def test_works_after_a_fork() -> None:
    assert_unharmed()
    process = multiprocessing.get_context("fork").Process(target=_judge_in_fork, args=(IDIOMS["input"][0],))
    process.start()
    process.join(20)
    assert process.exitcode == 0
    assert_unharmed()


def test_dies_with_the_judge() -> None:
    script = (
        "import sys; sys.path.insert(0, sys.argv[1])\nfrom verifiers.code import verify_code, isolation, sandbox\n"
        "isolation(); print(sandbox._current[1]._process.pid, flush=True)\n"
        "verify_code('</think>\\n```python\\nwhile True: pass\\n```', [dict(input='', output='', testtype='stdin')])"
    )
    root = str(Path(__file__).resolve().parents[2])
    judge_process = subprocess.Popen([sys.executable, "-c", script, root], stdout=subprocess.PIPE, text=True)
    assert judge_process.stdout is not None
    keeper = int(judge_process.stdout.readline())
    time.sleep(0.2)
    family = [keeper, *children(keeper)]
    judge_process.kill()
    judge_process.wait()
    judge_process.stdout.close()
    deadline = time.monotonic() + 5
    while any(state(pid) != "Z" for pid in family):
        assert time.monotonic() < deadline
        time.sleep(0.02)


# --- real programs --------------------------------------------------------------------------------------------------


@pytest.mark.long
def test_agrees_with_labelled_programs() -> None:
    problems_file, programs_file = DATA / "apps_stdio_problems.json", DATA / "apps_stdio_programs.jsonl"
    if not (problems_file.exists() and programs_file.exists()):
        pytest.skip(f"labelled programs are not in {DATA}")
    problems = {problem["id"]: problem["tests"] for problem in json.loads(problems_file.read_text()).values()}
    verdicts = {"AC": Verdict.PASS, "WA": Verdict.WRONG, "RTE": Verdict.RUNTIME_ERROR, "TLE": Verdict.TIMEOUT}
    same = 0
    rows = [json.loads(line) for line in programs_file.read_text().splitlines()]
    for row in rows:
        tests = [{**test, "testtype": "stdin"} for test in problems[row["problem"]]]
        verdict = judge(row["code"], tests, timeout=6.0)
        assert (verdict is Verdict.PASS) == (row["verdict"] == "AC"), row["code"]
        same += verdict is verdicts[row["verdict"]]
    # a few labels say RTE where a runner's own preamble hid three-argument pow; those programs print wrong answers
    assert same >= 0.95 * len(rows)


def test_libraries_below_tmp_are_not_hidden_by_the_scratch_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a clone or an environment that lies in /tmp; programs then write elsewhere, and find it as well."""
    assert sandbox.private_scratch("/usr", "/home/me/.venv") == "/tmp"
    assert sandbox.private_scratch("/usr", "/tmp/clone/.venv") == "/scratch"
    monkeypatch.setattr(sandbox, "private_scratch", lambda *libraries: "/scratch")
    program = (
        "import tempfile\nopen('a', 'w').write('6')\ntempfile.TemporaryFile().write(b'x')\nprint(open('a').read())"
    )
    box = sandbox._strongest()
    try:
        with box.program(program, None, 5.0) as running:
            outcome = running.run([""], "stdin", 5.0)
    finally:
        box.close()
    assert (outcome.status, outcome.output) == (0, b"6\n"), outcome
