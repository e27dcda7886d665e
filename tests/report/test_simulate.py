"""`localprop simulate`: simulated pipelines, from the command line to the table and the chart."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest

from localprop.errors import BadInput
from localprop.report.gantt import draw_gantt
from tests.helpers.cli import run_command

MLP = "mlp:" + ",".join(["16"] * 7)  # 8 layers
FLAGS = f"--model {MLP} --input 4 --batch 16 --rounds 1 --device cpu"
COMMAND = ["simulate", *FLAGS.split()]
TWO_RANKS = [*COMMAND, "--ranks", "2"]


def test_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run_command(capsys, *TWO_RANKS, "--methods", "greedy()", "mine: backlink()")
    assert code == 0
    rows = [line.split("|")[1].strip() for line in out.splitlines() if line.startswith("|")]
    labels = [f"end_to_end(), {name}" for name in ("GPipe", "1F1B", "zero-bubble")]
    rule = ":" + "-" * (max(map(len, labels)) + 1)
    assert rows == ["method", rule, *labels, "greedy()", "mine"]
    assert "4 random samples of 4; medians of 1 rounds; modules of equal seconds" in out
    assert "2 devices equal to this one; links of 25GB/s and 10us" in out
    assert "measuring the methods, round 1 of 1" in err


def test_the_figures(capsys: pytest.CaptureFixture[str]) -> None:
    flags = "--modules 4 --replicas 3 --link 1Gbit/s --latency 1ms --json"
    methods = ["greedy()", "end_to_end() with recompute"]
    code, out, _ = run_command(capsys, *TWO_RANKS, *flags.split(), "--methods", *methods)
    assert code == 0
    figures = json.loads(out)
    assert set(figures) == {
        "rows",
        "one_process_seconds",
        "left_out",
        "assumptions",
        "setting",
        "environment",
    }
    assert len(figures["rows"]) == 5
    plain_seconds = figures["one_process_seconds"]
    for row in figures["rows"]:
        assert row["samples_per_second"] == pytest.approx(3 * 16 / row["step_seconds"])
        assert row["ratio"] == pytest.approx(3 * plain_seconds / row["step_seconds"])
        assert 0 <= row["idle_share"] < 1
        assert len(row["idle_shares"]) == 2
        assert sum(row["modules"]) == 8
        assert len(row["modules"]) == 4
        assert (row["memory_bytes"] is None) == ("zero-bubble" in row["method"])
    gpipe, *_, greedy, _ = figures["rows"]
    parameters = (4 + 1) * 16 + 6 * (16 + 1) * 16 + (16 + 1) * 10
    # Four micro-batches of four samples, of 16 numbers of 4 bytes each, in one direction.
    one_way = 4 * (4 * 16 * 4)
    ring = 2 * 2 / 3 * 4 * parameters
    assert gpipe["wire_bytes"] == pytest.approx(3 * (2 * one_way + ring))
    assert greedy["wire_bytes"] > 3 * (one_way + ring)  # and the heads' parameters
    assert "ring all-reduce sums the gradients of 3 replicas" in figures["assumptions"][1]


def test_modules_of_equal_layers(capsys: pytest.CaptureFixture[str]) -> None:
    words = "--ranks 4 --cuts layers --json --methods greedy()"
    code, out, err = run_command(capsys, *COMMAND, *words.split())
    assert code == 0
    assert [row["modules"] for row in json.loads(out)["rows"]] == 4 * [[2, 2, 2, 2]]
    assert "measuring each layer" not in err


def test_unsupported_methods_are_left_out_unless_the_user_names_them(
    capsys: pytest.CaptureFixture[str],
) -> None:
    code, out, _ = run_command(capsys, *TWO_RANKS)
    assert code == 0
    assert "Left out: contsup(): " in out
    assert "| backlink()" in out
    code, out, err = run_command(capsys, *TWO_RANKS, "--methods", "contsup()", "auglocal()")
    assert (code, out) == (2, "")
    assert len(re.findall("^- (contsup|auglocal)", err, re.MULTILINE)) == 2


def test_a_method_that_no_pipeline_can_train_is_refused_before_the_measurement(
    capsys: pytest.CaptureFixture[str],
) -> None:
    methods = ["greedy()", "sgr()", "solo()"]
    code, _, err = run_command(capsys, *TWO_RANKS, "--methods", *methods)
    assert code == 2
    assert re.search(r"^- sgr\(\): Loss 0 is of second order", err, re.MULTILINE)
    assert re.search(r"^- solo\(\): Loss 0 copies .* which is on another rank", err, re.MULTILINE)
    assert "measuring" not in err


def test_losses_that_look_at_pixels(capsys: pytest.CaptureFixture[str]) -> None:
    words = (
        "simulate --model resnet8 --input 3,8,8 --batch 4 --ranks 2 --rounds 1 --device cpu "
        "--cuts layers --methods infopro()"
    )
    code, out, _ = run_command(capsys, *words.split())
    assert code == 0
    assert "| infopro() " in out


@pytest.mark.parametrize(
    ("layers", "devices"),
    [
        (24, "--ranks 24 --modules 24"),
        (16, "--ranks 16 --replicas 64"),
        pytest.param(1024, "--ranks 1024", marks=pytest.mark.long),
    ],
)
def test_many_devices(capsys: pytest.CaptureFixture[str], layers: int, devices: str) -> None:
    model = "mlp:" + ",".join(["4"] * (layers - 1))
    words = f"simulate --model {model} --input 4 --rounds 1 --json {devices} --methods backlink()"
    code, out, _ = run_command(capsys, *words.split())
    assert code == 0
    rows = json.loads(out)["rows"]
    assert len(rows) == 4  # end-to-end training in three orders, and the method
    assert all(0 <= row["idle_share"] <= 1 and row["ratio"] > 0 for row in rows)


# --- charts ---------------------------------------------------------------------------------------


def test_a_chart_in_the_home_directory(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    words = "--cuts layers --methods greedy() --out ~/chart.svg"
    assert run_command(capsys, *TWO_RANKS, *words.split())[0] == 0
    assert (tmp_path / "chart.svg").exists()


@pytest.mark.parametrize("suffix", [".html", ".svg", ".png"])
def test_the_chart(capsys: pytest.CaptureFixture[str], tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"chart{suffix}"
    words = [*TWO_RANKS, "--methods", "greedy()", "--out", str(file)]
    code, _, _ = run_command(capsys, *words)
    assert code == 0
    content = file.read_bytes()
    starts = {".png": b"\x89PNG", ".svg": b"<?xml", ".html": b"<!doctype html>"}
    assert content.startswith(starts[suffix])
    if suffix == ".html":
        text = content.decode()
        assert text.count("<svg") == 1
        assert "greedy(): " in text
        assert not re.search(r'(src|href)="http', text)


def test_a_chart_without_matplotlib_is_refused(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    code, _, err = run_command(capsys, *COMMAND, "--out", str(tmp_path / "chart.png"))
    assert code == 2
    assert "pip install 'localprop[report]'" in err
    with pytest.raises(BadInput, match="matplotlib"):
        draw_gantt({}, tmp_path / "chart.png")


# --- bad input ------------------------------------------------------------------------------------


def test_all_problems_are_listed(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    words = (
        "simulate --model resnet9 --ranks 16 --modules 3 --replicas 0 --batch 10 --rounds x "
        "--microbatches 4 --link 10 --latency 3years --device moon --methods gredy()"
    )
    code, out, err = run_command(capsys, *words.split(), "--out", str(tmp_path / "chart.pdf"))
    assert (code, out) == (2, "")
    expected = [
        "replicas=0 must be",
        "rounds='x' must be",
        "modules=3 are too few for ranks=16",
        "batch=10 cannot be split into 4",
        "take 8 or 12",
        "link='10' is not a number",
        "for example 25GB/s",
        "latency='3years' is not",
        "for example 10us",
        "device='moon'",
        "'resnet9'",
        "'gredy'",
        "end in .html",
    ]
    assert [text for text in expected if text not in err] == []


@pytest.mark.parametrize(
    ("words", "message"),
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
def test_bad_input_is_refused(
    capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    code, _, err = run_command(capsys, *COMMAND, *words)
    assert code == 2
    assert message in err
    assert "Traceback" not in err
