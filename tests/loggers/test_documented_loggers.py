"""The loggers of docs/loggers.md, with stand-ins that have the signatures of the packages.

The stand-ins are by hand: of wandb 0.31, mlflow 3.17 and trackio 0.43.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any
from unittest.mock import Mock, create_autospec

import pytest

import localprop as lp

PAGE = Path(__file__).parents[2] / "docs" / "loggers.md"


class Wandb:
    def init(self, *, project: str | None = None, config: dict[str, Any] | None = None) -> None: ...
    def log(self, data: dict[str, Any], step: int | None = None) -> None: ...
    def finish(self, exit_code: int | None = None) -> None: ...


class Mlflow:
    def start_run(self) -> None: ...
    def log_params(self, params: dict[str, Any]) -> None: ...
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None: ...
    def end_run(self, status: str = "FINISHED") -> None: ...


class Trackio:
    def init(self, project: str, config: dict[str, Any] | None = None) -> None: ...
    def log(self, metrics: dict[str, Any], step: int | None = None) -> None: ...
    def finish(self) -> None: ...


@pytest.mark.parametrize("package", [Wandb, Mlflow, Trackio])
def test_a_documented_logger_gets_each_epoch(package: type) -> None:
    name = package.__name__.lower()
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    (block,) = [each for each in blocks if f"def log_to_{name}" in each]
    stand_in: Mock = create_autospec(package, instance=True)
    names: dict[str, Any] = {name: stand_in}
    exec(block, names)
    notes: list[str] = []
    summary = lp.train(
        model="mlp:16", limit=100, epochs=2, log=names[f"log_to_{name}"], on_note=notes.append
    )
    assert notes == []
    called = [call[0] for call in stand_in.method_calls]
    log = "log_metrics" if name == "mlflow" else "log"
    begin = ["start_run", "log_params"] if name == "mlflow" else ["init"]
    assert called == [*begin, log, log, log, log, "end_run" if name == "mlflow" else "finish"]
    logged = [call.args[0] for call in getattr(stand_in, log).call_args_list]
    losses = [each["loss/0"] for each in logged if "loss/0" in each]
    assert losses == [report["losses"][0] for report in summary["epochs"]]
    assert logged[-1]["test_accuracy"] == summary["test_accuracy"]
    assert all(isinstance(value, int | float) for each in logged for value in each.values())
