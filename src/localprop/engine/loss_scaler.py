"""fp16: losses are scaled up, and gradients down again, by torch's GradScaler.

Gradients that are small would be zero in float16. One scale serves all losses of a step. Each
optimizer looks at its own gradients, as several optimizers of one GradScaler do::

    L     the loss times the scale, backward
    S, H  gradients divided by the scale; no step where one of them is infinite or NaN
    end   a smaller scale where a step was left out, a larger one after many that were not
"""

from __future__ import annotations

from torch import Tensor
from torch.amp.grad_scaler import GradScaler
from torch.optim import Optimizer


class LossScaler:
    """Scales losses and steps optimizers by a GradScaler, which a failed step leaves in order.

    Args:
        scaler: of the device; a disabled one changes nothing.

    Attributes:
        scaler: the GradScaler.
        is_enabled: whether there is anything to scale.
        has_stepped: whether an optimizer has stepped since the last update.

    Example:
        >>> import torch
        >>> weight = torch.nn.Parameter(torch.ones(1))
        >>> optimizer = torch.optim.SGD([weight], lr=0.5)
        >>> scaler = LossScaler(GradScaler("cpu", init_scale=4.0))
        >>> scaler.backward(weight.sum())
        >>> weight.grad
        tensor([4.])
        >>> scaler.step(optimizer)
        >>> scaler.update()
        >>> weight.item(), scaler.scaler.get_scale()
        (0.5, 4.0)
    """

    def __init__(self, scaler: GradScaler) -> None:
        self.scaler, self.is_enabled = scaler, scaler.is_enabled()
        self.has_stepped = False

    def backward(self, loss: Tensor) -> None:
        """Run the backward of a loss times the scale."""
        self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]

    def step(self, optimizer: Optimizer) -> None:
        """Step an optimizer, unless one of its gradients has overflowed."""
        # GradScaler refuses optimizers without any gradient, such as that of a head that its loss
        # does not read.
        if not any(p.grad is not None for group in optimizer.param_groups for p in group["params"]):
            optimizer.step()
            return
        # First, since hooks before the step, which clip, must see the gradients themselves. Fused
        # optimizers would divide within the step.
        self.scaler.unscale_(optimizer)
        self.has_stepped = True
        self.scaler.step(optimizer)

    def update(self) -> None:
        """End the step of all optimizers, also after a failure."""
        if self.has_stepped:
            self.has_stepped = False
            self.scaler.update()
