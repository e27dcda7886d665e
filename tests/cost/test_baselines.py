"""Timing of steps in interleaved rounds."""

from __future__ import annotations

import torch

from localprop.cost.baselines import time_interleaved


def test_interleaved_timings_are_ratios_within_a_round() -> None:
    steps = {"a": lambda: None, "b": lambda: sum(range(20_000))}
    timings = time_interleaved(steps, "a", 5, torch.device("cpu"))
    assert timings["a"].ratio == 1
    assert timings["b"].ratio > 1
    assert timings["b"].low <= timings["b"].ratio <= timings["b"].high
