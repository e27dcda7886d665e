"""Text: windows by hand, offsets that follow from (seed, epoch), and language models that learn."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from localprop.data import Batches, is_text, load
from localprop.data.text import Text
from localprop.errors import BadInput
from localprop.training.build import prepare
from localprop.training.config import Config
from localprop.training.scores import Score, score_test_split
from localprop.training.trainer import train

COUNTING = bytes(range(100))


def write_text(folder: Path, content: bytes) -> str:
    file = folder / "mine.txt"
    file.write_bytes(content)
    return str(file)


def load_windows(name: str, **options: Any) -> Text:
    """`load`, for texts."""
    dataset = load(name, **options)
    assert isinstance(dataset, Text)
    return dataset


def read_windows(
    data: Text, split: str, number: int = 0, seed: int = 0
) -> tuple[list[list[int]], list[list[int]]]:
    """The inputs and targets of an epoch."""
    batches = list(Batches(data, split, 3, seed=seed).epoch(number))
    inputs, targets = (torch.cat(tensors) for tensors in zip(*batches, strict=True))
    assert inputs.dtype == targets.dtype == torch.int64
    return inputs.tolist(), targets.tolist()


def test_windows_by_hand(tmp_path: Path) -> None:
    data = load_windows(write_text(tmp_path, COUNTING), context=4)
    assert (data.shape, data.num_classes, data.name, data.unit) == ((4,), 256, "mine", "windows")
    inputs, targets = read_windows(data, "validation")  # bytes 80..89
    assert inputs == [[80, 81, 82, 83], [84, 85, 86, 87]]
    assert targets == [[81, 82, 83, 84], [85, 86, 87, 88]]
    assert read_windows(data, "test")[0] == [[90, 91, 92, 93], [94, 95, 96, 97]]


def test_a_window_needs_its_last_target(tmp_path: Path) -> None:
    # 10 bytes are two windows, but one target is missing.
    data = load_windows(write_text(tmp_path, COUNTING), context=5)
    assert read_windows(data, "test") == ([[90, 91, 92, 93, 94]], [[91, 92, 93, 94, 95]])


def test_training_windows_are_shifted_as_a_whole_by_seed_and_epoch(tmp_path: Path) -> None:
    data = load_windows(write_text(tmp_path, COUNTING), context=4)
    starts = set()
    for epoch in range(40):
        inputs, targets = read_windows(data, "train", epoch)
        assert len(inputs) == 19  # (80 - 4) // 4, in every epoch
        first = inputs[0][0]
        assert [row[0] for row in inputs] == list(range(first, first + 76, 4))
        assert [row[1:] for row in inputs] == [row[:-1] for row in targets]
        assert max(map(max, targets)) < 80  # never the validation text
        assert read_windows(data, "train", epoch)[0] == inputs
        starts.add(first)
    assert starts == {0, 1, 2, 3}
    assert any(
        read_windows(data, "train", epoch, seed=1) != read_windows(data, "train", epoch, seed=0)
        for epoch in range(8)
    )


def test_limit_keeps_that_many_training_windows(tmp_path: Path) -> None:
    path = write_text(tmp_path, COUNTING)
    data, whole = (load_windows(path, context=4, limit=limit) for limit in (3, None))
    assert (len(data.train), len(whole.train)) == (3, 19)
    assert len(data.test) == len(whole.test)
    assert len(load_windows(path, context=4, limit=10**6).train) == 19


def test_the_text_that_ships_with_python() -> None:
    data = load_windows("text", context=64)
    from pydoc_data.topics import topics

    whole = b"\n".join(topics[name].encode() for name in sorted(topics))
    (first, _), *_ = Batches(data, "validation", 1)
    start = len(whole) * 8 // 10
    assert bytes(first[0].tolist()) == whole[start : start + 64]
    assert len(data.train) > 5000


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        (b"short", {}, "too few for a window of 128 in train, validation, test"),
        (b"", {"context": 2}, "has 0 bytes"),
        (COUNTING, {"context": 10}, "window of 10 in validation, test"),
        (COUNTING, {"context": 0}, "context is 0"),
        (COUNTING, {"augment": "crop"}, "is a text"),
        (COUNTING, {"mean": (0.5,), "std": (0.5,)}, "mean= and std= do not apply to the text"),
    ],
)
def test_texts_and_options_that_are_refused(
    tmp_path: Path, content: bytes, options: dict[str, object], message: str
) -> None:
    with pytest.raises(BadInput, match=message):
        load(write_text(tmp_path, content), **options)


def test_a_missing_file_is_refused() -> None:
    with pytest.raises(BadInput, match=r"nowhere\.txt cannot be read"):
        load("nowhere.txt")


def test_texts_are_known_by_their_names() -> None:
    found = [is_text(name) for name in ("text", "a/b.txt", "digits", "texts")]
    assert found == [True, True, False, False]


SMALL = Config(
    model="transformer:width=16,blocks=2",
    data="text",
    context=16,
    limit=400,
    epochs=3,
    batch_size=16,
    device="cpu",
    optimizer="adamw",
    lr=1e-2,
    lr_schedule="constant",
    modules=2,
)


@pytest.mark.parametrize("method", ["greedy()", "end_to_end()", "backlink()"])
def test_a_language_model_learns(method: str) -> None:
    config = replace(SMALL, method=method)
    dataset, learner = prepare(config)
    assert isinstance(dataset, Text)
    validation = replace(dataset.validation, tokens=dataset.validation.tokens[:2000])
    reports = train(learner, replace(dataset, validation=validation), config)
    first, last = reports[0], reports[-1]
    assert first.validation_loss is not None
    assert last.validation_loss is not None
    assert last.validation_accuracy is not None
    assert last.validation_loss < first.validation_loss < 4.6
    # Better than 8 bits, one coin toss for each bit.
    assert last.losses[-1] < first.losses[-1] < 8 * 0.6931
    assert last.validation_accuracy > 0.15


def test_the_score_of_text_is_that_of_a_slow_loop() -> None:
    dataset, learner = prepare(SMALL)
    assert isinstance(dataset, Text)
    short = replace(dataset, test=replace(dataset.test, tokens=dataset.test.tokens[:500]))
    score = score_test_split(learner, short, SMALL)
    losses, correct = [], []
    model = learner.model.eval()
    tokens = short.test.tokens.long()
    with torch.no_grad():
        for start in range(0, 31 * 16, 16):
            logits = model(tokens[None, start : start + 16])
            log_probabilities = logits.double().log_softmax(-1)[0]
            targets = tokens[start + 1 : start + 17].tolist()
            for row, target in zip(log_probabilities, targets, strict=True):
                losses.append(-row[target].item())
                correct.append(int(row.argmax()) == target)
    assert len(losses) == 31 * 16
    assert score.loss == pytest.approx(sum(losses) / len(losses), rel=1e-5)
    assert score.accuracy == pytest.approx(sum(correct) / len(correct))


def test_bits_are_logarithms_of_two() -> None:
    assert Score(0.0, 5.545177444479562).bits == pytest.approx(8)
