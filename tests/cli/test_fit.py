"""Texts and tables that fit a terminal."""

from __future__ import annotations

import io

import pytest

from localprop import experiments
from localprop.cli import recipes
from localprop.cli.fit import fit, fit_width
from tests.helpers.cli import run_command

TABLE = """\
| method   | accuracy | gap |  peak |
|:---------|---------:|----:|------:|
| greedy() |    36.90 |  -3 | 129.6 |"""


class Terminal(io.StringIO):
    """A stream that is a terminal."""

    def isatty(self) -> bool:
        return True


def test_a_wide_table_becomes_several_with_the_same_first_column() -> None:
    assert fit_width(TABLE, 39) == TABLE
    assert fit_width(TABLE, 30) == (
        "| method   | accuracy | gap |\n"
        "|:---------|---------:|----:|\n"
        "| greedy() |    36.90 |  -3 |\n"
        "\n"
        "| method   |  peak |\n"
        "|:---------|------:|\n"
        "| greedy() | 129.6 |"
    )


def test_lines_are_wrapped_below_their_second_column() -> None:
    line = "resnet32_dgl_k2  not claimed, in part our reading: test error 8.69 %, mean of 5 runs"
    assert fit_width(line, 60) == (
        "resnet32_dgl_k2  not claimed, in part our reading: test\n"
        "                 error 8.69 %, mean of 5 runs"
    )
    assert fit_width("- a problem\n  " + "word " * 5, 80) == "- a problem\n  " + "word " * 5


def test_only_a_terminal_is_fitted_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "30")
    assert fit(TABLE, io.StringIO()) == TABLE
    assert fit(TABLE, Terminal()) == fit_width(TABLE, 30)


@pytest.mark.parametrize("width", [80, 100, 120])
def test_all_recipes_fit(width: int) -> None:
    text = recipes.list_recipes("")["table"]
    fitted = fit_width(text, width)
    assert max(map(len, fitted.splitlines())) <= width
    assert fitted.split() == text.split()  # no word is lost


def test_show_fits(capsys: pytest.CaptureFixture[str]) -> None:
    name = experiments.names("resnet32_cifar10_backlink")[0]
    _, out, _ = run_command(capsys, "show", name, "--batch-size", "8")
    fitted = fit_width(out, 100)
    assert max(map(len, fitted.splitlines())) <= 100
    assert fitted.split() == out.split()
