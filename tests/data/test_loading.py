"""Options of loading: augmentation in words, and values that are refused."""

from __future__ import annotations

from typing import Any

import pytest

from localprop.data import Augment, LoadingOptions, load
from localprop.errors import BadInput
from tests.helpers.images import load_images


@pytest.mark.parametrize(
    ("options", "augment"),
    [
        ({"augment": "crop"}, Augment(4, reflect=True)),
        ({"augment": "crop,flip"}, Augment(4, reflect=True, flip=True)),
        ({"augment": "flip, crop", "padding": "zeros"}, Augment(4, flip=True)),
        ({"augment": "cutout"}, Augment(cutout=16)),
        ({"augment": "flip,cutout", "cutout": 2}, Augment(flip=True, cutout=2)),
        ({"augment": "none", "cutout": 2}, Augment()),
        ({}, Augment()),
    ],
)
def test_augmentation_is_given_in_words(options: dict[str, Any], augment: Augment) -> None:
    assert load_images("digits", **options).augment == augment


def test_padding_alone_changes_the_usual_augmentation() -> None:
    usual = Augment(pad=4, reflect=True, flip=True)
    assert LoadingOptions(padding="zeros").choose_augment(usual) == Augment(pad=4, flip=True)
    assert LoadingOptions().choose_augment(usual) == usual


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"augment": "random_resized_crop"}, "use crop"),
        ({"augment": "crop,rotate"}, "unknown"),
        ({"augment": ""}, "unknown"),
        ({"padding": "mirror"}, "choose reflect or zeros"),
        ({"cutout": 0}, "cutout is 0"),
        ({"mean": (0.5,)}, "both or none"),
        ({"mean": (0.5,), "std": (0.0,)}, "positive"),
        ({"mean": (), "std": ()}, "finite numbers"),
        ({"mean": (0.5, 0.5), "std": (1.0, 1.0)}, "2 numbers for 1 channel"),
        ({"mean": (float("nan"),), "std": (1.0,)}, "finite numbers"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        load("digits", **options)


def test_how_far_a_crop_goes() -> None:
    usual = Augment(pad=4, reflect=True)
    assert LoadingOptions(crop_pad=2).choose_augment(usual) == Augment(pad=2, reflect=True)
    flip = Augment(flip=True)  # a usual augmentation without a crop stays so
    assert LoadingOptions(crop_pad=2).choose_augment(flip) == flip
    zeros = LoadingOptions(augment="crop", crop_pad=3, padding="zeros")
    assert zeros.choose_augment(usual) == Augment(pad=3)
    assert LoadingOptions(augment="flip", crop_pad=3).choose_augment(usual) == flip
    problems = LoadingOptions(crop_pad=0).find_problems("mnist")
    assert problems == ["The crop_pad is 0 pixels, but at least 1 is needed: raise it."]
