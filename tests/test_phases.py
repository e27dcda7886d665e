"""Phases: who learns when, that the others stay as they are, and that a resumed run is the undisturbed one."""

from contextlib import suppress
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from localprop import cli
from localprop.data import Batches
from localprop.errors import BadInput
from localprop.learner import Learner
from localprop.training import checkpoint
from localprop.training.config import Config, course_of, prepared
from localprop.training.phases import Phase, only, phases_of
from localprop.training.trainer import lr_at, train

GUIDED = "greedy() for 2; end_to_end() for 1"
SMALL = Config(model="mlp:12,12", limit=60, batch_size=20, epochs=7, modules=3, device="cpu")


def run_of(**changes: Any) -> Config:
    return Config(**{**vars(SMALL), **changes})


def weights(learner: Learner) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in learner.named_parameters()}


def moved(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    return {name for name, value in before.items() if not torch.equal(value, after[name])}


# from text


def test_phases_are_read() -> None:
    assert phases_of(" greedy() for 4;end_to_end() for 1 on 0,2 ") == (
        Phase("greedy()", 4),
        Phase("end_to_end()", 1, (0, 2)),
    )
    assert eval(repr(Phase("greedy()", 4, (1,))), {"Phase": Phase}) == Phase("greedy()", 4, (1,))


@pytest.mark.parametrize(
    ("text", "problems"),
    [("greedy()", 1), ("greedy() for 0; nope() for 1", 2), ("greedy() for 1;", 1), ("greedy() for 1 on a", 1), ("", 1)],
)
def test_bad_phases_are_told(text: str, problems: int) -> None:
    assert len(Config(phases=text).problems()) == problems


def test_a_method_beside_phases_is_refused() -> None:
    assert "leave one of them out" in Config(phases=GUIDED, method="greedy()").problems()[0]


# who learns


def test_phases_take_turns() -> None:
    config = run_of(phases=GUIDED)
    dataset, learner = prepared(config)
    course = course_of(config, dataset, learner)
    assert [course.at(epoch)[1].method for epoch in range(1, 8)] == [
        "greedy()", "greedy()", "end_to_end()", "greedy()", "greedy()", "end_to_end()", "greedy()",
    ]  # fmt: skip
    assert course.at(1)[0] is course.at(5)[0] is learner
    assert course.at(3)[0].model is learner.model
    assert len(course.at(3)[0].heads) == 1 < len(learner.heads)


def test_every_epoch_follows_its_phase() -> None:
    config = run_of(phases=GUIDED)
    dataset, learner = prepared(config)
    course = course_of(config, dataset, learner)
    heads: list[set[str]] = []
    before = weights(learner)

    def on_epoch(report: Any) -> None:
        nonlocal before
        after = weights(learner)
        heads.append({name.split(".")[0] for name in moved(before, after)})
        before = after

    reports = train(learner, dataset, config, course=course, on_epoch=on_epoch)
    assert [len(report.losses) for report in reports] == [3, 3, 1, 3, 3, 1, 3]
    touched = ["heads" in names for names in heads]
    assert touched == [True, True, False, True, True, False, False]  # the last epoch of the cosine has a rate of 0
    assert learner.steps == 21


def test_a_greedy_then_global_run_is_a_plain_loop() -> None:
    """Against three lines of autograd: the modules' own losses for an epoch, then one loss for all."""
    config = run_of(
        phases="greedy(aux=Head(convs=0, linears=1)) for 1; end_to_end() for 1",
        epochs=2, lr_schedule="constant", momentum=0.5, nesterov=False, lr=0.05,
    )  # fmt: skip
    dataset, learner = prepared(config)
    twin, twin_heads = deepcopy(learner.model), [deepcopy(learner.heads[str(k)]["aux"]) for k in range(2)]  # type: ignore[index]
    train(learner, dataset, config)

    layers = [part for part in twin.modules() if isinstance(part, nn.Linear)]
    sgd = {"lr": 0.05, "momentum": 0.5, "weight_decay": 1e-4}
    batches = Batches(dataset, "train", 20, shuffle=True, augment=True)
    optimizer = torch.optim.SGD([*twin.parameters(), *(p for head in twin_heads for p in head.parameters())], **sgd)
    for inputs, labels in batches.epoch(0):
        optimizer.zero_grad()
        x = inputs.flatten(1)
        for layer, head in zip(layers[:2], twin_heads, strict=True):
            x = layer(x.detach()).relu()
            functional.cross_entropy(head(x), labels).backward()
        functional.cross_entropy(layers[2](x.detach()), labels).backward()
        optimizer.step()
    optimizer = torch.optim.SGD(twin.parameters(), **sgd)  # the global phase has momentum of its own
    for inputs, labels in batches.epoch(1):
        optimizer.zero_grad()
        functional.cross_entropy(twin(inputs), labels).backward()
        optimizer.step()
    for mine, other in zip(learner.model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(mine, other, atol=1e-6, rtol=1e-5)


def test_one_module_after_the_other() -> None:
    config = run_of(
        phases="greedy() for 1 on 0; greedy() for 2 on 1; greedy() for 1 on 2", epochs=4, lr_schedule="constant"
    )
    dataset, learner = prepared(config)
    course = course_of(config, dataset, learner)
    assert course.others == {}
    seen = []
    before = weights(learner)

    def on_epoch(report: Any) -> None:
        nonlocal before
        after = weights(learner)
        seen.append(moved(before, after))
        before = after

    train(learner, dataset, config, course=course, on_epoch=on_epoch)
    own = [{learner.partition.layers.parameters[layer][0] for layer in module} for module in learner.partition.modules]
    for names, module in zip(seen, (0, 1, 1, 2), strict=True):
        assert {name for name in names if name in set().union(*own)} == own[module]
        assert {name.split(".")[1] for name in names if name.startswith("heads.")} == (
            {str(module)} if module < 2 else set()
        )
    assert all(parameter.grad is None for parameter in learner.parameters())


def test_only_is_undone_after_a_failure() -> None:
    _, learner = prepared(SMALL)
    before, during = learner.optimizers, []
    with suppress(KeyboardInterrupt), only(learner, (0,)):
        during += learner.optimizers
        raise KeyboardInterrupt
    assert [one is other for one, other in zip(before, during, strict=True)] == [True] * 2 + [False] * 3
    assert learner.optimizers == before


def test_a_module_alone_learns_as_it_does_among_others() -> None:
    """Greedy modules do not feel what follows them: the first one's weights are those of the parallel run."""
    runs = []
    for phases in (None, "Rule() for 2 on 0; Rule() for 1 on 1,2"):
        config = run_of(phases=phases, epochs=3)  # the last one has a learning rate of 0
        dataset, learner = prepared(config)
        train(learner, dataset, config)
        runs.append(weights(learner))
    first = prepared(SMALL)[1].partition.layers.parameters[0]
    assert all(torch.equal(runs[0][name], runs[1][name]) for name in first)
    assert moved(*runs)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"phases": "greedy() for 1 on 3"}, "trains module 3, but the network has 3"),
        (
            {"phases": "greedy() for 1 on 0"},
            "No phase trains modules 1, 2: name them in one, or let a phase name none.",
        ),
        ({"phases": "greedy() for 1 on 0; greedy() for 2 on 1"}, "No phase trains module 2: "),
        ({"phases": "contsup() for 1; greedy() for 1", "model": "resnet8"}, "encoders of its own"),
        ({"phases": "greedy() for 1; interlocking(wise=1, nope=2) for 1"}, "nope"),
    ],
)
def test_what_cannot_be_done_is_told(changes: dict[str, Any], told: str) -> None:
    config = run_of(**changes)
    dataset, learner = prepared(run_of(model=config.model, method=changes["phases"].split(" for")[0]))
    with pytest.raises(BadInput, match=told):
        course_of(config, dataset, learner)


def test_phases_that_never_begin_are_refused() -> None:
    phases = "greedy() for 50 on 0; greedy() for 60 on 1,2"
    told = "The phases take 110 epochs, but epochs=20: phase 2 never begins; use --epochs 110."
    assert run_of(phases=phases, epochs=20).problems() == [told]
    assert run_of(phases=phases, epochs=51).problems() == []
    assert len(run_of(phases=phases, epochs=50).problems()) == 1
    assert (
        "phases 2, 3 never begin;"
        in run_of(phases="Rule() for 3; greedy() for 1; Rule() for 1", epochs=3).problems()[0]
    )


def test_several_methods_need_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    config = run_of(phases=GUIDED)
    dataset, learner = prepared(config)
    monkeypatch.setattr("localprop.training.phases.world", lambda: 2)
    with pytest.raises(BadInput, match="without torchrun"):
        course_of(config, dataset, learner)


def test_the_learning_rate_is_that_of_the_epoch() -> None:
    config = run_of(phases=GUIDED)
    dataset, learner = prepared(config)
    assert [r.lr for r in train(learner, dataset, config)] == [lr_at(config, epoch) for epoch in range(1, 8)]


# resumed runs


SEQUENTIAL = "greedy() for 1 on 0; greedy() for 1 on 1; backlink() for 2"


@pytest.mark.parametrize(
    ("phases", "model", "stop"),
    [(GUIDED, "resnet8", 3), (GUIDED, "mlp", 5), (SEQUENTIAL, "mlp", 1), (SEQUENTIAL, "mlp", 3)],
)
def test_a_resumed_run_is_bit_equal(tmp_path: Path, phases: str, model: str, stop: int) -> None:
    config = run_of(phases=phases, model=model, modules=2, limit=30, batch_size=15)
    dataset, whole = prepared(config)
    course = course_of(config, dataset, whole)
    wanted = train(whole, dataset, config, course=course)

    _, first = prepared(config)
    broken = course_of(config, dataset, first)

    def keep(report: Any) -> None:
        checkpoint.save(tmp_path / "last.pt", first, report.epoch, broken.others)
        if report.epoch == stop:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(first, dataset, config, course=broken, on_epoch=keep)
    _, second = prepared(config)
    resumed = course_of(config, dataset, second)
    assert checkpoint.load(tmp_path / "last.pt", second, resumed.others) == stop
    reports = train(second, dataset, config, course=resumed, start_epoch=stop)
    assert [r.losses for r in reports] == [r.losses for r in wanted[stop:]]
    for one, other in zip(course.learners.values(), resumed.learners.values(), strict=True):
        assert not moved(weights(one), weights(other))


def test_a_checkpoint_of_other_phases_is_refused(tmp_path: Path) -> None:
    config = run_of(phases=GUIDED)
    dataset, learner = prepared(config)
    checkpoint.save(tmp_path / "a.pt", learner, 1, course_of(config, dataset, learner).others)
    with pytest.raises(BadInput, match=r"also has end_to_end\(\)"):
        checkpoint.load(tmp_path / "a.pt", learner)


def test_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [
        "train",
        "--model",
        "mlp:12,12",
        "--limit",
        "60",
        "--epochs",
        "3",
        "--phases",
        GUIDED,
        "--out",
        str(tmp_path),
    ]
    assert cli.main(words) == 0
    assert (tmp_path / "last.pt").exists()
    (tmp_path / "summary.json").unlink()
    assert cli.main(["train", "--out", str(tmp_path), "--resume"]) == 0
    assert cli.main([*words[:7], "--phases", "greedy() for 1 on 9"]) == 2
    assert "trains module 9" in capsys.readouterr().err
