"""Build networks of timm and torchvision by the names they have there."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from difflib import get_close_matches
from importlib import import_module
from types import ModuleType
from typing import Any

from torch import nn

from localprop.errors import BadInput, check
from localprop.user_code import describe_error

# Options that a name may not set, because the data set decides them.
SET_BY_DATA = ("num_classes", "in_chans", "img_size", "image_size")
# Options that a name may not set, because they would load trained weights, from files whose code
# would be run, too; timm's `pretrained` has a way of its own.
PRETRAINED_OPTIONS = ("pretrained", "weights", "weights_backbone", "checkpoint_path")


def import_library(name: str) -> ModuleType:
    """Import an optional package.

    Args:
        name: "timm", "torchvision.models" or "transformers".

    Raises:
        BadInput: if it is not installed. The message has the pip command that installs it.

    Example:
        >>> import_library("torch").nn is nn
        True
    """
    try:
        return import_module(name)
    except ImportError as error:
        package = name.partition(".")[0]
        wanted = "'localprop[vision]'" if package in ("timm", "torchvision") else package
        raise BadInput(
            f"The package {package} cannot be imported ({error}): pip install {wanted}."
        ) from error


def describe_unknown_model(library: str, name: str, known: Iterable[str]) -> str:
    """Say that a library has no model of this name, and suggest close matches.

    Example:
        >>> describe_unknown_model("timm", "resnt18", ["resnet18"])
        "timm has no model 'resnt18': did you mean resnet18?"
    """
    close = get_close_matches(name, known, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(close)}?" if close else "look it up in the library's list."
    return f"{library} has no model {name!r}: {hint}"


def build_timm_model(
    name: str, options: Mapping[str, Any], num_classes: int, shape: tuple[int, int, int]
) -> nn.Module:
    """Build a network of timm for images (C, H, W) = `shape`, by default untrained.

    With the option pretrained=True, timm loads the weights that it has, and fits them to the images
    and classes.

    Raises:
        BadInput: if timm is not installed, has no such model, refuses the options or the size, or
            cannot load the weights.
    """
    timm = import_library("timm")
    if not timm.is_model(name):
        raise BadInput(describe_unknown_model("timm", name, timm.list_models()))
    options = dict(options)
    pretrained = options.pop("pretrained", False)
    check(_find_pretrained_problems(timm, name, pretrained))
    fixed = {"pretrained": False, "num_classes": num_classes, "in_chans": shape[0]}
    size = {"img_size": shape[1:]}
    model = _build(timm.create_model, name, options, fixed, size)
    if not pretrained:
        return model
    try:
        return _build(timm.create_model, name, options, fixed | {"pretrained": True}, size)
    except Exception as error:  # it was built without weights: this is about them
        raise BadInput(
            f"The pretrained weights of timm:{name} cannot be loaded ({describe_error(error)}): "
            "connect to the network, or leave pretrained out and give a file with --init."
        ) from error


def _find_pretrained_problems(timm: ModuleType, name: str, pretrained: object) -> Iterator[str]:
    if not isinstance(pretrained, bool):
        yield f"timm:{name} cannot take pretrained={pretrained!r}: write True or False."
    elif pretrained and not timm.is_model_pretrained(name):
        yield f"timm has no pretrained weights of {name}: leave pretrained out, or give --init."


def build_torchvision_model(
    name: str, options: Mapping[str, Any], num_classes: int, shape: tuple[int, int, int]
) -> nn.Module:
    """Build a network of torchvision, untrained, for images (C, H, W) = `shape`.

    Raises:
        BadInput: if torchvision is not installed, has no such model, or refuses the options or the
            size, or if the images do not have 3 channels.
    """
    library = import_library("torchvision.models")
    # Classification only: models for segmentation and detection return other outputs than logits.
    known = library.list_models(module=library)
    problems = []
    if name not in known:
        problems.append(describe_unknown_model("torchvision", name, known))
    if shape[0] != 3:
        problems.append(
            f"The images have {shape[0]} channel(s), but torchvision's models take 3: use"
            " timm:NAME, whose models take any number, or repeat the channel in the data."
        )
    check(problems)
    fixed = {"weights": None, "num_classes": num_classes}
    # torchvision's vision transformers take one number, so the images must be square.
    size = {"image_size": shape[1]} if shape[1] == shape[2] else {}
    return _build(library.get_model, name, options, fixed, size)


def find_in_libraries(name: str) -> list[str]:
    """List a model's name with the prefix of each installed library that has it.

    Example:
        >>> find_in_libraries("no such model")
        []
    """
    lookups: dict[str, Callable[[ModuleType], bool]] = {
        "timm": lambda timm: timm.is_model(name),
        "torchvision.models": lambda library: name in library.list_models(module=library),
    }
    found = []
    for package, has_model in lookups.items():
        with suppress(BadInput):
            if has_model(import_library(package)):
                found.append(f"{package.partition('.')[0]}:{name}")
    return found


def _find_forbidden_options(name: str, options: Mapping[str, Any]) -> Iterator[str]:
    for key, value in options.items():
        if key in SET_BY_DATA:
            yield f"{name} cannot take {key}={value!r}: the data decide that. Remove it."
        if key in PRETRAINED_OPTIONS:
            yield (
                f"{name} cannot take {key}={value!r}: a network that is built by name is untrained."
                " Remove it, and begin with the weights of a file: --init FILE."
            )


def _build(
    build: Callable[..., Any],
    name: str,
    options: Mapping[str, Any],
    fixed: dict[str, Any],
    size: dict[str, Any],
) -> nn.Module:
    """Build a model, with the size of the images if it takes one.

    Raises:
        BadInput: if the library refuses the options or the size.
    """
    check(_find_forbidden_options(name, options))
    try:
        model: nn.Module = build(name, **fixed, **size, **options)
    except TypeError as error:
        # No list says which models take a size. Those that do not raise this error.
        if any(keyword in str(error) for keyword in size):
            return _build(build, name, options, fixed, {})
        if not options:
            raise
        raise BadInput(
            f"The model {name} cannot be built with {dict(options)}: {error}. Remove or correct"
            " these options."
        ) from error
    except (ValueError, AssertionError, RuntimeError) as error:
        raise BadInput(
            f"The model {name} cannot be built for images of size {size}: {error} Choose another"
            " size or another model."
        ) from error
    return model
