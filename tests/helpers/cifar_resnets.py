"""CIFAR ResNets on the `meta` device, for comparison with the figures that papers publish."""

from __future__ import annotations

from functools import cache

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import localprop as lp
from localprop.schedule.wire import wire
from localprop.schedule.wiring import Wiring


@cache
def find_layers(depth: int) -> lp.Layers:
    """The layers of the CIFAR ResNet of a depth."""
    with torch.device("meta"):
        return lp.layers_of(lp.models.cifar_resnet(depth), torch.zeros(2, 3, 32, 32))


@cache
def build_wiring(depth: int, rule: lp.Rule, modules: int) -> Wiring:
    """A rule on this network, cut into modules of equal numbers of layers."""
    with torch.device("meta"):
        return wire(
            rule,
            lp.Partition.uniform(find_layers(depth), modules),
            normalization=lp.Normalization(),
        )


def get_head(wiring: Wiring, loss: int) -> nn.ModuleDict:
    """The auxiliary network ("aux") and the local loss ("loss") at the end of a module."""
    head = wiring.heads[str(loss)]
    assert isinstance(head, nn.ModuleDict)
    return head


def count_parameters(module: nn.Module) -> int:
    """The number of elements of all parameters."""
    return sum(parameter.numel() for parameter in module.parameters())


def count_mmacs(module: nn.Module, shape: tuple[int, ...]) -> float:
    """Millions of multiply-accumulates of a forward on one sample of a shape."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        module.to("meta").eval()(torch.empty(1, *shape, device="meta"))
    flops: int = counter.get_total_flops()
    return flops / 2e6
