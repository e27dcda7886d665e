"""What the modules of a deployed network return, seen on the way of its own forward."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from localprop.engine.cut_hooks import CutHooks
from localprop.errors import BadInput
from localprop.network.outputs import list_tensors
from localprop.network.partial_forward import StopForward
from localprop.schedule.wiring import Wiring
from localprop.tasks.batch import Batch
from localprop.tasks.task import describe
from localprop.user_code import describe_error


def visit_ends(
    modules: Iterable[int],
    visit: Callable[[int, Tensor], object],
    network: nn.Module,
    model: nn.Module,
    wiring: Wiring,
    batch: Batch,
) -> Tensor:
    """The network's output. On the way, features at the ends of modules are shown to `visit`.

    Args:
        modules: their numbers, without that of the last one, which ends with the network.
        visit: called with the number of a module and its features.
        network: the deployed network.
        model: the primary network in it.
        wiring: of the learner.
        batch: on the device of the network.
    """
    ends = {
        module: wiring.segments[wiring.segments_of(module)[-1]].layers[-1] for module in modules
    }

    def cut(module: int, submodule: nn.Module, args: object, output: Any) -> Any:
        visit(module, wiring.layers.select_crossing(ends[module], list_tensors(output))[0])
        return output

    hooks = CutHooks(model, {m: wiring.layers.names[layer] for m, layer in ends.items()}, cut)
    with hooks.installed():  # in front of a context, which belongs to the next module
        return wiring.task.forward(network, batch.data)


@contextmanager
def running_on(batch: Batch) -> Iterator[None]:
    """Say that a batch is to blame; it was compared with no sample, and may be of other sizes."""
    try:
        yield
    except (BadInput, StopForward, torch.OutOfMemoryError):
        raise
    except Exception as error:  # the model is the user's
        raise BadInput(
            f"The network does not run on a batch that is {describe(batch.data)} "
            f"({describe_error(error)}): give one like the sample."
        ) from error
