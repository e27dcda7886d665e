"""`localprop compare` on small networks."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from tests.helpers.cli import names_in, run_command

SMALL_FLAGS = "--model resnet8 --epochs 2 --seeds 2 --rounds 2 --limit 128 --device cpu"
TINY_FLAGS = "--model mlp:8 --epochs 2 --limit 40 --rounds 2 --device cpu"
TEXT_FLAGS = "--task lm --model transformer:width=16,blocks=2 --context 16 --limit 64"
SMALL, TINY, TEXT = SMALL_FLAGS.split(), TINY_FLAGS.split(), TEXT_FLAGS.split()
KEYS = {
    "method",
    "modules",
    "accuracy_mean",
    "accuracy_std",
    "peak_bytes",
    "peak_ratio",
    "step_ratio",
    "flops_ratio",
    "head_parameters",
    "context_parameters",
}


def test_the_figures(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    methods = [
        "end_to_end()",
        "end_to_end() with recompute",
        "greedy()",
        "mine: contsup(previous=2)",
    ]
    words = [*SMALL, "--json", "--out", str(tmp_path / "result"), "--methods", *methods]
    code, out, _ = run_command(capsys, "compare", *words)
    figures = json.loads(out)
    assert code == 0
    assert json.loads((tmp_path / "result" / "compare.json").read_text()) == figures
    base, recomputed, greedy, context = figures["rows"]
    assert set(base) >= KEYS
    labels = ["end_to_end()", "end_to_end() with recompute", "greedy()", "mine"]
    assert [row["method"] for row in figures["rows"]] == labels
    assert [row["modules"] for row in figures["rows"]] == [1, 1, 4, 4]
    assert base["peak_ratio"] == pytest.approx(1, abs=0.05)
    assert base["flops_ratio"] == pytest.approx(1)
    assert recomputed["accuracies"] == base["accuracies"]  # recompute changes nothing but the cost
    assert recomputed["flops_ratio"] > 1.1
    assert greedy["head_parameters"] > 0
    assert greedy["context_parameters"] == 0
    assert context["context_parameters"] > 0
    assert len(greedy["accuracies"]) == 2
    assert figures["baseline"]["peak_bytes"] > 0


def test_a_language_model(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    flags = "--epochs 2 --seeds 2 --rounds 2 --device cpu --methods end_to_end() greedy()"
    code, out, _ = run_command(capsys, "compare", *TEXT, *flags.split(), "--out", str(tmp_path))
    assert code == 0
    assert out.startswith("| method")
    assert "bits/byte" in out.splitlines()[0]
    assert "next byte %" in out.splitlines()[0]
    assert "fraction of bytes predicted correctly" in out
    assert "digits" not in out
    figures = json.loads((tmp_path / "compare.json").read_text())
    first, second = figures["rows"]
    assert first["loss_mean"] == pytest.approx(sum(first["losses"]) / 2)
    assert f"{first['loss_mean'] / math.log(2):.3f} +- " in out
    assert f"{(second['loss_mean'] - first['loss_mean']) / math.log(2):+.3f}" in out
    assert figures["config"]["optimizer"] == "adamw"
    assert first["flops_ratio"] == pytest.approx(1)


def test_the_same_seed_gives_the_same_bits(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["compare", *TINY, "--seeds", "1", "--json", "--methods", "backlink()"]
    results = [json.loads(run_command(capsys, *words)[1])["rows"][0] for _ in range(2)]
    assert results[0]["accuracies"] == results[1]["accuracies"]
    assert results[0]["peak_bytes"] == results[1]["peak_bytes"]


def test_the_table_says_that_digits_are_easy(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["compare", *TINY, "--seeds", "1", "--methods", "greedy()"]
    code, out, err = run_command(capsys, *words)
    assert code == 0
    assert out.startswith("| method")
    assert "The digits are easy" in out
    assert "greedy(), seed 1 of 1" in err


def test_on_the_users_data(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file, random = tmp_path / "mine.npz", np.random.default_rng(0)
    labels = np.arange(40) % 4
    images = random.integers(0, 256, (40, 8, 8, 3), dtype=np.uint8)
    np.savez(
        file,
        train_images=images,
        train_labels=labels,
        test_images=images,
        test_labels=labels,
        classes=np.array(list("abcd")),
    )
    flags = "--model resnet8 --epochs 2 --seeds 1 --rounds 2 --batch-size 9"
    words = ["--data", str(file), *flags.split(), "--methods", "greedy()", "backlink()"]
    code, out, _ = run_command(capsys, "compare", *words)
    assert code == 0
    assert "digits are easy" not in out


@pytest.mark.parametrize("task", ["images", "lm"])
def test_one_seed_has_no_deviation(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, task: str
) -> None:
    words = ["compare", *TINY, *(TEXT if task == "lm" else []), "--seeds", "1"]
    words += ["--out", str(tmp_path), "--methods", "greedy()"]
    code, out, _ = run_command(capsys, *words)
    assert code == 0
    assert "+-" not in out.splitlines()[2]
    assert ", one seed; gap" in out
    (row,) = json.loads((tmp_path / "compare.json").read_text())["rows"]
    assert row["accuracy_std"] is row["loss_std"] is None


def test_unsupported_methods_are_left_out_unless_the_user_names_them(
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ["compare", *TINY, "--seeds", "1"]
    code, out, err = run_command(capsys, *words, "--json")
    assert code == 0
    figures = json.loads(out)
    assert figures["rows"][0]["method"] == "end_to_end()"
    assert any(problem.startswith("contsup(): ") for problem in figures["left_out"])
    left_out = {problem.split(": ")[0] for problem in figures["left_out"]}
    assert not {row["method"] for row in figures["rows"]} & left_out
    code, _, err = run_command(capsys, *words, "--methods", "end_to_end()", "contsup()")
    assert (code, "- contsup(): " in err) == (2, True)


def test_out_may_begin_with_the_home_directory(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    words = ["compare", *TINY, "--seeds", "1", "--out", "~/o", "--methods", "greedy()"]
    assert run_command(capsys, *words)[0] == 0
    assert names_in(tmp_path / "home") == ["o"]
    assert names_in(tmp_path / "home" / "o") == ["compare.json", "greedy"]
    assert not (tmp_path / "~").exists()


# --- bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--methods", "greedi()"], "greedy"),
        (["--methods", "greedy()", "greedy()"], "called 'greedy()'"),
        (["--methods", "auglocal(depth=9)"], "use more modules"),
        (["--modules", "99"], "choose between 1 and 4"),
        (["--seeds", "0", "--rounds", "1"], "rounds=1"),
        (["--seeds", "x"], "seeds='x'"),
        (["--model", "resnet9"], "resnet"),
        (["--data", "nowhere.npz"], "nowhere.npz"),
        (["--data", "imagenet22k"], "imagenet22k"),
        (["--no-such-flag"], "--no-such-flag"),
        (["--seed", str(2**63 - 1), "--seeds", "2"], "no room for 2 seeds"),
        (
            ["--methods", "Rule(context=ContextSupply(input=True, encoder=ConvEncoder(hidden=0)))"],
            "hidden must be 1",
        ),
        (["--device", "cpu:7"], "not available"),
    ],
)
def test_bad_input_is_refused(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, words: list[str], message: str
) -> None:
    out_dir = tmp_path / "result"
    code, out, err = run_command(capsys, "compare", *SMALL, "--out", str(out_dir), *words)
    assert code == 2
    assert message in err
    assert "Traceback" not in err + out
    assert not out_dir.exists()


def test_all_problems_are_listed_and_shared_ones_once(capsys: pytest.CaptureFixture[str]) -> None:
    words = "compare --model resnet9 --lr 0 --methods greedi() greedy() backlink()"
    code, _, err = run_command(capsys, *words.split())
    assert code == 2
    texts = ("- lr=0", "'resnet9'", "- greedi(): ", "\n- ")
    assert [err.count(text) for text in texts] == [1, 1, 1, 3]
    words = "--modules 99 --methods greedy() backlink()"
    code, _, err = run_command(capsys, "compare", *SMALL, *words.split())
    assert (code, err.count("choose between 1 and 4"), err.count("\n- ")) == (2, 1, 1)


def test_a_result_is_overwritten_only_with_the_flag(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "compare.json").write_text("precious")
    words = ["compare", *SMALL, "--out", str(tmp_path), "--methods", "greedy()"]
    code, _, err = run_command(capsys, *words)
    assert (code, (tmp_path / "compare.json").read_text()) == (2, "precious")
    assert "--overwrite" in err


@pytest.mark.parametrize("below", ["", "inside"])
def test_a_file_instead_of_the_directory_is_found_before_the_first_run(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, below: str
) -> None:
    """Runs were once lost, because the directory was created after them."""
    file = tmp_path / "afile"
    file.write_text("mine")
    words = ["compare", *SMALL, "--out", str(file / below), "--methods", "greedy()"]
    code, _, err = run_command(capsys, *words)
    assert (code, file.read_text()) == (2, "mine")
    assert "not a writable directory" in err


def test_methods_that_are_the_same_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    methods = ["greedy()", "greedy() with recompute", "backlink(layers=0)", "interlocking(wise=9)"]
    words = [*TINY, "--seeds", "1", "--json", "--methods", *methods]
    _, out, err = run_command(capsys, "compare", *words)
    notes = [
        "backlink(layers=0) is the same experiment as greedy() on this network.",
        "interlocking(wise=9): InterlockingCredit(wise=9) is the same as wise=2 on this network.",
    ]
    assert json.loads(out)["notes"] == notes
    assert err.splitlines()[:2] == [f"Note: {note}" for note in notes]
