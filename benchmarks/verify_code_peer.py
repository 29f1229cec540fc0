"""What `verify_code.py` and `agree_code.py` compare ours with: systems that judge programs, each in its own process.

    python benchmarks/verify_code_peer.py livecodebench | python | contest | fork

`livecodebench` is its `check_correctness`, in an environment with numpy and tqdm. `python` starts an interpreter for
every test, without `site`, which is the faster way, and talks to it over pipes; `contest` does it as contests do: with
`site`, standard input from a file, a large stack, and the names that LiveCodeBench puts before functions. `fork` is
the floor: a warm interpreter with the same modules loaded as ours compiles the program once and forks a child per
test, which runs it over pipes, and nothing else.

Reads lines of {code, tests, fn_name, timeout} from standard input and answers each with {passed, seconds, detail}.
"""

import gc
import json
import os
import resource
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import CodeType, TracebackType
from typing import Any, Self

from environments import python_with

ROOT = Path(__file__).resolve().parents[1]
LIVECODEBENCH_COMMIT = "28fef95"
_LIVECODEBENCH_NEEDS = ["numpy==2.3.5", "tqdm"]
_LIVECODEBENCH_BYTES = 4 << 30  # of address space: it sets no limit itself
_STACK_BYTES = 512 << 20
_MODULES = (
    *("string", "re", "datetime", "collections", "heapq", "bisect", "copy", "math", "random", "statistics"),
    *("itertools", "functools", "operator", "io", "sys", "json"),
)
NAMES = "".join(
    [f"from {name} import *\n" for name in (*_MODULES, "builtins", "typing")]
    + [f"import {name}\n" for name in _MODULES]
    + ["sys.setrecursionlimit(50_000)\n"]
)
"""What LiveCodeBench puts before a function."""
_DRIVER = """
import json, sys
_function = getattr(Solution(), "{0}", None) if isinstance(globals().get("Solution"), type) else None
_function = _function or globals()["{0}"]
_value = _function(*map(json.loads, sys.stdin.read().splitlines()))
print(json.dumps(_value, default=lambda number: number.item() if hasattr(number, "item") else float(number)))
"""

Tests = Sequence[Mapping[str, str]]
Judge = Callable[[str, Tests, str | None, float], tuple[bool, str]]


# The caller's side -----------------------------------------------------------------------------------------


class Peer:
    """A running peer; a context manager. `name` as on the command line."""

    def __init__(self, name: str, python: Path | None = None, checkout: Path | None = None) -> None:
        checkout = checkout and checkout.resolve()
        command = [str(python.absolute() if python else sys.executable), str(Path(__file__).resolve()), name]
        self._folder = tempfile.TemporaryDirectory()  # LiveCodeBench's programs write where it runs
        self._process = subprocess.Popen(
            command + ([str(checkout)] if checkout else []),
            cwd=self._folder.name,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": str(checkout or ROOT), "PYTHONDONTWRITEBYTECODE": "1"},
        )
        self._name = name
        self._read()

    def judge(self, code: str, tests: Tests, fn_name: str | None, timeout: float) -> dict[str, Any]:
        """`passed`, `seconds` of wall clock that the judging took there, and a `detail` for people."""
        assert self._process.stdin is not None
        request = {"code": code, "tests": [dict(test) for test in tests], "fn_name": fn_name, "timeout": timeout}
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return self._read()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"{self._name} ended with status {self._process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()
        self._folder.cleanup()


def livecodebench_python(environment: Path) -> Path:
    """The interpreter of an environment for LiveCodeBench's checker."""
    return python_with(environment, _LIVECODEBENCH_NEEDS)


def commit_of(checkout: Path) -> str:
    command = ["git", "-C", str(checkout), "rev-parse", "--short=7", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() or "unknown"


# The peers -------------------------------------------------------------------------------------------------


def livecodebench() -> Judge:
    from lcb_runner.evaluation.compute_code_generation_metrics import check_correctness

    resource.setrlimit(resource.RLIMIT_AS, (_LIVECODEBENCH_BYTES, resource.getrlimit(resource.RLIMIT_AS)[1]))

    def judge(code: str, tests: Tests, fn_name: str | None, timeout: float) -> tuple[bool, str]:
        in_out = {"inputs": [test["input"] for test in tests], "outputs": [test["output"] for test in tests]}
        sample = {"input_output": json.dumps(in_out | ({"fn_name": fn_name} if fn_name else {}))}
        try:
            results, metadata = check_correctness(sample, code, round(timeout), debug=False)
        except IndexError:  # its child died and left no word
            return False, "no results"
        passed = all(float(result) > 0 for result in results)
        return passed, "" if passed else f"{metadata.get('error_message')} {metadata.get('error', '')}"

    return judge


def python_per_test() -> Judge:
    return _interpreter("-S")


def contest() -> Judge:
    hard = resource.getrlimit(resource.RLIMIT_STACK)[1]
    resource.setrlimit(resource.RLIMIT_STACK, (hard if 0 <= hard < _STACK_BYTES else _STACK_BYTES, hard))
    return _interpreter(from_file=True, names=NAMES)


def _interpreter(*options: str, from_file: bool = False, names: str = "") -> Judge:
    """Starts Python for every test, with more `options`. Functions find `names` defined before them."""
    from verifiers.code.compare import same_output, same_value

    command = [sys.executable, "-I", "-B", "-X", "utf8", *options, "main.py"]

    def run(folder: str, text: bytes, timeout: float) -> subprocess.CompletedProcess[bytes]:
        if not from_file:
            return subprocess.run(command, input=text, capture_output=True, cwd=folder, timeout=timeout, check=False)
        path = Path(folder) / "input"
        path.write_bytes(text)
        with path.open("rb") as file:
            return subprocess.run(command, stdin=file, capture_output=True, cwd=folder, timeout=timeout, check=False)

    def judge(code: str, tests: Tests, fn_name: str | None, timeout: float) -> tuple[bool, str]:
        with tempfile.TemporaryDirectory() as folder:
            source = _as_main(
                f"{names}exec(compile({code!a}, 'main.py', 'exec'))\n" if fn_name and names else code, fn_name
            )
            (Path(folder) / "main.py").write_bytes(source.encode("utf-8", "surrogatepass"))
            for test in tests:
                try:
                    done = run(folder, test["input"].encode(), timeout)
                except subprocess.TimeoutExpired:
                    return False, "timeout"
                if done.returncode:
                    return False, done.stderr.decode("utf-8", "replace").strip().rpartition("\n")[2]
                if fn_name is None and not same_output(test["output"], done.stdout):
                    return False, "the output differs"
                if fn_name is not None and not same_value(test["output"], done.stdout.strip().rpartition(b"\n")[2]):
                    return False, "the value differs"
        return True, ""

    return judge


def fork_per_test() -> Judge:
    from verifiers.code.compare import same_output
    from verifiers.code.run import prepare

    prepare()
    gc.collect()
    gc.freeze()

    def judge(code: str, tests: Tests, fn_name: str | None, timeout: float) -> tuple[bool, str]:
        try:
            compiled = compile(_as_main(code, fn_name), "main.py", "exec", dont_inherit=True)
        except (SyntaxError, ValueError) as error:
            return False, repr(error)
        for test in tests:
            status, output = _fork(compiled, test["input"].encode(), timeout)
            if status != 0 or not same_output(test["output"], output):
                return False, f"status {status}"
        return True, ""

    return judge


def _as_main(code: str, fn_name: str | None) -> str:
    """A program that reads standard input; one that defines a function gets a main part that calls it."""
    return code if fn_name is None else code + _DRIVER.format(fn_name)


def _fork(code: CodeType, text: bytes, timeout: float) -> tuple[int, bytes]:
    """Wait status and output of a child that runs `code` on `text`."""
    (child_in, our_out), (our_in, child_out) = os.pipe(), os.pipe()
    pid = os.fork()
    if pid == 0:
        os.dup2(child_in, 0)
        os.dup2(child_out, 1)
        os.closerange(3, 64)
        _run(code)
    os.close(child_in)
    os.close(child_out)
    output = _converse(pid, our_out, our_in, text, time.monotonic() + timeout)
    os.close(our_in)
    return os.waitpid(pid, 0)[1], output


def _run(code: CodeType) -> None:
    status = 1
    try:
        exec(code, {"__name__": "__main__"})
        status = 0
    except SystemExit as error:
        status = 1 if error.code else 0
    finally:
        threading._shutdown()  # type: ignore[attr-defined]
        sys.stdout.flush()
        os._exit(status)


def _converse(pid: int, sink: int, source: int, text: bytes, deadline: float) -> bytes:
    """Write `text` to `sink`, which is closed, while reading all of `source`. Kills `pid` at the deadline."""
    unsent = memoryview(text)
    parts: list[bytes] = []
    os.set_blocking(sink, False)
    poll = select.poll()
    poll.register(source, select.POLLIN)
    poll.register(sink, select.POLLOUT)
    while True:
        events = dict(poll.poll(max(0.0, deadline - time.monotonic()) * 1000))
        if not events:
            os.kill(pid, signal.SIGKILL)
            deadline += 60.0
        if sink in events:
            try:
                unsent = unsent[os.write(sink, unsent) :]
            except BrokenPipeError:  # it reads no further
                unsent = memoryview(b"")
            if not unsent:
                poll.unregister(sink)
                os.close(sink)
        if source in events:
            part = os.read(source, 1 << 16)
            if not part:
                if unsent:
                    os.close(sink)
                return b"".join(parts)
            parts.append(part)


SYSTEMS: dict[str, Callable[[], Judge]] = {
    "livecodebench": livecodebench,
    "python": python_per_test,
    "contest": contest,
    "fork": fork_per_test,
}


def main() -> None:
    judge = SYSTEMS[sys.argv[1]]()
    sys.argv = ["main.py"]  # programs may look
    requests, answers = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w")
    null = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):  # what programs print must not reach the caller
        os.dup2(null, stream)
    print(json.dumps({"ready": True}), file=answers, flush=True)
    for line in requests:
        request = json.loads(line)
        start = time.perf_counter()
        passed, detail = judge(request["code"], request["tests"], request["fn_name"], request["timeout"])
        seconds = time.perf_counter() - start
        print(json.dumps({"passed": passed, "seconds": seconds, "detail": detail[:300]}), file=answers, flush=True)


if __name__ == "__main__":
    main()
