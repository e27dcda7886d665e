"""Flags without effect are refused, and those with an effect are not."""

from __future__ import annotations

import pytest

from localprop.cli import main as cli
from tests.helpers.cli import QUICK, run_train


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--optimizer", "adam", "--momentum", "0.9"],
            "--momentum has no effect with --optimizer adam",
        ),
        (["--optimizer", "adamw", "--nesterov"], "--nesterov has no effect with --optimizer adamw"),
        (
            ["--optimizer", "adamw", "--no-nesterov"],
            "--nesterov has no effect with --optimizer adamw",
        ),
        (["--padding", "zeros"], "--padding has no effect without the augmentation 'crop'"),
        (["--padding", "zeros", "--augment", "flip"], "--padding has no effect"),
        (
            ["--cutout", "4", "--augment", "crop"],
            "--cutout has no effect without the augmentation 'cutout'",
        ),
        (
            ["--crop-pad", "2", "--augment", "flip"],
            "--crop-pad has no effect without the augmentation 'crop'",
        ),
        (["--data", "text", "--validation", "0.5"], "--validation has no effect on text"),
        (["--context", "8"], "--context has no effect on images"),
        (["--image-size", "8"], "--image-size has no effect without a folder"),
        (["--root", "."], "--root has no effect on digits"),
        (["--lr-factor", "0.5"], "--lr-factor has no effect with --lr-schedule cosine"),
        (["--warmup-from", "0"], "--warmup-from has no effect without a warm-up"),
        (["--fast", "--fused"], "--fused has no effect with --fast"),
        (["--tf32", "--device", "cpu"], "--tf32 has no effect on cpu, which has no TF32"),
        (["--replicas", "2"], "--replicas has no effect in one process"),
        (["--timeout-s", "9"], "--timeout-s has no effect in one process"),
    ],
)
def test_flags_without_effect_are_refused(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for command in ("train", "show", "compare"):
        assert cli.main([command, *QUICK, *words, "--lr", "0"]) == 2
        err = capsys.readouterr().err
        assert (message in err, err.count("\n- ")) == (
            True,
            2,
        )  # the other one is the learning rate


def test_flags_with_an_effect_are_taken() -> None:
    assert run_train("--augment", "crop,cutout", "--padding", "zeros", "--cutout", "4") == 0
    assert (
        cli.main(["show", "resnet32_cifar10_dgl_k4", "--padding", "zeros", "--batch-size", "8"])
        == 0
    )
