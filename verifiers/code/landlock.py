"""Landlock: confine a process to reading some folders and writing one (Linux 5.13 and newer, no root needed)."""

import ctypes
import os
import struct
from collections.abc import Iterable

from verifiers.code import kernel

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446  # one number on all architectures
_VERSION_FLAG = 1
_PATH_BENEATH = 1
_READ = 0b1100  # read_file, read_dir
_READ_WRITE_FILE = 0b0110  # write_file, read_file
# Rights by version of the interface: refer (2), truncate (3), ioctl on devices (5)
_FILE_RIGHTS = {1: 0x1FFF, 2: 0x3FFF, 3: 0x7FFF, 5: 0xFFFF}
_NETWORK_RIGHTS = 0b11  # bind and connect TCP (4)
_SCOPES = 0b11  # abstract sockets and signals out of the sandbox (6)


def version() -> int:
    """The kernel's Landlock version; 0 if it has none or has it switched off."""
    try:
        return kernel.syscall(_CREATE_RULESET, None, 0, _VERSION_FLAG, what="landlock_create_ruleset")
    except OSError:
        return 0


def restrict(read: Iterable[str], devices: Iterable[str], write: str) -> None:
    """Confine this process: `read` may be read, `devices` read and written, all below `write` changed.

    Paths in `read` and `devices` that do not exist are passed over. Needs `no_new_privileges`.
    """
    abi = version()
    rights = max(mask for since, mask in _FILE_RIGHTS.items() if since <= abi)
    attributes = struct.pack("QQQ", rights, _NETWORK_RIGHTS if abi >= 4 else 0, _SCOPES if abi >= 6 else 0)
    buffer = ctypes.create_string_buffer(attributes, len(attributes))
    size = 24 if abi >= 6 else 16 if abi >= 4 else 8
    ruleset = kernel.syscall(_CREATE_RULESET, buffer, size, 0, what="landlock_create_ruleset")
    try:
        allowed = [(path, _READ) for path in read] + [(path, _READ_WRITE_FILE) for path in devices]
        for path, access in [*allowed, (write, rights)]:
            if os.path.exists(path):
                _allow(ruleset, path, access)
        kernel.syscall(_RESTRICT_SELF, ruleset, 0, what="landlock_restrict_self")
    finally:
        os.close(ruleset)


def _allow(ruleset: int, path: str, access: int) -> None:
    beneath = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        rule = struct.pack("=Qi", access, beneath)
        buffer = ctypes.create_string_buffer(rule, len(rule))
        kernel.syscall(_ADD_RULE, ruleset, _PATH_BENEATH, buffer, 0, what="landlock_add_rule")
    finally:
        os.close(beneath)
