"""Ranks that are silent, gone or on their way out, as the heartbeat of another one sees them."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterator

import pytest

from localprop.ranks.heartbeat import Heartbeat, find_timeout_problems

TIMEOUT_S = 2.0


@pytest.fixture
def sockets() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


def wait_until(is_true: Callable[[], object]) -> None:
    end = time.monotonic() + 30
    while not is_true():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_silent_rank_is_lost(sockets: tuple[socket.socket, socket.socket]) -> None:
    losses: list[dict[int, str]] = []
    ours = Heartbeat({1: sockets[0]}, TIMEOUT_S, lambda: losses.append(ours.lost))
    assert ours.running == {1}
    wait_until(lambda: losses)
    reason = "rank 1 has not answered for 2 s: stopped, swapped out or cut off"
    assert ours.lost == losses[0] == {1: reason}
    assert ours.running == set()
    ours.close()


def test_ranks_that_do_nothing_are_heard(sockets: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = Heartbeat({1: sockets[0]}, TIMEOUT_S), Heartbeat({0: sockets[1]}, TIMEOUT_S)
    theirs.awaited = 0
    time.sleep(1.5 * TIMEOUT_S)
    assert (ours.lost, theirs.lost) == ({}, {})
    assert (ours.awaited_by, theirs.awaited_by) == ({1: 0}, {0: None})
    ours.close()
    theirs.close()


def test_a_rank_that_dies_is_lost_at_once(sockets: tuple[socket.socket, socket.socket]) -> None:
    ours = Heartbeat({1: sockets[0]}, 1e8)
    sockets[1].close()
    wait_until(lambda: ours.lost)
    assert ours.lost == {1: "rank 1 has ended"}
    ours.close()


def test_a_rank_that_takes_leave_is_not_lost(sockets: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = Heartbeat({1: sockets[0]}, TIMEOUT_S), Heartbeat({0: sockets[1]}, TIMEOUT_S)
    theirs.tell({"rank": 1, "error": "ValueError: no"})
    theirs.close()
    wait_until(lambda: ours.left)
    time.sleep(1.5 * TIMEOUT_S)
    assert ours.left == {1}
    assert ours.lost == {}
    assert ours.records == {1: {"rank": 1, "error": "ValueError: no"}}
    ours.close()


def test_what_was_told_can_be_taken_back(sockets: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = Heartbeat({1: sockets[0]}, TIMEOUT_S), Heartbeat({0: sockets[1]}, TIMEOUT_S)
    theirs.tell({"rank": 1})
    wait_until(lambda: ours.records == {1: {"rank": 1}})
    theirs.tell({})
    wait_until(lambda: ours.records == {})
    ours.close()
    theirs.close()


def test_nobody_is_blamed_for_the_time_that_this_process_slept(
    sockets: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    """All processes of a job may be stopped and go on together: no beat was sent meanwhile."""
    slept = [0.0]
    monotonic = time.monotonic
    monkeypatch.setattr("localprop.ranks.heartbeat.time.monotonic", lambda: monotonic() + slept[0])
    ours = Heartbeat({1: sockets[0]}, 10 * TIMEOUT_S)
    sockets[1].recv(1)
    slept[0] = 1000.0
    for _ in range(2):  # beats after the sleep
        sockets[1].recv(100)
    assert ours.lost == {}
    ours.close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_a_forked_child_keeps_no_socket_open(sockets: tuple[socket.socket, socket.socket]) -> None:
    """Otherwise nobody notices the death of a rank whose loader has workers."""
    ours = Heartbeat({1: sockets[0]}, TIMEOUT_S)
    number = sockets[0].fileno()
    child = os.fork()
    if not child:
        try:
            os.fstat(number)
            os._exit(1)
        except OSError:
            os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert os.fstat(number)
    ours.close()


@pytest.mark.parametrize("timeout_s", [1, 1.5, 300, 86400.0, 1e8])
def test_time_outs(timeout_s: float) -> None:
    assert not [*find_timeout_problems(timeout_s)]


@pytest.mark.parametrize(
    "timeout_s", [0, -1, 0.5, 1e9, 1e30, 10**400, float("inf"), float("nan"), "300", None, True]
)
def test_time_outs_that_are_refused(timeout_s: object) -> None:
    (problem,) = find_timeout_problems(timeout_s)
    assert problem.endswith("must be a number of seconds from 1 to 1e+08: try 300.")
