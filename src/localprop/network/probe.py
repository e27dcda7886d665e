"""Look at one forward pass of a model on the `meta` device: which modules ran, what they returned, what depends on what.

Nothing of the user's model is touched: its structure is copied, its tensors are replaced by empty `meta` ones.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node

from localprop.errors import BadInput

Vertex = tuple[Node, int]  # a tensor of the autograd graph: the node that made it, and which of its outputs it is


def with_tensors(model: nn.Module, replace: Callable[[Tensor], Tensor]) -> nn.Module:
    """A copy of `model` in which every parameter and buffer is `replace(tensor)`; ties stay ties, no storage is copied."""
    memo: dict[int, object] = {}
    for parameter in model.parameters():
        memo[id(parameter)] = nn.Parameter(replace(parameter.detach()), requires_grad=parameter.requires_grad)
    for buffer in model.buffers():
        memo[id(buffer)] = replace(buffer)
    return copy.deepcopy(model, memo)


def on_meta(model: nn.Module) -> nn.Module:
    """A copy of `model` on the `meta` device in which every floating parameter requires a gradient.

    Frozen parameters would hide edges of the graph, hence the gradients everywhere.
    """
    twin = with_tensors(model, lambda tensor: torch.empty_like(tensor, device="meta")).train()
    for parameter in twin.parameters():
        parameter.requires_grad_(parameter.is_floating_point() or parameter.is_complex())
    return twin


def meta_input(inputs: Tensor) -> Tensor:
    """An empty `meta` tensor like `inputs`; a non-leaf that requires grad if it can, so that an in-place first layer runs."""
    empty = torch.empty_like(inputs, device="meta")
    return empty.requires_grad_().clone() if empty.is_floating_point() else empty


@dataclass(eq=False)
class Call:
    """One call of one module during a forward pass."""

    name: str
    module: nn.Module
    parent: Call | None
    started: int  # autograd's sequence number when the call began
    output: object = None
    vertex: Vertex | None = None  # taken when the call returned: an in-place operation may replace it later
    version: int = 0
    inputs: tuple[int, ...] = ()

    @property
    def made_its_output(self) -> bool:
        """Whether the output was created while this module ran; an Identity merely passes a tensor on."""
        return self.vertex is not None and self.vertex[0]._sequence_nr() > self.started

    @property
    def overwritten(self) -> bool:
        """Whether somebody wrote into the output after the module had returned it."""
        return isinstance(self.output, Tensor) and self.output._version != self.version


@dataclass
class Trace:
    """All calls of one forward pass, in the order in which they returned, and the model's output."""

    calls: list[Call] = field(default_factory=list)
    output: Tensor = field(default_factory=lambda: torch.empty(0))


def trace(model: nn.Module, inputs: Tensor, on_return: Callable[[Call], Tensor | None] = lambda call: None) -> Trace:
    """Run `model(inputs)` and note every call of every submodule.

    Args:
        model: a model on the `meta` device (:func:`on_meta`).
        inputs: its input (:func:`meta_input`).
        on_return: called when a module returns; a tensor that it returns takes the place of the module's output.

    Raises:
        BadInput: the forward fails, or does not return one tensor.
    """
    seen = Trace()
    with _hooks(model, seen, on_return):
        try:
            output = model(inputs)
        except Exception as error:
            raise BadInput([_forward_failed(model, inputs, error)]) from error
    if not isinstance(output, Tensor):
        raise BadInput(
            [
                f"{type(model).__name__} returned {_what(output)}, but localprop needs one tensor of outputs: wrap the "
                "model in an nn.Module whose forward returns only that tensor (for Hugging Face models `.logits`)."
            ]
        )
    seen.output = output
    return seen


def _forward_failed(model: nn.Module, inputs: Tensor, error: Exception) -> str:
    reason = str(error).strip().splitlines()
    what = (
        f"{type(model).__name__} could not run on a sample of shape {tuple(inputs.shape)} and dtype {inputs.dtype} "
        f"({type(error).__name__}: {reason[0] if reason else 'no message'})"
    )
    if any(hasattr(module, "_orig_mod") for module in model.modules()):  # what torch.compile returns
        return f"{what}: give the model before torch.compile, or compile it in place: model.compile()."
    return (
        f"{what}: pass a sample batch of the shape that the model is trained on, of two samples or more. "
        "The forward must also run on the `meta` device (no .item(), no values of tensors)."
    )


def _what(value: object) -> str:
    if isinstance(value, (tuple, list)):
        return f"a {type(value).__name__} of {len(value)}"
    return f"a {type(value).__name__}"


@contextmanager
def _hooks(model: nn.Module, seen: Trace, on_return: Callable[[Call], Tensor | None]) -> Iterator[None]:
    clock = torch.zeros((), device="meta", requires_grad=True)
    stack: list[Call] = []

    def enter(name: str) -> Callable[[nn.Module, tuple[object, ...]], None]:
        def hook(module: nn.Module, args: tuple[object, ...]) -> None:
            with torch.enable_grad():  # a part under no_grad has a clock too
                now = (clock * 1).grad_fn
            assert now is not None
            ids = tuple(id(arg) for arg in args if isinstance(arg, Tensor))
            stack.append(Call(name, module, stack[-1] if stack else None, now._sequence_nr(), inputs=ids))

        return hook

    def leave(module: nn.Module, args: object, output: object) -> Tensor | None:
        call = stack.pop()
        call.output = output
        if isinstance(output, Tensor):
            call.version = output._version
            if output.grad_fn is not None:
                call.vertex = (output.grad_fn, output.output_nr)
        seen.calls.append(call)
        return on_return(call)

    handles = []
    for name, module in model.named_modules():
        if module is not model:
            handles.append(module.register_forward_pre_hook(enter(name)))
            handles.append(module.register_forward_hook(leave))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def bottlenecks(output: Vertex, entry: Vertex | None) -> set[Vertex]:
    """The tensors through which every path from the output back to the input goes.

    In a topological order, a vertex is on every path iff no edge jumps over it::

        input ──► a ──► b ──► c ──► output         a and c are bottlenecks of this graph, b is not:
                  └───────────┘                    the edge a → c jumps over it

    Args:
        output: where the network ends.
        entry: where it begins; None (an input of whole numbers): any node without predecessors but a parameter's.
    """
    order = _topological(output)
    towards = _reaching(order, entry)
    position = {vertex: i for i, vertex in enumerate(v for v in order if v in towards)}
    found, farthest = set(), 0
    for vertex, here in position.items():
        if here >= farthest:
            found.add(vertex)
        for before in _predecessors(vertex):
            if before in position:
                farthest = max(farthest, position[before])
    return found


def _predecessors(vertex: Vertex) -> list[Vertex]:
    return [(node, index) for node, index in vertex[0].next_functions if node is not None]


def _topological(output: Vertex) -> list[Vertex]:
    """All vertices behind `output`, each before its predecessors."""
    done: set[Vertex] = set()
    order: list[Vertex] = []
    stack: list[tuple[Vertex, Iterator[Vertex]]] = [(output, iter(_predecessors(output)))]
    done.add(output)
    while stack:
        vertex, rest = stack[-1]
        for before in rest:
            if before not in done:
                done.add(before)
                stack.append((before, iter(_predecessors(before))))
                break
        else:
            stack.pop()
            order.append(vertex)
    return order[::-1]


def _reaching(order: list[Vertex], entry: Vertex | None) -> set[Vertex]:
    """The vertices from which the entry can be reached."""
    reached: set[Vertex] = set()
    for vertex in reversed(order):
        if vertex == entry or any(before in reached for before in _predecessors(vertex)):
            reached.add(vertex)
    return reached


def leaves(vertex: Vertex) -> list[Tensor]:
    """The leaf tensors (parameters, and inputs that require grad) behind a vertex."""
    found = []
    for node, _ in _topological(vertex):
        leaf = getattr(node, "variable", None)
        if leaf is not None:
            found.append(leaf)
    return found


def depth(vertex: Vertex) -> int:
    """How many weights, tensors of two dimensions or more, the longest path to a vertex meets."""
    longest: dict[Vertex, int] = {}
    for here in reversed(_topological(vertex)):
        before = _predecessors(here)
        meets = not _is_weight(here) and any(map(_is_weight, before))  # a transposed weight is met once
        longest[here] = max((longest[each] for each in before), default=0) + meets
    return longest[vertex]


def _is_weight(vertex: Vertex) -> bool:
    """Whether a vertex is a parameter of two dimensions or more, as it is or transposed for a product."""
    node = vertex[0]
    if node.name() == "TBackward0":
        return any(_is_weight(before) for before in _predecessors(vertex))
    leaf = getattr(node, "variable", None)
    return isinstance(leaf, nn.Parameter) and leaf.ndim > 1
