"""The sandbox's own processes: a keeper, a server, and the forks in which programs run.

    keeper     outside the namespaces; only waits, and takes everything down when told to or orphaned
    server     first process of the namespaces; a warm interpreter that forks a program's process when told to,
               and kills it with all that it leaves behind
    program    compiles the source, locks itself for good, then runs test after test (`run`)

Keeper and server are trusted code that programs cannot reach: these have another user (as root) or no
capabilities (in a user namespace), and their lock forbids signals and tracing.

The interpreter is kept small: a fork, and the end of a fork, take longer with every megabyte that it has touched.
So this module and those it imports do without the larger parts of the standard library.
"""

import contextlib
import fcntl
import gc
import os
import signal
import socket
import sys
import time
from typing import Any, NamedTuple, NoReturn

from verifiers.code import isolate, kernel, protocol, run

_HIGH_FD = 128  # above all that is open here


class _Sandbox(NamedTuple):
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
    """Say hello, then start and stop programs until the judge closes the socket."""
    try:
        kernel.die_with_parent()
        kernel.adopt_orphans()
        if namespaces:
            isolate.build_private_root(scratch)
        lock = isolate.choose_lock(namespaces, user_namespace, scratch, serial)
        sandbox = _Sandbox(sock, lock, names, scratch, own_pids=namespaces)
        clean = _fresh_scratch(sandbox)
    except OSError as error:
        _fail(sock, error)
    _forget_ourselves()
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCHLD])
    lock_words = {"uid": lock.uid, "seccomp": lock.seccomp is not None, "landlock": lock.landlock}
    protocol.send(sock, {"namespaces": namespaces, "user_namespace": user_namespace, **lock_words})
    pid = 0
    while True:
        try:
            message, fds = protocol.receive(sock)
        except EOFError:
            os._exit(0)
        if "start" in message:
            pid = _fork(sandbox, message, fds)
            continue
        status = _wait(pid, time.monotonic() + message["stop"])
        _kill_all(sandbox)
        if os.listdir(scratch) or _marks(scratch) != clean:
            clean = _fresh_scratch(sandbox)
        if message["tell"]:
            protocol.send(sock, {"status": status})


def _forget_ourselves() -> None:
    """Leave as little of us as possible for programs to find, and nothing for their collector to walk."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "verifiers"]:
        del sys.modules[name]
    os.environ.pop("LD_LIBRARY_PATH", None)
    gc.collect()
    gc.freeze()


def _fork(sandbox: _Sandbox, message: dict[str, Any], fds: list[int]) -> int:
    """Start the process of one program; its number."""
    pid = os.fork()
    if pid == 0:
        try:
            _become(sandbox, message, fds)
        finally:  # whatever happened, never go on as a second server
            os._exit(1)
    for fd in fds:
        os.close(fd)
    return pid


def _become(sandbox: _Sandbox, message: dict[str, Any], fds: list[int]) -> NoReturn:
    """Compile the program, give up all rights for good, and run it on tests."""
    kernel.die_with_parent()
    os.setsid()
    null = os.open("/dev/null", os.O_RDWR)
    source, *kept = [fcntl.fcntl(fd, fcntl.F_DUPFD, _HIGH_FD) for fd in (*fds, null)]
    text = _text(source)
    for new, old in enumerate(kept, run.CONTROL):
        os.dup2(old, new)
    os.closerange(run.CONTROL + len(kept), 2 * _HIGH_FD)
    isolate.limit_resources(message["cpu_seconds"], sandbox.lock.owns_uid)
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
        file.write("1000")  # when the machine's memory runs out, programs go first
    code = run.compiled(text.removeprefix("\ufeff"), "main.py")
    if isinstance(code, str):
        _say(protocol.FAILED + code.encode("utf-8", "replace"))
    run.preload(code)
    os.chdir(sandbox.scratch)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGCHLD])
    try:
        sandbox.lock.apply(sandbox.scratch)
    except OSError as error:
        _say(protocol.BROKEN + str(error).encode())
    run.run_tests(code, sandbox.names, message["fn_name"], sandbox.scratch)


def _say(last_word: bytes) -> NoReturn:
    os.write(run.CONTROL, last_word[: protocol.LONGEST_WORD])
    os._exit(0)


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


def _marks(scratch: str) -> tuple[int, ...]:
    """What a program may have changed of the folder itself."""
    found = os.stat(scratch)
    return found.st_mode, found.st_uid, found.st_gid, found.st_ctime_ns


def _fresh_scratch(sandbox: _Sandbox) -> tuple[int, ...]:
    """Make an empty scratch folder (a new file system, or a folder in place of the old one); its marks."""
    owner = os.geteuid() if sandbox.lock.uid is None else sandbox.lock.uid
    if sandbox.own_pids:
        isolate.mount_scratch(sandbox.scratch, owner)
        return _marks(sandbox.scratch)
    if os.path.exists(sandbox.scratch):  # rm, because Python's own way gives up on the deepest trees
        os.waitpid(os.posix_spawn("/bin/rm", ["rm", "-rf", "--", sandbox.scratch], {}), 0)
    if os.path.exists(sandbox.scratch):  # the judge removes it at the end
        os.rename(sandbox.scratch, f"{sandbox.scratch}-{time.monotonic_ns()}")
    os.mkdir(sandbox.scratch, mode=0o700)
    os.chown(sandbox.scratch, owner, -1)
    return _marks(sandbox.scratch)
