"""Penalties: what a method adds to the loss of every module, the task's too."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from localprop.errors import check
from localprop.rule.auxiliary import Site
from localprop.rule.losses import LocalLoss, Seen


class _Added(LocalLoss):
    """A loss and what is added to it; it looks at all that the loss itself looks at."""

    def __init__(self, base: LocalLoss) -> None:
        super().__init__()
        self.base = base
        self.inlet, self.taps, self.attached = base.inlet, base.taps, base.attached

    def problems(self, targets: Tensor, outputs: torch.Size) -> Iterable[str]:
        """Those of the loss."""
        return self.base.problems(targets, outputs)


# --- residual branches ----------------------------------------------------------------------------------------------------

Step = tuple[str, str]  # the modules before and after a plain layer; the first is "" for the module's own input


class _KineticLoss(_Added):
    def __init__(
        self, base: LocalLoss, branches: tuple[str, ...], steps: tuple[Step, ...], factor: float, norm: str
    ) -> None:
        super().__init__(base)
        self.branches, self.steps, self.factor, self.norm = branches, steps, factor, norm
        self.inlet = base.inlet or any(not before for before, _ in steps)
        names = (*base.taps, *branches, *(name for step in steps for name in step if name))
        self.taps = tuple(dict.fromkeys(names))

    def forward(self, features: Tensor, aux: nn.Module, seen: Seen) -> Tensor:
        loss: Tensor = self.base(features, aux, seen)
        return loss + self.factor * self._energy(seen)

    def _energy(self, seen: Seen) -> Tensor:
        residues = [seen.taps[name] for name in self.branches]
        residues += [seen.taps[after] - self._before(before, seen) for before, after in self.steps]
        return torch.stack([self._squared(residue) for residue in residues]).sum()

    @staticmethod
    def _before(name: str, seen: Seen) -> Tensor:
        if name:
            return seen.taps[name]
        assert seen.inlet is not None
        return seen.inlet

    def _squared(self, residue: Tensor) -> Tensor:
        squares = residue.square()
        return squares.mean() if self.norm == "mean" else squares.sum() / len(squares)


class _GrowingLoss(_KineticLoss):
    """The energy is divided by a multiplier that grows with the loss. Tensors, so that a GPU need not wait for their values."""

    multiplier: Tensor
    calls: Tensor

    def __init__(
        self,
        base: LocalLoss,
        branches: tuple[str, ...],
        steps: tuple[Step, ...],
        factor: float,
        norm: str,
        growth: float,
        every: int,
    ) -> None:
        super().__init__(base, branches, steps, factor, norm)
        self.growth, self.every = growth, every
        self.register_buffer("multiplier", torch.ones(()))
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def forward(self, features: Tensor, aux: nn.Module, seen: Seen) -> Tensor:
        loss: Tensor = self.base(features, aux, seen)
        if self.training and loss.requires_grad:
            self._grow(loss.detach())
        return loss + self.factor / self.multiplier * self._energy(seen)

    def _grow(self, loss: Tensor) -> None:
        self.calls += 1
        self.multiplier += torch.where(self.calls % self.every == 0, self.growth * loss, 0.0)


@dataclass(frozen=True)
class Kinetic:
    """TRGL's kinetic energy: modules that move their features least. Each module's loss gains a sum over its residual blocks::

        sum over the blocks m of |r_m|^2 / (2 tau)        r_m: the residual branch's output, before the shortcut is added

    A block that changes the shape counts too. Layers without such a branch, as the stem, do not, unless `plain` says so. With
    several losses at a module's end the first one gains it, and modules that are joined under a later loss do not.

    With `growth` the sum is divided by the module's own multiplier, which in training grows with its loss L, before the
    penalty::

        lambda = 1 at first; in every `every`-th step, before it is used: lambda <- lambda + growth * L

    Each micro-batch counts as a step; steps of a phase that leaves the module out do not. Replicas have multipliers of their own,
    each from its share of the losses, as they have statistics of BatchNorm: a checkpoint keeps those of replica 0.

    Attributes:
        tau: how far features may move; the published values, 0.5 to 1e6, belong to the mean.
        late: what tau is multiplied by in the second half of the modules; the paper's tables double it.
        norm: |r|^2 is the "mean" of the squares over samples, channels and space, as in the code, or their sum per
            "sample", averaged over those, as in the paper.
        branches: the modules at whose end a layer's residual branches end, by their names within the layer: of these sets the
            first of which a layer has all. The first two are those of ResNets with and without bottlenecks, the others are
            our reading for transformer blocks, of timm and torchvision's Swin, of this package's language model and of
            torchvision's ViT, whose attention ends in a dropout; else before any dropping or scaling of branches.
        plain: whether a layer without branches that keeps its shape counts by what it adds to its input, T(x) - x.
        growth: h of the multiplier; 0 for none. CIFAR-100's table has 1, with tau 0.5.
        every: s, how many steps lie between two growths; 50 in that table.

    Raises:
        BadInput: a tau or factor that is not positive, an unknown norm, a negative growth, `every` below 1; a network of
            which no layer counts.

    Example:
        >>> Kinetic(tau=0.5, late=2.0).factor(module=1, modules=4), Kinetic(tau=0.5, late=2.0).factor(module=2, modules=4)
        (1.0, 0.5)

    Source: Karkar, Ayed, de Bézenac, Gallinari, Module-wise Training of Neural Networks via the Minimizing Movement Scheme,
    NeurIPS 2023, and its code.
    """

    tau: float = 1.0
    late: float = 1.0
    norm: str = "mean"
    branches: tuple[tuple[str, ...], ...] = (
        ("bn3",),
        ("bn2",),
        ("attn", "mlp"),
        ("attention", "mlp"),
        ("dropout", "mlp"),
    )
    plain: bool = False
    growth: float = 0.0
    every: int = 50

    def __post_init__(self) -> None:
        check(self._problems())

    def _problems(self) -> Iterator[str]:
        for name, value in (("tau", self.tau), ("late", self.late)):
            if not 0 < value < float("inf"):
                yield f"{name}={value} must be positive and finite."
        if self.norm not in ("mean", "sample"):
            yield f"norm={self.norm!r} must be mean or sample."
        if not 0 <= self.growth < float("inf"):
            yield f"growth={self.growth} must be 0 or more, and finite."
        if self.every < 1:
            yield f"every={self.every} must be 1 or more steps."

    def __call__(self, site: Site, loss: LocalLoss) -> LocalLoss:
        check(self._misfit(site))
        layers = range(site.start, site.layer + 1)
        branches = tuple(name for layer in layers for name in self._branches_of(site, layer))
        steps = tuple(self._plain_steps(site)) if self.plain else ()
        if site.objective or not (branches or steps):
            return loss
        factor = self.factor(site.module, site.modules)
        if self.growth:
            return _GrowingLoss(loss, branches, steps, factor, self.norm, self.growth, self.every)
        return _KineticLoss(loss, branches, steps, factor, self.norm)

    def factor(self, module: int, modules: int) -> float:
        """1 / (2 tau) of one of `modules` modules."""
        return 1 / (2 * self.tau * (self.late if module >= modules / 2 else 1))

    def _misfit(self, site: Site) -> Iterator[str]:
        """That no layer of the whole network counts: nothing would be penalised, without a word."""
        whole = replace(site, start=0, layer=len(site.layers) - 1)
        if any(self._branches_of(whole, layer) for layer in range(len(whole.layers))):
            return
        if not self.plain:
            yield (
                "Kinetic finds no residual branch in this network, so that it would be plain local learning: name them, "
                "Kinetic(branches=...), or use plain=True."
            )
        elif not any(self._plain_steps(whole)):
            yield (
                "Kinetic finds neither a residual branch nor a layer that keeps its shape in this network, so that it would be "
                "plain local learning: name branches, Kinetic(branches=...), or use greedy()."
            )

    def _branches_of(self, site: Site, layer: int) -> tuple[str, ...]:
        """The names of the modules that end the residual branches of a layer."""
        name = site.layers.names[layer]
        known = {child for child, _ in site.layers.model.get_submodule(name).named_modules()}
        found = next((ends for ends in self.branches if known.issuperset(ends)), ())
        return tuple(f"{name}.{end}" for end in found)

    def _plain_steps(self, site: Site) -> Iterator[Step]:
        shapes, names = (site.layers.input_shape, *site.layers.shapes), ("", *site.layers.names)
        for layer in range(site.start, site.layer + 1):
            if shapes[layer] == shapes[layer + 1] and not self._branches_of(site, layer):
                yield names[layer] if layer > site.start else "", names[layer + 1]


# --- gradients that agree -------------------------------------------------------------------------------------------------


class _ReconciledLoss(_Added):
    def __init__(self, base: LocalLoss, reconciled: Reconciled, *, last: bool) -> None:
        super().__init__(base)
        self.attached = True
        self.weight, self.distance, self.last = reconciled.weight, reconciled.distance, last

    def forward(self, features: Tensor, aux: nn.Module, seen: Seen) -> Tensor:
        assert seen.errors is not None
        if not features.requires_grad:  # everything so far is frozen
            features.requires_grad_()
        loss: Tensor = self.base(features, aux, seen)
        if seen.inlet is None and self.last:
            return loss
        received, error = self._errors(loss, features, seen.inlet)
        before = seen.errors.pop() if seen.errors else None
        if error is not None:
            seen.errors.append(error)
        if received is None or before is None:
            return loss
        return loss + self.weight * self._apart(received.flatten(1), before.flatten(1))

    def _errors(self, loss: Tensor, features: Tensor, inlet: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        """The gradients of each sample's loss with respect to the inlet, differentiable, and to the features, a constant."""
        asked = [*([] if inlet is None else [inlet]), *([] if self.last else [features])]
        with torch.autocast(features.device.type, enabled=False):  # as everywhere, autocast is for forwards
            found = list(torch.autograd.grad(loss, asked, create_graph=True))
        received = found.pop(0) * len(features) if inlet is not None else None
        return received, found[0].detach() * len(features) if found else None

    def _apart(self, one: Tensor, other: Tensor) -> Tensor:
        if self.distance == "cosine":
            return 1 - functional.cosine_similarity(one, other).mean()
        return (one - other).square().sum(1).mean()


@dataclass(frozen=True)
class Reconciled:
    """SGR's successive gradient reconciliation: a module's input is to be wanted as the module before wants its output::

        penalty of module k > 0 = weight * mean over samples n of |g_in,n - g_out,n|^2
        g_out,n = d l_{k-1},n / d h_{k-1}, a constant          g_in,n = d l_k,n / d h_{k-1}

    with l_k,n the loss of sample n at module k's end, before any penalty of this kind. Module k and its auxiliary network
    are trained by it, by second derivatives; nothing crosses the cut but the constant, and no parameters are added.

    Our reading: the paper's distance, its weight, and whether gradients are those of a sample or of the batch's mean are not
    known; those of a sample are used, so that micro-batches do not change the penalty's scale.

    It runs in one process, on modules trained by their own loss alone, without recompute. Attention runs without its fused
    kernels, which have no second derivative; whatever else has none fails.

    Attributes:
        weight: lambda.
        distance: "squared", the sum of squares over a sample, or "cosine", 1 minus the cosine.

    Raises:
        BadInput: a weight that is not positive, an unknown distance.

    Example:
        >>> Reconciled(weight=0.1)
        Reconciled(weight=0.1, distance='squared')

    Source: Yang, Li, Alfarra, Hammoud, Bibi, Torr, Ghanem, Towards Interpretable Deep Local Learning with Successive Gradient
    Reconciliation, ICML 2024, arXiv 2406.05222.
    """

    weight: float = 1.0
    distance: str = "squared"

    def __post_init__(self) -> None:
        problems = [] if 0 < self.weight < float("inf") else [f"weight={self.weight} must be positive and finite."]
        known = self.distance in ("squared", "cosine")
        check([*problems, *([] if known else [f"distance={self.distance!r} must be squared or cosine."])])

    def __call__(self, site: Site, loss: LocalLoss) -> LocalLoss:
        return _ReconciledLoss(loss, self, last=site.module == site.modules - 1)
