"""All methods, for tests that run over them."""

from __future__ import annotations

import inspect
from collections.abc import Callable

import pytest

import localprop as lp
from localprop import methods

Method = Callable[..., lp.Rule]

METHODS: list[Method] = [
    function
    for name, function in inspect.getmembers(methods, inspect.isfunction)
    if function.__module__.startswith(f"{methods.__name__}.") and not name.startswith("_")
]

each_method = pytest.mark.parametrize("method", METHODS, ids=lambda method: method.__name__)

# Methods that run in one process only, and the reason in the error message, a regular expression.
REFUSED = {
    "man": "copies '.*', which is on another rank",
    "man_plus": "copies '.*', which is on another rank",
    "solo": "copies 'head.weight', which is on another rank",
    "sgr": "is of second order",
}
