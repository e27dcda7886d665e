"""Results read from directories."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from localprop.errors import BadInput
from localprop.report.page.results import read_groups
from tests.helpers.cli import read_json

pytestmark = pytest.mark.xdist_group("page")  # one process trains, and all tests read its runs

RESULTS = Path(__file__).parents[3] / "benchmarks" / "results"


def test_a_comparison_and_its_runs(compared: Path) -> None:
    (group,) = read_groups([compared])
    rows = read_json(compared / "compare.json")["rows"]
    assert [method.label for method in group.methods] == ["end_to_end()", "greedy()", "mine"]
    assert [method.letter for method in group.methods] == ["A", "B", "C"]
    mine = group.methods[2]
    assert mine.config.method == "backlink(weight=0.5)"
    assert [run.config.seed for run in mine.runs] == [0, 1]
    assert (mine.quality, mine.peak_bytes) == (rows[2]["accuracy_mean"], rows[2]["peak_bytes"])
    assert mine.gap is not None
    assert mine.gap.mean == pytest.approx(rows[2]["gap"]["mean"])
    assert [len(run.epochs) for run in mine.runs] == [2, 2]


def test_a_single_run_and_one_that_has_not_ended(trained: Path, tmp_path: Path) -> None:
    begun = tmp_path / "begun"
    shutil.copytree(trained, begun)
    (begun / "summary.json").unlink()
    config = read_json(begun / "config.json")
    (begun / "config.json").write_text(json.dumps(config | {"lr": 0.01}))
    (group,) = read_groups([trained, begun])
    one, other = group.methods
    assert [one.label, other.label] == ["greedy() (trained)", "greedy() (begun)"]
    assert one.quality == 100 * read_json(trained / "summary.json")["test_accuracy"]
    assert (other.quality, other.seeds) == (None, 0)


def test_runs_that_differ_in_their_seeds_are_one_method(trained: Path, tmp_path: Path) -> None:
    again = tmp_path / "again"
    shutil.copytree(trained, again)
    config = read_json(again / "config.json")
    (again / "config.json").write_text(json.dumps(config | {"seed": 7}))
    (group,) = read_groups([trained, again])
    assert [(method.label, method.seeds) for method in group.methods] == [("greedy()", 2)]


@pytest.mark.parametrize("name", ["digits-resnet14.json", "cifar10-subset-resnet8.json"])
def test_old_files_of_compare(name: str) -> None:
    (group,) = read_groups([RESULTS / name])
    assert len(group.methods) > 6
    assert all(method.quality for method in group.methods)


def test_old_runs_without_exits_and_data(trained: Path, tmp_path: Path) -> None:
    old = tmp_path / "old"
    shutil.copytree(trained, old)
    lines = [json.loads(line) for line in (old / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        for key in ("exits", "exit_accuracies", "exit_losses"):
            del line[key]
    (old / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    (old / "env.json").unlink()
    (group,) = read_groups([old])
    assert group.methods[0].quality is not None


def test_all_problems_are_named_at_once(compared: Path, tmp_path: Path) -> None:
    damaged, empty = tmp_path / "damaged", tmp_path / "empty"
    damaged.mkdir()
    empty.mkdir()
    (damaged / "compare.json").write_text("{")
    with pytest.raises(BadInput) as caught:
        read_groups([compared, damaged, empty, tmp_path / "nowhere"])
    assert len(caught.value.problems) == 3
    for word in ("damaged/compare.json cannot be read", "holds no run", "nowhere is no directory"):
        assert word in str(caught.value)
    with pytest.raises(BadInput, match="No result is named"):
        read_groups([])
