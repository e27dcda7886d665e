"""The line that says what is waited for: late, and on terminals alone."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from io import StringIO

import pytest
from rich.console import Console

from localprop.cli import main as cli
from localprop.cli import progress
from localprop.cli.progress import WaitingLine, show_waiting, show_waiting_until


@pytest.mark.parametrize(
    ("seconds", "text"), [(4.9, ""), (5.0, "planning  0:05"), (3723.0, "planning  62:03")]
)
def test_nothing_shows_for_five_seconds(seconds: float, text: str) -> None:
    times = iter([100.0, 100.0 + seconds])
    console = Console(file=StringIO(), force_terminal=True)
    with console.capture() as shown:
        console.print(WaitingLine("planning", lambda: next(times)), end="")
    assert shown.get().strip() == text


def test_pipes_get_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    times = iter([0.0, *[100.0] * 9])
    with show_waiting("planning", lambda: next(times)):
        pass
    assert capfd.readouterr() == ("", "")


def test_a_terminal_gets_the_line_on_stderr_and_results_on_stdout(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    now = iter([0.0])
    with show_waiting("planning", lambda: next(now, 60.0)):
        print("a result")
    out, err = capsys.readouterr()
    assert out == "a result\n"
    assert "planning  1:00" in err


def test_a_bar_takes_the_place_of_the_line(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    @contextmanager
    def show(what: str) -> Iterator[None]:
        seen.append(f"{what} begins")
        yield
        seen.append(f"{what} ends")

    monkeypatch.setattr(progress, "show_waiting", show)
    with show_waiting_until("preparing", show) as show_bar, show_bar("bar"):
        pass
    assert seen == ["preparing begins", "preparing ends", "bar begins", "bar ends"]


def test_silent_commands_say_what_they_do(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[str] = []

    @contextmanager
    def show(what: str) -> Iterator[None]:
        seen.append(what)
        yield

    monkeypatch.setattr(progress, "show_waiting", show)
    assert cli.main(["show", "--model", "mlp"]) == 0
    assert cli.main(["check", "mlp", "--input", "1,8,8"]) == 0
    assert cli.main(["plan", "--model", "mlp", "--input", "1,8,8", "--batch", "8"]) == 0
    assert seen == ["looking at the run", "looking at the model", "planning"]
