"""Calls of public functions with one or two odd arguments, drawn at random.

A function comes with arguments that work. What it returns is used: a rule trains one step, a part
takes its place in a rule, a configuration is checked.
"""

from __future__ import annotations

import inspect
import random
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

import localprop as lp
from localprop import data, models

# By the text that a report shows. Functions make what a call may change.
NUMBERS: dict[str, Callable[[], Any]] = {
    "True": lambda: True,
    "-1": lambda: -1,
    "0": lambda: 0,
    "3": lambda: 3,
    "0.5": lambda: 0.5,
    "2**31": lambda: 2**31,
    "2**63": lambda: 2**63,
    "2**64": lambda: 2**64,
    "10**30": lambda: 10**30,
    "10**5000": lambda: 10**5000,
    "-10**30": lambda: -(10**30),
    "nan": lambda: float("nan"),
    "inf": lambda: float("inf"),
    "-inf": lambda: float("-inf"),
    "1e308": lambda: 1e308,
    "1j": lambda: 1j,
    "np.int64(2)": lambda: np.int64(2),
    "np.float32(0.5)": lambda: np.float32(0.5),
}
ODD: dict[str, Callable[[], Any]] = NUMBERS | {
    "None": lambda: None,
    "''": lambda: "",
    "'word'": lambda: "word",
    "an escape": lambda: "\x1b[31mred\x1b[0m\x07",
    "a null": lambda: "a\0b",
    "a surrogate": lambda: "\udcff",
    "a long text": lambda: "a" * 100_000,
    "b'bytes'": lambda: b"bytes",
    "Path('.')": lambda: Path("."),
    "()": lambda: (),
    "[]": lambda: [],
    "{}": lambda: {},
    "(-1,)": lambda: (-1,),
    "(0, 0)": lambda: (0, 0),
    "(nan,)": lambda: (float("nan"),),
    "('a', None)": lambda: ("a", None),
    "(10**30,)": lambda: (10**30,),
    "[1, [2]]": lambda: [1, [2]],
    "{'a': 1}": lambda: {"a": 1},
    "object()": object,
    "int": lambda: int,
    "print": lambda: print,
    "a lambda": lambda: lambda *args, **kwargs: None,
    "a lambda that fails": lambda: lambda *args, **kwargs: 1 / 0,
    "iter(())": lambda: iter(()),
    "torch.float16": lambda: torch.float16,
    "torch.zeros(())": lambda: torch.zeros(()),
    "torch.zeros(0)": lambda: torch.zeros(0),
    "torch.zeros(4)": lambda: torch.zeros(4),
    "torch.zeros(0, 3, 8, 8)": lambda: torch.zeros(0, 3, 8, 8),
    "torch.zeros(4, 3, 8, 8, device='meta')": lambda: torch.zeros(4, 3, 8, 8, device="meta"),
    "torch.zeros(4, 3, 8, 8).double()": lambda: torch.zeros(4, 3, 8, 8).double(),
    "sparse": lambda: torch.eye(3).to_sparse(),
    "complex": lambda: torch.zeros(4, 3, 8, 8, dtype=torch.complex64),
    "nn.Linear(2, 2)": lambda: nn.Linear(2, 2),
    "nn.ReLU()": nn.ReLU,
    "nn.MSELoss()": nn.MSELoss,
    "lp.greedy()": lp.greedy,
    "lp.greedy": lambda: lp.greedy,
    "lp.Head()": lp.Head,
    "lp.Regression()": lp.Regression,
    "np.zeros(3)": lambda: np.zeros(3),
    "(images, None)": lambda: (torch.zeros(4, 3, 8, 8), None),
    "(images, no labels)": lambda: (torch.zeros(4, 3, 8, 8), torch.zeros(0, dtype=torch.long)),
    "(images, labels of 2**40)": lambda: (torch.zeros(4, 3, 8, 8), torch.full((4,), 2**40)),
    "(images, floats)": lambda: (torch.zeros(4, 3, 8, 8), torch.zeros(4)),
    "(nan images, labels)": lambda: (
        torch.full((4, 3, 8, 8), float("nan")),
        torch.zeros(4, dtype=torch.long),
    ),
    "(meta, meta)": lambda: (
        torch.zeros(4, 3, 8, 8, device="meta"),
        torch.zeros(4, dtype=torch.long, device="meta"),
    ),
}


# --- what works -----------------------------------------------------------------------------------


def make_model() -> nn.Module:
    """A network of four blocks for images (3, 8, 8) and four classes."""
    torch.manual_seed(0)
    blocks = [
        nn.Sequential(nn.Conv2d(a, b, 3, s, 1), nn.BatchNorm2d(b), nn.ReLU())
        for a, b, s in ((3, 4, 1), (4, 4, 1), (4, 8, 2), (8, 8, 1))
    ]
    return nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))


def make_batch() -> tuple[torch.Tensor, torch.Tensor]:
    """Four images with labels."""
    return torch.zeros(4, 3, 8, 8), torch.arange(4)


def make_optimizer(parameters: Any) -> torch.optim.Optimizer:
    """SGD."""
    return torch.optim.SGD(parameters, lr=0.01)


def make_learner() -> lp.Learner:
    """A learner by BackLink."""
    passed: dict[str, Any] = {"modules": 2, "optimizer": make_optimizer, "sample": make_batch()}
    return lp.Learner(make_model(), lp.backlink(), **passed)


def _train(rule: Any) -> object:
    return _step(rule=rule)


def _step(**arguments: Any) -> object:
    """Make a learner and train one step."""
    usual: dict[str, Any] = {
        "model": make_model(),
        "rule": lp.greedy(),
        "optimizer": make_optimizer,
    }
    usual |= {"sample": make_batch(), "normalization": lp.Normalization()}
    if not arguments.keys() & {"modules", "partition", "budget"}:
        usual["modules"] = 2
    return lp.Learner(**{**usual, **arguments}).step(make_batch())


def _train_with(field: str) -> Callable[[Any], object]:
    return lambda part: _train(lp.Rule(**{field: part}))


# Parts by the field of a rule in which they train on their own. The others train in a method.
_PARTS: dict[str, list[Callable[..., Any]]] = {
    "aux": [
        *(lp.Head, lp.ConvHead, lp.MlpSrHead, lp.PooledHead, lp.OneConvHead, lp.NextLayerHead),
        *(lp.BottleneckHead, lp.SampledLayers, lp.WideningHead),
    ],
    "credit": [
        *(lp.LocalCredit, lp.BackwardLinks, lp.InterlockingCredit, lp.EndToEndCredit),
        *(lp.WindowCredit, lp.LocalAndWindowCredit),
    ],
    "loss": [
        *(lp.TaskLoss, lp.CrossEntropy, lp.Terms, lp.ContrastiveLoss, lp.PixelReconstruction),
        *(lp.FeatureReconstruction, lp.SimilarityLoss, lp.LocalAndWindowLosses),
    ],
    "penalty": [lp.NoPenalty, lp.KineticPenalty, lp.GradientReconciliation],
    "context": [lp.ContextSupply],
}
_OTHER_PARTS: list[Callable[..., Any]] = [
    *(lp.GroupHeads, lp.HeadByWidth, lp.LossByWidth, lp.NextLayerLoss, lp.GroupCrossEntropy),
    *(lp.SharedReadout, lp.Term, lp.ConvEncoder, lp.Rule, lp.Pool, lp.ParameterCopy),
]
# Arguments without which a method or a part does not train the network here.
_NEEDED: dict[str, dict[str, Any]] = {
    "auglocal": {"joined": False},
    "trgl": {"plain": True},
    "KineticPenalty": {"plain": True},
    "ParameterCopy": {"source": "a", "target": "b"},
}


class Target(NamedTuple):
    """A function to call.

    Attributes:
        name: what a report calls it.
        call: the function.
        usual: makes arguments that work, as far as the function needs them.
        use: what happens to the result.
        more: names of arguments that the signature does not have.
    """

    name: str
    call: Callable[..., Any]
    usual: Callable[[], dict[str, Any]] = dict
    use: Callable[[Any], object] = lambda result: None
    more: Sequence[str] = ()

    @property
    def arguments(self) -> list[str]:
        """The names of the arguments that can be odd."""
        kinds = inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD
        found = inspect.signature(self.call).parameters.values()
        named = [each.name for each in found if each.kind not in kinds]
        return [*(named or self.usual()), *self.more]


def list_targets(folder: Path) -> list[list[Target]]:
    """The public functions, by what they are about.

    Args:
        folder: where calls may write.
    """
    methods = [getattr(lp, name) for name in lp.methods.__all__]
    uses: list[tuple[Any, Callable[[Any], object]]] = [(make, _train) for make in methods]
    uses += [(part, _train_with(field)) for field, parts in _PARTS.items() for part in parts]
    uses += [(part, str) for part in _OTHER_PARTS]
    rules = [
        Target(f"lp.{make.__name__}", make, partial(dict, _NEEDED.get(make.__name__, {})), use)
        for make, use in uses
    ]
    return [rules, _list_models(), _list_data(folder), _list_learners(), _list_runs(folder)]


def _list_models() -> list[Target]:
    named = [getattr(models, name) for name in models.__all__]
    small = {"num_classes": 4}
    usual: dict[str, dict[str, Any]] = {
        "create_model": {"name": "mlp:8", "num_classes": 4, "input_shape": (3, 8, 8)},
        "mlp": {"in_features": 8, **small},
        "transformer_lm": {"vocabulary": 9, "context": 8, "width": 8, "heads": 2, "blocks": 1},
        "small_resnet": {"name": "resnet18", **small},
        "cifar_resnet": {"depth": 8, **small},
        "takes_images": {"name": "mlp"},
        "takes_tokens": {"name": "mlp"},
    }
    return [
        Target(f"models.{make.__name__}", make, partial(dict, usual.get(make.__name__, {})))
        for make in named
        if inspect.isfunction(make) and make is not models.init_convs
    ]


def _list_data(folder: Path) -> list[Target]:
    def load_digits() -> dict[str, Any]:
        return {"name_or_path": "digits", "limit": 20}

    def load_batches() -> dict[str, Any]:
        given = {"dataset": data.load("digits", limit=20), "split": "train", "batch_size": 8}
        return {**given, "shuffle": True, "augment": False, "seed": 0, "device": "cpu"}

    def check_options(options: data.LoadingOptions) -> object:
        return data.load("digits", **{**vars(options), "limit": 20})

    return [
        Target("data.load", lambda **given: data.load(**given), load_digits),
        Target("data.LoadingOptions", data.LoadingOptions, use=check_options),
        Target("data.load_npz", data.load_npz, lambda: {"path": folder / "images.npz"}),
        Target("data.load_folder", data.load_folder, lambda: {"path": folder / "images"}),
        Target("data.load_text", data.load_text, lambda: {"name_or_path": "text", "limit": 4}),
        Target("data.Batches", data.Batches, load_batches, lambda made: [*made.epoch(0)]),
        Target("data.is_text", data.is_text, lambda: {"name": "digits"}),
    ]


def _list_learners() -> list[Target]:
    def know_network() -> dict[str, Any]:
        return {"model": make_model(), "sample": make_batch()}

    def know_learner() -> dict[str, Any]:
        return {"rule": lp.greedy(), "modules": 2, "optimizer": make_optimizer, **know_network()}

    def know_layers() -> dict[str, Any]:
        return {"layers": lp.layers_of(**know_network())}

    def know_partition() -> dict[str, Any]:
        return {"rule": lp.greedy(), "partition": lp.Partition.uniform(**know_layers(), modules=2)}

    def of_learner(name: str, **usual: Any) -> Target:
        def call(**given: Any) -> object:
            return getattr(make_learner(), name)(**given)

        return Target(f"learner.{name}", call, lambda: dict(usual))

    batch = make_batch()
    layers = len(lp.layers_of(make_model(), batch))
    return [
        Target("lp.Learner", lp.Learner, know_learner, lambda made: made.step(make_batch())),
        Target("lp.check", lp.check, know_network, str),
        Target("lp.layers_of", lp.layers_of, know_network),
        Target("lp.find_task", lp.find_task, lambda: {"model": make_model(), "batch": batch}),
        Target("lp.plan", lp.plan, lambda: {**know_network(), "methods": ("greedy",)}, str),
        Target("lp.wire", lp.wire, know_partition),
        Target("lp.find_notes", lp.find_notes, know_partition),
        Target("Partition.uniform", lp.Partition.uniform, lambda: {**know_layers(), "modules": 2}),
        Target("Partition.at", lp.Partition.at, lambda: {**know_layers(), "last": (0,)}),
        Target(
            "Partition.balanced",
            lp.Partition.balanced,
            lambda: {**know_layers(), "modules": 2, "costs": (1.0,) * layers},
        ),
        Target("lp.task", lp.task, lambda: {"loss": nn.CrossEntropyLoss()}, _use_task),
        Target("Batch.of", lp.Batch.of, lambda: {"data": batch}),
        Target("lp.Classification", lp.Classification, use=_use_task),
        Target("lp.Segmentation", lp.Segmentation, use=str),
        Target("lp.MultiLabel", lp.MultiLabel, use=_use_task_of_numbers),
        Target("lp.Ranks", lp.Ranks, use=lambda ranks: _step(ranks=ranks)),
        of_learner("step", batch=batch),
        of_learner("backward", batch=batch),
        of_learner("predict", batch=batch, module=0),
        of_learner("memory", batch=batch),
        of_learner("flops", batch=batch),
        of_learner("explain", values=False),
        of_learner("rebuild", modules=2),
        of_learner("load_state_dict", state=make_learner().state_dict()),
    ]


def _use_task(task: lp.Task) -> object:
    return _step(task=task)


def _use_task_of_numbers(task: lp.Task) -> object:
    sample = make_batch()[0], torch.ones(4, 4)
    given: dict[str, Any] = {
        "modules": 2,
        "optimizer": make_optimizer,
        "sample": sample,
        "task": task,
    }
    return lp.Learner(make_model(), lp.greedy(), **given).step(sample)


def _list_runs(folder: Path) -> list[Target]:
    tiny = {"model": "mlp:8", "limit": 20, "epochs": 2, "batch_size": 10}

    def know_file() -> dict[str, Any]:
        return {"path": folder / "saved.safetensors", "learner": make_learner()}

    def train(**given: Any) -> object:
        return lp.train(**{**tiny, "on_note": lambda note: None, **given})

    def compare(**given: Any) -> object:
        quiet = {"on_note": lambda note: None, "report": lambda table: None}
        return lp.compare(**{**tiny, "rounds": 2, "seeds": 1, **quiet, **given})

    fields = [*vars(lp.Config())]
    return [
        Target("lp.save", lp.save, know_file),
        Target("lp.load", lp.load, know_file),
        Target("lp.train", train, more=fields),
        Target("lp.compare", compare, lambda: {"methods": ["greedy()"]}, more=fields),
        Target(
            "lp.evaluate", lambda **given: lp.evaluate(**given), lambda: {"run": folder / "run"}
        ),
        Target("lp.export", lp.export, lambda: {"run": folder / "run"}),
        Target("lp.recipes", lp.recipes, lambda: {"word": "dgl"}, str),
        Target("lp.Config", lp.Config, use=lambda config: config.find_problems()),
    ]


# --- what is drawn --------------------------------------------------------------------------------


class BadCall(NamedTuple):
    """A call, and its text."""

    text: str
    run: Callable[[], object]


def draw_call(draw: random.Random, folder: Path) -> BadCall:
    """Draw a call with one or two odd arguments."""
    target = draw.choice(draw.choice(list_targets(folder)))
    names = target.arguments
    odd = {
        name: draw.choice([*(NUMBERS if draw.random() < 0.4 else ODD)])
        for name in draw.sample(names, k=min(len(names), draw.choice((1, 1, 2))))
    }
    text = ", ".join(f"{name}={value}" for name, value in odd.items())

    def run() -> object:
        given = {**target.usual(), **{name: ODD[value]() for name, value in odd.items()}}
        return target.use(target.call(**given))

    return BadCall(f"{target.name}({text})", run)
