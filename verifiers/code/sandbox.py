"""The judge's side of the sandbox: start it, run tests in it, survive it.

One sandbox (a warm interpreter, see `child`) serves one judging process and is started at its first program.
Each test gets its own forked, locked child with memory files as standard streams. The wall clock is kept twice:
by the program process, and here with a margin, in case a program stopped everything on the other side.
"""

import atexit
import os
import select
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from verifiers.code import protocol
from verifiers.isolation import IsolationLevel

_START_SECONDS = 60.0  # a cold disk and 64 siblings; only a broken machine needs longer
_MARGIN_SECONDS = 10.0  # beyond a test's limit, before the sandbox itself is given up
_STOP_SECONDS = 5.0
_ERROR_BYTES = 4096
_ROOT = str(Path(__file__).resolve().parents[2])
_BOOT = "import sys; sys.path.insert(0, {!r}); from verifiers.code import child; del sys.path[0]; child.main()"


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
    """How one test's child ended.

    Attributes:
        status: exit status; negative for the signal that killed it; None if it ran past its limit.
        seconds: wall-clock time it took.
        output: what it printed (stdin tests) or its result frame (functional tests), up to the limit.
        errors: the end of its standard error.
        failure: why it never ran (the source does not compile); empty if it did.
    """

    status: int | None
    seconds: float
    output: bytes
    errors: str
    failure: str = ""


class Sandbox:
    """A running sandbox, with or without namespaces. Not for use by several threads at once.

    Raises:
        SandboxError: at construction, if it cannot start, or namespaces were asked for and are refused.
    """

    def __init__(self, namespaces: bool, refused: str = "") -> None:
        self._serial = 0
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket = ours
        self._base: str | None = None
        scratch = private_scratch(_ROOT, sys.prefix, sys.base_prefix)
        if not namespaces:
            self._base = tempfile.mkdtemp(prefix="verify-code-")
            os.chmod(self._base, 0o711)  # the sandbox may run as another user
            scratch = f"{self._base}/scratch"
        interpreter = [sys.executable, "-I", "-B", "-X", "utf8", "-c", _BOOT.format(_ROOT)]
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
            hello = self._receive(_START_SECONDS)
            if "error" in hello:
                raise SandboxError(hello["error"])
        except SandboxError:
            self.close()
            raise
        self.isolation = _describe(hello, refused)

    @contextmanager
    def program(self, source: str, seconds: float) -> Iterator["Program"]:
        """A program whose tests run for at most `seconds` each.

        Raises:
            SandboxDied: the sandbox ended; it is closed and of no further use.
        """
        self._serial += 1
        with _memory_file(source.encode("utf-8", "surrogatepass")) as file:
            self._send({"program": True, "id": self._serial, "seconds": seconds}, (file,))
        yield Program(self, self._serial)
        self._send({"end": True})

    def exchange(self, message: dict[str, Any], fds: tuple[int, ...], serial: int, seconds: float) -> dict[str, Any]:
        """Send a test's message and return the outcome's; raises as `program` does."""
        self._send(message, fds)
        while True:
            reply = self._receive(seconds)
            if reply["id"] == serial:  # a program process that died at its end leaves a late word
                return reply

    def _send(self, message: dict[str, Any], fds: tuple[int, ...] = ()) -> None:
        try:
            protocol.send(self._socket, message, fds)
        except OSError as error:
            self.close()
            raise SandboxDied("the sandbox ended") from error

    def _receive(self, seconds: float) -> dict[str, Any]:
        waiter = select.poll()
        waiter.register(self._socket, select.POLLIN)
        if not waiter.poll(seconds * 1000):
            self.close()
            raise SandboxDied(f"no answer from the sandbox within {seconds:g} s")
        try:
            return protocol.receive(self._socket)[0]
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
    """A program in the sandbox, ready for its tests."""

    def __init__(self, sandbox: Sandbox, serial: int) -> None:
        self._sandbox = sandbox
        self._serial = serial

    def run(self, text: str, fn_name: str | None, seconds: float) -> Outcome:
        """Run one test: `text` on standard input, or, with `fn_name`, as that function's arguments.

        It is stopped after `seconds` of wall clock.

        Raises:
            SandboxError: the test could not be run.
        """
        message = {"test": True, "fn_name": fn_name, "seconds": seconds}
        with (
            _memory_file(text.encode("utf-8", "surrogatepass")) as stdin,
            _memory_file(b"") as stdout,
            _memory_file(b"") as stderr,
        ):
            fds = (stdin, stdout, stderr)
            reply = self._sandbox.exchange(message, fds, self._serial, seconds + _MARGIN_SECONDS)
            if "error" in reply:
                raise SandboxError(reply["error"])
            if "failure" in reply:
                return Outcome(None, 0.0, b"", "", reply["failure"])
            status = reply["status"]
            return Outcome(
                None if status is None else os.waitstatus_to_exitcode(status),
                reply["seconds"],
                protocol.read_all(stdout, protocol.OUTPUT_BYTES),
                _tail(stderr),
            )


@contextmanager
def _memory_file(content: bytes) -> Iterator[int]:
    """A file in memory that holds `content`, read from its start."""
    fd = os.memfd_create("test")
    try:
        view = memoryview(content)
        while view:
            view = view[os.write(fd, view) :]
        os.lseek(fd, 0, os.SEEK_SET)
        yield fd
    finally:
        os.close(fd)


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
