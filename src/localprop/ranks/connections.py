"""A socket from each rank to each other, beside those of torch.distributed.

Each rank listens for those after it and calls those before it. Who calls says a secret, which all
ranks know and nobody else.
"""

from __future__ import annotations

import ipaddress
import os
import secrets
import socket
import time
import warnings
from collections.abc import Callable
from typing import NamedTuple

import torch.distributed as dist

MEETING_S = 30.0  # how long ranks wait for each other's call, once all of them listen


class Address(NamedTuple):
    """Where a rank listens.

    Attributes:
        host: a name or address by which the other ranks reach it.
        port: the port.
        secret: what a caller says.
    """

    host: str
    port: int
    secret: str


def connect_ranks(
    rank: int, gather: Callable[[Address], list[Address]]
) -> dict[int, socket.socket]:
    """Connect this rank with all others. All ranks must call this together.

    A rank that cannot be reached is left out, with a warning: gloo may go another way.

    Args:
        rank: the number of this rank.
        gather: gives each rank the addresses of all.

    Returns:
        The sockets, by rank.
    """
    store_host = _find_store_host()
    family, _, _, _, there = socket.getaddrinfo(store_host, 9, type=socket.SOCK_DGRAM)[0]
    with socket.create_server(("", 0), family=family, backlog=dist.get_world_size()) as listener:
        host, port = _find_own_host(store_host, family, there), listener.getsockname()[1]
        addresses = gather(Address(host, port, secrets.token_hex(16)))
        connections = _call(rank, addresses[:rank])
        connections |= _answer(rank, listener, addresses)
    for other in {*range(len(addresses))} - {rank, *connections}:
        warnings.warn(
            f"Rank {rank} and rank {other} ({addresses[other].host}) cannot reach each other "
            "beside torch.distributed, so neither will notice if the other is stopped: give "
            "MASTER_ADDR a name or address that all machines know, and let ranks open ports.",
            stacklevel=2,
        )
    return connections


def _find_store_host() -> str:
    """The host of the store at which the ranks have met, which all of them reach."""
    from torch._C._distributed_c10d import PrefixStore  # some builds of torch lack it

    store = dist.distributed_c10d._get_default_store()
    while isinstance(store, PrefixStore):
        store = store.underlying_store
    return os.environ.get("MASTER_ADDR") or getattr(store, "host", None) or "localhost"


def _find_own_host(store_host: str, family: int, there: tuple[object, ...]) -> str:
    """The address by which this machine reaches the store; on the store's own machine that host."""
    with socket.socket(family, socket.SOCK_DGRAM) as probe:  # sends nothing
        probe.connect(there)
        own: str = probe.getsockname()[0]
    return store_host if ipaddress.ip_address(own.partition("%")[0]).is_loopback else own


def _call(rank: int, addresses: list[Address]) -> dict[int, socket.socket]:
    connections = {}
    for other, address in enumerate(addresses):
        try:
            connection = socket.create_connection(address[:2], timeout=MEETING_S)
            connection.sendall(f"{address.secret} {rank}\n".encode())
            connections[other] = connection
        except OSError:
            continue
    return connections


def _answer(
    rank: int, listener: socket.socket, addresses: list[Address]
) -> dict[int, socket.socket]:
    """Take the calls of the ranks after this one."""
    awaited = {
        f"{addresses[rank].secret} {other}\n".encode(): other
        for other in range(rank + 1, len(addresses))
    }
    connections: dict[int, socket.socket] = {}
    end = time.monotonic() + MEETING_S
    while len(connections) < len(awaited) and (left := end - time.monotonic()) > 0:
        listener.settimeout(left)
        try:
            connection, _ = listener.accept()
            connection.settimeout(5.0)
            caller = awaited.get(_read_line(connection))
        except OSError:
            continue
        if caller is None:
            connection.close()
        else:
            connections[caller] = connection
    return connections


def _read_line(connection: socket.socket) -> bytes:
    line = b""
    while not line.endswith(b"\n") and len(line) < 64:
        received = connection.recv(1)
        if not received:
            break
        line += received
    return line
