"""Models by name: localprop's own, torchvision's and timm's."""

import math
from collections.abc import Callable
from functools import partial
from inspect import signature
from typing import Any

from torch import nn

from localprop.errors import BadInput, check
from localprop.models import densenet, grouped, resnet, transformer, vgg
from localprop.models.libraries import from_timm, from_torchvision, prefixed, unknown
from localprop.models.mlp import mlp
from localprop.models.options import FORM, option_problems, written
from localprop.models.small_resnet import small_resnet

NETWORKS: dict[str, Callable[..., nn.Module]] = {
    "resnet8": resnet.resnet8,
    "resnet14": resnet.resnet14,
    "resnet20": resnet.resnet20,
    "resnet32": resnet.resnet32,
    "resnet44": resnet.resnet44,
    "resnet56": resnet.resnet56,
    "resnet110": resnet.resnet110,
    "resnet128": partial(resnet.cifar_resnet, 128),  # 64 layers
    "resnet18_cifar": partial(small_resnet, "resnet18"),
    "resnet34_cifar": partial(small_resnet, "resnet34"),
    "resnet50_cifar": partial(small_resnet, "resnet50"),
    "resnet101_cifar": partial(small_resnet, "resnet101"),
    "resnet152_cifar": partial(small_resnet, "resnet152"),
    "grouped_resnet": grouped.grouped_resnet,
    "densenet_bc_100_12": densenet.densenet_bc_100_12,
    "vgg8b": vgg.vgg8b,
    "vgg11b": vgg.vgg11b,
    "vgg13": vgg.vgg13,
    "vgg19": vgg.vgg19,
    "transformer": transformer.transformer_lm,
    "mlp": mlp,
}
LIBRARIES = {"timm": from_timm, "torchvision": from_torchvision}


def create_model(name: str, num_classes: int, input_shape: tuple[int, ...]) -> nn.Module:
    """Build an untrained model by name, for inputs of a given shape.

    Options follow the name, which are the other arguments of the model's function: "resnet32:widen=2",
    "vgg8b:feat_mult=2,dropout=0.25,leaky=True", "grouped_resnet:groups=4,ends=(7,15)", "transformer:width=64,blocks=2",
    "timm:vit_tiny_patch16_224,patch_size=4".

    Args:
        name: a network of :mod:`localprop.models`: "resnet8" to "resnet128", "resnet18_cifar" to "resnet152_cifar",
            "grouped_resnet", "densenet_bc_100_12", "vgg8b", "vgg11b", "vgg13", "vgg19", "transformer", "mlp" or
            "mlp:512,512" (hidden widths); or "timm:NAME" or "torchvision:NAME".
        num_classes: outputs of the classifier; the vocabulary of a language model.
        input_shape: shape of one sample, without the batch: (C, H, W) for images, (T,) for language models, where T is
            the longest sequence.

    Returns:
        A network from (N, *input_shape) to logits (N, num_classes), of a language model (N, T, num_classes).

    Raises:
        BadInput: for an unknown name (with close matches), options that the model does not have, a package that is not
            installed, an input shape that the model does not take, and counts less than one.

    Example:
        >>> create_model("mlp:32,32", 10, (1, 8, 8))(torch.zeros(2, 1, 8, 8)).shape
        torch.Size([2, 10])
        >>> create_model("transformer:width=32,blocks=2", 256, (16,))(torch.zeros(2, 16, dtype=torch.int64)).shape
        torch.Size([2, 16, 256])
    """
    _check_sizes(num_classes, input_shape)
    head, _, rest = name.partition(":")
    if head in LIBRARIES:
        return _of_library(head, rest, num_classes, input_shape)
    if head not in NETWORKS:
        raise BadInput(_unknown(head))
    build = NETWORKS[head]
    options = _options(name, head, rest)
    check([*_shape_problems(head, build, input_shape), *option_problems(head, build, options)])
    return build(**_given(build, num_classes, input_shape), **options)


def takes_tokens(name: str) -> bool:
    """Whether a model of this name is a language model, whose inputs are tokens (N, T).

    Example:
        >>> takes_tokens("transformer:width=64"), takes_tokens("mlp")
        (True, False)
    """
    build = NETWORKS.get(name.partition(":")[0])
    return build is not None and "context" in signature(build).parameters


def _unknown(name: str) -> str:
    """The same name elsewhere goes before names that are close."""
    same = [*(own for own in NETWORKS if own == f"{name}_cifar"), *prefixed(name)]
    if same:
        return f"localprop has no model {name!r}: did you mean {' or '.join(same)}?"
    advice = "The names of other libraries take a prefix, timm:NAME or torchvision:NAME."
    return f"{unknown('localprop', name, NETWORKS)} {advice}"


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


def _of_library(head: str, rest: str, num_classes: int, input_shape: tuple[int, ...]) -> nn.Module:
    name, _, text = rest.partition(",")
    values, options = written(rest, text)
    problems = [f"{head}:{rest} gives {values} without a name: {FORM}."] if values else []
    if len(input_shape) != 3:
        problems.append(_no_image(f"{head}:{rest}", input_shape))
    check(problems)
    chans, height, width = input_shape
    return LIBRARIES[head](name, options, num_classes, (chans, height, width))


def _no_image(name: str, input_shape: tuple[int, ...]) -> str:
    instead = "transformer" if len(input_shape) == 1 else "mlp"
    return f"The input shape is {input_shape}, but {name} takes images (C, H, W): pass such a shape, or use {instead}."


def _shape_problems(name: str, build: Callable[..., Any], input_shape: tuple[int, ...]) -> list[str]:
    wanted = signature(build).parameters
    if wanted.keys() & {"in_chans", "input_shape"} and len(input_shape) != 3:
        return [_no_image(name, input_shape)]
    if takes_tokens(name) and len(input_shape) != 1:
        return [
            f"The input shape is {input_shape}, but {name} takes tokens: pass the longest sequence, such as (128,)."
        ]
    return []


def _options(name: str, head: str, text: str) -> dict[str, Any]:
    """What the name gives; values without a name are an MLP's hidden widths."""
    values, options = written(name, text)
    if not values:
        return options
    if head != "mlp":
        raise BadInput(f"{name!r} gives {values} without a name: {FORM}.")
    check([f"{name!r} gives the hidden widths twice: remove one."] if "hidden" in options else [])
    return {"hidden": values, **options}


def _given(build: Callable[..., Any], num_classes: int, input_shape: tuple[int, ...]) -> dict[str, Any]:
    """Of what is known about the data, what the function asks for."""
    known = {
        "num_classes": num_classes,
        "in_chans": input_shape[0],
        "input_shape": input_shape,
        "in_features": math.prod(input_shape),
        "vocabulary": num_classes,
        "context": input_shape[0],
    }
    return {name: known[name] for name in signature(build).parameters if name in known}
