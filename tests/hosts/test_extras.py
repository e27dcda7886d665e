"""Without a host's packages, its module says what installs them."""

from __future__ import annotations

import importlib
import sys

import pytest

import localprop as lp


@pytest.mark.parametrize(
    ("host", "package", "extra"),
    [("transformers", "accelerate", "hf"), ("lightning", "lightning.pytorch", "lightning")],
)
def test_a_missing_package_is_named_with_its_extra(
    host: str, package: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.delitem(sys.modules, f"localprop.hosts.{host}", raising=False)
    with pytest.raises(lp.BadInput, match=rf"{package}.*pip install 'localprop\[{extra}\]'"):
        importlib.import_module(f"localprop.hosts.{host}")
