"""Calls of the builders that a rule consists of, which may be the user's own code."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from localprop.errors import BadInput, show
from localprop.network.partition import Partition
from localprop.rule.rule import Rule
from localprop.rule.table import CreditTable
from localprop.user_code import describe_error


@contextmanager
def running_builder(field: str, builder: object) -> Iterator[None]:
    """Say which part of a rule fails, and why.

    Args:
        field: of the rule.
        builder: what stands there.

    Raises:
        BadInput: the builder raised something else.

    Example:
        >>> with running_builder("aux", lp.Head()):
        ...     1 / 0
        Traceback (most recent call last):
        localprop.errors.BadInput: The rule's aux, Head, cannot be built (...): correct ...
    """
    try:
        yield
    except BadInput:
        raise
    except Exception as error:  # a builder of the user's may raise anything
        raise BadInput(
            f"The rule's {field}, {show(builder)}, cannot be built ({describe_error(error)}): "
            "correct its arguments or its code, or choose smaller sizes."
        ) from error


def make_credit_table(rule: Rule, partition: Partition) -> CreditTable:
    """The credit table of a rule on a network.

    Raises:
        BadInput: the credit fails, or returns something else.

    Example:
        >>> layers = lp.layers_of(lp.models.mlp(4, hidden=(8,)), torch.zeros(2, 4))
        >>> print(make_credit_table(lp.greedy(), lp.Partition.uniform(layers, 2)))
        loss0 T|.
        loss1 .|T
    """
    with running_builder("credit", rule.credit):
        table = rule.credit(partition)
    if not isinstance(table, CreditTable):
        raise BadInput(
            f"The rule's credit, {show(rule.credit)}, returned a {type(table).__name__}, but must "
            "return a localprop.CreditTable."
        )
    return table
