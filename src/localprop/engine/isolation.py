"""The proof that cuts isolate segments: no graph holds what is older than the last clean cut."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from localprop.engine.cut_hooks import CutHooks
from localprop.network.autograd_graph import find_older, gradient_edge_of
from localprop.network.fake_tensors import FakeMode, quiet_fakes
from localprop.network.outputs import list_tensors, replace_tensors
from localprop.network.untouched import untouched
from localprop.schedule.wiring import Wiring
from localprop.tasks.batch import Batch


def find_leaks(wiring: Wiring, batch: Batch) -> Iterator[str]:
    """Run the model once with the cuts in place, and walk through each segment's graph.

    It runs on fakes, or on two samples where no other look at the model was possible.

    A tensor leaks past its cut where the model has kept it before the module returned: in an
    attribute, or by a hook that came first.

    Args:
        wiring: knows the model and its cuts.
        batch: of the sample's shapes.
    """
    model = wiring.layers.model
    device = next(model.parameters()).device
    with untouched(model), quiet_fakes(), torch.compiler.set_stance("force_eager"):
        mode: AbstractContextManager[object] = nullcontext()
        if wiring.layers.way == "real":
            entered = batch.select(min(2, batch.samples)).clone().to(device)
        else:
            mode = fakes = FakeMode(model.parameters(), imagine=True)
            entered = batch.map(lambda tensor: fakes.enter(tensor, device))
        with mode, torch.enable_grad():
            yield from _Proof(wiring, model).run(entered)


class _Proof:
    def __init__(self, wiring: Wiring, model: nn.Module) -> None:
        self._wiring, self._model = wiring, model
        # When the forward last passed a cut that nothing goes around, in autograd's numbers.
        self._clean = 0
        self._problems: list[str] = []

    def run(self, batch: Batch) -> list[str]:
        last = len(self._wiring.segments) - 1
        hooks = CutHooks(self._model, {s: self._wiring.end_name(s) for s in range(last)}, self._cut)
        with hooks.installed():
            self._look_at(last, [self._wiring.task.forward(self._model, batch.data)])
        return self._problems

    def _cut(self, segment: int, module: nn.Module, args: object, output: Any) -> Any:
        if torch._C._current_graph_task_id() != -1:
            return output
        handed_on = self._wiring.layers.handed_on[self._wiring.segments[segment].layers[-1]]
        returned = list_tensors(output)
        tensors = [returned[each.positions[0]] for each in handed_on]
        self._look_at(segment, tensors)
        if not self._wiring.skips[segment].kept:
            self._clean = int(torch._C._autograd._get_sequence_nr())
        for each, tensor in zip(handed_on, tensors, strict=True):
            leaf = tensor.detach().requires_grad_(tensor.requires_grad)
            entered = leaf.clone() if each.modified_in_place else leaf
            output = replace_tensors(output, each.positions, entered)
        return output

    def _look_at(self, segment: int, tensors: list[Tensor]) -> None:
        edges = [edge for edge in map(gradient_edge_of, tensors) if edge is not None]
        older = find_older(edges, self._clean)
        if older:
            self._problems.append(
                f"The layers {self._wiring.span_name(segment)} still read, past the cut before "
                f"them, what was made before it ({', '.join(sorted(older))}): the model or a hook "
                "keeps a tensor before its module returns. Cut elsewhere, with Partition.at."
            )
