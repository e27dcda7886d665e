"""Networks of timm and torchvision, by their names there."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from difflib import get_close_matches
from importlib import import_module
from types import ModuleType
from typing import Any

from torch import nn

from localprop.errors import BadInput, check

# What a name must not give, and why.
BY_DATA = ("num_classes", "in_chans", "img_size", "image_size")
UNTRAINED = ("pretrained", "weights")


def library(name: str) -> ModuleType:
    """Import an optional package.

    Args:
        name: "timm", "torchvision.models".

    Raises:
        BadInput: it is not installed, with the line that installs it.

    Example:
        >>> library("torch").nn is nn
        True
    """
    try:
        return import_module(name)
    except ImportError as error:
        package = name.partition(".")[0]
        raise BadInput(
            f"The package {package} cannot be imported ({error}): pip install 'localprop[vision]'."
        ) from error


def unknown(library: str, name: str, known: Iterable[str]) -> str:
    """The problem of a name that a library does not have.

    Example:
        >>> unknown("timm", "resnt18", ["resnet18"])
        "timm has no model 'resnt18': did you mean resnet18?"
    """
    close = get_close_matches(name, known, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(close)}?" if close else "look it up in the library's list."
    return f"{library} has no model {name!r}: {hint}"


def from_timm(name: str, options: Mapping[str, Any], num_classes: int, shape: tuple[int, int, int]) -> nn.Module:
    """timm's network of a name, untrained, for images (C, H, W) = `shape`.

    Raises:
        BadInput: timm is not installed, or lacks the name, the options or the size.
    """
    timm = library("timm")
    check([] if timm.is_model(name) else [unknown("timm", name, timm.list_models())])
    given = {"pretrained": False, "num_classes": num_classes, "in_chans": shape[0]}
    return _build(timm.create_model, name, options, given, {"img_size": shape[1:]})


def from_torchvision(name: str, options: Mapping[str, Any], num_classes: int, shape: tuple[int, int, int]) -> nn.Module:
    """torchvision's network of a name, untrained, for images (C, H, W) = `shape`.

    Raises:
        BadInput: torchvision is not installed, or lacks the name, the options or the size; channels other than 3.
    """
    zoo = library("torchvision.models")
    known = zoo.list_models(module=zoo)  # classification only: segmentation and detection have other outputs
    problems = []
    if name not in known:
        problems.append(unknown("torchvision", name, known))
    if shape[0] != 3:
        problems.append(
            f"The images have {shape[0]} channel(s), but torchvision's models take 3: use timm:NAME, whose"
            " first layer is built for any number, or repeat the channel in the data."
        )
    check(problems)
    given = {"weights": None, "num_classes": num_classes}
    return _build(zoo.get_model, name, options, given, {"image_size": shape[1]} if shape[1] == shape[2] else {})


def prefixed(name: str) -> list[str]:
    """A name with the prefixes of the libraries that have it, of those that can be imported.

    Example:
        >>> prefixed("no such model")
        []
    """
    lookups: dict[str, Callable[[ModuleType], bool]] = {
        "timm": lambda timm: timm.is_model(name),
        "torchvision.models": lambda zoo: name in zoo.list_models(module=zoo),
    }
    found = []
    for package, has in lookups.items():
        with suppress(BadInput):
            if has(library(package)):
                found.append(f"{package.partition('.')[0]}:{name}")
    return found


def _refused(name: str, options: Mapping[str, Any]) -> Iterator[str]:
    for key in options:
        if key in BY_DATA:
            yield f"{name} cannot take {key}={options[key]!r}: the data decide that. Remove it."
        if key in UNTRAINED:
            yield (
                f"{name} cannot take {key}={options[key]!r}: a network that is built by its name is untrained. Remove it; "
                "in Python, load pretrained weights into the model before lp.Learner(model, ...)."
            )


def _build(
    build: Callable[..., Any], name: str, options: Mapping[str, Any], given: dict[str, Any], size: dict[str, Any]
) -> nn.Module:
    """Build with the image's size where the model takes one, else without; a refusal becomes bad input."""
    check(_refused(name, options))
    try:
        model: nn.Module = build(name, **given, **size, **options)
    except TypeError as error:
        # Which models take a size is nowhere listed: the ones that do not say so by this error.
        if any(keyword in str(error) for keyword in size):
            return _build(build, name, options, given, {})
        if not options:
            raise
        raise BadInput(
            f"The model {name} cannot be built with {dict(options)}: {error}. Remove or correct it."
        ) from error
    except (ValueError, AssertionError, RuntimeError) as error:
        raise BadInput(
            f"The model {name} cannot be built for images of size {size}: {error} Choose another size or another model."
        ) from error
    return model
