"""What a case of the sweep is: a model as its library makes it, and a batch as a loader yields it.

Configurations are tiny and weights are random. A constructor imports its library by itself, so that
one that is not installed costs its own rows alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from localprop import Learner

SAMPLES, CLASSES = 4, 5


@dataclass(frozen=True)
class Case:
    """A model, a batch, and what is known of them without localprop.

    Attributes:
        model: in training mode.
        batch: as a loader yields it.
        task: what the model is trained for; None where the usual task must be found.
        batch_dims: the dimensions with the samples, where they are not the first ones.
        blocks: the number of blocks, counted by hand or from the names of parameters.
        channel: the dimension with the channels of all features that are cut, where it is known.
        own_loss: the loss that the model computes by itself.
        causal: whether no output may depend on later positions; nothing checks it yet.
        no_cuts: why the model has fewer cuts than blocks.
        family: to which it belongs, where its library has families.
        is_small: whether it is so fast that all gradients can be compared.
        rounding: the largest relative error of a gradient that is no error.
    """

    model: nn.Module
    batch: Any
    task: Any = None
    batch_dims: Any = ...
    blocks: int | None = None
    channel: int | None = None
    own_loss: Callable[[nn.Module, Any], Tensor] | None = None
    causal: bool = False
    no_cuts: str = ""
    family: str = ""
    is_small: bool = True
    rounding: float = 1e-3

    def in_double(self) -> Case:
        """The case with a batch in float64. The model is not converted."""

        def convert(value: Any) -> Any:
            is_fraction = isinstance(value, Tensor) and value.is_floating_point()
            return value.double() if is_fraction else value

        return replace(self, batch=tree_map(convert, self.batch))

    def learn(self, rule: Any, model: nn.Module | None = None, **arguments: Any) -> Learner:
        """A learner of the model, or of a copy of it."""
        given = {"optimizer": sgd, "task": self.task, "batch_dims": self.batch_dims}
        own = self.model if model is None else model
        return Learner(own, rule, sample=self.batch, **{**given, **arguments})


Build = Callable[[], Case]
Cases = dict[str, Build]


def sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.01, momentum=0.9)


def build_case(build: Build) -> Case:
    """Build a case, the same one each time."""
    torch.manual_seed(0)
    case = build()
    case.model.train()
    return case


def make_labels(samples: int = SAMPLES, classes: int = CLASSES) -> Tensor:
    return torch.arange(samples) % classes


def make_images(size: int = 32, channels: int = 3, samples: int = SAMPLES) -> tuple[Tensor, Tensor]:
    """Images with one label each."""
    return torch.rand(samples, channels, size, size), make_labels(samples)


def count_named(model: nn.Module, *parts: str) -> int:
    """The number of modules whose parent has one of these last names: the entries of lists."""
    return sum(
        1
        for name, _ in model.named_modules()
        if "." in name and name.rsplit(".", 2)[-2] in parts and name.rsplit(".", 1)[1].isdigit()
    )
