"""Text: windows by hand, splits, offsets that are a function of (seed, epoch), and a language model that learns."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from localprop.data import Batches, is_text, load
from localprop.errors import BadInput
from localprop.training.config import Config, prepared
from localprop.training.trainer import Score, test_score, train


def written(folder: Path, content: bytes) -> str:
    file = folder / "mine.txt"
    file.write_bytes(content)
    return str(file)


COUNTING = bytes(range(100))


def windows(data: object, split: str, number: int = 0, seed: int = 0) -> tuple[list[list[int]], list[list[int]]]:
    found = list(Batches(data, split, 3, seed=seed).epoch(number))  # type: ignore[arg-type]
    inputs, targets = (torch.cat(parts) for parts in zip(*found, strict=True))
    assert inputs.dtype == targets.dtype == torch.int64
    return inputs.tolist(), targets.tolist()


def test_windows_by_hand(tmp_path: Path) -> None:
    data = load(written(tmp_path, COUNTING), context=4)
    assert (data.shape, data.num_classes, data.name, data.unit) == ((4,), 256, "mine", "windows")
    inputs, targets = windows(data, "validation")  # bytes 80..89
    assert inputs == [[80, 81, 82, 83], [84, 85, 86, 87]]
    assert targets == [[81, 82, 83, 84], [85, 86, 87, 88]]
    assert windows(data, "test")[0] == [[90, 91, 92, 93], [94, 95, 96, 97]]


def test_a_window_needs_its_last_target(tmp_path: Path) -> None:
    data = load(written(tmp_path, COUNTING), context=5)  # 10 bytes are two windows, but one target too few
    assert windows(data, "test") == ([[90, 91, 92, 93, 94]], [[91, 92, 93, 94, 95]])


def test_training_windows_are_shifted_as_a_whole_by_seed_and_epoch(tmp_path: Path) -> None:
    data = load(written(tmp_path, COUNTING), context=4)
    starts = set()
    for epoch in range(40):
        inputs, targets = windows(data, "train", epoch)
        assert len(inputs) == 19  # (80 - 4) // 4, in every epoch
        first = inputs[0][0]
        assert [row[0] for row in inputs] == list(range(first, first + 76, 4))
        assert [row[1:] for row in inputs] == [row[:-1] for row in targets]
        assert max(map(max, targets)) < 80  # never the validation text
        assert windows(data, "train", epoch)[0] == inputs
        starts.add(first)
    assert starts == {0, 1, 2, 3}
    assert any(windows(data, "train", e, seed=1) != windows(data, "train", e, seed=0) for e in range(8))


def test_limit_keeps_so_many_training_windows(tmp_path: Path) -> None:
    data, whole = (load(written(tmp_path, COUNTING), context=4, limit=limit) for limit in (3, None))
    assert (len(data.train), len(whole.train)) == (3, 19)
    assert len(data.test) == len(whole.test)
    assert len(load(written(tmp_path, COUNTING), context=4, limit=10**6).train) == 19


def test_pythons_own_text() -> None:
    data = load("text", context=64)
    from pydoc_data.topics import topics

    whole = b"\n".join(topics[name].encode() for name in sorted(topics))
    (first, _), *_ = Batches(data, "validation", 1)
    start = len(whole) * 8 // 10
    assert bytes(first[0].tolist()) == whole[start : start + 64]
    assert len(data.train) > 5000


@pytest.mark.parametrize(
    ("content", "options", "told"),
    [
        (b"short", {}, "too few for a window of 128 in train, validation, test"),
        (b"", {"context": 2}, "has 0 bytes"),
        (COUNTING, {"context": 10}, "window of 10 in validation, test"),
        (COUNTING, {"context": 0}, "context is 0"),
        (COUNTING, {"augment": "crop"}, "is a text"),
        (COUNTING, {"mean": (0.5,), "std": (0.5,)}, "not normalised"),
    ],
)
def test_what_cannot_be_read(tmp_path: Path, content: bytes, options: dict[str, object], told: str) -> None:
    with pytest.raises(BadInput, match=told):
        load(written(tmp_path, content), **options)


def test_absent_files_and_names() -> None:
    with pytest.raises(BadInput, match=r"nowhere\.txt cannot be read"):
        load("nowhere.txt")
    assert [is_text(name) for name in ("text", "a/b.txt", "digits", "texts")] == [True, True, False, False]


SMALL = Config(
    model="transformer:width=16,blocks=2", data="text", context=16, limit=400, epochs=3, batch_size=16, device="cpu",
    optimizer="adamw", lr=1e-2, lr_schedule="constant", modules=2,
)  # fmt: skip


@pytest.mark.parametrize("method", ["greedy()", "end_to_end()", "backlink()"])
def test_a_language_model_learns(method: str) -> None:
    config = replace(SMALL, method=method)
    dataset, learner = prepared(config)
    short = replace(dataset, validation=replace(dataset.validation, tokens=dataset.validation.tokens[:2000]))
    reports = train(learner, short, config)
    first, last = reports[0], reports[-1]
    assert first.validation_loss is not None
    assert last.validation_loss is not None
    assert last.validation_accuracy is not None
    assert last.validation_loss < first.validation_loss < 4.6
    assert last.losses[-1] < first.losses[-1] < 8 * 0.6931  # better than 8 bits, a coin for each bit
    assert last.validation_accuracy > 0.15


def test_the_score_of_text_is_that_of_a_slow_loop() -> None:
    dataset, learner = prepared(SMALL)
    short = replace(dataset, test=replace(dataset.test, tokens=dataset.test.tokens[:500]))
    score = test_score(learner, short, SMALL)
    losses, right = [], []
    model = learner.model.eval()
    tokens: Tensor = short.test.tokens.long()
    with torch.no_grad():
        for start in range(0, 31 * 16, 16):
            chances = model(tokens[None, start : start + 16]).double().log_softmax(-1)[0]
            for chance, target in zip(chances, tokens[start + 1 : start + 17].tolist(), strict=True):
                losses.append(-chance[target].item())
                right.append(int(chance.argmax()) == target)
    assert len(losses) == 31 * 16
    assert score.loss == pytest.approx(sum(losses) / len(losses), rel=1e-5)
    assert score.accuracy == pytest.approx(sum(right) / len(right))


def test_bits_are_logarithms_of_two() -> None:
    assert Score(0.0, 5.545177444479562).bits == pytest.approx(8)
