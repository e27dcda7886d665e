"""Accuracies that plans show are those of benchmarks/results, of networks known by name."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import localprop as lp
from localprop.methods.parse import parse_rule
from localprop.planning import accuracies
from localprop.planning.made_for import MadeFor
from tests.helpers.plans import make_hand_plan, make_way

PROJECT = Path(__file__).parents[2]
RESNET = MadeFor("resnet14", 128, (3, 32, 32), "sgd", "fp32", 10)


def test_the_file_is_what_the_results_say() -> None:
    words = "import sys; sys.path[:0] = ['scripts', 'src']; import write_accuracies as written; "
    words += "sys.stdout.write(written.build_text())"
    run = subprocess.run(
        [sys.executable, "-c", words], cwd=PROJECT, capture_output=True, text=True, check=True
    )
    file = Path(accuracies.__file__).with_name("accuracies.json")
    assert run.stdout == file.read_text("utf-8"), "run scripts/write_accuracies.py"


def test_a_network_of_the_library_has_the_figures_of_its_methods() -> None:
    plain, local = make_way("end_to_end", 10, 1.0), make_way("greedy", 5, 1.1, modules=2)
    strange = replace(local, method="mine", rule=parse_rule("backlink(layers=3)"))
    split = replace(plain, microbatches=2, splits_batch_norm=True)
    found = accuracies.find_accuracies(RESNET, [plain, local, strange, split])
    assert found.keys() == {plain, local}
    assert found[plain].modules == 1
    assert found[local].modules == 7
    assert found[local].percent < found[plain].percent
    assert "10,000 training images" in found[plain].data


def test_no_other_network_has_figures() -> None:
    way = make_way("end_to_end", 10, 1.0)
    for other in (
        RESNET._replace(model="ResNet"),
        RESNET._replace(classes=None),  # a plan of a module, whatever its class is called
        RESNET._replace(classes=100),
        RESNET._replace(input_shape=(3, 64, 64)),
    ):
        assert not accuracies.find_accuracies(other, [way])


def test_the_table_says_what_the_figures_are_of() -> None:
    named = make_hand_plan(model="resnet14", input_shape=(3, 32, 32))
    lines = str(named).splitlines()
    assert "accuracy %" in lines[0]
    assert "at 7 modules" in str(named)
    assert "CIFAR-10 as JPEG, 10,000 training images, 12 epochs" in str(named)
    assert named.as_json()["best"]["accuracy"]["modules"] == 7
    other = make_hand_plan(model="mine.py:resnet14", input_shape=(3, 32, 32))
    assert "accuracy" not in str(other)
    assert other.as_json()["best"]["accuracy"] is None
    assert isinstance(other, lp.Plan)
