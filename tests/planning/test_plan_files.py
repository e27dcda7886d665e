"""Plans as files: whole or not at all, readable without colour, and complete."""

from __future__ import annotations

import json
import re
import sys
from html import unescape
from pathlib import Path
from typing import Any

import pytest

import localprop as lp
from localprop.cli.main import main
from localprop.planning.chart import draw_front
from localprop.writing.files import write_bytes
from tests.helpers.plans import make_hand_plan


def test_methods_are_told_apart_by_marker_line_and_label() -> None:
    plan = make_hand_plan()
    axes = draw_front(plan.ways, plan.front, plan.budget, plan.best).axes[0]
    curves: dict[Any, Any] = {line.get_label(): line for line in axes.lines}
    methods = [curves["end_to_end"], curves["greedy"]]
    assert len({line.get_marker() for line in methods}) == 2
    assert len({line.get_linestyle() for line in methods}) == 2
    legend = axes.get_legend()
    assert legend is not None
    assert {"end_to_end", "greedy"} <= {text.get_text() for text in legend.get_texts()}
    assert curves["end_to_end"].get_xydata().tolist() == [[4, 1.3], [10, 1.0]]


def test_the_budget_and_what_is_taken_are_marked() -> None:
    plan = make_hand_plan()
    axes = draw_front(plan.ways, plan.front, plan.budget, plan.best).axes[0]
    assert {"budget 5.0 MB", "taken: greedy, 2 modules", "plain loop"} <= {
        text.get_text() for text in axes.texts
    }
    assert any(list(map(float, line.get_xdata())) == [5, 5] for line in axes.lines)  # type: ignore[arg-type]
    unmarked = draw_front(plan.ways, plan.front, None, None).axes[0]
    assert [text.get_text() for text in unmarked.texts] == ["plain loop"]


def test_a_page_has_chart_table_and_notes(tmp_path: Path) -> None:
    make_hand_plan().save(tmp_path / "plan.html")
    page = (tmp_path / "plan.html").read_text()
    assert page.count("<svg") == 1
    rows = re.findall(r"<tr>(.*?)</tr>", page)
    assert [re.findall("<td>(.*?)</td>", row)[:2] for row in rows[1:]] == [
        ["end_to_end", "1"],
        ["end_to_end", "1"],
        ["greedy", "2"],
    ]
    assert "a &lt; b" in page
    assert make_hand_plan().describe() in unescape(page)
    assert not re.search(r'(src|href)="(?!#)', page.replace('xlink:href="#', ""))


def test_other_files(tmp_path: Path) -> None:
    plan = make_hand_plan()
    plan.save(tmp_path / "plan.png")
    plan.save(str(tmp_path / "plan.svg"))
    plan.save(tmp_path / "plan.json")
    assert (tmp_path / "plan.png").read_bytes().startswith(b"\x89PNG")
    assert "<svg" in (tmp_path / "plan.svg").read_text()
    content = json.loads((tmp_path / "plan.json").read_text())
    own = {"modules": 2, "recompute": False, "microbatches": 1, "atomic": False}
    assert content["best"]["learner"] == own
    assert content["made_for"] == {
        "model": "mlp",
        "batch_size": 32,
        "input_shape": [1, 8, 8],
        "optimizer": "sgd",
        "precision": "fp32",
        "classes": 10,
        "ranks": 1,
    }


@pytest.mark.parametrize("name", ["plan.txt", "plan", "no/plan.json", "folder.json"])
def test_what_cannot_be_written(name: str, tmp_path: Path) -> None:
    (tmp_path / "folder.json").mkdir()
    with pytest.raises(lp.BadInput, match=r"must end in \.json|no folder|is a folder"):
        make_hand_plan().save(tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == ["folder.json"]


def test_a_chart_without_matplotlib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(lp.BadInput, match=r"pip install 'localprop\[report\]'"):
        make_hand_plan().save(tmp_path / "plan.svg")
    make_hand_plan().save(tmp_path / "plan.json")


def test_a_failure_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "plan.json"
    path.write_text("old")

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(lp.RunFailed, match="No space left"):
        write_bytes(path, b"new")
    assert [each.name for each in tmp_path.iterdir()] == ["plan.json"]
    assert path.read_text() == "old"


def test_wrong_files_are_refused_before_the_search(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["plan", "--model", "resnet7", "--out", "a.txt", "no/b.json", "c.svg"]
    assert main(words) == 2
    problems = capsys.readouterr().err
    assert all(word in problems for word in ("'a.txt'", "'no/b.json'", "'resnet7'"))
    assert "c.svg" not in problems
