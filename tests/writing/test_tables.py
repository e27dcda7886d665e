"""Tables in Markdown."""

from __future__ import annotations

from localprop.writing.tables import format_table


def test_the_first_column_is_left_aligned_and_the_others_right() -> None:
    table = format_table(["m", "n"], [["a", "10"]])
    assert table == "| m |  n |\n|:--|---:|\n| a | 10 |"
