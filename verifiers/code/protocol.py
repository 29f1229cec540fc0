"""What the judge says to its sandbox, and hears.

Between judge and server go JSON objects, with file descriptors riding along:

    judge                                          server
      <- hello                                       what isolation was reached, or the error that stopped it
      start + [source, control, input, output, errors]    the process of a program is forked
      stop                                           it is ended, with all that it left; the sandbox is clean again
      <- its wait status                             if asked for

On the control socket of a program's process:

    judge                                          program
      <- READY, FAILED or BROKEN                     it is compiled and locked; or why it is not
      STANDARD_INPUT, FUNCTION, LOAD or CHECK        it runs on what the input file holds
      <- status, spent                               how that ended (`run.run_tests`)

The sockets keep message boundaries (SOCK_SEQPACKET). Sources, inputs and outputs travel in memory files, so no
message is large and no pipe can fill up. Expected outputs never cross; a check does, once the program has run (LOAD),
with a word that comes back when the check has ended. After READY the program itself may be talking: no answer says more
than what a program could bring about anyway, by exiting.
"""

import json
import os
import socket
from typing import Any

_MAX_MESSAGE = 1 << 16

STANDARD_INPUT, FUNCTION, LOAD, CHECK = b"i", b"f", b"l", b"c"
SEPARATOR = "\0"  # between the inputs of functional tests, and before a check; neither JSON nor Python has it
READY, FAILED, BROKEN = b"r", b"f", b"b"  # the last two with a text
LONGEST_WORD = 4096

# Bounds of a program's process; its wall clock comes with each test.
MEMORY_BYTES = 1 << 30  # address space
OUTPUT_BYTES = 32 << 20  # of each file, standard output included
STACK_BYTES = 100 << 20  # of the main thread; the kernel leaves 128 MiB free below it
OPEN_FILES = 64
THREADS = 64
SCRATCH_BYTES = 32 << 20
SCRATCH_FILES = 256


def send(sock: socket.socket, message: dict[str, Any], fds: tuple[int, ...] = ()) -> None:
    """Send `message`, with duplicates of `fds`.

    Raises:
        OSError: the other side is gone.
    """
    socket.send_fds(sock, [json.dumps(message).encode()], list(fds))


def receive(sock: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """The next message and its descriptors, which the caller closes.

    Raises:
        EOFError: the other side is gone.
    """
    try:
        data, fds, _, _ = socket.recv_fds(sock, _MAX_MESSAGE, 5)
    except ConnectionError as error:
        raise EOFError("connection lost") from error
    if not data:
        raise EOFError("connection closed")
    return json.loads(data), fds


def read_all(fd: int, limit: int) -> bytes:
    """The first `limit` bytes of a file, whatever its offset."""
    parts: list[bytes] = []
    total = 0
    while total < limit and (part := os.pread(fd, min(limit - total, 1 << 20), total)):
        parts.append(part)
        total += len(part)
    return b"".join(parts)
