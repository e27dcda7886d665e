"""Training steps of other implementations, which a benchmark times in the same rounds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from localprop.cost.baselines import Step
from localprop.errors import BadInput
from localprop.tasks.batch import Batch
from localprop.user_code import describe_error, import_named


def load_steps(file: str, make_network: Callable[[], nn.Module], batch: Batch) -> dict[str, Step]:
    """The training steps in a file of the user's, by name.

    The file defines one function. It takes a function that makes a new network, as all contenders
    train it, and the batch of images and classes, and returns functions that run one step each::

        def make_steps(make_network, batch):
            model, (images, labels) = make_network(), batch
            trainer = TheirTrainer(model, modules=16)
            return {"their greedy": lambda: trainer.train_on(images, labels)}

    Raises:
        BadInput: the file cannot be run, has no such function, or that fails or returns something
            else.
    """
    make_steps: Any = import_named(file, "make_steps")
    try:
        steps = make_steps(make_network, batch.data)
    except Exception as error:
        raise BadInput(f"make_steps of {file} fails: {describe_error(error)}") from error
    if not isinstance(steps, dict) or not all(callable(step) for step in steps.values()):
        raise BadInput(
            f"make_steps of {file} returned {steps!r:.80}, but must return functions by name: "
            'return {"their greedy": step}.'
        )
    return {str(name): step for name, step in steps.items()}
