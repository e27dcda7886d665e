"""Create models by name: localprop's own, those of libraries, and what a user's function makes."""

import math
from collections.abc import Callable, Iterator
from functools import partial
from inspect import signature
from typing import Any

from torch import nn

from localprop.arguments import check_arguments
from localprop.errors import BadInput, check
from localprop.models import densenet, grouped, resnet, swin, transformer, vgg
from localprop.models.hugging_face import build_hugging_face_model
from localprop.models.libraries import (
    build_timm_model,
    build_torchvision_model,
    describe_unknown_model,
    find_in_libraries,
)
from localprop.models.mlp import mlp
from localprop.models.problems import builds_network
from localprop.models.small_resnet import small_resnet
from localprop.models.spec import FORM, find_option_problems, parse_model_spec
from localprop.user_code import describe_error, import_named

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
    "swin_t": swin.swin_t,
    "transformer": transformer.transformer_lm,
    "mlp": mlp,
}
LIBRARIES = {"timm": build_timm_model, "torchvision": build_torchvision_model}


@builds_network
def create_model(
    name: str, num_classes: int, input_shape: tuple[int, ...], *, pretrained: bool = True
) -> nn.Module:
    """Build a model by name, for inputs of a given shape. It is untrained, but for
    "timm:NAME,pretrained=True", which has the weights that timm knows and a new classifier.

    Options follow the name. They are the other arguments of the model's function:
    "resnet32:widen=2", "vgg8b:feat_mult=2,dropout=0.25,leaky=True",
    "grouped_resnet:groups=4,ends=(7,15)", "transformer:width=64,blocks=2",
    "timm:vit_tiny_patch16_224,patch_size=4".

    Args:
        name: a network of `localprop.models`: "resnet8" to "resnet128", "resnet18_cifar" to
            "resnet152_cifar", "grouped_resnet", "densenet_bc_100_12", "vgg8b", "vgg11b", "vgg13",
            "vgg19", "swin_t", "transformer", "mlp" or "mlp:512,512" (hidden widths);
            "timm:NAME" or "torchvision:NAME"; "hf:TYPE" or "hf:PATH", a model type of transformers
            or a config.json; or a function of your own that returns a module, "my_code.py:make" or
            "my_package.my_module:make". It gets those of num_classes, input_shape, in_chans,
            in_features, vocabulary and context that it has arguments for.
        num_classes: outputs of the classifier, or the vocabulary of a language model.
        input_shape: shape of one sample, without the batch: (C, H, W) for images, (T,) for language
            models, where T is the longest sequence.
        pretrained: whether pretrained=True in a name loads weights. Whoever
            has others does without.

    Returns:
        A network from (N, *input_shape) to logits (N, num_classes). A language model returns logits
        (N, T, num_classes).

    Raises:
        BadInput: for an unknown name (with close matches), options that the model does not have, a
            package that is not installed, an input shape that the model does not take, counts
            less than one, pretrained weights that cannot be had, and a function that cannot be
            imported, fails or returns no module.

    Example:
        >>> create_model("mlp:32,32", 10, (1, 8, 8))(torch.zeros(2, 1, 8, 8)).shape
        torch.Size([2, 10])
        >>> model = create_model("transformer:width=32,blocks=2", 256, (16,))
        >>> model(torch.zeros(2, 16, dtype=torch.int64)).shape
        torch.Size([2, 16, 256])
    """
    _check_sizes(num_classes, input_shape)
    prefix, _, rest = name.partition(":")
    if prefix in LIBRARIES:
        return _create_library_model(prefix, rest, num_classes, input_shape, pretrained)
    if prefix == "hf":
        spec = parse_model_spec(rest, separator=",")
        check(_find_nameless_values(name, spec.values))
        return build_hugging_face_model(spec.name, spec.options, num_classes, input_shape)
    if names_function(name):
        return _call_function(name, num_classes, input_shape)
    if prefix not in NETWORKS:
        raise BadInput(_describe_unknown(prefix))
    build = NETWORKS[prefix]
    options = _read_options(name)
    check(
        [
            *_find_shape_problems(prefix, build, input_shape),
            *find_option_problems(prefix, build, options),
        ]
    )
    return build(**_select_data_arguments(build, num_classes, input_shape), **options)


@check_arguments
def takes_tokens(name: str) -> bool:
    """Whether this is the name of a language model, whose inputs are tokens (N, T).

    Example:
        >>> takes_tokens("transformer:width=64"), takes_tokens("mlp")
        (True, False)
    """
    build = NETWORKS.get(name.partition(":")[0])
    return build is not None and "context" in signature(build).parameters


@check_arguments
def takes_images(name: str) -> bool:
    """Whether a model of this name takes images alone. Of functions and configurations only they
    themselves know.

    Example:
        >>> takes_images("timm:resnet18"), takes_images("transformer"), takes_images("hf:llama")
        (True, False, False)
    """
    prefix = name.partition(":")[0]
    return prefix in LIBRARIES or (prefix in NETWORKS and not takes_tokens(name))


def names_function(name: str) -> bool:
    """Whether this names a function of the user's, MODULE:NAME or FILE.py:NAME.

    Example:
        >>> names_function("my_code.py:make"), names_function("resnet32:widen=2")
        (True, False)
    """
    module, _, rest = name.partition(":")
    function = rest.partition(",")[0]
    is_module = module.endswith(".py") or all(part.isidentifier() for part in module.split("."))
    return is_module and function.isidentifier() and module not in {*NETWORKS, *LIBRARIES, "hf"}


def _call_function(name: str, num_classes: int, input_shape: tuple[int, ...]) -> nn.Module:
    module, _, rest = name.partition(":")
    spec = parse_model_spec(rest, separator=",")
    make = import_named(module, spec.name)
    check(_find_nameless_values(name, spec.values))
    problem = "must be a function that returns a torch.nn.Module"
    if not callable(make):
        raise BadInput(f"{name} is a {type(make).__name__}, but {problem}.")
    try:
        arguments = _select_data_arguments(make, num_classes, input_shape)
        model = make(**arguments, **spec.options)
    except Exception as error:  # code of the user's may raise anything
        raise BadInput(
            f"{name} failed ({describe_error(error)}): it {problem}, with arguments that have "
            "defaults, or are given in the name as ,argument=value."
        ) from error
    if not isinstance(model, nn.Module):
        raise BadInput(f"{name} returned a {type(model).__name__}, but {problem}.")
    return model


def _find_nameless_values(text: str, values: tuple[Any, ...]) -> Iterator[str]:
    if values:
        yield f"{text} gives {values} without a name: {FORM}."


def _describe_unknown(name: str) -> str:
    """Suggest the same name with a suffix or prefix if there is one, and else similar names."""
    cifar_name = f"{name}_cifar"
    same = [*([cifar_name] if cifar_name in NETWORKS else []), *find_in_libraries(name)]
    if same:
        return f"localprop has no model {name!r}: did you mean {' or '.join(same)}?"
    advice = "Models of other libraries take a prefix, timm:NAME, torchvision:NAME or hf:TYPE."
    return f"{describe_unknown_model('localprop', name, NETWORKS)} {advice}"


def _check_sizes(num_classes: int, input_shape: tuple[int, ...]) -> None:
    problems = []
    if num_classes < 1:
        problems.append(
            f"num_classes is {num_classes}, but at least 1 is needed: pass a positive number."
        )
    if not input_shape or min(input_shape) < 1:
        problems.append(
            f"The input shape is {input_shape}, but it must have positive sizes: pass the shape of"
            " one sample without the batch, such as (3, 32, 32)."
        )
    check(problems)


def _create_library_model(
    library: str, text: str, num_classes: int, input_shape: tuple[int, ...], pretrained: bool
) -> nn.Module:
    """Build "LIBRARY:NAME,option=value,...", whose text after the colon is `text`."""
    spec = parse_model_spec(text, separator=",")
    problems = [*_find_nameless_values(f"{library}:{text}", spec.values)]
    if len(input_shape) != 3:
        problems.append(_describe_non_image(f"{library}:{text}", input_shape))
    check(problems)
    chans, height, width = input_shape
    without = () if pretrained or library != "timm" else ("pretrained",)
    options = {key: value for key, value in spec.options.items() if key not in without}
    return LIBRARIES[library](spec.name, options, num_classes, (chans, height, width))


def _describe_non_image(name: str, input_shape: tuple[int, ...]) -> str:
    alternative = "transformer" if len(input_shape) == 1 else "mlp"
    return (
        f"The input shape is {input_shape}, but {name} takes images (C, H, W): pass such a shape,"
        f" or use {alternative}."
    )


def _find_shape_problems(
    name: str, build: Callable[..., Any], input_shape: tuple[int, ...]
) -> list[str]:
    """Tell networks of images and of tokens apart by the names of their function's arguments."""
    takes_images = signature(build).parameters.keys() & {"in_chans", "input_shape"}
    if takes_images and len(input_shape) != 3:
        return [_describe_non_image(name, input_shape)]
    if takes_tokens(name) and len(input_shape) != 1:
        return [
            f"The input shape is {input_shape}, but {name} takes tokens: pass the length of the"
            " longest sequence, such as (128,)."
        ]
    return []


def _read_options(text: str) -> dict[str, Any]:
    """The options in a name. Values without an option name are the hidden widths of an MLP."""
    spec = parse_model_spec(text)
    if not spec.values:
        return spec.options
    if spec.name != "mlp":
        raise BadInput(f"{text!r} gives {spec.values} without a name: {FORM}.")
    if "hidden" in spec.options:
        raise BadInput(f"{text!r} gives the hidden widths twice: remove one.")
    return {"hidden": spec.values, **spec.options}


def _select_data_arguments(
    build: Callable[..., Any], num_classes: int, input_shape: tuple[int, ...]
) -> dict[str, Any]:
    """The subset of dataset properties that the model function accepts."""
    properties = {
        "num_classes": num_classes,
        "in_chans": input_shape[0],
        "input_shape": input_shape,
        "in_features": math.prod(input_shape),
        "vocabulary": num_classes,
        "context": input_shape[0],
    }
    accepted = signature(build).parameters
    return {name: value for name, value in properties.items() if name in accepted}
