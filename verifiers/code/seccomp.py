"""A seccomp filter for one contest program: threads yes, everything that reaches outside no.

Refused calls fail with EPERM and the program goes on. Refused are new processes and exec (so there are
no fork bombs, no orphans, and one memory limit is enough), sockets, signals to anybody (those that a descriptor
sends to its owner, too), tracing and reading other processes, namespaces and mounts, System V and POSIX queues,
key rings, memory files, io_uring, bpf, and what administers the machine. The rest of the kernel stays reachable:
this is a deny list.
"""

import ctypes
import errno
import os
import struct

from verifiers.code import kernel

# name: number on x86_64, number on aarch64 (None: the call does not exist there)
_DENIED: dict[str, tuple[int, int | None]] = {
    "fork": (57, None),
    "vfork": (58, None),
    "execve": (59, 221),
    "execveat": (322, 281),
    "kill": (62, 129),
    "tkill": (200, 130),
    "tgkill": (234, 131),
    "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240),
    "pidfd_send_signal": (424, 424),
    "pidfd_open": (434, 434),
    "pidfd_getfd": (438, 438),
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "socket": (41, 198),
    "shmget": (29, 194),
    "semget": (64, 190),
    "msgget": (68, 186),
    "mq_open": (240, 180),
    "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "unshare": (272, 97),
    "setns": (308, 268),
    "chroot": (161, 51),
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsmount": (432, 432),
    "mount_setattr": (442, 442),
    "open_by_handle_at": (304, 265),
    "io_uring_setup": (425, 425),
    "userfaultfd": (323, 282),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "fanotify_init": (300, 262),
    "personality": (135, 92),
    "syslog": (103, 116),
    "acct": (163, 89),
    "quotactl": (179, 60),
    "swapon": (167, 224),
    "reboot": (169, 142),
    "sethostname": (170, 161),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "kexec_load": (246, 104),
}
_MACHINES = {"x86_64": 0, "aarch64": 1}
_AUDIT_ARCH = (0xC000003E, 0xC00000B7)
_CLONE = (56, 220)
_PRLIMIT64 = (302, 261)
_FCNTL = (72, 25)
_IOCTL = (16, 29)
_SIGNAL_SETTERS = (8, 10, 15, 0x8901, 0x8902)  # F_SETOWN, F_SETSIG, F_SETOWN_EX, FIOSETOWN, SIOCSPGRP
_SECCOMP = (317, 277)
_CLONE3 = 435
_X32_BIT = 0x40000000
_CLONE_THREAD = 0x00010000

_SECCOMP_SET_MODE_FILTER = 1
_SECCOMP_FILTER_FLAG_SPEC_ALLOW = 4  # keeps the processor's store bypass on: no slowdown of the program
_LOAD, _JUMP_EQ, _JUMP_GE, _JUMP_SET, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_OFFSET_NUMBER, _OFFSET_ARCH, _OFFSET_FIRST_ARGUMENT, _OFFSET_SECOND_ARGUMENT = 0, 4, 16, 24
_ALLOW = 0x7FFF0000
_ERRNO = 0x00050000

_Instruction = tuple[int, int, str, str]  # code, operand, label if true, label if false ("" is the next one)


class SeccompFilter:
    """The filter of this machine, assembled once and installed by each child.

    Raises:
        OSError: the processor is one that this file has no call numbers for.
    """

    def __init__(self) -> None:
        machine = _MACHINES.get(os.uname().machine)
        if machine is None:
            raise OSError(errno.ENOSYS, f"no seccomp table for {os.uname().machine}")
        self._call = _SECCOMP[machine]
        code = _assemble(_listing(machine))
        self._code = ctypes.create_string_buffer(code, len(code))
        program = struct.pack("HxxxxxxP", len(code) // 8, ctypes.addressof(self._code))
        self._program = ctypes.create_string_buffer(program, len(program))

    def install(self) -> None:
        """Lock this process and all its threads to come. Needs `no_new_privileges` (or CAP_SYS_ADMIN)."""
        flags = _SECCOMP_FILTER_FLAG_SPEC_ALLOW
        kernel.syscall(self._call, _SECCOMP_SET_MODE_FILTER, flags, self._program, what="seccomp")


def _listing(machine: int) -> list[tuple[str, _Instruction]]:
    """The filter as (label, instruction) lines."""
    numbers = [n for pair in _DENIED.values() if (n := pair[machine]) is not None]
    return [
        ("", (_LOAD, _OFFSET_ARCH, "", "")),
        ("", (_JUMP_EQ, _AUDIT_ARCH[machine], "", "deny")),
        ("", (_LOAD, _OFFSET_NUMBER, "", "")),
        ("", (_JUMP_GE, _X32_BIT, "deny", "")),
        *[("", (_JUMP_EQ, number, "deny", "")) for number in numbers],
        ("", (_JUMP_EQ, _CLONE[machine], "clone", "")),
        ("", (_JUMP_EQ, _PRLIMIT64[machine], "prlimit", "")),
        ("", (_JUMP_EQ, _FCNTL[machine], "control", "")),
        ("", (_JUMP_EQ, _IOCTL[machine], "control", "")),
        # its flags lie behind a pointer that a filter cannot follow; the C library then falls back to clone
        ("", (_JUMP_EQ, _CLONE3, "absent", "allow")),
        ("clone", (_LOAD, _OFFSET_FIRST_ARGUMENT, "", "")),
        ("", (_JUMP_SET, _CLONE_THREAD, "allow", "deny")),
        ("prlimit", (_LOAD, _OFFSET_FIRST_ARGUMENT, "", "")),
        ("", (_JUMP_EQ, 0, "allow", "deny")),  # its own limits only
        ("control", (_LOAD, _OFFSET_SECOND_ARGUMENT, "", "")),
        *[("", (_JUMP_EQ, command, "deny", "")) for command in _SIGNAL_SETTERS[:-1]],
        ("", (_JUMP_EQ, _SIGNAL_SETTERS[-1], "deny", "allow")),
        ("allow", (_RETURN, _ALLOW, "", "")),
        ("deny", (_RETURN, _ERRNO | errno.EPERM, "", "")),
        ("absent", (_RETURN, _ERRNO | errno.ENOSYS, "", "")),
    ]


def _assemble(listing: list[tuple[str, _Instruction]]) -> bytes:
    places = {label: place for place, (label, _) in enumerate(listing) if label}
    code = b""
    for place, (_, (operation, operand, if_true, if_false)) in enumerate(listing):
        jumps = [places[label] - place - 1 if label else 0 for label in (if_true, if_false)]
        code += struct.pack("HBBI", operation, *jumps, operand)
    return code
