"""A method in a comparison, with its label."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from localprop.errors import BadInput, check, collect_problems, show
from localprop.methods.names import format_method
from localprop.methods.parse import parse_rule
from localprop.rule.rule import Rule

Methods: TypeAlias = "Sequence[str | Rule] | Mapping[str, str | Rule] | str | Rule"

# "greedy() with recompute", "end_to_end() with recompute=modules", "greedy() with bf16 with fast"
_OPTION = re.compile(
    r" with (?:recompute(?:=(?P<layers>\S+))?|(?P<switch>offload|fast)|(?P<precision>bf16|fp16))$"
)


@dataclass(frozen=True)
class MethodSpec:
    """A method in a comparison.

    Attributes:
        label: its name in the table.
        method: its expression, such as `greedy()`, or a rule.
        recompute: which layers run again in the backward, to save memory.
        offload: whether the host keeps activations.
        fast: whether it takes what gains on the device.
        precision: its own, if not that of all methods.
    """

    label: str
    method: str | Rule
    recompute: bool | int | str = False
    offload: bool = False
    fast: bool = False
    precision: str | None = None

    @property
    def options(self) -> dict[str, Any]:
        """Its arguments of a learner, and fields of a config."""
        switches = {"recompute": self.recompute, "offload": self.offload, "fast": self.fast}
        return switches if self.precision is None else {**switches, "precision": self.precision}

    @property
    def expression(self) -> str:
        """The method with its options, as `parse` reads it.

        Example:
            >>> MethodSpec("mine", "greedy()", recompute=2, fast=True).expression
            'greedy() with recompute=2 with fast'
        """
        words = [format_method(self.method)]
        words += [
            f"with {name}" if value is True else f"with {name}={value}"
            for name, value in self.options.items()
            if value is not False
        ]
        return " ".join(words)

    @classmethod
    def parse(cls, text: str) -> MethodSpec:
        """Parse `[LABEL: ]EXPRESSION`, with recompute, recompute=LAYERS, offload, fast, bf16 or
        fp16 behind it, or several of them.

        Example:
            >>> spec = MethodSpec.parse("mine: greedy() with recompute with fast")
            >>> spec.label, spec.method, spec.recompute, spec.fast
            ('mine', 'greedy()', True, True)
        """
        label, _, expression = text.rpartition(": ")
        method, options = expression, dict[str, Any]()
        while found := _OPTION.search(method):
            method, layers = method[: found.start()], found["layers"]
            if found["switch"]:
                options[found["switch"]] = True
            elif found["precision"]:
                options["precision"] = found["precision"]
            else:
                is_number = layers is not None and re.fullmatch("[0-9]{1,9}", layers)
                options["recompute"] = int(layers) if is_number else layers or True
        return cls((label or expression).strip(), method.strip(), **options)


def filter_trainable(
    specs: Iterable[MethodSpec], build: Callable[[MethodSpec], object]
) -> tuple[list[MethodSpec], list[str]]:
    """Split methods into those that can be trained and the problems of the others.

    Args:
        specs: the methods.
        build: builds a method's learner; raises BadInput if that is impossible.

    Returns:
        The trainable methods, and one sentence for each problem, after the method's label.

    Example:
        >>> specs = [MethodSpec.parse("greedy()"), MethodSpec.parse("gredy()")]
        >>> trainable, problems = filter_trainable(specs, lambda spec: parse_rule(spec.method))
        >>> [spec.label for spec in trainable], len(problems)
        (['greedy()'], 1)
    """
    trainable: list[MethodSpec] = []
    problems: list[str] = []
    for spec in specs:
        try:
            build(spec)
            trainable.append(spec)
        except BadInput as error:
            problems += [f"{spec.label}: {problem}" for problem in error.problems]
    return trainable, problems


def parse_methods(methods: Methods) -> list[MethodSpec]:
    """Read the methods of a comparison.

    Args:
        methods: texts as `MethodSpec.parse` reads them and rules; or a mapping from labels to such.

    Raises:
        BadInput: if there are none, or if two have the same label.

    Example:
        >>> [spec.label for spec in parse_methods(["greedy()", Rule()])]
        ['greedy()', 'Rule()']
    """
    if isinstance(methods, str | Rule):
        methods = [methods]
    if isinstance(methods, Mapping):
        specs = [replace(_read_spec(method), label=label) for label, method in methods.items()]
    elif isinstance(methods, Iterable):
        specs = [_read_spec(each) for each in methods if each not in ("", " ")]
    else:
        raise BadInput(f"methods={show(methods)} must be texts or rules, or a mapping to such.")
    labels = [spec.label for spec in specs]
    duplicates = sorted({label for label in labels if labels.count(label) > 1})
    check(
        f"Two methods are called {label!r}: give one a label, as in 'mine: {label}'."
        for label in duplicates
    )
    if not specs:
        raise BadInput("No method to compare: name one after --methods, such as 'greedy()'.")
    return specs


def _read_spec(method: str | Rule) -> MethodSpec:
    if not isinstance(method, str | Rule):
        raise BadInput(f"The method {show(method)} must be a text or a Rule.")
    if isinstance(method, Rule):
        return MethodSpec(format_method(replace(method, reference="")), method)
    return MethodSpec.parse(method)


def parse_and_check_methods(methods: Methods, problems: list[str]) -> list[MethodSpec]:
    """Read methods, and append to `problems` what is wrong with labels or expressions."""
    specs: list[MethodSpec] = []
    with collect_problems(problems):
        specs = parse_methods(methods)
    problems += filter_trainable(specs, lambda spec: parse_rule(spec.method))[1]
    return specs
