"""The networks of recipes, on the meta device, and their cuts."""

from __future__ import annotations

from functools import cache

import torch

import localprop as lp
from localprop import experiments
from localprop.experiments.blank_data import make_blank_dataset
from localprop.methods.parse import parse_rule
from localprop.schedule.wiring import Wiring
from localprop.training.config import Config


def parse_recipe_rule(name: str) -> lp.Rule:
    """The rule of a recipe."""
    return parse_rule(experiments.find(name).config.method)


def wire_recipe(name: str) -> Wiring:
    """A recipe's network, heads and losses, on the meta device."""
    partition = cut_network(experiments.find(name).config)
    with torch.device("meta"):
        return lp.wire(parse_recipe_rule(name), partition)


def find_network(config: Config) -> str:
    """The name of the network, without options, which change no number of layers."""
    return config.model if "torchvision" in config.model else config.model.partition(":")[0]


def find_layers(config: Config) -> lp.Layers:
    """Find the layers of a config's network."""
    return _find_layers(config.model, config.data, config.image_size)


@cache
def _find_layers(model: str, data: str, image_size: int) -> lp.Layers:
    config = Config(model=model, data=data, image_size=image_size, batch_size=2)
    dataset = make_blank_dataset(config)
    with torch.device("meta"):  # only shapes count
        network = lp.models.create_model(model, dataset.num_classes, dataset.shape)
        return lp.layers_of(network, dataset.make_zero_batch(2))


def cut_network(config: Config) -> lp.Partition:
    """Cut a config's network into its modules."""
    layers = find_layers(config)
    if config.cuts is not None:
        return lp.Partition.at(layers, config.cuts)
    return lp.Partition.uniform(layers, config.modules or len(layers))
