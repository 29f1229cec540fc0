"""What the sandbox does to itself: namespaces and a private root once, a lock on every program.

The keeper (one per judging process) calls `enter_namespaces`, forks, and calls `build_private_root` in the fork. Each
program's process calls `Lock.apply` before any line of the program runs.
"""

import os
import resource
import sys
from typing import NamedTuple

from verifiers.code import kernel, landlock
from verifiers.code.protocol import (
    MEMORY_BYTES,
    OPEN_FILES,
    OUTPUT_BYTES,
    SCRATCH_BYTES,
    SCRATCH_FILES,
    STACK_BYTES,
    THREADS,
)
from verifiers.code.seccomp import SeccompFilter

_DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom")
_LIBRARIES = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib", "/usr/share/zoneinfo")
_STREAMS = {"fd": "", "stdin": "/0", "stdout": "/1", "stderr": "/2"}
_NOBODY = 65534
_FIRST_UID = 0x70000000  # far above real accounts; plus the server's pid, so that no two servers share one


def enter_namespaces() -> bool:
    """Enter new mount, PID, network and IPC namespaces; True if a user namespace was needed for it.

    Raises:
        OSError: the kernel or the container forbids it.
    """
    flags = kernel.CLONE_NEWNS | kernel.CLONE_NEWPID | kernel.CLONE_NEWNET | kernel.CLONE_NEWIPC
    uid, gid = os.geteuid(), os.getegid()
    if uid == 0:
        try:
            kernel.unshare(flags)
        except PermissionError:  # root in a container, without CAP_SYS_ADMIN
            pass
        else:
            return False
    kernel.unshare(flags | kernel.CLONE_NEWUSER)
    for name, text in (("setgroups", "deny"), ("uid_map", f"0 {uid} 1"), ("gid_map", f"0 {gid} 1")):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(text)
    return True


def readable_paths() -> list[str]:
    """The folders that a Python program may have to read: its libraries and the system's."""
    wanted = [path for path in [*_LIBRARIES, *map(os.path.abspath, sys.path)] if os.path.isdir(path)]
    return [path for path in wanted if not any(path != other and path.startswith(other + "/") for other in wanted)]


def build_private_root(scratch: str) -> None:
    """Replace the file system by an almost empty one: Python and system libraries (read-only), five devices,
    this PID namespace's /proc, and `scratch`.

    Call it as the first process of the namespaces.

    Raises:
        OSError: a mount was refused.
    """
    kernel.mount(None, "/", None, kernel.MS_REC | kernel.MS_PRIVATE)
    # opened first: the new root covers /tmp, and what is to be shown may lie below it
    shown = {path: os.open(path, os.O_PATH) for path in [*readable_paths(), *_DEVICES] if os.path.exists(path)}
    links = {path: os.readlink(path) for path in shown if os.path.islink(path)}
    quiet = kernel.MS_NOSUID | kernel.MS_NODEV
    root = "/tmp"
    kernel.mount("tmpfs", root, "tmpfs", quiet, "size=1m,mode=755")
    os.umask(0o022)
    for path, fd in shown.items():
        _show(path, fd, root + path, links.get(path))
        os.close(fd)
    for name, target in _STREAMS.items():
        os.symlink(f"/proc/self/fd{target}", f"{root}/dev/{name}")
    os.mkdir(f"{root}/proc")
    try:  # programs see themselves only: without a user of their own, some files of ours would be theirs to write
        kernel.mount("proc", f"{root}/proc", "proc", quiet | kernel.MS_NOEXEC, "hidepid=ptraceable")
    except OSError:  # kernels before 5.8
        kernel.mount("proc", f"{root}/proc", "proc", quiet | kernel.MS_NOEXEC)
    os.makedirs(root + scratch)
    os.chdir(root)
    kernel.pivot_root_here()
    kernel.mount(None, "/", None, kernel.MS_REMOUNT | kernel.MS_BIND | kernel.MS_RDONLY | quiet)


def _show(path: str, fd: int, target: str, link: str | None) -> None:
    """Make what `fd` holds visible at `target`: as the same symbolic link, or mounted."""
    os.makedirs(os.path.dirname(target), exist_ok=True)
    if link is not None:
        os.symlink(link, target)
        return
    if path in _DEVICES:
        os.close(os.open(target, os.O_CREAT | os.O_WRONLY))
    else:
        os.makedirs(target, exist_ok=True)
    kernel.mount(f"/proc/self/fd/{fd}", target, None, kernel.MS_BIND | kernel.MS_REC)
    if path not in _DEVICES:
        kernel.make_read_only(target)


def mount_scratch(scratch: str, uid: int) -> None:
    """Put a fresh, small file system at `scratch`, owned by `uid`, in place of the one there, if any."""
    if os.path.ismount(scratch):
        kernel.unmount(scratch)
    options = f"size={SCRATCH_BYTES},nr_inodes={SCRATCH_FILES},mode=700,uid={uid}"
    kernel.mount("tmpfs", scratch, "tmpfs", kernel.MS_NOSUID | kernel.MS_NODEV | kernel.MS_NOEXEC, options)


def limit_resources(seconds: int, own_uid: bool) -> None:
    """Bound this process and its children: memory, processor `seconds` each, files, stack, threads."""
    limits = {
        resource.RLIMIT_AS: MEMORY_BYTES,
        resource.RLIMIT_CPU: seconds,
        resource.RLIMIT_FSIZE: OUTPUT_BYTES,
        resource.RLIMIT_NOFILE: OPEN_FILES,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_MEMLOCK: 0,
    }
    if own_uid:  # it counts all processes of the user, which elsewhere are also the trainer's
        limits[resource.RLIMIT_NPROC] = THREADS
    for kind, bound in limits.items():
        hard = resource.getrlimit(kind)[1]
        bound = bound if hard == resource.RLIM_INFINITY else min(bound, hard)
        resource.setrlimit(kind, (bound, bound))
    # the hard limit stays: programs that recurse ask for "unlimited" and must not fail at it
    hard = resource.getrlimit(resource.RLIMIT_STACK)[1]
    soft = STACK_BYTES if hard == resource.RLIM_INFINITY else min(STACK_BYTES, hard)
    resource.setrlimit(resource.RLIMIT_STACK, (soft, hard))


class Lock(NamedTuple):
    """What a program's process gives up before it runs.

    Attributes:
        uid: user and group to become; None to stay who we are.
        drop_capabilities: empty the capability sets (a user namespace gave us all of them).
        seccomp: the filter, or None where the kernel has none.
        landlock: confine the file system with Landlock (where there is no private root).
    """

    uid: int | None
    drop_capabilities: bool
    seccomp: SeccompFilter | None
    landlock: bool

    @property
    def owns_uid(self) -> bool:
        """Whether no process but this sandbox's has our user id."""
        return self.uid is not None and self.uid >= _FIRST_UID

    def apply(self, scratch: str) -> None:
        """Lock the calling process for good; its only writable folder is `scratch`.

        Raises:
            OSError: a step was refused.
        """
        if self.uid is not None:
            os.setgroups([])
            os.setresgid(self.uid, self.uid, self.uid)
            os.setresuid(self.uid, self.uid, self.uid)
        if self.drop_capabilities:
            kernel.drop_capabilities()
        kernel.die_with_parent()
        kernel.no_new_privileges()
        if self.landlock:
            landlock.restrict(readable_paths(), _DEVICES, scratch)
        if self.seccomp is not None:
            self.seccomp.install()


def choose_lock(namespaces: bool, user_namespace: bool, scratch: str, serial: int) -> Lock:
    """The strongest lock that works here, each part tried in a child. `serial` differs between servers."""
    root = os.geteuid() == 0
    uid = None
    if root and not user_namespace:
        candidates = (_FIRST_UID + serial, _NOBODY)
        uid = next((u for u in candidates if _works(Lock(u, False, None, False), scratch)), None)
    drop = root and uid is None
    confine = not namespaces and landlock.version() > 0 and _works(Lock(uid, drop, None, True), scratch)
    try:
        seccomp: SeccompFilter | None = SeccompFilter()
    except OSError:
        seccomp = None
    if not _works(Lock(uid, drop, seccomp, confine), scratch):
        seccomp = None
    return Lock(uid, drop, seccomp, confine)


def _works(lock: Lock, scratch: str) -> bool:
    pid = os.fork()
    if pid == 0:
        try:
            lock.apply(scratch)
        except OSError:
            os._exit(1)
        os._exit(0)
    return os.waitpid(pid, 0)[1] == 0
