"""Listening sockets at the one address that a job is reached at: torch's stores would take every interface."""

import ipaddress
import socket
from typing import Any

import torch.distributed as dist

LOOPBACK = "127.0.0.1"


def tcp_store(
    host_name: str, port: int, world_size: int | None = None, is_master: bool = False, **settings: Any
) -> dist.TCPStore:
    """A store whose server, in the process with `is_master`, listens at the address of `host_name` alone."""
    address = socket.gethostbyname(host_name) if is_master else ""
    # The hosts file may give a node's own name a loopback address, which the other nodes do not know it by.
    if is_master and is_loopback(host_name) == is_loopback(address):
        listener = socket.create_server((address, port))
        port = listener.getsockname()[1]
        settings["master_listen_fd"] = listener.detach()
    return dist.TCPStore(host_name, port, world_size, is_master, **settings)


def is_loopback(host: str) -> bool:
    """Of this machine only."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:  # another name
        return False
