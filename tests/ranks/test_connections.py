"""Sockets between ranks, and strangers that call."""

from __future__ import annotations

import socket
import threading

import pytest
import torch.distributed as dist

from localprop.ranks.connections import Address, _answer, _call, connect_ranks
from tests.helpers.ranks import RankPool

pytestmark = pytest.mark.xdist_group("ranks")


def test_strangers_are_not_answered() -> None:
    """Neither who knows no secret, nor who says nothing, nor a rank that there is not."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = Address("127.0.0.1", listener.getsockname()[1], "secret")
        found: dict[int, socket.socket] = {}
        answering = threading.Thread(
            target=lambda: found.update(_answer(0, listener, [address] * 2))
        )
        answering.start()
        for greeting in (b"other 1\n", b"secret 7\n", b"secret 1", b"x" * 100):
            with socket.create_connection(address[:2]) as stranger:
                stranger.sendall(greeting)
        called = _call(1, [address])
        answering.join()
        assert [*found] == [1]
        called[0].sendall(b"hello")
        assert found[1].recv(5) == b"hello"
        called[0].close()
        found[1].close()


def exchange_numbers() -> dict[int, bytes]:
    """Connect the ranks, and tell each other one's number."""
    rank = dist.get_rank()
    gathered: list[Address | None] = [None] * dist.get_world_size()

    def gather(address: Address) -> list[Address]:
        dist.all_gather_object(gathered, address)
        return [each for each in gathered if each is not None]

    connections = connect_ranks(rank, gather)
    for connection in connections.values():
        connection.sendall(str(rank).encode())
    return {other: connection.recv(1) for other, connection in connections.items()}


def test_each_rank_is_connected_with_each_other(pool: RankPool) -> None:
    answers = pool.run(4, exchange_numbers)
    for rank, answer in enumerate(answers):
        assert answer == {other: str(other).encode() for other in range(4) if other != rank}
