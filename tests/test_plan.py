"""`localprop plan`: pipelines on paper, from the command line to the table and the chart."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import localprop as lp
from localprop.cli import main
from localprop.errors import BadInput
from localprop.network.balance import balanced_cuts
from localprop.ranks.lowering import lower
from localprop.ranks.placement import Placement
from localprop.report.contender import Contender
from localprop.report.gantt import gantt
from localprop.report.plan import PIPELINES, Measured, Setting, Way, on_paper
from localprop.step.schedule import Op
from localprop.step.timeline import Timeline, simulate
from localprop.step.timing import Kind, Seconds

MLP = "mlp:" + ",".join(["16"] * 7)  # 8 layers
SMALL = ["plan", "--model", MLP, "--input", "4", "--batch", "16", "--rounds", "1", "--device", "cpu"]


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    code = main(list(words))
    out, err = capsys.readouterr()
    return code, out, err


# --- the command ----------------------------------------------------------------------------------------------------


def test_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, *SMALL, "--ranks", "2", "--methods", "greedy()", "mine: backlink()")
    assert code == 0
    rows = [line.split("|")[1].strip() for line in out.splitlines() if line.startswith("|")]
    labels = [f"end_to_end(), {name}" for name in ("GPipe", "1F1B", "zero-bubble")]
    assert rows == ["method", ":" + "-" * (max(map(len, labels)) + 1), *labels, "greedy()", "mine"]
    assert "4 random samples of 4, medians of 1 rounds, modules of equal seconds" in out
    assert "2 devices equal to this one; links of 25GB/s and 10us" in out
    assert "measuring the methods, round 1 of 1" in err


def test_the_figures(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--ranks", "2", "--modules", "4", "--replicas", "3", "--link", "1Gbit/s", "--latency", "1ms", "--json"]
    code, out, _ = run(capsys, *SMALL, *words, "--methods", "greedy()", "end_to_end() with recompute")
    assert code == 0
    figures = json.loads(out)
    assert set(figures) == {
        "rows", "one_process_seconds", "left_out", "assumptions", "setting", "environment",
    }  # fmt: skip
    assert len(figures["rows"]) == 5
    for row in figures["rows"]:
        assert row["samples_per_second"] == pytest.approx(3 * 16 / row["step_seconds"])
        assert row["ratio"] == pytest.approx(3 * figures["one_process_seconds"] / row["step_seconds"])
        assert 0 <= row["idle_share"] < 1
        assert len(row["idle_shares"]) == 2
        assert sum(row["modules"]) == 8
        assert len(row["modules"]) == 4
        assert (row["memory_bytes"] is None) == ("zero-bubble" in row["method"])
    gpipe, *_, greedy, _ = figures["rows"]
    parameters = [(4 + 1) * 16 + 6 * (16 + 1) * 16 + (16 + 1) * 10]
    there = 4 * (4 * 16 * 4)  # four micro-batches of four samples, 16 numbers of 4 bytes
    ring = 2 * 2 / 3 * 4 * parameters[0]
    assert gpipe["wire_bytes"] == pytest.approx(3 * (2 * there + ring))
    assert greedy["wire_bytes"] > 3 * (there + ring)  # and the heads' parameters
    assert "3 replicas summed by ring all-reduce" in figures["assumptions"][1]


def test_modules_of_equal_layers(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, *SMALL, "--ranks", "4", "--cuts", "layers", "--json", "--methods", "greedy()")
    assert code == 0
    assert [row["modules"] for row in json.loads(out)["rows"]] == 4 * [[2, 2, 2, 2]]
    assert "measuring each layer" not in err


def test_what_the_network_does_not_suit_is_left_out_unless_it_was_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, *SMALL, "--ranks", "2")
    assert code == 0
    assert "Left out: contsup(): " in out
    assert "| backlink()" in out
    code, out, err = run(capsys, *SMALL, "--ranks", "2", "--methods", "contsup()", "auglocal()")
    assert (code, out) == (2, "")
    assert len(re.findall("^- (contsup|auglocal)", err, re.MULTILINE)) == 2


def test_what_no_pipeline_can_train_is_refused_before_anything_is_measured(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(capsys, *SMALL, "--ranks", "2", "--methods", "greedy()", "sgr()", "solo()")
    assert code == 2
    assert "- sgr(): Loss 0 is of second order" in err
    assert "- solo(): Loss 0 borrows " in err
    assert "measuring" not in err


def test_losses_that_look_at_pixels(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["plan", "--model", "resnet8", "--input", "3,8,8", "--batch", "4", "--ranks", "2", "--rounds", "1"]
    code, out, _ = run(capsys, *words, "--device", "cpu", "--cuts", "layers", "--methods", "infopro()")
    assert code == 0
    assert "| infopro() " in out


def test_a_chart_in_the_home_directory(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    words = ["--ranks", "2", "--cuts", "layers", "--methods", "greedy()", "--out", "~/chart.svg"]
    assert run(capsys, *SMALL, *words)[0] == 0
    assert (tmp_path / "chart.svg").exists()


@pytest.mark.parametrize("suffix", [".html", ".svg", ".png"])
def test_the_chart(capsys: pytest.CaptureFixture[str], tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"chart{suffix}"
    code, _, _ = run(capsys, *SMALL, "--ranks", "2", "--methods", "greedy()", "--out", str(file))
    assert code == 0
    content = file.read_bytes()
    assert content.startswith({".png": b"\x89PNG", ".svg": b"<?xml", ".html": b"<!doctype html>"}[suffix])
    if suffix == ".html":
        text = content.decode()
        assert text.count("<svg") == 1
        assert "greedy(): " in text
        assert not re.search(r'(src|href)="http', text)


@pytest.mark.parametrize("ranks", [["--ranks", "64", "--modules", "64"], ["--ranks", "16", "--replicas", "64"]])
def test_many_devices(capsys: pytest.CaptureFixture[str], ranks: list[str]) -> None:
    words = ["plan", "--model", "mlp:" + ",".join(["4"] * 63), "--input", "4", "--rounds", "1", "--json", *ranks]
    code, out, _ = run(capsys, *words, "--methods", "backlink()")
    assert code == 0
    rows = json.loads(out)["rows"]
    assert len(rows) == 4  # end-to-end in its three orders, and what was asked for
    assert all(0 <= row["idle_share"] <= 1 and row["ratio"] > 0 for row in rows)


# --- bad input ------------------------------------------------------------------------------------------------------


def test_all_problems_are_listed(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    words = [
        "--model",
        "resnet9",
        "--ranks",
        "16",
        "--modules",
        "3",
        "--replicas",
        "0",
        "--batch",
        "10",
        "--rounds",
        "x",
    ]
    words += ["--microbatches", "4", "--link", "10", "--latency", "3years", "--device", "moon", "--methods", "gredy()"]
    code, out, err = run(capsys, "plan", *words, "--out", str(tmp_path / "chart.pdf"))
    assert (code, out) == (2, "")
    expected = [
        "replicas=0 must be", "rounds='x' must be", "modules=3 cannot occupy ranks=16", "batch=10 cannot be cut", "take 8 or 12",
        "link='10' is no number", "such as 25GB/s", "latency='3years' is no", "such as 10us", "device='moon'", "'resnet9'",
        "'gredy'", "end in .html",
    ]  # fmt: skip
    for text in expected:
        assert text in err


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--ranks", "9"], "has 8 layer(s), too few for 9 modules"),
        (["--batch", "3"], "take 4 or 8"),
        (["--link", "0GB/s"], "carries nothing"),
        (["--cuts", "here"], "choose seconds or layers"),
        (["--methods", ""], "No method"),
        (["--out", "there/is/no/folder.png"], "there is no folder there/is/no"),
        (["--ranks", "none"], "ranks='none' must be a whole number"),
    ],
)
def test_bad_input(capsys: pytest.CaptureFixture[str], words: list[str], complaint: str) -> None:
    code, _, err = run(capsys, *SMALL, *words)
    assert code == 2
    assert complaint in err
    assert "Traceback" not in err


def test_without_matplotlib(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    code, _, err = run(capsys, *SMALL, "--out", str(tmp_path / "chart.png"))
    assert code == 2
    assert "pip install 'localprop[report]'" in err
    with pytest.raises(BadInput, match="matplotlib"):
        gantt({}, tmp_path / "chart.png")


# --- on paper, with made-up seconds ---------------------------------------------------------------------------------


def equal(method: str, setting: Setting) -> Measured:
    """Modules that take 3 seconds per micro-batch each."""
    contender = Contender.parse(method)
    layers = setting.layers()
    learner = setting.learner(contender, layers, lp.Partition.uniform(layers, setting.count).cuts)
    of = {Op.F: 1.0, Op.B: 2.0}
    seconds = {Kind.of(action): of.get(action.op, 0.0) for action in learner.schedule}
    return Measured(contender, learner, Seconds(seconds, setting.batch // setting.microbatches))


def test_rows_by_hand() -> None:
    setting = Setting(MLP, (4,), batch=16, ranks=4, link="1e9GB/s", latency="0s", device="cpu")
    whole = equal("end_to_end()", setting)
    gpipe, plain, zero = (on_paper(setting, whole, way, plain_s=48.0)[0] for way in PIPELINES)
    assert plain.step_seconds == gpipe.step_seconds == pytest.approx(3 * (4 + 3))
    assert zero.step_seconds == pytest.approx(3 * 4 + 3)
    assert plain.ratio == plain.own_ratio == pytest.approx(48 / 21)
    assert plain.idle_share == pytest.approx(3 / 7)
    assert plain.samples_per_second == pytest.approx(16 / 21)
    assert plain.one_batch_seconds == pytest.approx(21)
    assert plain.method == "end_to_end(), 1F1B"
    greedy, timeline = on_paper(setting, equal("greedy()", setting), Way(), plain_s=48.0)
    assert greedy.idle_share == pytest.approx(0, abs=1e-6)
    assert greedy.ratio == pytest.approx(4)
    assert isinstance(timeline, Timeline)


def test_the_papers_setting_by_hand() -> None:
    """One batch at a time, a module per device, backwards of twice a forward: half of the time on 4 devices."""
    setting = Setting(MLP, (4,), batch=4, ranks=4, microbatches=1, link="1e9GB/s", latency="0s", device="cpu")
    whole, _ = on_paper(setting, equal("end_to_end()", setting), Way(), 12.0)
    linked, _ = on_paper(setting, equal("greedy()", setting), Way(), 12.0)
    assert whole.one_batch_seconds == pytest.approx(4 + 8)
    assert linked.one_batch_seconds == pytest.approx(4 + 2)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=7), st.data())
def test_balanced_cuts_are_the_best(layers: list[int], data: st.DataObject) -> None:
    count = data.draw(st.integers(1, len(layers)))
    added = data.draw(st.lists(st.integers(0, 9), min_size=count, max_size=count))

    def worst(cuts: tuple[int, ...]) -> float:
        bounds = (0, *cuts, len(layers))
        return max(sum(layers[a:b]) + own for a, b, own in zip(bounds, bounds[1:], added, strict=False))

    def all_cuts(start: int, left: int) -> list[tuple[int, ...]]:
        if not left:
            return [()]
        return [(at, *rest) for at in range(start, len(layers)) for rest in all_cuts(at + 1, left - 1)]

    assert worst(balanced_cuts(layers, len(added), added)) == min(map(worst, all_cuts(1, count - 1)))


# --- charts ---------------------------------------------------------------------------------------------------------


def timeline_of(ranks: int) -> Timeline:
    model = torch.nn.Sequential(*(torch.nn.Linear(4, 4) for _ in range(ranks)))
    batch = (torch.zeros(2, 4), torch.zeros(2, dtype=torch.int64))
    optimizer = lambda parameters: torch.optim.SGD(parameters, lr=0.1)  # noqa: E731
    wiring = lp.Learner(model, lp.end_to_end(), modules=ranks, optimizer=optimizer, sample=batch).wiring
    return simulate(lower(wiring, Placement.at(wiring, range(1, ranks))), lambda a: float(a.op in (Op.F, Op.B)))


def test_a_chart_says_whom_a_rank_waits_for(tmp_path: Path) -> None:
    gantt({"pipe": timeline_of(3)}, tmp_path / "chart.svg")
    text = (tmp_path / "chart.svg").read_text()
    assert {"<!-- pipe -->", "<!-- 1 -->", "<!-- milliseconds -->"} <= set(re.findall("<!-- .* -->", text))


def test_charts_of_many_ranks_stay_small(tmp_path: Path) -> None:
    gantt({"pipe": timeline_of(32)}, tmp_path / "chart.html", note="a < b")
    text = (tmp_path / "chart.html").read_text()
    assert len(text) < 500_000
    assert "<p>a &lt; b</p>" in text


def test_other_kinds_of_files(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"\.html, \.png, \.svg"):
        gantt({}, tmp_path / "chart.jpeg")
