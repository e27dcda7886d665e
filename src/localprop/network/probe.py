"""Look at one forward pass of a model on the `meta` device: which modules run, what they return.

The user's model stays as it is: the probe copies its structure and replaces its tensors by empty
ones on the `meta` device, which have a shape and an autograd graph but no data.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge

from localprop.errors import BadInput
from localprop.network.autograd_graph import gradient_edge_of


def copy_with_tensors(model: nn.Module, replace: Callable[[Tensor], Tensor]) -> nn.Module:
    """Copy `model`, with every parameter and buffer replaced by `replace(tensor)`.

    Tied parameters stay tied, and no storage is copied.
    """
    # deepcopy looks an object up in its memo before it copies it. With the replacements in the
    # memo, it never reaches the data, and two modules that share a parameter share its replacement.
    memo: dict[int, object] = {}
    for parameter in model.parameters():
        memo[id(parameter)] = nn.Parameter(
            replace(parameter.detach()), requires_grad=parameter.requires_grad
        )
    for buffer in model.buffers():
        memo[id(buffer)] = replace(buffer)
    return copy.deepcopy(model, memo)


def copy_to_meta(model: nn.Module) -> nn.Module:
    """Copy `model` to the `meta` device, in training mode.

    Every parameter of floating point requires a gradient, frozen ones too.
    """
    # In training mode, because the layers are those of training: a stochastic depth, for instance,
    # returns its input itself in evaluation mode.
    meta = copy_with_tensors(model, lambda tensor: torch.empty_like(tensor, device="meta")).train()
    # Autograd records only what needs a gradient. With frozen parameters left frozen, the graph
    # would miss the tensors that are computed from them alone, and a path through those would be
    # unseen.
    for parameter in meta.parameters():
        parameter.requires_grad_(parameter.is_floating_point() or parameter.is_complex())
    return meta


def make_meta_input(inputs: Tensor) -> Tensor:
    """An empty tensor like `inputs` on the `meta` device, which requires a gradient if it can."""
    empty = torch.empty_like(inputs, device="meta")
    # The clone is no leaf. Autograd refuses to modify a leaf in place, and the first module may do
    # that to its input.
    return empty.requires_grad_().clone() if empty.is_floating_point() else empty


@dataclass(eq=False)
class Call:
    """One call of one submodule during a forward pass.

    Attributes:
        name: the name of the submodule.
        module: the submodule.
        parent: the call during which this one was made; None if the model itself made it.
        sequence_at_start: autograd's sequence number when the call began.
        output: what the call returned.
        edge: the place of the output in the autograd graph, if the output is a tensor with one.
        version: the version counter of the output when the call returned.
        input_ids: `id` of every tensor among the positional arguments.
    """

    name: str
    module: nn.Module
    parent: Call | None
    sequence_at_start: int
    output: object = None
    edge: GradientEdge | None = None
    version: int = 0
    input_ids: tuple[int, ...] = ()

    @property
    def sequence_of_output(self) -> int:
        """Autograd's sequence number of the operation that made the output."""
        assert self.edge is not None
        return self.edge.node._sequence_nr()

    @property
    def creates_output(self) -> bool:
        """Whether the output was made during this call. An Identity returns an earlier tensor."""
        return self.edge is not None and self.sequence_of_output > self.sequence_at_start

    @property
    def modified_in_place(self) -> bool:
        """Whether the model wrote into the output after the module had returned it."""
        return isinstance(self.output, Tensor) and self.output._version != self.version

    def set_output(self, output: object) -> None:
        """Record what the call returned, at the moment at which it returns."""
        self.output = output
        if isinstance(output, Tensor):
            # Both are read now: a later in-place operation, such as an in-place ReLU in the next
            # module, raises the version and gives the same tensor another `grad_fn`.
            self.version = output._version
            self.edge = gradient_edge_of(output)


@dataclass
class ForwardTrace:
    """All calls of one forward pass, in the order of their returns, and the model's output."""

    calls: list[Call] = field(default_factory=list)
    output: Tensor = field(default_factory=lambda: torch.empty(0))


def trace_forward(
    model: nn.Module, inputs: Tensor, on_return: Callable[[Call], Tensor | None] = lambda call: None
) -> ForwardTrace:
    """Run `model(inputs)` and record every call of every submodule.

    Args:
        model: a model on the `meta` device (`copy_to_meta`).
        inputs: its input (`make_meta_input`).
        on_return: called when a submodule returns; if it returns a tensor, that tensor replaces the
            output of the submodule.

    Raises:
        BadInput: the forward fails, or does not return one tensor.
    """
    trace = ForwardTrace()
    with _record_calls(model, trace, on_return):
        try:
            output = model(inputs)
        except Exception as error:
            raise BadInput([_describe_failure(model, inputs, error)]) from error
    if not isinstance(output, Tensor):
        raise BadInput(
            [
                f"{type(model).__name__} returned {_describe_type(output)}, but localprop needs "
                "one tensor of outputs: wrap the model in an nn.Module whose forward returns only "
                "that tensor (for Hugging Face models `.logits`)."
            ]
        )
    trace.output = output
    return trace


def _describe_failure(model: nn.Module, inputs: Tensor, error: Exception) -> str:
    lines = str(error).strip().splitlines()
    failure = (
        f"{type(model).__name__} could not run on a sample of shape {tuple(inputs.shape)} and "
        f"dtype {inputs.dtype} ({type(error).__name__}: {lines[0] if lines else 'no message'})"
    )
    # torch.compile(model) returns a wrapper with this attribute, whose forward does not run on meta
    # tensors. model.compile() leaves the module itself in place.
    if any(hasattr(module, "_orig_mod") for module in model.modules()):
        return (
            f"{failure}: pass the model before torch.compile, or compile it in place with "
            "model.compile()."
        )
    return (
        f"{failure}: pass a sample batch of the shape that the model is trained on, with two "
        "samples or more. The forward must also run on the `meta` device: it cannot call .item() "
        "or read the values of tensors."
    )


def _describe_type(value: object) -> str:
    if isinstance(value, (tuple, list)):
        return f"a {type(value).__name__} of {len(value)}"
    return f"a {type(value).__name__}"


@contextmanager
def _record_calls(
    model: nn.Module, trace: ForwardTrace, on_return: Callable[[Call], Tensor | None]
) -> Iterator[None]:
    """Record the calls of all submodules of `model` in `trace`, by hooks."""
    # Calls nest, so a stack holds those that have begun and not yet returned.
    stack: list[Call] = []

    def begin_call(name: str) -> Callable[[nn.Module, tuple[object, ...]], None]:
        def hook(module: nn.Module, args: tuple[object, ...]) -> None:
            parent = stack[-1] if stack else None
            # Ids are enough: only the model's own input is looked for (layer_ends.py), and it stays
            # alive.
            input_ids = tuple(id(arg) for arg in args if isinstance(arg, Tensor))
            sequence = _read_sequence_number()
            stack.append(Call(name, module, parent, sequence, input_ids=input_ids))

        return hook

    def end_call(module: nn.Module, args: object, output: object) -> Tensor | None:
        # Hooks pair up: a module returns before the one that has called it does.
        call = stack.pop()
        call.set_output(output)
        trace.calls.append(call)
        return on_return(call)

    handles = []
    for name, module in model.named_modules():
        if module is not model:
            # Not the model itself: its return is the end of the trace, and no layer.
            handles.append(module.register_forward_pre_hook(begin_call(name)))
            handles.append(module.register_forward_hook(end_call))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _read_sequence_number() -> int:
    """The sequence number that autograd has reached: later operations get larger ones.

    Autograd numbers its nodes in the order in which the forward makes them. So an operation of our
    own is a clock, and tells what was made before a call from what is made during the call::

        4 clock │ begin block │ 5 conv   6 relu │ end block
        7 clock │ begin Identity                │ end Identity: it returns 6, made before 7
    """
    # A part of the model that runs under no_grad makes no nodes, but its calls need the time, too.
    with torch.enable_grad():
        node = (torch.zeros((), device="meta", requires_grad=True) * 1).grad_fn
    assert node is not None
    return node._sequence_nr()
