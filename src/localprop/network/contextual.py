"""The deployed network of a rule with context: the model and the encoders that supply it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from torch import Tensor, nn


class Inlet(NamedTuple):
    """Where context enters: at the return of the module `name`, from the inputs of the local modules `sources`.

    If what follows writes into its input, later modules read a copy made before.
    """

    module: int
    name: str
    sources: tuple[int, ...]
    overwritten: bool


class ContextNetwork(nn.Module):
    """A model whose local modules receive encodings of earlier inputs. Its forward maps what the model's own maps.

    For the time of a forward, hooks on the model add the contexts; they are found by name, so that deep copies work.

    Args:
        model: the primary network.
        encoders: by the number of the receiving module, an nn.ModuleList with one encoder per source.
        inlets: where contexts enter, in the order of the forward.

    Example:
        >>> import torch, localprop as lp
        >>> sgd = lambda params: torch.optim.SGD(params, lr=0.1)
        >>> sample = (torch.zeros(4, 3, 8, 8), torch.zeros(4, dtype=torch.long))
        >>> rule = lp.Rule(context=lp.ContextSupply(previous=1))
        >>> learner = lp.Learner(lp.models.resnet8(), rule, modules=4, optimizer=sgd, sample=sample)
        >>> sorted({name.split(".")[0] for name in learner.network.state_dict()})
        ['encoders', 'model']
    """

    def __init__(self, model: nn.Module, encoders: nn.ModuleDict, inlets: Sequence[Inlet]) -> None:
        super().__init__()
        self.model = model
        self.encoders = encoders
        self.inlets = tuple(inlets)

    def forward(self, inputs: Tensor) -> Tensor:
        """The model's outputs (N, ...), with context."""
        with self._hooked(inputs):
            outputs: Tensor = self.model(inputs)
        return outputs

    @contextmanager
    def _hooked(self, inputs: Tensor) -> Iterator[None]:
        seen = {0: inputs}
        ends = [(inlet, self.model.get_submodule(inlet.name)) for inlet in self.inlets]
        handles = [end.register_forward_hook(self._adding(inlet, seen)) for inlet, end in ends]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _adding(self, inlet: Inlet, seen: dict[int, Tensor]) -> Callable[[nn.Module, object, Tensor], Tensor]:
        def hook(module: nn.Module, args: object, output: Tensor) -> Tensor:
            encoders = self.encoders[str(inlet.module)]
            assert isinstance(encoders, nn.ModuleList)
            for source, encoder in zip(inlet.sources, encoders, strict=True):
                output = output + encoder(seen[source])
            seen[inlet.module] = output.clone() if inlet.overwritten else output
            return output

        return hook
