"""Leave the deployed network at the end of a module, through the module's trained head.

Source: BranchyNet (Teerapittayanon et al., 2016), arXiv 1709.01686.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from localprop.engine.cut_hooks import CutHooks
from localprop.errors import BadInput
from localprop.network.modes import evaluation_mode
from localprop.network.outputs import list_tensors
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
        BadInput: the module has no head whose outputs are the task's.
    """
    exits = list_exits(wiring)
    if module is None or module == exits[-1]:
        return wiring.task.forward(network, batch.data)
    if module not in exits:
        raise BadInput(
            f"module={module!r}: the network can be left at modules {', '.join(map(str, exits))}, "
            "whose losses train a head."
        )
    aux: nn.Module = wiring.heads[_find_heads(wiring)[module]]["aux"]  # type: ignore[index]
    features = _run_until(module, network, model, wiring, batch)
    with evaluation_mode(aux):
        output: Tensor = aux(features)
    layers = wiring.layers
    wanted, dim = layers.output_shape, layers.output_channel
    if output.ndim != len(wanted) or output.shape[dim] != wanted[dim]:
        raise BadInput(
            f"The head of module {module} returns {tuple(output.shape)}, which are no outputs of "
            f"the network, {tuple(wanted)}: its loss compares something else."
        )
    return output


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


def _run_until(
    module: int, network: nn.Module, model: nn.Module, wiring: Wiring, batch: Batch
) -> Tensor:
    """The features at the end of a module."""
    layer = wiring.segments[wiring.segments_of(module)[-1]].layers[-1]

    def stop(segment: int, submodule: nn.Module, args: object, output: Any) -> None:
        raise StopForward(wiring.layers.select_crossing(layer, list_tensors(output))[0])

    hooks = CutHooks(model, {0: wiring.layers.names[layer]}, stop)
    # In front of a context, which belongs to the next module.
    handles = [end.register_forward_hook(hook, prepend=True) for end, hook in hooks]
    hooks.begin()
    try:
        wiring.task.forward(network, batch.data)
    except StopForward as stopped:
        return stopped.output
    finally:
        hooks.end()
        for handle in handles:
            handle.remove()
    raise BadInput(f"The forward did not get to the end of module {module}: use another module.")
