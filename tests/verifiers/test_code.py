"""The code verifier: verdicts, isolation, the sandbox's life."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from verifiers import Verdict
from verifiers.code import isolation, sandbox, verify_code


def programs(name: str) -> dict[str, str]:
    """The programs in a text file, each below a line `=== name`."""
    _, *parts = (Path(__file__).parent / name).read_text().split("\n=== ")
    return {title: program for title, _, program in (part.partition("\n") for part in parts)}


SUM = [{"input": "3\n1 2 3\n", "output": "6\n", "testtype": "stdin"}]
SECRET = "7391846520"
IDIOMS = {
    **programs("code_idioms.txt"),
    "crlf": "input()\r\nprint(sum(map(int, input().split())))\r",
}
HOSTILE = {
    **programs("code_hostile.txt"),
    "null bytes": f"print('{SECRET}')\x00",
    "lone surrogate": f"print('{SECRET}\ud800')",
    "recursion of the parser": "x = " + "(" * 20_000 + ")" * 20_000,
    "constant bomb": "x = " + "9" * 4000 + "**" + "9" * 4000,
    "huge source": "x = 0\n" * 300_000 + f"print('{SECRET}')",
}
HOSTILE_FUNCTIONS = (
    *("flood in function", "early exit", "early exit in constructor", "fake verdicts", "equal to everything"),
    *("list equal to everything", "object equal to everything", "patched builtins", "expected output in objects"),
)
OTHERS: set[int] = set()  # processes of other test modules
DATA = Path(__file__).resolve().parents[3] / "shared" / "data"


def respond(program: str) -> str:
    return f"<think>\nhm\n</think>\nHere it is.\n```python\n{program}\n```\nDone."


def stdin_test(text: str, output: str) -> dict[str, str]:
    return {"input": text, "output": output, "testtype": "stdin"}


def function_test(arguments: list[object], output: object) -> dict[str, str]:
    lines = "\n".join(json.dumps(argument) for argument in arguments)
    return {"input": lines, "output": json.dumps(output), "testtype": "functional"}


def judge(program: str, tests: list[dict[str, str]], fn_name: str | None = None, timeout: float = 5.0) -> Verdict:
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
    sandbox._close_at_exit()
    assert not set(descendants()) - OTHERS


# --- honest programs ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", IDIOMS)
def test_idiom_passes(name: str) -> None:
    result = verify_code(respond(IDIOMS[name]), SUM)
    assert result.verdict is Verdict.PASS, result.detail
    assert result.extracted is not None
    assert 0 < result.seconds < 5


def test_idioms_pass_without_namespaces(monkeypatch: pytest.MonkeyPatch) -> None:
    unavailable = {"lazy import"}  # as root, where the interpreter lies in a folder that only root may enter
    with without_namespaces(monkeypatch):
        assert isolation().level != "namespaces"
        failed = {name for name, program in IDIOMS.items() if judge(program, SUM) is not Verdict.PASS}
    assert failed <= unavailable


WRONG = {
    "wrong": ("print(5)", Verdict.WRONG),
    "silent": ("", Verdict.WRONG),
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


def test_nothing_is_kept_between_tests() -> None:
    program = "import os\nprint(len(os.listdir('.')))\nopen('x', 'w')\nimport math\nassert math.pi > 3\nmath.pi = 0"
    assert judge(program, [stdin_test("", "0")] * 3) is Verdict.PASS


# --- functions ------------------------------------------------------------------------------------------------------

TWO_SUM = [function_test([[2, 7, 11], 9], [0, 1]), function_test([[3, 3], 6], [0, 1])]
LOOP = "for i in range(len(nums)):\n{0}    for j in range(i):\n{0}        if nums[i] + nums[j] == target: return {1}"
FUNCTIONS = {
    "method": ("class Solution:\n  def f(self, nums: List[int], target: int) -> List[int]:\n    " + LOOP, "[j, i]"),
    "function": ("def f(nums, target):\n    " + LOOP, "[j, i]"),
    "tuple": ("def f(nums, target):\n    " + LOOP, "(j, i)"),
    "floats": ("def f(nums, target):\n    " + LOOP, "[float(j), i]"),
    "optional": ("class Solution:\n  def f(self, nums, target) -> Optional[List[int]]:\n    " + LOOP, "[j, i]"),
    "prints": ("print('x' * 99)\ndef f(nums, target):\n    print(nums)\n    " + LOOP, "[j, i]"),
    "main guard": ("def f(nums, target):\n    " + LOOP + "\nif __name__ == '__main__':\n    input()", "[j, i]"),
    "names of the modules": (
        "assert (inf, math, collections, defaultdict, heappush, reduce, lru_cache, bisect_left, deque, accumulate)\n"
        "assert pow(2, 3, 5) == 3 and open is __builtins__.open\ndef f(nums, target):\n    " + LOOP,
        "[j, i]",
    ),
    "helper class": (
        "class P:\n    x = 1\nclass Solution:\n  @staticmethod\n  def f(nums, target):\n    " + LOOP,
        "[j, i]",
    ),
    "recursion": ("def g(n): return n and g(n - 1)\ndef f(nums, target):\n    g(20000)\n    " + LOOP, "[j, i]"),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_function_passes(name: str) -> None:
    program, value = FUNCTIONS[name]
    result = verify_code(respond(program.format("    ", value)), TWO_SUM, fn_name="f")
    assert result.verdict is Verdict.PASS, result.detail


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


# --- bad tests ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tests", "words"),
    [
        ([], "no tests"),
        ([{"input": "", "testtype": "stdin"}], "test 1: 'output' must be a string"),
        ([{"input": "", "output": None, "testtype": "stdin"}], "got None"),
        ([{"input": "", "output": "", "testtype": "files"}], "'stdin' or 'functional'"),
        ([*SUM, {"input": "{", "output": "1", "testtype": "functional"}], "test 2: not JSON"),
        ([{"input": "1", "output": "", "testtype": "functional"}], "test 1: not JSON"),
    ],
)
def test_unusable_tests_raise(tests: list[dict[str, str]], words: str) -> None:
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


def assert_unharmed() -> None:
    """The next honest program passes, and only the keeper and the server of each sandbox are alive."""
    assert judge(IDIOMS["input"], SUM) is Verdict.PASS
    deadline = time.monotonic() + 2
    while len(set(descendants()) - OTHERS) > 4:  # the program process takes a moment to end
        assert time.monotonic() < deadline
        time.sleep(0.001)


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_program(name: str, level: str) -> None:
    start = time.monotonic()
    verdict = judge(HOSTILE[name], [stdin_test("1\n", SECRET)], timeout=0.4)
    assert verdict in (Verdict.WRONG, Verdict.TIMEOUT, Verdict.RUNTIME_ERROR)
    assert time.monotonic() - start < 15  # a busy machine; alone, within a second
    assert_unharmed()


@pytest.mark.parametrize("name", HOSTILE_FUNCTIONS)
def test_hostile_function(name: str) -> None:
    verdict = judge(HOSTILE[name], [function_test([1], SECRET)], fn_name="answer", timeout=0.4)
    assert verdict in (Verdict.WRONG, Verdict.TIMEOUT, Verdict.RUNTIME_ERROR)
    assert_unharmed()


def test_hostile_exit_in_destructor_of_value() -> None:
    program = "class D(dict):\n    def items(self): return [('a', 1)]\ndef f(): return D()"
    assert judge(program, [function_test([], {"b": 1})], "f") is Verdict.WRONG


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
    threads = [threading.Thread(target=lambda: verdicts.append(judge(IDIOMS["read"], SUM))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert verdicts == [Verdict.PASS] * 3


def _judge_in_fork(program: str) -> None:
    raise SystemExit(0 if judge(program, SUM) is Verdict.PASS else 1)


def test_works_after_a_fork() -> None:
    assert_unharmed()
    process = multiprocessing.get_context("fork").Process(target=_judge_in_fork, args=(IDIOMS["input"],))
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
        with box.program(program, 5.0) as running:
            outcome = running.run("", None)
    finally:
        box.close()
    assert (outcome.status, outcome.output) == (0, b"6\n"), outcome
