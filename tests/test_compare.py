"""`localprop compare` and `localprop bench`, on small networks."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from localprop.cli import main
from localprop.errors import BadInput
from localprop.report.contender import Contender
from localprop.report.costs import interleaved
from localprop.report.tables import markdown

SMALL = ["--model", "resnet8", "--epochs", "2", "--seeds", "2", "--rounds", "2", "--limit", "128", "--device", "cpu"]
KEYS = {
    "method", "modules", "accuracy_mean", "accuracy_std", "peak_bytes", "peak_ratio", "step_ratio", "flops_ratio",
    "head_parameters", "context_parameters",
}  # fmt: skip


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    code = main(list(words))
    out, err = capsys.readouterr()
    return code, out, err


def test_the_figures(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    methods = ["end_to_end()", "end_to_end() with recompute", "greedy()", "mine: contsup(previous=2)"]
    out_dir = str(tmp_path / "result")
    code, out, _ = run(capsys, "compare", *SMALL, "--json", "--out", out_dir, "--methods", *methods)
    figures = json.loads(out)
    assert code == 0
    assert json.loads((tmp_path / "result" / "compare.json").read_text()) == figures
    base, again, greedy, context = figures["rows"]
    assert set(base) >= KEYS
    assert [row["method"] for row in figures["rows"]] == [
        "end_to_end()",
        "end_to_end() with recompute",
        "greedy()",
        "mine",
    ]
    assert [row["modules"] for row in figures["rows"]] == [1, 1, 4, 4]
    assert base["peak_ratio"] == pytest.approx(1, abs=0.05)
    assert base["flops_ratio"] == pytest.approx(1)
    assert again["accuracies"] == base["accuracies"]  # recompute changes nothing but the cost
    assert again["flops_ratio"] > 1.1
    assert greedy["head_parameters"] > 0 == greedy["context_parameters"] < context["context_parameters"]
    assert len(greedy["accuracies"]) == 2
    assert figures["baseline"]["peak_bytes"] > 0


def test_a_language_model(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("to be or not to be, that is the question. " * 60)
    words = [
        "--task",
        "lm",
        "--model",
        "transformer:width=16,blocks=2",
        "--limit",
        "64",
        "--context",
        "16",
        "--epochs",
        "2",
    ]
    words += [
        "--epochs",
        "2",
        "--seeds",
        "2",
        "--rounds",
        "2",
        "--device",
        "cpu",
        "--methods",
        "end_to_end()",
        "greedy()",
    ]
    code, out, _ = run(capsys, "compare", *words, "--out", str(tmp_path))
    assert code == 0
    assert out.startswith("| method")
    assert "bits/byte" in out.splitlines()[0]
    assert "next byte %" in out.splitlines()[0]
    assert "digits" not in out
    figures = json.loads((tmp_path / "compare.json").read_text())
    first, second = figures["rows"]
    assert first["loss_mean"] == pytest.approx(sum(first["losses"]) / 2)
    assert f"{first['loss_mean'] / math.log(2):.3f} +- " in out
    assert f"{(second['loss_mean'] - first['loss_mean']) / math.log(2):+.3f}" in out
    assert figures["config"]["optimizer"] == "adamw"
    assert first["flops_ratio"] == pytest.approx(1)


def test_the_same_seed_gives_the_same_bits(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["compare", *SMALL, "--seeds", "1", "--json", "--methods", "backlink()"]
    results = [json.loads(run(capsys, *words)[1])["rows"][0] for _ in range(2)]
    assert results[0]["accuracies"] == results[1]["accuracies"]
    assert results[0]["peak_bytes"] == results[1]["peak_bytes"]


def test_the_table_says_that_digits_are_easy(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, "compare", *SMALL, "--seeds", "1", "--methods", "greedy()")
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
    words = [
        "--data",
        str(file),
        "--model",
        "resnet8",
        "--epochs",
        "2",
        "--seeds",
        "1",
        "--rounds",
        "2",
        "--batch-size",
        "9",
    ]
    code, out, _ = run(capsys, "compare", *words, "--methods", "greedy()", "backlink()")
    assert code == 0
    assert "digits are easy" not in out


@pytest.mark.parametrize(
    ("words", "told"),
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
        (["--methods", "Rule(context=ContextSupply(input=True, encoder=ConvEncoder(hidden=0)))"], "hidden must be 1"),
        (["--device", "cpu:7"], "not available"),
    ],
)
def test_bad_input_is_told(capsys: pytest.CaptureFixture[str], tmp_path: Path, words: list[str], told: str) -> None:
    out_dir = tmp_path / "result"
    code, out, err = run(capsys, "compare", *SMALL, "--out", str(out_dir), *words)
    assert code == 2
    assert told in err
    assert "Traceback" not in err + out
    assert not out_dir.exists()


def test_all_problems_are_told_and_shared_ones_once(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--model", "resnet9", "--lr", "0", "--methods", "greedi()", "greedy()", "backlink()"]
    code, _, err = run(capsys, "compare", *words)
    assert code == 2
    assert [err.count(part) for part in ("- lr=0", "'resnet9'", "- greedi(): ", "\n- ")] == [1, 1, 1, 3]
    code, _, err = run(capsys, "compare", *SMALL, "--modules", "99", "--methods", "greedy()", "backlink()")
    assert (code, err.count("choose between 1 and 4"), err.count("\n- ")) == (2, 1, 1)


def test_methods_that_do_not_suit_are_left_out_unless_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    mlp = ["--model", "mlp:8", "--epochs", "2", "--limit", "40", "--seeds", "1", "--rounds", "2", "--device", "cpu"]
    code, out, err = run(capsys, "compare", *mlp, "--json")
    assert code == 0
    found = json.loads(out)
    assert found["rows"][0]["method"] == "end_to_end()"
    assert any(each.startswith("contsup(): ") for each in found["left_out"])
    assert not {row["method"] for row in found["rows"]} & {each.split(": ")[0] for each in found["left_out"]}
    code, _, err = run(capsys, "compare", *mlp, "--methods", "end_to_end()", "contsup()")
    assert (code, "- contsup(): " in err) == (2, True)


def test_a_result_is_not_overwritten_unasked(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "compare.json").write_text("precious")
    code, _, err = run(capsys, "compare", *SMALL, "--out", str(tmp_path), "--methods", "greedy()")
    assert (code, (tmp_path / "compare.json").read_text()) == (2, "precious")
    assert "--overwrite" in err


TINY = ["--model", "mlp:8", "--epochs", "2", "--limit", "40", "--rounds", "2", "--device", "cpu"]


@pytest.mark.parametrize("task", ["images", "lm"])
def test_one_seed_has_no_deviation(capsys: pytest.CaptureFixture[str], tmp_path: Path, task: str) -> None:
    text = ["--task", "lm", "--model", "transformer:width=16,blocks=2", "--context", "16", "--limit", "64"]
    words = ["compare", *TINY, *(text if task == "lm" else []), "--seeds", "1", "--out", str(tmp_path)]
    code, out, _ = run(capsys, *words, "--methods", "greedy()")
    assert code == 0
    assert "+-" not in out.splitlines()[2]
    assert ", of one seed; gap" in out
    (row,) = json.loads((tmp_path / "compare.json").read_text())["rows"]
    assert row["accuracy_std"] is row["loss_std"] is None


def test_out_may_begin_with_the_home_directory(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    assert run(capsys, "compare", *TINY, "--seeds", "1", "--out", "~/o", "--methods", "greedy()")[0] == 0
    assert [path.name for path in (tmp_path / "home").rglob("*")] == ["o", "compare.json"]
    assert not (tmp_path / "~").exists()


@pytest.mark.parametrize("what", ["memory", "speed"])
def test_benchmarks(capsys: pytest.CaptureFixture[str], what: str) -> None:
    words = [
        "bench",
        what,
        "--model",
        "resnet8",
        "--modules",
        "4",
        "--batch-size",
        "8",
        "--rounds",
        "2",
        "--device",
        "cpu",
    ]
    code, out, _ = run(capsys, *words)
    assert code == 0
    assert "plain PyTorch loop" in out
    code, out, _ = run(capsys, *words, "--json", "--methods", "greedy()")
    assert json.loads(out)["rows"][0]["method"] == "greedy()"
    assert run(capsys, *words, "--methods", "infopro()")[0] == 0  # which looks at the pixels of random images


@pytest.mark.parametrize(
    "words",
    [
        ["--momentum", "nan"],
        ["--input", "3,0,8"],
        ["--input", "big"],
        ["--modules", "0"],
        ["--model", "resnet9"],
        ["--model", "transformer"],
        ["--model", "transformer", "--input", "16"],
    ],
)
@pytest.mark.parametrize("command", [["bench", "memory"], ["plan"]])
def test_benchmarks_refuse(capsys: pytest.CaptureFixture[str], command: list[str], words: list[str]) -> None:
    code, _, err = run(capsys, *command, *words)
    assert code == 2
    assert "Traceback" not in err


def test_benchmarks_tell_all_problems(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--input", "3,x", "--rounds", "0", "--modules", "0", "--momentum", "2", "--methods", "greedi()"]
    code, _, err = run(capsys, "bench", "memory", *words)
    assert (code, err.count("\n- ")) == (2, 5)
    assert "input_shape='3,x' must be sizes of 1 or more, such as --input 3,32,32." in err
    two = ["--model", "resnet8", "--modules", "2", "--methods", "auglocal(depth=9)", "auglocal(depth=8)"]
    assert run(capsys, "bench", "speed", *two)[2].count("use more modules") == 2
    assert "measure networks of images only" in run(capsys, "plan", "--model", "transformer:width=8")[2]


def test_contenders() -> None:
    assert Contender.parse("greedy()") == Contender("greedy()", "greedy()", recompute=False)
    assert Contender.parse("end_to_end() with recompute").recompute
    assert Contender.parse("a b: Rule()").label == "a b"


def test_interleaved_timings_are_ratios_of_a_round() -> None:
    import torch

    timings = interleaved({"a": lambda: None, "b": lambda: sum(range(20_000))}, "a", 5, torch.device("cpu"))
    assert timings["a"].ratio == 1
    assert timings["b"].ratio > 1
    assert timings["b"].low <= timings["b"].ratio <= timings["b"].high


def test_markdown() -> None:
    assert markdown(["m", "n"], [["a", "10"]]) == "| m |  n |\n|:--|---:|\n| a | 10 |"


def test_nothing_to_compare() -> None:
    from localprop.cli_compare import contenders_of

    with pytest.raises(BadInput, match="No method"):
        contenders_of([" "])


@pytest.mark.parametrize("below", ["", "inside"])
def test_a_file_in_the_place_of_the_directory_is_seen_first(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, below: str
) -> None:
    """The runs were lost, since the directory was made after them."""
    file = tmp_path / "afile"
    file.write_text("mine")
    code, _, err = run(capsys, "compare", *SMALL, "--out", str(file / below), "--methods", "greedy()")
    assert (code, file.read_text()) == (2, "mine")
    assert "no directory" in err


def test_a_step_that_does_not_fit_fails_in_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(capsys, "bench", "memory", "--batch-size", "99999999999", "--device", "cpu")
    assert code == 1
    assert "may fit" in err


def test_a_last_batch_of_one_image_is_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--model", "resnet8", "--epochs", "2", "--limit", "65", "--method", "auglocal(depth=1)", "--device", "cpu"]
    assert run(capsys, "train", *words)[0] == 0


def test_show_as_data(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "show", "--model", "resnet8", "--method", "backlink()", "--device", "cpu", "--json")
    shown = json.loads(out)
    assert code == 0
    assert shown["credit"][1] == "loss1 T|T|.|."
    assert shown["schedule"].startswith("0F 0L 0H 1F")
    assert max(shown["module_bytes"]) == shown["peak_bytes"]
