"""What a step has for other ranks, and where it puts what they send."""

from __future__ import annotations

from torch import Tensor

from localprop.step.errors import Error, Place
from localprop.step.schedule import Action, Op
from localprop.step.state import State, dense
from localprop.step.wiring import Wiring


def departing(run: State, action: Action, wiring: Wiring) -> Tensor:
    """The tensor that an action sends, dense; a context stays here too."""
    segment, m = action.segment, action.microbatch
    if action.op is Op.SEND_F:
        output, run.departing = run.departing, None
        assert output is not None
        return output
    if action.op is Op.SEND_C:
        return dense(run.inlets[wiring.segments[segment].module, m])
    assert action.flow is not None
    return run.upward.pop(Place(segment, action.flow, m))


def arrive(run: State, action: Action, wiring: Wiring, tensor: Tensor) -> None:
    """Put a tensor that an action has received to where it is read: an input, a context, or an error that waits."""
    segment, m = action.segment, action.microbatch
    if action.op is Op.RECV_F:
        run.arrived[m] = tensor
    elif action.op is Op.RECV_C:
        run.inlets[wiring.segments[segment].module, m] = tensor
    else:
        assert action.flow is not None
        onward = wiring.flows[segment][action.flow].onward
        assert onward is not None
        run.errors.add(Place(segment - 1, onward, m), Error(action.flow, tensor))
