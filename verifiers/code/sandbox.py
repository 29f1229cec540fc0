"""The judge's side of the sandbox: start it, run tests in it, survive it.

One sandbox (a warm interpreter, see `server`) serves one judging process and is started at its first program.
A program gets a forked, locked process with memory files as standard streams, and another one whenever that cannot
go on. The wall clock is kept here.
"""

import atexit
import math
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from verifiers.code import protocol
from verifiers.isolation import IsolationLevel

_START_SECONDS = 60.0  # a cold disk and 64 siblings; only a broken machine needs longer
_MARGIN_SECONDS = 10.0  # beyond a limit, before the sandbox itself is given up
_CPU_GRACE = 1  # seconds of processor time beyond the wall limits; only for a judge that is stopped
_STOP_SECONDS = 5.0
_ERROR_BYTES = 4096
_ORDERS = {
    "stdin": (protocol.STANDARD_INPUT,),
    "functional": (protocol.FUNCTION,),
    "check": (protocol.LOAD, protocol.CHECK),
}
_ROOT = str(Path(__file__).resolve().parents[2])
# Imports the server's own modules, not what the packages around them import for the judge.
_BOOT = """
import sys, types
for name, folder in ("verifiers", "verifiers"), ("verifiers.code", "verifiers/code"):
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__path__ = [{root!r} + "/" + folder]
from verifiers.code import server
server.main()
"""


def private_scratch(*libraries: str) -> str:
    """Where programs write, in the sandbox's own root: /tmp, unless libraries lie below it, which it would hide."""
    return "/scratch" if any(path.startswith("/tmp/") for path in libraries) else "/tmp"


class SandboxError(RuntimeError):
    """The sandbox, not the program in it, failed."""


class SandboxDied(SandboxError):
    """The sandbox ended, or stopped answering, while a program ran in it."""


@dataclass(frozen=True, slots=True)
class Isolation:
    """What stands between a program and this machine; see the package's docstring for what each level leaves open.

    Attributes:
        in_force: the mechanisms in use.
        missing: the mechanisms that this machine refuses, the namespaces with the reason.
    """

    level: IsolationLevel
    in_force: tuple[str, ...]
    missing: tuple[str, ...]

    @property
    def fenced(self) -> bool:
        """Whether a program cannot harm the sandbox's own processes."""
        return "seccomp" in self.in_force or "namespaces" in self.in_force


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one test, or a group of functional tests, ended.

    Attributes:
        status: exit status; negative for the signal that killed it; None if it ran past its limit.
        seconds: wall-clock time it took.
        output: what it printed (stdin tests) or the frames of its values (other tests), up to the limit.
        errors: the end of its standard error.
        failure: why it never ran (the source does not compile); empty if it did.
        first: whether its process had run no other test before.
    """

    status: int | None
    seconds: float = 0.0
    output: bytes = b""
    errors: str = ""
    failure: str = ""
    first: bool = True


class Sandbox:
    """A running sandbox, with or without namespaces. Not for use by several threads at once.

    Raises:
        SandboxError: at construction, if it cannot start, or namespaces were asked for and are refused.
    """

    def __init__(self, namespaces: bool, refused: str = "") -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket = ours
        self._base: str | None = None
        scratch = private_scratch(_ROOT, sys.prefix, sys.base_prefix)
        if not namespaces:
            self._base = tempfile.mkdtemp(prefix="verify-code-")
            os.chmod(self._base, 0o711)  # the sandbox may run as another user
            scratch = f"{self._base}/scratch"
        interpreter = [sys.executable, "-I", "-B", "-X", "utf8", "-c", _BOOT.format(root=_ROOT)]
        arguments = [str(theirs.fileno()), scratch, str(os.getpid()), str(int(namespaces))]
        self._process = subprocess.Popen(
            [*interpreter, *arguments],
            pass_fds=(theirs.fileno(),),
            env=_environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            start_new_session=True,
        )
        theirs.close()
        try:
            hello = self.receive(_START_SECONDS)
            if "error" in hello:
                raise SandboxError(hello["error"])
        except SandboxError:
            self.close()
            raise
        self.isolation = _describe(hello, refused)

    @contextmanager
    def program(self, source: str, fn_name: str | None, cpu_seconds: float) -> Iterator["Program"]:
        """A program; its functional tests call `fn_name`, and each of its processes gets `cpu_seconds` at most.

        Raises:
            SandboxError: the sandbox ended or broke; it is closed and of no further use.
        """
        settings = {"fn_name": fn_name, "cpu_seconds": math.ceil(cpu_seconds) + _CPU_GRACE}
        with (
            _memory_file(source.encode("utf-8", "surrogatepass")) as file,
            _memory_file() as stdin,
            _memory_file() as stdout,
            _memory_file() as stderr,
        ):
            program = Program(self, settings, file, (stdin, stdout, stderr))
            yield program
            program.end()

    def send(self, message: dict[str, Any], fds: tuple[int, ...] = ()) -> None:
        """Send the server a message. Raises SandboxDied, as all that talks to it; it is closed then."""
        try:
            protocol.send(self._socket, message, fds)
        except OSError as error:
            self.close()
            raise SandboxDied("the sandbox ended") from error

    def receive(self, seconds: float) -> dict[str, Any]:
        """The server's next answer, which it has `seconds` for."""
        self._socket.settimeout(seconds)
        try:
            return protocol.receive(self._socket)[0]
        except TimeoutError as error:
            self.close()
            raise SandboxDied(f"no answer from the sandbox within {seconds:g} s") from error
        except EOFError as error:
            self.close()
            raise SandboxDied(f"the sandbox ended with status {self._process.returncode}") from error

    def close(self) -> None:
        """Take the sandbox down, with everything in it. Safe to call twice."""
        self._socket.close()
        self._process.terminate()
        try:
            self._process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._base is not None:
            shutil.rmtree(self._base, ignore_errors=True)

    def abandon(self) -> None:
        """Let go of a sandbox that belongs to the process we were forked from."""
        self._socket.close()
        self._process.returncode = 0  # it is not our child: nothing to wait for


class Program:
    """A program in the sandbox, ready for its tests; `run` tells them to its process, and starts one if need be."""

    def __init__(self, sandbox: Sandbox, settings: dict[str, Any], source: int, streams: tuple[int, int, int]) -> None:
        self._sandbox = sandbox
        self._settings = settings
        self._source = source
        self._streams = streams
        self._control: socket.socket | None = None  # of the running process
        self._used = False  # whether that has run a test

    def run(self, inputs: Sequence[str], kind: str, seconds: float, alone: bool = False) -> Outcome:
        """Run one test with its input on standard input, or functional tests, in order, up to one that raises, or a
        check, whose inputs are what is run before the program and, with a word before it, what is run after it.

        They are stopped after `seconds` of wall clock together, and run in a process that has run other tests unless
        they are to be `alone`.

        Raises:
            SandboxError: they could not be run.
        """
        if self._control is not None and self._used and alone:
            self.end()
        if self._control is None:
            unable = self._start(seconds)
            if unable is not None:
                return unable
        first, self._used = not self._used, True
        stdin, stdout, stderr = self._streams
        for fd in self._streams:
            os.ftruncate(fd, 0)
        texts = inputs if kind == "check" else [protocol.SEPARATOR.join(inputs)]
        start = time.monotonic()
        for order, text in zip(_ORDERS[kind], texts, strict=True):  # a check is out of sight while the program runs
            os.ftruncate(stdin, 0)
            _write_all(stdin, text.encode("utf-8", "surrogatepass"))
            status = self._ask(order, start + seconds)
            if status != 0 or self._control is None:
                break
        taken = time.monotonic() - start
        return Outcome(status, taken, protocol.read_all(stdout, protocol.OUTPUT_BYTES), _tail(stderr), first=first)

    def end(self) -> None:
        """End the process, with all that it left."""
        if self._control is not None:
            self._stop(0.0, tell=False)

    def _start(self, seconds: float) -> Outcome | None:
        """Start a process; what became of it if it cannot run tests."""
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._used = False
        with theirs:
            self._sandbox.send({"start": True, **self._settings}, (self._source, theirs.fileno(), *self._streams))
        word = self._hear(seconds + _MARGIN_SECONDS)
        if word == protocol.READY:
            return None
        status = self._stop(0.0, tell=True)
        if word is None:
            return Outcome(None, seconds + _MARGIN_SECONDS)
        if word.startswith(protocol.BROKEN):
            raise SandboxError(f"a program could not be locked: {word[1:].decode()}")
        if word.startswith(protocol.FAILED):
            return Outcome(1, failure=word[1:].decode())
        return Outcome(1, failure=f"the process of the program ended with status {status}")

    def _ask(self, order: bytes, deadline: float) -> int | None:
        """Have a test run; its status as in `Outcome`."""
        assert self._control is not None
        try:
            self._control.send(order, socket.MSG_DONTWAIT)
            word = self._hear(deadline - time.monotonic())
        except OSError:  # it does not listen any more
            word = b""
        if word is None:
            self._stop(0.0, tell=True)
            return None
        numbers = word.split()
        if len(numbers) == 2 and all(map(bytes.isdigit, numbers)):
            status, spent = map(int, numbers)
            if spent:
                self.end()
            return status
        ended = self._stop(max(0.0, deadline - time.monotonic()), tell=True)
        return None if ended is None else os.waitstatus_to_exitcode(ended)

    def _hear(self, seconds: float) -> bytes | None:
        """The process's next word; nothing in it if the process ended or hung up, None if it is late."""
        assert self._control is not None
        self._control.settimeout(max(seconds, 1e-6))
        try:
            return self._control.recv(protocol.LONGEST_WORD)
        except TimeoutError:
            return None
        except ConnectionError:
            return b""

    def _stop(self, seconds: float, tell: bool) -> int | None:
        """Give the process `seconds` to end; its wait status if asked for, None if it had to be killed."""
        assert self._control is not None
        self._control.close()
        self._control = None
        self._sandbox.send({"stop": seconds, "tell": tell})
        status: int | None = self._sandbox.receive(seconds + _MARGIN_SECONDS)["status"] if tell else None
        return status


@contextmanager
def _memory_file(content: bytes = b"") -> Iterator[int]:
    fd = os.memfd_create("test")
    try:
        _write_all(fd, content)
        yield fd
    finally:
        os.close(fd)


def _write_all(fd: int, content: bytes) -> None:
    """Write `content` at the start of a file, whatever its offset."""
    done = 0
    with memoryview(content) as view:
        while done < len(view):
            done += os.pwrite(fd, view[done:], done)


def _tail(fd: int) -> str:
    size = os.fstat(fd).st_size
    return os.pread(fd, _ERROR_BYTES, max(0, size - _ERROR_BYTES)).decode("utf-8", "replace")


def _environment() -> dict[str, str]:
    """All that the sandbox inherits of our environment: what its interpreter may need to start."""
    plain = {"PATH": "/usr/bin:/bin", "HOME": "/tmp", "LANG": "C.UTF-8", "OMP_NUM_THREADS": "1"}
    library_path = os.environ.get("LD_LIBRARY_PATH")
    return plain | ({"LD_LIBRARY_PATH": library_path} if library_path else {})


def _describe(hello: dict[str, Any], refused: str) -> Isolation:
    parts = {
        "namespaces": hello["namespaces"],
        "private root": hello["namespaces"],
        "no network": hello["namespaces"] or hello["seccomp"],
        "own user": hello["uid"] is not None or hello["user_namespace"],
        "seccomp": hello["seccomp"],
        "landlock": hello["landlock"] or hello["namespaces"],
        "limits": True,
    }
    level = next(level for level in IsolationLevel if parts[level])
    if hello["namespaces"]:
        del parts["landlock"]  # the private root stands in its place
    missing = [f"{name} ({refused})" if name == "namespaces" else name for name, there in parts.items() if not there]
    return Isolation(level, tuple(name for name, there in parts.items() if there), tuple(missing))


def _strongest() -> Sandbox:
    try:
        return Sandbox(namespaces=True)
    except SandboxError as error:
        return Sandbox(namespaces=False, refused=str(error))


_lock = threading.Lock()
_current: tuple[int, Sandbox] | None = None


@contextmanager
def current_sandbox() -> Iterator[Sandbox]:
    """This process's sandbox, started if need be, for the caller alone until the block ends.

    A block that raises leaves no sandbox behind: the next one starts afresh.

    Raises:
        SandboxError: it cannot start.
    """
    global _current
    with _lock:
        if _current is not None and _current[0] != os.getpid():
            _current[1].abandon()
            _current = None
        if _current is None:
            _current = (os.getpid(), _strongest())
        try:
            yield _current[1]
        except BaseException:
            _current[1].close()
            _current = None
            raise


@atexit.register
def close_sandbox() -> None:
    """End this process's sandbox, if it has one; the next program gets a new one."""
    global _current
    with _lock:
        if _current is not None and _current[0] == os.getpid():
            _current[1].close()
            _current = None
