"""Listening sockets at the one address that a job is reached at: torch's stores and Gloo would take more.

torch has no setting for it (its `TCPStore` binds every interface): `bind_stores` can go when it has one.
"""

import importlib
import ipaddress
import os
import socket
from typing import Any

import torch.distributed as dist

LOOPBACK = "127.0.0.1"


def bind_stores() -> None:
    """Have `init_process_group` serve its store at MASTER_ADDR's own address and, where that is of this machine only,
    Gloo at that too. Called before it, and again without effect."""
    module: Any = importlib.import_module("torch.distributed.rendezvous")  # under its name there is a function, too
    module.TCPStore = tcp_store
    if _is_loopback(os.environ.get("MASTER_ADDR", LOOPBACK)):
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")


def tcp_store(
    host_name: str, port: int, world_size: int | None = None, is_master: bool = False, **settings: Any
) -> dist.TCPStore:
    """A store whose server, in the process with `is_master`, listens at the address of `host_name` alone."""
    address = socket.gethostbyname(host_name) if is_master else ""
    # The hosts file may give a node's own name a loopback address, which the other nodes do not know it by.
    if is_master and _is_loopback(host_name) == _is_loopback(address):
        listener = socket.create_server((address, port))
        port = listener.getsockname()[1]
        settings["master_listen_fd"] = listener.detach()
    return dist.TCPStore(host_name, port, world_size, is_master, **settings)


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:  # another name
        return False
