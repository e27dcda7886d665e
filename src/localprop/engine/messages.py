"""What a step has for other ranks, and where it puts what they send."""

from __future__ import annotations

from torch import Tensor

from localprop.engine.gradient_sums import FlowKey, GradientPart
from localprop.engine.step_context import StepContext, canonical_layout
from localprop.schedule.schedule import Action, Op
from localprop.schedule.wiring import Wiring


def outgoing(run: StepContext, action: Action, wiring: Wiring) -> Tensor:
    """The tensor that an action sends, dense; a context stays here too."""
    segment, m = action.segment, action.microbatch
    if action.op is Op.SEND_F:
        output, run.outgoing = run.outgoing, None
        assert output is not None
        return output
    if action.op is Op.SEND_C:
        return canonical_layout(run.module_inputs[wiring.segments[segment].module, m])
    return run.upward.pop(FlowKey(segment, action.flow or 0, m))


def arrive(run: StepContext, action: Action, wiring: Wiring, tensor: Tensor) -> None:
    """Put a tensor that an action has received to where it is read: an input, a context, or an error that waits."""
    segment, m = action.segment, action.microbatch
    if action.op is Op.RECV_F:
        run.arrived[m] = tensor
    elif action.op is Op.RECV_C:
        run.module_inputs[wiring.segments[segment].module, m] = tensor
    else:
        onward = wiring.flows[segment][action.flow or 0].onward
        assert onward is not None
        run.errors.add(FlowKey(segment - 1, onward, m), GradientPart(action.flow or 0, tensor))
