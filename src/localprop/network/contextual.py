"""The deployed network of a rule with context: the model and the encoders of its contexts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol

from torch import Tensor, nn

from localprop.network.outputs import list_tensors, replace_tensors
from localprop.network.partition import Partition


class ContextSource(Protocol):
    """A context of a module, as `localprop.rule.context.Source` is one."""

    @property
    def module(self) -> int:
        """The module whose input is encoded."""
        ...


class ContextPoint(NamedTuple):
    """Where a local module receives context.

    Attributes:
        module: the number of the receiving local module.
        name: the submodule of the model at whose return the context is added.
        positions: where the receiving module's input stands among the tensors that this submodule
            returns.
        sources: the local modules whose inputs are encoded.
        modified_in_place: whether the model later writes into the receiving module's input. Later
            modules then encode a copy that is made before.
    """

    module: int
    name: str
    positions: tuple[int, ...]
    sources: tuple[int, ...]
    modified_in_place: bool


class ContextNetwork(nn.Module):
    """A model whose local modules receive encodings of the inputs of earlier modules.

    Its forward takes and returns what the model's own forward does. During a forward, hooks on the
    model add the contexts.

    Args:
        model: the primary network.
        encoders: by the number of the receiving module, an nn.ModuleList with one encoder per
            source.
        points: where contexts are added, in the order of the forward.

    Example:
        >>> import torch, localprop as lp
        >>> sgd = lambda params: torch.optim.SGD(params, lr=0.1)
        >>> sample = (torch.zeros(4, 3, 8, 8), torch.zeros(4, dtype=torch.long))
        >>> rule = lp.Rule(context=lp.ContextSupply(previous=1))
        >>> learner = lp.Learner(lp.models.resnet8(), rule, modules=4, optimizer=sgd, sample=sample)
        >>> sorted({name.split(".")[0] for name in learner.network.state_dict()})
        ['encoders', 'model']
    """

    def __init__(
        self, model: nn.Module, encoders: nn.ModuleDict, points: Sequence[ContextPoint]
    ) -> None:
        super().__init__()
        self.model = model
        self.encoders = encoders
        self.points = tuple(points)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the model returns, with context."""
        tensors = list_tensors((args, kwargs))
        fractions = [tensor for tensor in tensors if tensor.is_floating_point()]
        with self._add_contexts((fractions or tensors)[0]):  # as `Batch.inputs`
            return self.model(*args, **kwargs)

    @contextmanager
    def _add_contexts(self, inputs: Tensor) -> Iterator[None]:
        """Within the context, the model's forward on `inputs` adds the contexts."""
        module_inputs = {0: inputs}
        # Hooks live for one forward, and modules are looked up by name each time. A hook that stays
        # would be copied by deepcopy, and the copy would still use the encoders of the original.
        ends = [(point, self.model.get_submodule(point.name)) for point in self.points]
        handles = [
            end.register_forward_hook(self._make_hook(point, module_inputs)) for point, end in ends
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _make_hook(
        self, point: ContextPoint, module_inputs: dict[int, Tensor]
    ) -> Callable[[nn.Module, object, Any], Any]:
        def hook(module: nn.Module, args: object, output: Any) -> Any:
            encoders = self.encoders[str(point.module)]
            assert isinstance(encoders, nn.ModuleList)
            entered = list_tensors(output)[point.positions[0]]
            for source, encoder in zip(point.sources, encoders, strict=True):
                entered = entered + encoder(module_inputs[source])
            # The input of a module includes its context, as in ContSup (a queue of module inputs).
            module_inputs[point.module] = entered.clone() if point.modified_in_place else entered
            return replace_tensors(output, point.positions, entered)

        return hook


def add_contexts(
    model: nn.Module,
    encoders: nn.ModuleDict,
    partition: Partition,
    sources: Sequence[Sequence[ContextSource]],
) -> nn.Module:
    """The deployed network: the model itself, or with encoders a `ContextNetwork`.

    Args:
        model: the primary network.
        encoders: by the number of the receiving module.
        partition: the model's local modules.
        sources: of each module, the modules whose inputs it receives.
    """
    if not len(encoders):
        return model
    layers = partition.layers
    points = []
    for number, module in enumerate(partition.modules):
        if number:
            end = module.start - 1
            received = tuple(source.module for source in sources[number])
            (features, *_) = layers.handed_on[end]
            points.append(
                ContextPoint(
                    number,
                    layers.names[end],
                    features.positions,
                    received,
                    features.modified_in_place,
                )
            )
    return ContextNetwork(model, encoders, points)
