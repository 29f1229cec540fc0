"""Length-prefixed frames on a socket, between a pool and its workers.

The pool sends pickles, since it trusts itself. Workers answer in JSON, since model-made code runs beneath them.
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
    """The frame that carries a task. Raises ValueError if it is larger than `MAX_BYTES`."""
    return _frame(pickle.dumps(task, protocol=pickle.HIGHEST_PROTOCOL))


def pack_answer(answer: dict[str, Any]) -> bytes:
    """The frame that carries an answer."""
    return _frame(json.dumps(answer).encode("ascii"))


def receive_task(connection: socket.socket) -> Any | None:
    """The next task, or None when the pool has closed its end."""
    payload = _receive(connection)
    return None if payload is None else pickle.loads(payload)


def unpack_answer(payload: bytes) -> dict[str, Any]:
    """The answer in a payload. Raises BrokenFrame if it is no JSON object."""
    try:
        answer = json.loads(payload)
    except ValueError as error:
        raise BrokenFrame("answer is not JSON") from error
    if not isinstance(answer, dict):
        raise BrokenFrame("answer is not an object")
    return answer


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
            raise BrokenFrame("answer too long")
        if len(self._buffer) < _LENGTH.size + length:
            return None
        return unpack_answer(bytes(self._buffer[_LENGTH.size :]))


def _frame(payload: bytes) -> bytes:
    if len(payload) > MAX_BYTES:
        raise ValueError(f"a task of {len(payload)} bytes is more than the {MAX_BYTES} that a worker takes")
    return _LENGTH.pack(len(payload)) + payload


def _receive(connection: socket.socket) -> bytes | None:
    header = _read(connection, _LENGTH.size)
    if header is None:
        return None
    payload = _read(connection, _LENGTH.unpack(header)[0])
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
