"""A logger that fails is told once, and its run goes on."""

from __future__ import annotations

import pytest

from localprop import BadInput, RunFailed
from localprop.loggers.safe_logger import Record, SafeLogger

START: Record = {"kind": "start", "epoch": 0}


def test_a_failure_is_told_once_and_ends_with_the_next_start() -> None:
    seen: list[Record] = []
    told: list[str] = []

    def fail_at_two(record: Record) -> None:
        seen.append(record)
        if record["epoch"] == 2:
            raise ConnectionError("no route\nto host")

    safe = SafeLogger(fail_at_two, told.append)
    epochs: list[Record] = [{"kind": "epoch", "epoch": epoch} for epoch in (1, 2, 3)]
    for record in (START, *epochs, START, epochs[0]):
        safe(record)
    assert seen == [START, *epochs[:2], START, epochs[0]]
    assert told == [
        "The logger fail_at_two failed (ConnectionError: no route): the run goes on without it."
    ]


def test_a_failure_at_the_start_ends_the_run() -> None:
    def fail(record: Record) -> None:
        raise ConnectionError("no route")

    def refuse(record: Record) -> None:
        raise BadInput("no such project")

    with pytest.raises(RunFailed, match=r"logger fail failed \(ConnectionError: no route\) before"):
        SafeLogger(fail, print)(START)
    with pytest.raises(BadInput, match=r"^no such project$"):
        SafeLogger(refuse, print)(START)


def test_ctrl_c_is_no_failure_of_a_logger() -> None:
    def interrupt(record: Record) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        SafeLogger(interrupt, print)(START)


def test_each_logger_has_a_record_of_its_own_with_the_run() -> None:
    seen: list[Record] = []
    SafeLogger(lambda record: record.clear(), print).of_run("a/seed-0")(START)
    SafeLogger(seen.append, print).of_run("a/seed-0")(START)
    assert seen == [{**START, "run": "a/seed-0"}]
    assert START == {"kind": "start", "epoch": 0}
