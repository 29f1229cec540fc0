"""Length-prefixed frames on a socket: between a pool and its workers, and between a server of a pool and its clients.

A pool sends its workers pickles, since it trusts itself. All else is JSON: workers answer in it, since model-made code
runs beneath them, and so do both ends of a network connection.
"""

import json
import pickle
import socket
import struct
from typing import Any

MAX_BYTES = 1 << 30
_LENGTH = struct.Struct("!I")


class BrokenFrame(Exception):
    """The other end closed in the middle of a frame, or sent something that is none."""


def pack_task(task: Any) -> bytes:
    """The frame that carries a task to a worker. Raises ValueError if it is larger than `MAX_BYTES`."""
    return _frame(pickle.dumps(task, protocol=pickle.HIGHEST_PROTOCOL))


def pack_record(record: dict[str, Any]) -> bytes:
    """The frame that carries a JSON object. Raises ValueError if it is larger than `MAX_BYTES`."""
    return _frame(json.dumps(record).encode("ascii"))


def receive_task(connection: socket.socket) -> Any | None:
    """The next task, or None when the pool has closed its end."""
    payload = _receive(connection, MAX_BYTES)
    return None if payload is None else pickle.loads(payload)


def receive_record(connection: socket.socket, max_bytes: int = MAX_BYTES) -> dict[str, Any] | None:
    """The next JSON object, or None when the other end has closed.

    Raises BrokenFrame for what is none or is larger than `max_bytes`.
    """
    payload = _receive(connection, max_bytes)
    return None if payload is None else unpack_record(payload)


def unpack_record(payload: bytes) -> dict[str, Any]:
    """The JSON object in a payload. Raises BrokenFrame if it is none."""
    try:
        record = json.loads(payload)
    except (ValueError, RecursionError) as error:
        raise BrokenFrame("not JSON") from error
    if not isinstance(record, dict):
        raise BrokenFrame("not a JSON object")
    return record


class AnswerReader:
    """Puts one answer together from the pieces in which it arrives."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> dict[str, Any] | None:
        """The answer once it is complete, else None. Raises BrokenFrame for what is no answer."""
        self._buffer += data
        if len(self._buffer) < _LENGTH.size:
            return None
        (length,) = _LENGTH.unpack_from(self._buffer)
        if length > MAX_BYTES:
            raise BrokenFrame(f"{length} bytes, more than {MAX_BYTES}")
        if len(self._buffer) < _LENGTH.size + length:
            return None
        return unpack_record(bytes(self._buffer[_LENGTH.size :]))


def _frame(payload: bytes) -> bytes:
    if len(payload) > MAX_BYTES:
        raise ValueError(f"a task of {len(payload)} bytes is more than the {MAX_BYTES} that a worker takes")
    return _LENGTH.pack(len(payload)) + payload


def _receive(connection: socket.socket, max_bytes: int) -> bytes | None:
    header = _read(connection, _LENGTH.size)
    if header is None:
        return None
    (length,) = _LENGTH.unpack(header)
    if length > max_bytes:
        raise BrokenFrame(f"{length} bytes, more than {max_bytes}")
    payload = _read(connection, length)
    if payload is None:
        raise BrokenFrame("closed in the middle of a frame")
    return payload


def _read(connection: socket.socket, size: int) -> bytes | None:
    """Exactly `size` bytes; None if the other end closed before."""
    buffer = bytearray()
    while len(buffer) < size:
        piece = connection.recv(min(size - len(buffer), 1 << 20))
        if not piece:
            return None
        buffer += piece
    return bytes(buffer)
