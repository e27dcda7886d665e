"""How a method trains, read without a step."""

from __future__ import annotations

import pytest

from localprop.errors import BadInput
from localprop.report.page.anatomy import list_credit_cells, read_anatomy
from localprop.report.page.draw_alive import count_by_kind, find_module
from localprop.training.build import prepare
from localprop.training.config import Config
from localprop.writing.tables import MIB


def test_it_is_that_of_the_runs_learner() -> None:
    config = Config(model="mlp:8,8", method="backlink()", epochs=2, limit=60, atomic=False)
    anatomy = read_anatomy(config)
    _, learner = prepare(config)
    assert anatomy.table == learner.wiring.table
    assert anatomy.schedule == str(learner.schedule)
    assert anatomy.values.memory.peak_bytes == learner.memory().peak_bytes
    # Three modules of one layer; each loss but the first also trains the layer before its module.
    assert list(list_credit_cells(anatomy.table)) == [
        (0, 0, "trains"),
        (1, 0, "trains"),
        (1, 1, "trains"),
        (2, 1, "trains"),
        (2, 2, "trains"),
    ]


def test_greedy_pipelines_have_no_bubbles_and_those_of_end_to_end_have() -> None:
    """Of equal layers, as the hidden ones of this network nearly are."""
    model = "mlp:64,64,64"
    greedy = read_anatomy(Config(model=model, method="greedy(aux=Head(convs=0, linears=1))"))
    plain = read_anatomy(Config(model=model, method="end_to_end()"))
    assert greedy.timeline is not None
    assert plain.timeline is not None
    assert greedy.timeline.ranks == plain.timeline.ranks == 4
    assert greedy.timeline.idle_share < plain.timeline.idle_share
    # A batch keeps the fullest rank busy for its share of the work, and no rank for longer.
    assert plain.timeline.seconds_per_step > greedy.timeline.seconds_per_step > 0.25


def test_one_module_and_methods_that_cannot_be_sent_have_no_pipeline() -> None:
    alone = read_anatomy(Config(model="mlp:8", modules=1))
    assert alone.timeline is None
    assert alone.no_timeline == "With one module there is no pipeline."
    man = read_anatomy(Config(model="resnet8", method="man()"))
    assert man.timeline is None
    assert "rank" in man.no_timeline


def test_what_is_alive_adds_up_and_has_its_place() -> None:
    anatomy = read_anatomy(Config(model="mlp:8,8", method="greedy()", batch_size=64))
    kinds = count_by_kind(anatomy.values)
    for place, reading in enumerate(anatomy.values.actions):
        alive = anatomy.values.memory.resting_bytes + sum(reading.values.values())
        assert sum(sizes[place] for sizes in kinds.values()) == pytest.approx(alive / MIB)
        modules = {find_module(value, anatomy) for value in reading.values} - {None}
        # Greedy training frees a module before the next one begins.
        assert modules <= {reading.action.segment}


def test_a_network_that_cannot_be_built_is_bad_input() -> None:
    with pytest.raises(BadInput, match="nowhere"):
        read_anatomy(Config(model="mlp", data="nowhere.npz"))
