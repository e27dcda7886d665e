"""Parameters that are not trained, chosen by their names."""

from __future__ import annotations

from fnmatch import fnmatchcase

from torch import nn

from localprop.errors import BadInput, check


def freeze(model: nn.Module, patterns: str) -> None:
    """Switch off the gradients of parameters.

    Buffers, such as the statistics of BatchNorm, go on moving in training mode.

    Args:
        model: changed in place.
        patterns: of names of parameters, with commas: * stands for any text, ? for a letter.

    Raises:
        BadInput: a pattern matches nothing, or all parameters would be frozen. The model is then
            unchanged.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 4))
        >>> freeze(model, "0.*")
        >>> [name for name, parameter in model.named_parameters() if parameter.requires_grad]
        ['1.weight', '1.bias']
    """
    parameters = dict(model.named_parameters())
    wanted = [pattern.strip() for pattern in patterns.split(",")]
    matches = {p: [name for name in parameters if fnmatchcase(name, p)] for p in wanted}
    first, last = next(iter(parameters), ""), next(reversed(parameters), "")
    check(
        f"freeze={pattern!r} matches none of the parameters, which are {first} .. {last}: correct "
        "the pattern."
        for pattern, names in matches.items()
        if not names
    )
    frozen = {name for names in matches.values() for name in names}
    if not [name for name, p in parameters.items() if p.requires_grad and name not in frozen]:
        raise BadInput(
            f"freeze={patterns!r} matches all {len(parameters)} parameters, and leaves nothing to "
            "train: freeze fewer."
        )
    for name in frozen:
        parameters[name].requires_grad_(False)
