"""Connections between a server of a pool and its clients: where it listens, and that both know the secret.

An address is `unix:/path/of/socket` or `tcp:HOST:PORT`. Each side proves with an HMAC over both sides' nonces that it
knows the secret, which itself never travels. What follows is neither encrypted nor signed: use TCP within a cluster's
own network only.
"""

import contextlib
import hmac
import os
import secrets
import socket
import stat
from pathlib import Path
from typing import Any

from verifiers import frames

HANDSHAKE_SECONDS = 10.0
_HANDSHAKE_BYTES = 4096
_KEEPALIVE = {socket.TCP_KEEPIDLE: 30, socket.TCP_KEEPINTVL: 10, socket.TCP_KEEPCNT: 3}  # seconds, seconds, probes


class Refused(ConnectionError):
    """The other side knows another secret, or does not speak this protocol."""


def parse_address(address: str) -> str | tuple[str, int]:
    """The path of a local socket, or a host and a port.

    Raises:
        ValueError: it is neither.
    """
    kind, _, rest = address.partition(":")
    host, _, port = rest.rpartition(":")
    if kind == "unix" and rest:
        return rest
    if kind == "tcp" and host and port.isdecimal() and int(port) < 1 << 16:
        return host.strip("[]"), int(port)
    raise ValueError(f"address {address!r}: write unix:/path/of/socket or tcp:HOST:PORT")


def read_secret(path: Path) -> bytes:
    """The secret in a file that only its owner may read.

    Raises:
        ValueError: the file is empty, or others may read it.
        FileNotFoundError: there is no such file.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such secret file; `megatron-rl verify serve` makes it")
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & 0o077:
        raise ValueError(f"{path}: mode {mode:o} lets others read the secret; chmod 600 {path}")
    secret = path.read_bytes().strip()
    if not secret:
        raise ValueError(f"{path}: the secret is empty; delete the file, and the server makes another")
    return secret


def make_secret(path: Path) -> None:
    """Write a fresh secret to `path`, unless there is one."""
    with contextlib.suppress(FileExistsError):
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(secrets.token_hex(32) + "\n")


def listen(address: str) -> socket.socket:
    """A listening socket; one at a path can be reached by its owner only.

    Raises:
        ValueError: the address is unusable, or somebody listens there already.
        OSError: it cannot be had.
    """
    where = parse_address(address)
    if not isinstance(where, str):
        return socket.create_server(where, family=_family(where), backlog=128)
    _remove_stale(address, where)
    server = socket.socket(socket.AF_UNIX)
    mask = os.umask(0o177)
    try:
        server.bind(where)
    except BaseException:
        server.close()
        raise
    finally:
        os.umask(mask)
    server.listen(128)
    return server


def connect(address: str, secret: bytes, seconds: float) -> tuple[socket.socket, dict[str, Any]]:
    """A connection to the server at `address`, and the server's greeting.

    Raises:
        Refused: it knows another secret.
        OSError: nobody answers within `seconds`.
    """
    connection = _dial(parse_address(address), seconds)
    try:
        connection.settimeout(HANDSHAKE_SECONDS)
        challenge = _hear(connection)
        mine = secrets.token_hex(16)
        theirs = str(challenge.get("nonce"))
        connection.sendall(frames.pack_record({"nonce": mine, "proof": _proof(secret, "client", theirs, mine)}))
        greeting = _hear(connection)
        if "refused" in greeting:
            raise Refused(f"{address}: the server knows another secret")
        if not _proves(greeting, secret, "server", theirs, mine):
            raise Refused(f"{address}: the server does not know the secret")
        connection.settimeout(None)
    except BaseException:
        connection.close()
        raise
    return connection, greeting


def greet(connection: socket.socket, secret: bytes, greeting: dict[str, Any]) -> None:
    """The server's side of `connect`.

    Raises:
        Refused: the client knows another secret.
        OSError: it does not answer in time.
    """
    connection.settimeout(HANDSHAKE_SECONDS)
    _tune(connection)
    mine = secrets.token_hex(16)
    connection.sendall(frames.pack_record({"nonce": mine}))
    reply = _hear(connection)
    theirs = str(reply.get("nonce"))
    if not _proves(reply, secret, "client", mine, theirs):
        connection.sendall(frames.pack_record({"refused": True}))
        raise Refused("the client knows another secret")
    connection.sendall(frames.pack_record({**greeting, "proof": _proof(secret, "server", mine, theirs)}))
    connection.settimeout(None)


def _dial(where: str | tuple[str, int], seconds: float) -> socket.socket:
    if not isinstance(where, str):
        connection = socket.create_connection(where, seconds)
        _tune(connection)
        return connection
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.settimeout(seconds)
        connection.connect(where)
    except BaseException:
        connection.close()
        raise
    return connection


def _hear(connection: socket.socket) -> dict[str, Any]:
    try:
        record = frames.receive_record(connection, _HANDSHAKE_BYTES)
    except frames.BrokenFrame as error:
        raise Refused(f"the other side is no verifier: {error}") from error
    if record is None:
        raise ConnectionError("the other side closed the connection")
    return record


def _proof(secret: bytes, side: str, server_nonce: str, client_nonce: str) -> str:
    return hmac.new(secret, f"{side} {server_nonce} {client_nonce}".encode(), "sha256").hexdigest()


def _proves(record: dict[str, Any], secret: bytes, side: str, server_nonce: str, client_nonce: str) -> bool:
    proof = str(record.get("proof")).encode("ascii", "replace")
    return hmac.compare_digest(proof, _proof(secret, side, server_nonce, client_nonce).encode())


def _tune(connection: socket.socket) -> None:
    """Over TCP: no delay for short frames, and a peer whose machine has vanished is noticed within a minute."""
    if connection.family == socket.AF_UNIX:
        return
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in _KEEPALIVE.items():
        connection.setsockopt(socket.IPPROTO_TCP, option, value)


def _family(where: tuple[str, int]) -> socket.AddressFamily:
    return socket.getaddrinfo(*where, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0][0]


def _remove_stale(address: str, path: str) -> None:
    """Remove the socket that a server which was killed has left at `path`."""
    if not os.path.exists(path):
        return
    if not stat.S_ISSOCK(os.stat(path).st_mode):
        raise ValueError(f"{address}: the path is taken by something that is no socket; choose another")
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
            return
    raise ValueError(f"{address}: a server listens there already; stop it, or choose another path")
