"""The calls of a model's submodules, and of torch's functions between them, in one forward."""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge
from torch.overrides import TorchFunctionMode

from localprop.network.attributes import Kept, read_attributes
from localprop.network.autograd_graph import gradient_edge_of
from localprop.network.copied_values import find_objects
from localprop.network.outputs import list_tensors


class Output(NamedTuple):
    """A tensor that a call returned, as it was at that moment.

    Attributes:
        tensor: the tensor.
        edge: its place in the autograd graph, if it has one.
        version: its version counter.
    """

    tensor: Tensor
    edge: GradientEdge | None
    version: int

    @property
    def modified_in_place(self) -> bool:
        """Whether the model wrote into the tensor after the call had returned it."""
        return self.tensor._version != self.version


@dataclass(eq=False)
class Call:
    """One call of one submodule during a forward pass, or of a function of torch after it.

    Autograd numbers its operations in the order in which the forward makes them, which gives every
    moment a time::

        4 ... │ begin block │ 5 conv   6 relu │ end block
        7 ... │ begin Identity                │ end Identity: it returns 6, made before 7

    Attributes:
        name: the name of the submodule.
        module: the submodule.
        parent: the call during which this one was made; None if the model itself made it.
        start: the time at which the call began: the number of the next operation.
        arguments: the names of what it got besides the first argument, but for defaults.
        inputs: the tensors among its arguments, each with its version when the call began.
        changed: the names of objects among its arguments that it has changed.
        number: which of the calls of this submodule it is, counted from 1.
        function: of a function, how many have run since this submodule returned; else 0.
        end: the time at which it returned.
        in_checkpoint: whether hooks of saved tensors, as checkpoints have them, were on then.
        output: what it returned.
        outputs: the tensors in it, in the order of torch's pytree.
    """

    name: str
    module: nn.Module
    parent: Call | None
    start: int
    arguments: tuple[str, ...] = ()
    inputs: tuple[tuple[Tensor, int], ...] = ()
    changed: tuple[str, ...] = ()
    number: int = 0
    function: int = 0
    end: int = 0
    in_checkpoint: bool = False
    output: Any = None
    outputs: tuple[Output, ...] = ()

    @property
    def is_overwritten(self) -> bool:
        """Whether the model wrote into an argument after the call had begun."""
        return any(tensor._version != version for tensor, version in self.inputs)

    def name_among(self, times: int) -> str:
        """The name of a cut here: "name", "name#2" for the second call of several, "name+1" for the
        first function after its return.
        """
        call = self.name if times == 1 else f"{self.name}#{self.number}"
        return f"{call}+{self.function}" if self.function else call

    def set_output(self, output: Any) -> None:
        """Record what the call returned, at the moment at which it returns."""
        self.end = _read_time()
        self.in_checkpoint = torch._C._autograd._top_saved_tensors_default_hooks(False) is not None
        self.output = output
        # Edges and versions are read now: a later in-place operation, such as an in-place ReLU in
        # the next module, raises the version and gives the same tensor another `grad_fn`.
        self.outputs = tuple(
            Output(tensor, gradient_edge_of(tensor), tensor._version)
            for tensor in list_tensors(output)
        )


class CallRecorder:
    """Records calls.

    Args:
        model: its submodules are looked at.
        on_return: called with each tensor that they return.

    Attributes:
        calls: those that have returned, in this order.
    """

    def __init__(self, model: nn.Module, on_return: Callable[[Tensor], None]) -> None:
        self.calls: list[Call] = []
        self._names = {m: name for name, m in model.named_modules() if m is not model}
        self._on_return = on_return
        # Calls nest, so a stack holds those that have begun and not yet returned.
        self._stack: list[Call] = []
        self._counts = Counter[str]()
        # Of the calls on the stack, the attributes of objects among their arguments.
        self._objects: dict[Call, dict[str, list[Kept]]] = {}
        # The last event, if a module has returned, and how many functions have run since.
        self._returned: Call | None = None
        self._functions = 0

    @contextmanager
    def recording(self, *, functions: bool) -> Iterator[None]:
        """Within the context, calls are recorded; with `functions` also those of functions."""
        handles = []
        for module in self._names:
            # Not the model itself: its return is the end of the trace, and no layer. First of all
            # hooks, as the engine's own: others may keep the output, or return another.
            handles += [
                module.register_forward_pre_hook(self._begin, prepend=True, with_kwargs=True),
                module.register_forward_hook(self._end, prepend=True),
            ]
        try:
            with FunctionMode(self._note_function) if functions else nullcontext():
                yield
        finally:
            for handle in handles:
                handle.remove()

    def _begin(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        parent = self._stack[-1] if self._stack else None
        call = Call(self._names[module], module, parent, _read_time())
        call.arguments = _name_arguments(module, args, kwargs)
        call.inputs = tuple((tensor, tensor._version) for tensor in list_tensors((args, kwargs)))
        self._stack.append(call)
        self._objects[call] = _read_objects(args, kwargs)
        self._returned = None

    def _end(self, module: nn.Module, args: object, output: Any) -> None:
        # A call that raised has left its place on the stack, if somebody has caught the exception.
        while self._stack[-1].module is not module:
            self._stack.pop()
        call = self._stack.pop()
        call.set_output(output)
        objects = self._objects.pop(call)
        call.changed = tuple(
            name for name, kept in objects.items() if any(each.has_changed() for each in kept)
        )
        self._counts[call.name] += 1
        call.number = self._counts[call.name]
        for each in call.outputs:
            self._on_return(each.tensor)
        self.calls.append(call)
        self._returned, self._functions = call, 0

    def _note_function(self, arguments: tuple[Any, ...], start: int, result: Any) -> Any:
        after = self._returned
        if after is None:
            return result
        self._functions += 1
        # What is written into its argument has other names, which a cut would not replace.
        if all(result is not argument for argument in arguments):
            call = Call(after.name, after.module, after.parent, start)
            call.number, call.function = after.number, self._functions
            call.set_output(result)
            for each in call.outputs:
                self._on_return(each.tensor)
            self.calls.append(call)
        return result


class FunctionMode(TorchFunctionMode):
    """Looks at what torch's functions return, if tensors of fractions are in it.

    Only those count: what else runs may differ between fake tensors and real ones.

    Args:
        look: called with the arguments, the time at which the function began, and its result: a
            tensor, or several of them in a tuple or a list. What it returns takes their place.
    """

    def __init__(self, look: Callable[[tuple[Any, ...], int, Any], Any]) -> None:
        super().__init__()
        self._look = look

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        start = _read_time()
        result = func(*args, **(kwargs or {}))
        # torch wraps an output for full backward hooks by a view of itself, which must not count:
        # a hook may come later.
        wraps = len(args) == 2 and args[0] is args[1] and func is Tensor.view_as
        tensors = result if isinstance(result, (tuple, list)) else (result,)
        counts = any(isinstance(each, Tensor) and each.is_floating_point() for each in tensors)
        return self._look(args, start, result) if counts and not wraps else result


def _read_objects(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, list[Kept]]:
    """The attributes of objects among the arguments of a call, by the names of the arguments."""
    named = {**{f"argument {i + 1}": value for i, value in enumerate(args)}, **kwargs}
    found = {name: list(find_objects(value)) for name, value in named.items()}
    return {
        f"{name} ({type(objects[0]).__name__})": read_attributes(map(vars, objects))
        for name, objects in found.items()
        if objects
    }


def _name_arguments(
    module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[str, ...]:
    """The names of the arguments of a call but for the first, and for those with a default."""
    if len(args) <= 1 and not kwargs:
        return ()
    signature = inspect.signature(module.forward)
    parameters = signature.parameters
    try:
        bound = signature.bind(*args, **kwargs).arguments
    except TypeError:  # the call is about to fail with a better message
        return ()
    first, further = next(iter(parameters), ""), dict[str, Any]()
    for name, value in bound.items():
        kind = parameters[name].kind
        if kind is inspect.Parameter.VAR_KEYWORD:
            further |= value
        elif kind is inspect.Parameter.VAR_POSITIONAL:
            rest = value[1:] if name == first else value
            further |= {f"*{name}": rest} if rest else {}
        elif name != first:
            further[name] = value
    return tuple(
        name
        for name, value in further.items()
        if name not in parameters or not _equals(value, parameters[name].default)
    )


def _equals(value: object, default: object) -> bool:
    plain = (bool, int, float, str)
    return value is default or (isinstance(value, plain) and value == default)


def _read_time() -> int:
    """The number of autograd's next operation."""
    return int(torch._C._autograd._get_sequence_nr())


def count_calls(calls: Iterable[Call]) -> Counter[str]:
    """How many times each submodule was called."""
    return Counter(call.name for call in calls if not call.function)
