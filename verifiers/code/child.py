"""The sandbox's side of the protocol: a keeper, a server, a process per program, a child per test.

    keeper    outside the namespaces; only waits, and takes everything down when told to or orphaned
    server    first process of the namespaces; a warm interpreter that forks a process per program
    program   compiles the source once, forks a child per test, waits for it, kills what it leaves behind
    child     locked; runs the program on one test

Keeper, server and program process are trusted code that the child cannot reach: it has another user (as root)
or no capabilities (in a user namespace), and its lock forbids signals and tracing.
"""

import contextlib
import gc
import math
import mmap
import os
import signal
import socket
import subprocess
import sys
import time
import types
from dataclasses import dataclass
from typing import Any, NoReturn

from verifiers.code import isolate, kernel, protocol, run

_RESULT_FD = 3
_MAX_FDS = 256
_CPU_GRACE = 1  # seconds of processor time beyond the wall limit; only for a judge that is stopped


@dataclass(frozen=True, slots=True)
class _Sandbox:
    """What all processes of one sandbox know."""

    sock: socket.socket
    lock: isolate.Lock
    names: run.Namespace
    scratch: str
    own_pids: bool  # a PID namespace of our own: `kill(-1)` reaches exactly our descendants


def main() -> NoReturn:
    """Entry point: `socket descriptor, scratch folder, serial number, 1 or 0 for namespaces` in sys.argv."""
    sock = socket.socket(fileno=int(sys.argv[1]))
    scratch, serial, wants_namespaces = sys.argv[2], int(sys.argv[3]), sys.argv[4] == "1"
    try:
        user_namespace = isolate.enter_namespaces() if wants_namespaces else False
        names = run.prepare()
        kernel.die_with_parent()
        kernel.adopt_orphans()
        pid = os.fork()
    except OSError as error:
        _fail(sock, error)
    if pid == 0:
        _serve(sock, scratch, serial, wants_namespaces, user_namespace, names)
    sock.close()
    signal.signal(signal.SIGTERM, lambda *_: os.kill(pid, signal.SIGKILL))
    os.waitpid(pid, 0)
    _kill_children()
    os._exit(0)


def _fail(sock: socket.socket, error: OSError) -> NoReturn:
    protocol.send(sock, {"error": str(error)})
    os._exit(1)


def _serve(
    sock: socket.socket, scratch: str, serial: int, namespaces: bool, user_namespace: bool, names: run.Namespace
) -> NoReturn:
    """Say hello, then fork one process per program until the judge closes the socket."""
    try:
        kernel.die_with_parent()
        kernel.adopt_orphans()
        if namespaces:
            isolate.build_private_root(scratch)
        lock = isolate.choose_lock(namespaces, user_namespace, scratch, serial)
        sandbox = _Sandbox(sock, lock, names, scratch, own_pids=namespaces)
        _fresh_scratch(sandbox)
    except OSError as error:
        _fail(sock, error)
    _forget_ourselves()
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCHLD])
    lock_words = {"uid": lock.uid, "seccomp": lock.seccomp is not None, "landlock": lock.landlock}
    protocol.send(sock, {"namespaces": namespaces, "user_namespace": user_namespace, **lock_words})
    while True:
        try:
            message, fds = protocol.receive(sock)
        except EOFError:
            os._exit(0)
        if "program" in message:
            _supervise(sandbox, message, fds[0])
        for fd in fds:  # a test or an end that a dead program process did not take
            os.close(fd)


def _forget_ourselves() -> None:
    """Leave as little of us as possible for programs to find, and nothing for their collector to walk."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "verifiers"]:
        del sys.modules[name]
    os.environ.pop("LD_LIBRARY_PATH", None)
    gc.collect()
    gc.freeze()


def _supervise(sandbox: _Sandbox, message: dict[str, Any], source: int) -> None:
    """Fork the process of one program, wait for its end, and clean up behind it."""
    pid = os.fork()
    if pid == 0:
        try:
            kernel.die_with_parent()
            _Program(sandbox, message, source).run()
        finally:  # whatever happened, never go on as a second server
            os._exit(1)
    status = os.waitpid(pid, 0)[1]
    _kill_all(sandbox)
    _fresh_scratch(sandbox)
    if status != 0:
        protocol.send(sandbox.sock, {"id": message["id"], "failure": f"program process ended with status {status}"})


class _Program:
    """The process of one program."""

    def __init__(self, sandbox: _Sandbox, message: dict[str, Any], source: int) -> None:
        self._sandbox = sandbox
        self._id = message["id"]
        self._seconds = float(message["seconds"])
        self._source = source
        self._alive = mmap.mmap(-1, 1)  # shared with the child, which sets it once it is locked

    def run(self) -> NoReturn:
        """Compile, then serve tests until told to end. Exit status 0 only for an orderly end."""
        kernel.adopt_orphans()
        isolate.limit_resources(math.ceil(self._seconds) + _CPU_GRACE, self._sandbox.lock.owns_uid)
        with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
            file.write("1000")  # when the machine's memory runs out, programs go first
        code = self._compile()
        if isinstance(code, types.CodeType):
            run.preload(code)
        while True:
            message, fds = protocol.receive(self._sandbox.sock)
            if "test" not in message:
                os._exit(0)
            outcome = {"failure": code} if isinstance(code, str) else self._test(code, message, fds)
            for fd in fds:
                os.close(fd)
            protocol.send(self._sandbox.sock, {"id": self._id, **outcome})

    def _compile(self) -> types.CodeType | str:
        """The compiled source, or what is wrong with it."""
        try:
            return compile(_text(self._source).removeprefix("\ufeff"), "main.py", "exec", dont_inherit=True)
        except (SyntaxError, ValueError, MemoryError, RecursionError, OverflowError) as error:
            return f"{type(error).__name__}: {error}"

    def _test(self, code: types.CodeType, message: dict[str, Any], fds: list[int]) -> dict[str, Any]:
        """Fork the child of one test and say how it ended."""
        self._alive[0] = 0
        start = time.monotonic()
        try:
            pid = os.fork()
        except OSError as error:
            return {"error": str(error)}
        if pid == 0:
            try:
                self._child(code, message, fds)
            finally:  # whatever happened, never go on as a second program process
                os._exit(1)
        status = _wait(pid, start + message["seconds"])
        seconds = time.monotonic() - start
        _kill_all(self._sandbox)
        if os.listdir(self._sandbox.scratch):
            _fresh_scratch(self._sandbox)
        if not self._alive[0] and status is not None:
            return {"error": f"the child could not be locked (status {status})"}
        return {"status": status, "seconds": seconds}

    def _child(self, code: types.CodeType, message: dict[str, Any], fds: list[int]) -> NoReturn:
        """Become the program of one test."""
        os.setsid()
        functional = message["fn_name"] is not None
        null = os.open("/dev/null", os.O_RDWR)
        source, sink = (null, null) if functional else (fds[0], fds[1])
        text = _text(fds[0]) if functional else ""
        result = os.dup(fds[1])
        for new, old in enumerate((source, sink, fds[2])):
            os.dup2(old, new)
        os.closerange(_RESULT_FD, result)
        os.closerange(result + 1, _MAX_FDS)
        os.chdir(self._sandbox.scratch)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGCHLD])
        self._sandbox.lock.apply(self._sandbox.scratch)
        self._alive[0] = 1
        self._alive.close()
        if functional:
            run.run_function(code, self._sandbox.names, message["fn_name"], text, result)
        os.close(result)
        run.run_stdin(code)


def _text(fd: int) -> str:
    return protocol.read_all(fd, os.fstat(fd).st_size).decode("utf-8", "surrogatepass")


def _wait(pid: int, deadline: float) -> int | None:
    """Wait status of child `pid`, which is killed at `deadline` (None then). SIGCHLD must be blocked."""
    while True:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return status
        left = deadline - time.monotonic()
        if left <= 0:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            return None
        signal.sigtimedwait([signal.SIGCHLD], left)


def _kill_all(sandbox: _Sandbox) -> None:
    """Kill and reap everything that a program left behind; orphans have become our children by then."""
    if not sandbox.own_pids:
        _kill_children()
        return
    with contextlib.suppress(ProcessLookupError):
        os.kill(-1, signal.SIGKILL)
    with contextlib.suppress(ChildProcessError):
        while True:
            os.waitpid(-1, 0)


def _kill_children() -> None:
    """Kill and reap all children, and theirs as they become ours, until none is left."""
    with contextlib.suppress(ChildProcessError):
        while True:
            with open("/proc/thread-self/children") as file:
                for pid in file.read().split():
                    os.kill(int(pid), signal.SIGKILL)
            os.waitpid(-1, 0)


def _fresh_scratch(sandbox: _Sandbox) -> None:
    """An empty scratch folder: a new file system, or the old folder with its content removed."""
    owner = os.geteuid() if sandbox.lock.uid is None else sandbox.lock.uid
    if sandbox.own_pids:
        isolate.mount_scratch(sandbox.scratch, owner)
        return
    if os.path.exists(sandbox.scratch):  # rm, because shutil gives up on the deepest trees
        subprocess.run(["rm", "-rf", "--", sandbox.scratch], stderr=subprocess.DEVNULL, check=False)
    if os.path.exists(sandbox.scratch):  # the judge removes it at the end
        os.rename(sandbox.scratch, f"{sandbox.scratch}-{time.monotonic_ns()}")
    os.mkdir(sandbox.scratch, mode=0o700)
    os.chown(sandbox.scratch, owner, -1)
