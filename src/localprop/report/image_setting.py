"""A network and random images to measure it with."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from localprop.errors import as_bad_sizes, collect_problems
from localprop.models import create_model, takes_tokens
from localprop.report.value_checks import is_count
from localprop.tasks.batch import Batch
from localprop.training.device import find_device

_SEED = 0


@dataclass(frozen=True)
class ImageSetting:
    """A network and random images: neither memory nor time depends on the values of the pixels.

    Weights, images and labels come from a fixed seed.

    Attributes:
        model: as in a config.
        input_shape: (C, H, W) of an image; any sizes for an mlp.
        classes: outputs of the network.
        device: auto, cpu, or another device that torch knows.
    """

    model: str = "resnet110"
    input_shape: tuple[int, ...] = (3, 32, 32)
    classes: int = 10
    device: str = "auto"

    def find_problems(self) -> list[str]:
        """Find all problems with network, images and device; one sentence each.

        Subclasses check the number of classes if users can choose it.

        Example:
            >>> ImageSetting(model="transformer").find_problems()
            ['transformer takes tokens, but simulate and bench only measure image networks:
            choose another --model.']
        """
        problems: list[str] = []
        with collect_problems(problems):
            find_device(self.device)
        return problems + self._find_model_problems()

    def _find_model_problems(self) -> list[str]:
        problems: list[str] = []
        if takes_tokens(self.model):
            problems.append(
                f"{self.model} takes tokens, but simulate and bench only measure image networks: "
                "choose another --model."
            )
        shape = self.input_shape
        if not isinstance(shape, tuple) or not all(map(is_count, shape)):
            problems.append(
                f"input_shape={shape!r} must be sizes of 1 or more, such as --input 3,32,32."
            )
        if problems:
            return problems
        classes = self.classes if is_count(self.classes) else 1
        # Only creating the network checks its name, options and image size completely.
        with collect_problems(problems), torch.random.fork_rng(devices=[]):
            create_model(self.model, classes, shape, pretrained=False)
        return problems

    def make_images(self, samples: int) -> Batch:
        """Random images and labels on the device."""
        generator = torch.Generator().manual_seed(_SEED)
        with as_bad_sizes(f"A batch of {samples} images of {self.input_shape}"):
            images = torch.randn(samples, *self.input_shape, generator=generator)
            labels = torch.randint(self.classes, (samples,), generator=generator)
        device = find_device(self.device)
        return Batch.of((images.to(device), labels.to(device)))

    def make_network(self) -> nn.Module:
        """A new network on the device; the caller's random state stays as it is."""
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(_SEED)
            sizes = self.classes, self.input_shape
            model = create_model(self.model, *sizes, pretrained=False)  # only costs are measured
        return model.to(find_device(self.device))
