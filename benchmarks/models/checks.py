"""What the sweep measures of a case, check by check. Each is independent of the others.

A check returns what it found, in a form for JSON. What raises is kept as the reason: `BadInput`
is a refusal, and anything else a crash.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from typing import Any

import torch
from cases import Build, Case, build_case
from layer_ends import watch_end
from references import (
    Reference,
    compare_gradients,
    compute_loss,
    copy_all,
    find_features,
    seed_all,
    seed_like_a_step,
)
from torch import Tensor, nn

import localprop as lp
from localprop.report.costs import measure_peak_bytes
from localprop.rule.positions import list_layers_for_heads
from localprop.tasks.batch import Batch

MODULES, DOUBTFUL = 4, 1e-5
Record = dict[str, Any]
Save = Callable[[Record], None]

RULES: dict[str, Callable[[], lp.Rule]] = {
    "end_to_end": lp.end_to_end,
    "greedy": lp.greedy,
    "backlink": lp.backlink,
    "contsup": lp.contsup,
    "auglocal": lp.auglocal,
    "interlocking": lp.interlocking,
    "infopro": lp.infopro,
}
# These need maps, or layers that can be copied; they may refuse any other model.
PARTICULAR = ("contsup", "auglocal", "infopro")
ONE_BACK, FULL_REACH = "one module back", "full reach"
GRADIENT_RULES: dict[str, Callable[[], lp.Rule]] = {
    "greedy": lp.greedy,
    ONE_BACK: lambda: lp.interlocking(wise=2, combine="sum"),
    FULL_REACH: lambda: lp.interlocking(wise=MODULES, combine="sum"),
    "backlink": lambda: lp.backlink(weight=0.5),
    "contsup": lp.contsup,
}
LARGE = ("greedy", FULL_REACH)  # the gradients of models that take long


def explain_failure(error: Exception) -> str:
    """A refusal or a crash, in one line."""
    kind = "refused" if isinstance(error, lp.BadInput) else "crash"
    text = " ".join(str(error).split())[:160]
    return f"{kind}: {text}" if kind == "refused" else f"{kind}: {type(error).__name__}: {text}"


def attempt(check: Callable[[], Any]) -> Any:
    """What a check finds, or why it found nothing."""
    try:
        return check()
    except Exception as error:
        return explain_failure(error)


class Measured:
    """A case while it is measured.

    Args:
        build: makes the case.
        save: called with the record whenever something is known.
    """

    def __init__(self, build: Build, save: Save) -> None:
        self._save = save
        self.record: Record = {}
        self.case = build_case(build)
        self.partition: lp.Partition | None = None
        self._layers: lp.Layers | None = None
        self._task: lp.Task | None = None

    def run(self) -> Record:
        """Run all checks."""
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        for field in ("blocks", "no_cuts", "family", "rounding"):
            self._note(field, getattr(self.case, field))
        self._note("check", attempt(self._look))
        self._note("layers", attempt(self._find_layers))
        if self.partition is None:
            return self.record
        for name in RULES:
            self._note("rules", attempt(partial(self._train, name)), name)
        for name in GRADIENT_RULES if self.case.is_small else LARGE:
            if self.record["rules"].get(name, "ok") == "ok":
                self._note("gradients", attempt(partial(self._compare_gradients, name)), name)
        for name, check in self._list_checks():
            self._note(name, attempt(check))
        for name in ("greedy", "end_to_end")[: 2 if self.case.is_small else 1]:
            self._note("memory", attempt(partial(self._compare_memory, name)), name)
        return self.record

    def _list_checks(self) -> Iterator[tuple[str, Callable[[], str]]]:
        yield "plain_loop", self._compare_with_plain_loop
        yield "wrapping", self._compare_wrapped
        yield "standing_still", self._stand_still
        yield "predict", self._compare_prediction
        yield "recompute", self._compare_recompute
        yield "heads", self._look_at_heads

    def _note(self, key: str, value: Any, name: str | None = None) -> None:
        if name is None:
            self.record[key] = value
        else:
            self.record.setdefault(key, {})[name] = value
        self._save(self.record)

    # --- copies -----------------------------------------------------------------------------------

    def _copy(self) -> tuple[nn.Module, lp.Partition]:
        """A fresh copy of the model with its partition."""
        assert self.partition is not None
        return copy_all((self.case.model, self.partition), self.case.model)

    def _learn(self, rule: lp.Rule, **arguments: Any) -> lp.Learner:
        seed_all()
        model, partition = self._copy()
        given = {"partition": partition, "normalization": lp.Normalization()}
        return self.case.learn(rule, model, **{**given, **arguments})

    # --- the checks -------------------------------------------------------------------------------

    def _look(self) -> str:
        found = lp.check(
            self.case.model,
            self.case.batch,
            task=self.case.task,
            batch_dims=self.case.batch_dims,
        )
        self._layers, self._task = found.layers, found.task
        self.record["way"] = None if found.layers is None else found.layers.way
        str(found)
        return "ok" if found.ok else f"refused: {' '.join(found.problems)}"

    def _find_layers(self) -> int:
        layers = self._layers or lp.layers_of(
            self.case.model, self.case.batch, task=self._task, batch_dims=self.case.batch_dims
        )
        # As modules=4 cuts, at layers that can hold heads; without these, anywhere.
        task = lp.Task() if self._task is None else self._task
        ends = {*list_layers_for_heads(layers, task), len(layers) - 1}
        modules = min(MODULES, len(layers))
        self.partition = lp.Partition.uniform(
            layers, modules, ends=ends if len(ends) >= modules else None
        )
        self.record["modules"] = len(self.partition.modules)
        if self.case.channel is not None:
            found = [layers.find_channel(i) for i in range(len(layers) - 1)]
            wrong = [d for d in found if d is not None and d != self.case.channel]
            self.record["channels"] = f"wrong: {wrong}" if wrong else "ok"
        return len(layers)

    def _train(self, name: str) -> str:
        """Two steps, with finite losses; one of a large model."""
        learner = self._learn(RULES[name]())
        for _ in range(2 if self.case.is_small else 1):
            losses = learner.step(self.case.batch)
            if not all(torch.isfinite(loss) for loss in losses):
                return "crash: a loss is not finite"
        return "ok"

    def _compare_gradients(self, name: str) -> Record:
        """In float64, too, where float32 leaves a doubt: some gradients are 0 but for rounding."""
        found = find_gradient_error(self._learn(GRADIENT_RULES[name]()), self.case.batch)
        if not (found["error"] > DOUBTFUL or found["one_sided"]):
            return found
        with suppress(Exception):  # not all models run in float64
            case = self.case.in_double()
            model, _ = copy_all((case.model, None), case.model)
            number = self.record["modules"]
            learner = case.learn(GRADIENT_RULES[name](), model.double(), modules=number)
            return find_gradient_error(learner, case.batch) | {"float32": found["error"]}
        return found

    def _compare_with_plain_loop(self) -> str:
        """Two steps of end-to-end training, beside the plain loop with the model's own loss.

        Where they are apart, both run once more in float64: rounding grows in BatchNorm of two
        samples, an error stays.
        """
        found = self._step_beside_plain_loop(self.case)
        if found.startswith("off"):
            with suppress(Exception):  # not all models run in float64
                exact = self._step_beside_plain_loop(self.case.in_double(), double=True)
                return exact if exact.startswith("off") else f"{exact} (float64)"
        return found

    def _step_beside_plain_loop(self, case: Case, *, double: bool = False) -> str:
        seed_all()
        trained, partition = self._copy()
        model, _ = self._copy()
        cuts: dict[str, Any] = {"partition": partition}
        if double:  # features have another dtype then, so the partition is found anew
            trained, model = trained.double(), model.double()
            cuts = {"modules": len(partition.modules)}
        learner = case.learn(lp.end_to_end(), trained, **cuts, normalization=lp.Normalization())
        optimizer = torch.optim.SGD(
            [p for p in model.parameters() if p.requires_grad], lr=0.01, momentum=0.9
        )
        for number in range(2):
            handles = seed_like_a_step(learner, model, number)
            optimizer.zero_grad()
            compute_loss(case, learner, model).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            for handle in handles:
                handle.remove()
            seed_all()
            learner.step(case.batch)
        return compare_states(learner.model, model)

    def _compare_wrapped(self) -> str:
        """Making a learner leaves the state, the modes, the hooks and the outputs as they were."""
        model, partition = self._copy()
        before = describe_model(model)
        learner = self.case.learn(lp.greedy(), model, partition=partition)
        learner.step(self.case.batch)
        model, partition = self._copy()
        learner = self.case.learn(lp.greedy(), model, partition=partition)
        if describe_model(model) != before:
            return "changed: modes, hooks or names"
        other, _ = self._copy()
        same = compare_states(model, other)
        if same != "bit":
            return f"changed: {same}"
        return compare_tensors([self._evaluate(learner, model)], [self._evaluate(learner, other)])

    def _evaluate(self, learner: lp.Learner, model: nn.Module) -> Tensor:
        model.eval()
        seed_all()
        with torch.no_grad():
            output = learner.wiring.task.forward(model, self.case.batch)
        model.train()
        return output

    def _stand_still(self) -> str:
        """With lr = 0 all state is that after a plain forward and backward."""
        learner = self._learn(lp.greedy(), optimizer=lambda p: torch.optim.SGD(p, lr=0.0))
        model, _ = self._copy()
        seed_like_a_step(learner, model)
        compute_loss(self.case, learner, model).backward()  # type: ignore[no-untyped-call]
        seed_all()
        learner.step(self.case.batch)
        return compare_states(learner.model, model)

    def _compare_prediction(self) -> str:
        learner = self._learn(lp.greedy())
        model, _ = self._copy()
        seed_all()
        predicted = learner.predict(self.case.batch)
        return compare_tensors([predicted], [self._evaluate(learner, model)])

    def _compare_recompute(self) -> str:
        learners = [self._learn(lp.greedy(), recompute=again) for again in (False, True)]
        for learner in learners:
            for _ in range(2):
                seed_all()
                learner.step(self.case.batch)
        return compare_states(learners[1].model, learners[0].model)

    def _compare_memory(self, name: str) -> float:
        """How far the predicted peak lies from the measured one, in percent."""
        learner = self._learn(RULES[name]())
        predicted = learner.memory().peak_bytes
        learner.step(self.case.batch)
        task = learner.wiring.task
        batch = Batch.of(self.case.batch, task.targets(self.case.batch), self.case.batch_dims)
        measured = measure_peak_bytes(learner, batch)
        return 100 * (predicted / measured - 1)

    def _look_at_heads(self) -> str:
        """No head mixes samples."""
        learner = self._learn(lp.greedy())
        task, layers = learner.wiring.task, learner.partition.layers
        batch = Batch.of(self.case.batch, task.targets(self.case.batch), self.case.batch_dims)
        if batch.samples < 2 or 1 not in layers.output_growth:
            return "not looked at"
        turned = [batch.select(batch.samples), _exchange_last_sample(batch)]
        outputs = [HeadOutputs(learner, each).read() for each in turned]
        dim = layers.output_growth.index(1)
        rows = [[each.narrow(dim, 0, batch.samples - 1) for each in own] for own in outputs]
        *heads, own = (compare_tensors([a], [b]) for a, b in zip(*rows, strict=True))
        if own.startswith("off"):
            return "not looked at: the model mixes samples"
        return "mix samples" if any(each.startswith("off") for each in heads) else "ok"


class HeadOutputs:
    """The outputs of all heads, and of the model, on a batch in evaluation mode."""

    def __init__(self, learner: lp.Learner, batch: Batch) -> None:
        self._learner, self._batch = learner, batch

    def read(self) -> list[Tensor]:
        learner = self._learner
        layers, found = learner.partition.layers, []
        handles = []
        for k, module in enumerate(learner.partition.modules[:-1]):
            if str(k) not in learner.heads:
                continue
            head: Any = learner.heads[str(k)]
            head.eval()

            def look(out: Any, h: Any = head, end: int = module[-1]) -> None:
                found.append(h["aux"](find_features(layers, end, out)))

            handles.append(watch_end(learner.model, layers.names[module[-1]], look))
        learner.model.eval()
        with torch.no_grad():
            output = learner.wiring.task.forward(learner.model, self._batch.data)
        for handle in handles:
            handle.remove()
        return [*found, output]


def _exchange_last_sample(batch: Batch) -> Batch:
    """The batch with its first sample in the place of the last."""
    order = torch.arange(batch.samples)
    order[-1] = 0
    dims = iter(batch.dims)

    def change(tensor: Tensor) -> Tensor:
        dim = next(dims)
        return tensor if dim is None else tensor.index_select(dim, order)

    return batch.map(change)


def find_gradient_error(learner: lp.Learner, batch: Any) -> Record:
    """Compare the gradients of a learner, before its first step, with those of plain forwards."""
    reference = Reference(learner, batch)
    seed_all()
    learner.backward(batch)
    error, where, one_sided = compare_gradients(learner, reference.compute())
    return {"error": error, "where": where, "one_sided": one_sided}


# --- comparisons ----------------------------------------------------------------------------------


def describe_model(model: nn.Module) -> Any:
    """All of a model that a learner must leave as it is, but for values."""
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return (
        [(name, tuple(tensor.shape)) for name, tensor in model.state_dict().items()],
        [
            (
                name,
                module.training,
                "forward" in vars(module),
                [len(vars(module)[h]) for h in hooks],
            )
            for name, module in model.named_modules()
        ],
    )


def compare_states(one: nn.Module, other: nn.Module) -> str:
    """Compare all parameters and buffers."""
    states = [dict(m.named_parameters()) | dict(m.named_buffers()) for m in (one, other)]
    if states[0].keys() != states[1].keys():
        return "off: other names"
    return compare_tensors([*states[0].values()], [*states[1].values()])


def compare_tensors(ones: list[Tensor], others: list[Tensor]) -> str:
    """bit, or close, or off, with the largest relative difference."""
    worst = 0.0
    for one, other in zip(ones, others, strict=True):
        one, other = one.detach(), other.detach()
        if one.shape != other.shape:
            return "off: other shapes"
        if torch.equal(one, other):
            continue
        a, b = one.double().nan_to_num(), other.double().nan_to_num()
        worst = max(worst, float((a - b).abs().max()) / max(float(b.abs().max()), 1e-3))
    if not worst:
        return "bit"
    return f"{'close' if worst < 1e-3 else 'off'} {worst:.0e}"
