"""A step reads no value of a tensor, for which a GPU would have to finish all that it was given."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import localprop as lp
from localprop.errors import StepFailed
from tests.helpers.predictions import make_batch, sgd

aten = torch.ops.aten
READS = (
    aten._local_scalar_dense, aten._unique2, aten.allclose, aten.equal, aten.is_nonzero, aten.item,
    aten.masked_select, aten.nonzero, aten.unique_consecutive, aten.unique_dim,
)  # fmt: skip
INDEXES = (aten.index, aten.index_put, aten.index_put_)

RULES = {
    "end_to_end": lp.end_to_end(),
    "greedy": lp.greedy(),
    "backlink": lp.backlink(),
    "interlocking": lp.interlocking(2),
    "contsup": lp.contsup(),
    "auglocal": lp.auglocal(),
    "infopro": lp.infopro(),
    "dgl": lp.dgl(),
    "predsim": lp.predsim(),
    "gn_dgl": lp.gn_dgl(),
    "sgr": lp.sgr(),
    "trgl": lp.trgl(),
    "man": lp.man(),
}
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


class RefuseReads(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Raises where an operation hands a value to Python, or makes as many values as it finds."""

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] = MappingProxyType({}),
    ) -> Any:
        operation = func.overloadpacket
        by_mask = operation in INDEXES and any(_is_mask(index) for index in args[1])
        if operation in READS or by_mask:
            raise RuntimeError(f"{func} reads values")
        return func(*args, **kwargs)


def _is_mask(index: Tensor | None) -> bool:
    return index is not None and index.dtype in (torch.bool, torch.uint8)


def learn(
    rule: lp.Rule, device: str = "cpu", on_nonfinite: str = "ignore", **options: Any
) -> lp.Learner:
    torch.manual_seed(0)
    return lp.Learner(
        lp.models.create_model("resnet14", 3, (3, 16, 16)).to(device),
        rule,
        modules=4,
        optimizer=sgd,
        sample=make_batch(3, 16, 16).data,
        normalization=lp.Normalization(),
        on_nonfinite=on_nonfinite,
        **options,
    )


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_no_value_is_read(rule: lp.Rule, precision: str) -> None:
    """The batch is looked at before, on the CPU: labels out of range are the user's problem."""
    learner, batch = learn(rule, precision=precision), make_batch(3, 16, 16)
    for number in range(2):  # the first makes the state of the optimizers
        with RefuseReads():  # type: ignore[no-untyped-call]
            learner.engine.step(batch, number=number)


def test_numbers_are_looked_at_once_when_all_backwards_have_run() -> None:
    learner, batch = learn(lp.backlink(), on_nonfinite="raise"), make_batch(3, 16, 16)
    with RefuseReads(), pytest.raises(StepFailed, match="reads values") as failed:  # type: ignore[no-untyped-call]
        learner.engine.step(batch)
    actions = [str(action) for action in learner.schedule]
    assert failed.value.action is not None
    place = actions.index(str(failed.value.action))
    assert {name.strip("0123456789.") for name in actions[place:]} == {"H", "S"}


def test_a_read_is_seen() -> None:
    learner = learn(lp.greedy())
    head = learner.heads["0"].get_submodule("aux")
    head.register_forward_hook(lambda module, args, output: output * float(output.sum() > 0))
    refuse = RefuseReads()  # type: ignore[no-untyped-call]
    with refuse, pytest.raises(StepFailed, match=r"_local_scalar_dense.* reads values"):
        learner.engine.step(make_batch(3, 16, 16))


@contextmanager
def refuse_waits() -> Iterator[None]:
    """Raise where Python waits for the GPU."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
@needs_cuda
@pytest.mark.parametrize("options", [{}, {"precision": "bf16"}, {"fast": True}], ids=str)
@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_nobody_waits_for_a_gpu(rule: lp.Rule, options: dict[str, Any]) -> None:
    learner, batch = learn(rule, "cuda", **options), make_batch(3, 16, 16)
    moved = batch.to(torch.device("cuda")).data
    learner.step(moved)  # cuDNN and cuBLAS make their workspaces
    with refuse_waits():
        learner.step(moved)


@pytest.mark.gpu
@needs_cuda
@pytest.mark.parametrize("task", [lp.Classification(class_weights=[1.0, 2.0, 3.0])])
def test_nobody_waits_for_weights_of_classes(task: lp.Task) -> None:
    learner, batch = learn(lp.greedy(), "cuda", task=task), make_batch(3, 16, 16)
    moved = batch.to(torch.device("cuda")).data
    learner.step(moved)
    with refuse_waits():
        learner.step(moved)
