"""Hand-written models whose weights are computed, pruned, shared, frozen or never reached."""

from __future__ import annotations

from cases import Cases
from pattern_blocks import WIDTH, Plain, build
from torch import Tensor, nn
from torch.nn.utils import prune


class OldWeightNorm(Plain):
    def make(self) -> nn.Module:
        normed: nn.Module = nn.utils.weight_norm(nn.Linear(WIDTH, WIDTH))
        return normed


class WeightNorm(Plain):
    def make(self) -> nn.Module:
        normed: nn.Module = nn.utils.parametrizations.weight_norm(nn.Linear(WIDTH, WIDTH))
        return normed


class OldSpectralNorm(Plain):
    def make(self) -> nn.Module:
        return nn.utils.spectral_norm(nn.Linear(WIDTH, WIDTH))


class SpectralNorm(Plain):
    def make(self) -> nn.Module:
        return nn.utils.parametrizations.spectral_norm(nn.Linear(WIDTH, WIDTH))


class Pruned(Plain):
    def set_up(self) -> None:
        for block in self.blocks:
            prune.random_unstructured(block.get_submodule("0"), "weight", 0.3)  # type: ignore[no-untyped-call]


class Parametrized(Plain):
    class Symmetric(nn.Module):
        def forward(self, weight: Tensor) -> Tensor:
            return weight.triu() + weight.triu(1).T

    def set_up(self) -> None:
        for block in self.blocks:
            linear = block.get_submodule("0")
            nn.utils.parametrize.register_parametrization(linear, "weight", self.Symmetric())


class Unused(Plain):
    """A layer that the forward does not reach."""

    def set_up(self) -> None:
        self.never = nn.Linear(WIDTH, WIDTH)


class Tied(Plain):
    def set_up(self) -> None:
        first = self.blocks[0].get_submodule("0")
        self.blocks[2].get_submodule("0").register_parameter(
            "weight", first.get_parameter("weight")
        )


class Frozen(Plain):
    def set_up(self) -> None:
        self.blocks[1].requires_grad_(False)


CASES: Cases = {
    "old_weight_norm": build(OldWeightNorm),
    "weight_norm": build(WeightNorm),
    "old_spectral_norm": build(OldSpectralNorm),
    "spectral_norm": build(SpectralNorm),
    "pruned": build(Pruned),
    "parametrized": build(Parametrized),
    "unused": build(Unused),
    "tied": build(Tied),
    "frozen": build(Frozen),
}
