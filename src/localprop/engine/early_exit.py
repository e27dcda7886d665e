"""Leave the deployed network at the end of a module, through the module's trained head.

Source: BranchyNet (Teerapittayanon et al., 2016), arXiv 1709.01686.
"""

from __future__ import annotations

from typing import NoReturn

from torch import Tensor, nn

from localprop.engine.module_ends import running_on, visit_ends
from localprop.errors import BadInput
from localprop.network.modes import evaluation_mode
from localprop.network.partial_forward import StopForward
from localprop.schedule.wiring import Wiring, get_loss
from localprop.tasks.batch import Batch


def list_exits(wiring: Wiring) -> list[int]:
    """The modules that a network can be left at: those with a head that a loss reads.

    The last one is the network's own output.

    Example:
        >>> list_exits(learner.wiring)
        [0, 1, 2]
    """
    return [*_find_heads(wiring), wiring.segments[-1].module]


def predict_at(
    module: int | None, network: nn.Module, model: nn.Module, wiring: Wiring, batch: Batch
) -> Tensor:
    """The outputs of a module's head (N, ...), in evaluation mode.

    Args:
        module: the number of the module; None and the last one stand for the whole network.
        network: the deployed network, in evaluation mode; its forward stops where the module ends.
        model: the primary network in it.
        wiring: of the learner.
        batch: on the device of the network.

    Raises:
        BadInput: the module has no head whose outputs are the task's, or the network does not run
            on the batch.
    """
    exits = list_exits(wiring)
    if module is None or module == exits[-1]:
        with running_on(batch):
            return wiring.task.forward(network, batch.data)
    if module not in exits:
        raise BadInput(
            f"module={module!r}: the network can be left at modules {', '.join(map(str, exits))}, "
            "whose losses train a head."
        )

    def stop(_: int, features: Tensor) -> NoReturn:
        raise StopForward(features)

    try:
        with running_on(batch):
            visit_ends([module], stop, network, model, wiring, batch)
    except StopForward as stopped:
        output = _apply_head(module, stopped.output, wiring)
    else:
        raise BadInput(
            f"The forward did not get to the end of module {module}: use another module."
        )
    if not _is_of_task(output, wiring):
        raise BadInput(
            f"The head of module {module} returns {tuple(output.shape)}, which are no outputs of "
            f"the network, {tuple(wiring.layers.output_shape)}: its loss compares something else."
        )
    return output


def predict_exits(
    network: nn.Module, model: nn.Module, wiring: Wiring, batch: Batch
) -> dict[int, Tensor]:
    """The outputs (N, ...) at all exits by one forward, in evaluation mode, by module.

    Heads whose outputs are not the task's are left out.

    Args:
        network: the deployed network, in evaluation mode.
        model: the primary network in it.
        wiring: of the learner.
        batch: on the device of the network.
    """
    *early, last = list_exits(wiring)
    found: dict[int, Tensor] = {}

    def keep(module: int, features: Tensor) -> None:
        output = _apply_head(module, features, wiring)
        if _is_of_task(output, wiring):
            found[module] = output

    found[last] = visit_ends(early, keep, network, model, wiring, batch)
    return dict(sorted(found.items()))


def _find_heads(wiring: Wiring) -> dict[int, str]:
    """By module, the key of the first head at its end, but for the last module."""
    found: dict[int, str] = {}
    for objective in wiring.objectives:
        segment = wiring.segments[objective.segment]
        ends = (
            segment.layers[-1] == wiring.segments[wiring.segments_of(segment.module)[-1]].layers[-1]
        )
        if ends and get_loss(wiring.heads, objective.loss).uses_aux:
            found.setdefault(segment.module, str(objective.loss))
    found.pop(wiring.segments[-1].module, None)
    return found


def _apply_head(module: int, features: Tensor, wiring: Wiring) -> Tensor:
    aux: nn.Module = wiring.heads[_find_heads(wiring)[module]]["aux"]  # type: ignore[index]
    with evaluation_mode(aux):
        output: Tensor = aux(features)
    return output


def _is_of_task(output: Tensor, wiring: Wiring) -> bool:
    wanted, dim = wiring.layers.output_shape, wiring.layers.output_channel
    return output.ndim == len(wanted) and output.shape[dim] == wanted[dim]
