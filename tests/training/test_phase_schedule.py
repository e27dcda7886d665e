"""Phases: which modules train in which epoch, that the others stay unchanged, and resumed runs."""

from __future__ import annotations

from contextlib import suppress
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from localprop.cli import main as cli
from localprop.data import Batches
from localprop.errors import BadInput
from localprop.learner import Learner
from localprop.training import checkpoint
from localprop.training.build import build_phase_schedule, prepare
from localprop.training.config import Config
from localprop.training.learning_rates import lr_at
from localprop.training.phase_schedule import NoOpOptimizer, train_modules
from localprop.training.trainer import EpochReport, train

GUIDED = "greedy() for 2; end_to_end() for 1"


SEQUENTIAL = "greedy() for 1 on 0; greedy() for 1 on 1; backlink() for 2"


SMALL = Config(model="mlp:12,12", limit=60, batch_size=20, epochs=7, modules=3, device="cpu")


def config_of(**changes: Any) -> Config:
    return Config(**{**vars(SMALL), **changes})


def copy_weights(learner: Learner) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in learner.named_parameters()}


def find_moved(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    return {name for name, value in before.items() if not torch.equal(value, after[name])}


# --- which modules train ---


def test_phases_take_turns() -> None:
    config = config_of(phases=GUIDED)
    dataset, learner = prepare(config)
    phase_schedule = build_phase_schedule(config, dataset, learner)
    assert [phase_schedule.at(epoch)[1].method for epoch in range(1, 8)] == [
        "greedy()", "greedy()", "end_to_end()", "greedy()", "greedy()", "end_to_end()", "greedy()",
    ]  # fmt: skip
    assert phase_schedule.at(1)[0] is phase_schedule.at(5)[0] is learner
    assert phase_schedule.at(3)[0].model is learner.model
    assert len(phase_schedule.at(3)[0].heads) == 1 < len(learner.heads)


def test_every_epoch_follows_its_phase() -> None:
    config = config_of(phases=GUIDED)
    dataset, learner = prepare(config)
    phase_schedule = build_phase_schedule(config, dataset, learner)
    heads: list[set[str]] = []
    before = copy_weights(learner)

    def on_epoch(report: EpochReport) -> None:
        nonlocal before
        after = copy_weights(learner)
        heads.append({name.split(".")[0] for name in find_moved(before, after)})
        before = after

    reports = train(learner, dataset, config, phase_schedule=phase_schedule, on_epoch=on_epoch)
    assert [len(report.losses) for report in reports] == [3, 3, 1, 3, 3, 1, 3]
    touched = ["heads" in names for names in heads]
    # The last epoch of the cosine has a learning rate of 0.
    assert touched == [True, True, False, True, True, False, False]
    assert learner.steps == 21


def test_a_greedy_then_global_run_is_a_plain_loop() -> None:
    """Compared with plain autograd: local losses for an epoch, then one loss for all layers."""
    config = config_of(
        phases="greedy(aux=Head(convs=0, linears=1)) for 1; end_to_end() for 1",
        epochs=2,
        lr_schedule="constant",
        momentum=0.5,
        nesterov=False,
        lr=0.05,
    )
    dataset, learner = prepare(config)
    model, heads = deepcopy(learner.model), []
    for k in range(2):
        head = learner.heads[str(k)]
        assert isinstance(head, nn.ModuleDict)
        heads.append(deepcopy(head["aux"]))
    train(learner, dataset, config)

    layers = [module for module in model.modules() if isinstance(module, nn.Linear)]
    sgd = partial(torch.optim.SGD, lr=0.05, momentum=0.5, weight_decay=1e-4)
    batches = Batches(dataset, "train", 20, shuffle=True, augment=True)
    optimizer = sgd([*model.parameters(), *(p for head in heads for p in head.parameters())])
    for inputs, labels in batches.epoch(0):
        optimizer.zero_grad()
        x, losses = inputs.flatten(1), []
        for layer, head in zip(layers[:2], heads, strict=True):
            x = layer(x.detach()).relu()
            losses.append(functional.cross_entropy(head(x), labels))
        losses.append(functional.cross_entropy(layers[2](x.detach()), labels))
        torch.autograd.backward(losses)  # the graphs of the modules are separate
        optimizer.step()
    optimizer = sgd(model.parameters())  # the global phase has momentum of its own
    for inputs, labels in batches.epoch(1):
        optimizer.zero_grad()
        torch.autograd.backward(functional.cross_entropy(model(inputs), labels))
        optimizer.step()
    for parameter, expected in zip(learner.model.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(parameter, expected, atol=1e-6, rtol=1e-5)


def test_one_module_after_the_other() -> None:
    config = config_of(
        phases="greedy() for 1 on 0; greedy() for 2 on 1; greedy() for 1 on 2",
        epochs=4,
        lr_schedule="constant",
    )
    dataset, learner = prepare(config)
    phase_schedule = build_phase_schedule(config, dataset, learner)
    assert phase_schedule.others == {}
    moved = []
    before = copy_weights(learner)

    def on_epoch(report: EpochReport) -> None:
        nonlocal before
        after = copy_weights(learner)
        moved.append(find_moved(before, after))
        before = after

    train(learner, dataset, config, phase_schedule=phase_schedule, on_epoch=on_epoch)
    first_parameters = [
        {learner.partition.layers.parameters[layer][0] for layer in module}
        for module in learner.partition.modules
    ]
    for names, module in zip(moved, (0, 1, 1, 2), strict=True):
        assert names & set().union(*first_parameters) == first_parameters[module]
        heads = {name.split(".")[1] for name in names if name.startswith("heads.")}
        assert heads == ({str(module)} if module < 2 else set())
    assert all(parameter.grad is None for parameter in learner.parameters())


def test_all_modules_train_again_after_a_failure() -> None:
    _, learner = prepare(SMALL)
    before, during = learner.optimizers, []
    with suppress(KeyboardInterrupt), train_modules(learner, (0,)):
        during += learner.optimizers
        raise KeyboardInterrupt
    # Of the first module, the segment and the head keep their optimizers.
    unchanged = [one is other for one, other in zip(before, during, strict=True)]
    assert unchanged == [True] * 2 + [False] * 3
    assert all(isinstance(optimizer, NoOpOptimizer) for optimizer in during[2:])
    assert learner.optimizers == before


def test_a_module_alone_learns_as_it_does_among_others() -> None:
    """Nothing after a greedy module reaches it: the first one trains as in the parallel run."""
    runs = []
    for phases in (None, "Rule() for 2 on 0; Rule() for 1 on 1,2"):
        config = config_of(phases=phases, epochs=3)  # the last one has a learning rate of 0
        dataset, learner = prepare(config)
        train(learner, dataset, config)
        runs.append(copy_weights(learner))
    first = prepare(SMALL)[1].partition.layers.parameters[0]
    assert all(torch.equal(runs[0][name], runs[1][name]) for name in first)
    assert find_moved(*runs)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"phases": "greedy() for 1 on 3"}, "trains module 3, but the network has 3"),
        (
            {"phases": "greedy() for 1 on 0"},
            "No phase trains modules 1, 2: name them in a phase, or let one phase name no modules.",
        ),
        ({"phases": "greedy() for 1 on 0; greedy() for 2 on 1"}, "No phase trains module 2: "),
        ({"phases": "contsup() for 1; greedy() for 1", "model": "resnet8"}, "encoders of its own"),
        ({"phases": "greedy() for 1; interlocking(wise=1, nope=2) for 1"}, "nope"),
    ],
)
def test_phases_that_do_not_fit_the_network_are_refused(
    changes: dict[str, Any], message: str
) -> None:
    config = config_of(**changes)
    dataset, learner = prepare(
        config_of(model=config.model, method=changes["phases"].split(" for")[0])
    )
    with pytest.raises(BadInput, match=message):
        build_phase_schedule(config, dataset, learner)


def test_several_methods_need_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    config = config_of(phases=GUIDED)
    dataset, learner = prepare(config)
    monkeypatch.setattr("localprop.training.phase_schedule.get_world_size", lambda: 2)
    with pytest.raises(BadInput, match="without torchrun"):
        build_phase_schedule(config, dataset, learner)


def test_the_learning_rate_is_that_of_the_epoch() -> None:
    config = config_of(phases=GUIDED)
    dataset, learner = prepare(config)
    assert [r.lr for r in train(learner, dataset, config)] == [
        lr_at(config, epoch) for epoch in range(1, 8)
    ]


# --- resumed runs ---


@pytest.mark.parametrize(
    ("phases", "model", "stop"),
    [(GUIDED, "resnet8", 3), (GUIDED, "mlp", 5), (SEQUENTIAL, "mlp", 1), (SEQUENTIAL, "mlp", 3)],
)
def test_a_resumed_run_is_bit_equal(tmp_path: Path, phases: str, model: str, stop: int) -> None:
    config = config_of(phases=phases, model=model, modules=2, limit=30, batch_size=15)
    dataset, whole = prepare(config)
    phase_schedule = build_phase_schedule(config, dataset, whole)
    wanted = train(whole, dataset, config, phase_schedule=phase_schedule)

    _, first = prepare(config)
    broken = build_phase_schedule(config, dataset, first)

    def keep(report: EpochReport) -> None:
        checkpoint.save(tmp_path / "last.pt", first, report.epoch, broken.others)
        if report.epoch == stop:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(first, dataset, config, phase_schedule=broken, on_epoch=keep)
    _, second = prepare(config)
    resumed = build_phase_schedule(config, dataset, second)
    assert checkpoint.load(tmp_path / "last.pt", second, resumed.others) == stop
    reports = train(second, dataset, config, phase_schedule=resumed, start_epoch=stop)
    assert [r.losses for r in reports] == [r.losses for r in wanted[stop:]]
    for one, other in zip(phase_schedule.learners.values(), resumed.learners.values(), strict=True):
        assert not find_moved(copy_weights(one), copy_weights(other))


def test_a_checkpoint_of_other_phases_is_refused(tmp_path: Path) -> None:
    config = config_of(phases=GUIDED)
    dataset, learner = prepare(config)
    checkpoint.save(
        tmp_path / "a.pt", learner, 1, build_phase_schedule(config, dataset, learner).others
    )
    with pytest.raises(BadInput, match=r"also has end_to_end\(\)"):
        checkpoint.load(tmp_path / "a.pt", learner)


def test_the_command_line_trains_and_resumes_phases(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["train", "--model", "mlp:12,12", "--limit", "60", "--epochs", "3"]
    assert cli.main([*words, "--phases", GUIDED, "--out", str(tmp_path)]) == 0
    assert (tmp_path / "epoch-00003.safetensors").exists()
    (tmp_path / "summary.json").unlink()
    assert cli.main(["train", "--out", str(tmp_path), "--resume"]) == 0
    assert cli.main([*words, "--phases", "greedy() for 1 on 9"]) == 2
    assert "trains module 9" in capsys.readouterr().err
