"""Offload: the host keeps what forwards save, and the bits are the same."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import localprop as lp
from localprop.cost.counted_host import CountedHost
from localprop.cost.fake_engine import list_held_tensors
from localprop.cost.memory import measure_peak
from localprop.engine.offload import HostMemory
from localprop.tasks.batch import Batch
from tests.helpers.reference import network, sgd

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


class Checkpointed(nn.Module):
    """A convolution, blocks within a checkpoint of the model's own, and attention."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=2)
        self.blocks = nn.Sequential(*(nn.Conv2d(8, 8, 3, padding=1) for _ in range(2)))
        self.mix = nn.MultiheadAttention(8, 2, batch_first=True)
        self.head = nn.Linear(8, 10)

    def forward(self, images: Tensor) -> Tensor:
        x = torch.relu_(self.stem(images))
        x = checkpoint(self.blocks, x, use_reentrant=False)
        x = x.flatten(2).transpose(1, 2)
        x = x + self.mix(x, x, x, need_weights=False)[0]
        logits: Tensor = self.head(x.mean(1))
        return logits


def train(model: nn.Module, batches: list[Any], rule: lp.Rule, **options: Any) -> lp.Learner:
    learner = lp.Learner(
        copy.deepcopy(model), rule, optimizer=sgd, sample=batches[0], **{"modules": 4, **options}
    )
    for batch in batches:
        learner.step(batch)
    return learner


def list_state(learner: lp.Learner) -> Iterator[tuple[str, Tensor]]:
    for kind, module in learner.trained_modules().items():
        yield from module.state_dict(prefix=kind).items()


def assert_same(one: lp.Learner, other: lp.Learner) -> None:
    for (name, tensor), (_, again) in zip(list_state(one), list_state(other), strict=True):
        assert torch.equal(tensor, again), name


@pytest.mark.parametrize(
    ("rule", "options"),
    [
        (lp.end_to_end(), {"modules": 1, "microbatches": 2}),
        (lp.end_to_end(), {"modules": 3, "precision": "bf16"}),
        (lp.greedy(), {}),
        (lp.backlink(), {}),
        (lp.contsup(), {}),
        (lp.interlocking(), {}),
        (lp.trgl(), {}),
    ],
    ids=lambda value: value.reference if isinstance(value, lp.Rule) else "",
)
def test_no_bit_changes(rule: lp.Rule, options: dict[str, Any]) -> None:
    model, batches = network("resnet8")
    assert_same(
        train(model, batches, rule, **options),
        train(model, batches, rule, **options, offload=True),
    )


@pytest.mark.parametrize("modules", [1, 3])
def test_views_writes_in_place_and_checkpoints_of_the_model_are_no_obstacle(modules: int) -> None:
    _, batches = network("resnet8")
    torch.manual_seed(0)
    model, rule = Checkpointed().double(), lp.backlink() if modules > 1 else lp.end_to_end()
    assert_same(
        train(model, batches, rule, modules=modules),
        train(model, batches, rule, modules=modules, offload=True),
    )


def test_what_is_saved_is_copied_but_for_what_lives_anyway(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, batches = network("resnet8")
    learner = train(model, batches[:1], lp.end_to_end(), modules=1, offload=True)
    copied = list[Tensor]()
    held = [each.data_ptr() for each in (*learner.model.parameters(), *learner.model.buffers())]
    held.append(batches[0][0].data_ptr())
    put = HostMemory.put

    def watch(self: HostMemory, flat: Tensor) -> Tensor:
        assert flat.data_ptr() not in held
        copied.append(put(self, flat))
        assert copied[-1].data_ptr() != flat.data_ptr()
        return copied[-1]

    monkeypatch.setattr(HostMemory, "put", watch)
    learner.step(batches[0])
    saved = list[Tensor]()

    def keep(tensor: Tensor) -> Tensor:
        saved.append(tensor.detach())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        learner.model(batches[0][0])
    storages = {each.untyped_storage().data_ptr(): each.untyped_storage() for each in saved}
    expected = sum(each.nbytes() for key, each in storages.items() if key not in held)
    assert sum(each.nbytes for each in copied) == expected > 0


def test_gradients_come_back_from_the_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    model, batches = network("resnet8")
    monkeypatch.setattr(HostMemory, "fetch", lambda _, copied: copied.zero_())
    trained = train(model, batches[:1], lp.end_to_end(), modules=1, offload=True)
    with pytest.raises(AssertionError):
        assert_same(trained, train(model, batches[:1], lp.end_to_end(), modules=1))


def test_copies_die_with_the_graph() -> None:
    model, batches = network("resnet8")
    learner = train(model, batches[:1], lp.backlink(), offload=True, on_nonfinite="ignore")
    assert learner.engine.offload is not None
    # What it brings back has any values, NaN among them.
    host = learner.engine.offload.host = CountedHost()
    learner.step(batches[1])
    assert host.current == 0 < host.peak


def test_the_device_is_told_from_the_host() -> None:
    """On the CPU the peak holds the copies; of another device only what stays there counts."""
    model, batches = network("resnet8")
    # At 8x8 pixels, copies of the weights would make the peak.
    options: dict[str, Any] = {"modules": 1, "atomic": False}
    stored = train(model, batches[:1], lp.end_to_end(), **options).memory()
    learner = train(model, batches[:1], lp.end_to_end(), offload=True, **options)
    here, engine = learner.memory(), learner.engine
    held = list_held_tensors([learner.model], engine.optimizers.all(), Batch.of(batches[0]))
    read = measure_peak(lambda: learner.step(batches[0]), held, torch.device("cpu"))
    assert here.host_bytes is None
    assert read.peak_bytes == here.peak_bytes >= stored.peak_bytes
    assert "the host itself" in learner.notes[-1]
    assert "offload" in learner.summary()

    assert engine.offload is not None
    engine.offload.host = CountedHost()
    there = learner.memory()
    assert there.peak_bytes < stored.peak_bytes
    assert there.host_bytes is not None
    assert there.peak_bytes + there.host_bytes > stored.peak_bytes


def test_it_is_told_what_offload_does_not_go_with() -> None:
    model, batches = network("resnet8")
    with pytest.raises(lp.BadInput, match="leave one of them out"):
        train(model, batches, lp.greedy(), offload=True, recompute=True)
    with pytest.raises(lp.BadInput, match="must be True or False"):
        train(model, batches, lp.greedy(), offload="yes")
    with pytest.raises(lp.BadInput, match="how long its copies take"):
        train(model, batches, lp.greedy(), offload=True, budget="1GB", modules=None)


@pytest.mark.gpu
@needs_cuda
def test_memory_of_a_gpu_is_freed_and_no_bit_changes() -> None:
    model, batches = network("resnet8")
    model = model.cuda()
    learners = [
        train(model, batches, lp.end_to_end(), modules=1, offload=offload)
        for offload in (False, True)
    ]
    assert_same(*learners)
    peaks = []
    for learner in learners:
        batch = tuple(tensor.cuda() for tensor in batches[0])
        read = measure_peak(partial(learner.step, batch), [], torch.device("cuda"))
        peaks.append(read.peak_bytes - read.resting_bytes)
    assert peaks[1] < peaks[0]
