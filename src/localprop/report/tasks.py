"""What is compared when nothing else is named: the methods of a task, and its values."""

from __future__ import annotations

from typing import Any, NamedTuple

from localprop.errors import BadInput

METHODS = (
    "end_to_end()",
    "end_to_end() with recompute",
    "greedy(aux=Head(convs=0, linears=1))",
    "greedy()",
    "contsup()",
    "auglocal()",
    "backlink()",
    "interlocking(wise=2)",
    "BackLink + ContSup + AugLocal's heads: Rule(credit=BackwardLinks(), aux=SampledLayers(), "
    "context=ContextSupply(input=True, previous=1))",
)

# Methods that need no images, and therefore also train networks of tokens.
TEXT_METHODS = (
    "end_to_end()",
    "end_to_end() with recompute",
    "greedy(aux=Head(convs=0, linears=1))",
    "greedy()",
    "backlink()",
    "interlocking(wise=2)",
)


class ComparedTask(NamedTuple):
    """What a comparison uses where nothing else is given.

    Attributes:
        methods: expressions.
        fields: fields of `Config`.
    """

    methods: tuple[str, ...]
    fields: dict[str, Any]


# The values were chosen once: end-to-end converges on the digits, and a language model takes some
# minutes on two CPU cores.
TASKS = {
    "images": ComparedTask(METHODS, {"model": "resnet14", "epochs": 8, "batch_size": 64}),
    "lm": ComparedTask(
        TEXT_METHODS,
        {
            "model": "transformer:width=64,blocks=3",
            "data": "text",
            "context": 64,
            "limit": 4000,
            "epochs": 3,
            "batch_size": 32,
            "optimizer": "adamw",
            "lr": 3e-3,
            "weight_decay": 0.01,
            "lr_schedule": "cosine_above_zero",
            "warmup_epochs": 0,
        },
    ),
}


def find_task(name: str) -> ComparedTask:
    """The task with a name.

    Raises:
        BadInput: there is none.

    Example:
        >>> find_task("lm").fields["data"]
        'text'
    """
    if name not in TASKS:
        raise BadInput(f"task={name!r} is unknown: choose {' or '.join(TASKS)}.")
    return TASKS[name]
