"""Models by name: localprop's own, torchvision's and timm's."""

import math
import re
from collections.abc import Callable, Iterable
from difflib import get_close_matches
from functools import partial
from importlib import import_module
from types import ModuleType
from typing import Any

from torch import nn

from localprop.errors import BadInput, check
from localprop.models import resnet
from localprop.models.mlp import mlp

RESNETS: dict[str, Callable[[int, int], nn.Module]] = {
    "resnet8": resnet.resnet8,
    "resnet14": resnet.resnet14,
    "resnet20": resnet.resnet20,
    "resnet32": resnet.resnet32,
    "resnet44": resnet.resnet44,
    "resnet56": resnet.resnet56,
    "resnet110": resnet.resnet110,
    "resnet128": partial(resnet.cifar_resnet, 128),  # 64 layers
}


def create_model(name: str, num_classes: int, input_shape: tuple[int, ...]) -> nn.Module:
    """Build an untrained model by name, for inputs of a given shape.

    Args:
        name: "resnet8" to "resnet128" (CIFAR networks), "mlp", "mlp:512,512" (hidden widths), "timm:NAME" or
            "torchvision:NAME".
        num_classes: outputs of the classifier.
        input_shape: shape of one sample, without the batch: (C, H, W) for images.

    Returns:
        A network from (N, *input_shape) to logits (N, num_classes).

    Raises:
        BadInput: for an unknown name (with close matches), a package that is not installed, an input shape
            that the model does not take, and counts less than one.

    Example:
        >>> create_model("mlp:32,32", 10, (1, 8, 8))(torch.zeros(2, 1, 8, 8)).shape
        torch.Size([2, 10])
    """
    _check_sizes(num_classes, input_shape)
    library, _, rest = name.partition(":")
    if library == "timm":
        return _timm(rest, num_classes, _image(name, input_shape))
    if library == "torchvision":
        return _torchvision(rest, num_classes, _image(name, input_shape))
    if name == "mlp":
        return mlp(math.prod(input_shape), num_classes=num_classes)
    if library == "mlp":
        return mlp(math.prod(input_shape), _widths(name, rest), num_classes)
    if name in RESNETS:
        return RESNETS[name](num_classes, _image(name, input_shape)[0])
    advice = "The names of other libraries take a prefix, timm:NAME or torchvision:NAME."
    raise BadInput(f"{_unknown('localprop', name, [*RESNETS, 'mlp'])} {advice}")


def _check_sizes(num_classes: int, input_shape: tuple[int, ...]) -> None:
    problems = []
    if num_classes < 1:
        problems.append(f"num_classes is {num_classes}, but at least 1 is needed: pass a positive number.")
    if not input_shape or min(input_shape) < 1:
        problems.append(
            f"The input shape is {input_shape}, but it must have positive sizes: pass the shape of one sample"
            " without the batch, such as (3, 32, 32)."
        )
    check(problems)


def _image(name: str, input_shape: tuple[int, ...]) -> tuple[int, int, int]:
    if len(input_shape) != 3:
        raise BadInput(
            f"The input shape is {input_shape}, but {name} takes images (C, H, W): pass such a shape, or use mlp."
        )
    chans, height, width = input_shape
    return chans, height, width


def _widths(name: str, text: str) -> tuple[int, ...]:
    if not re.fullmatch(r"[1-9]\d*(,[1-9]\d*)*", text):
        raise BadInput(f"The model is {name!r}, but hidden widths are positive numbers with commas: write mlp:512,512.")
    return tuple(int(width) for width in text.split(","))


def _timm(name: str, num_classes: int, shape: tuple[int, int, int]) -> nn.Module:
    timm = _library("timm")
    if not timm.is_model(name):
        raise BadInput(_unknown("timm", name, timm.list_models()))
    options = {"pretrained": False, "num_classes": num_classes, "in_chans": shape[0]}
    return _build(timm.create_model, name, options, {"img_size": shape[1:]})


def _torchvision(name: str, num_classes: int, shape: tuple[int, int, int]) -> nn.Module:
    zoo = _library("torchvision.models")
    known = zoo.list_models(module=zoo)  # classification only: segmentation and detection have other outputs
    problems = []
    if name not in known:
        problems.append(_unknown("torchvision", name, known))
    if shape[0] != 3:
        problems.append(
            f"The images have {shape[0]} channel(s), but torchvision's models take 3: use timm:NAME, whose"
            " first layer is built for any number, or repeat the channel in the data."
        )
    check(problems)
    options = {"weights": None, "num_classes": num_classes}
    return _build(zoo.get_model, name, options, {"image_size": shape[1]} if shape[1] == shape[2] else {})


def _build(build: Callable[..., Any], name: str, options: dict[str, Any], size: dict[str, Any]) -> nn.Module:
    """Build with the image's size where the model takes one, else without; a refusal becomes bad input."""
    try:
        model: nn.Module = build(name, **options, **size)
    except TypeError as error:
        # Which models take a size is nowhere listed: the ones that do not say so by this error.
        if not any(keyword in str(error) for keyword in size):
            raise
        return _build(build, name, options, {})
    except (ValueError, AssertionError, RuntimeError) as error:
        raise BadInput(
            f"The model {name} cannot be built for images of size {size}: {error} Choose another size or another model."
        ) from error
    return model


def _library(name: str) -> ModuleType:
    try:
        return import_module(name)
    except ImportError as error:
        package = name.partition(".")[0]
        raise BadInput(
            f"The package {package} cannot be imported ({error}): pip install 'localprop[vision]'."
        ) from error


def _unknown(library: str, name: str, known: Iterable[str]) -> str:
    close = get_close_matches(name, known, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(close)}?" if close else "look it up in the library's list."
    return f"{library} has no model {name!r}: {hint}"
