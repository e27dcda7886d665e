"""torchaudio, speechbrain and conformer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from cases import Build, Case, Cases, make_labels
from torch import Tensor, nn

import localprop as lp

SAMPLES, CLASSES = 4, 5


class Classifier(nn.Module):
    """A model of sequences, and a classifier of their mean."""

    def __init__(self, model: nn.Module, width: int, enter: Callable[[Any, Tensor], Any]) -> None:
        super().__init__()
        self.model, self.last, self.enter = model, nn.Linear(width, CLASSES), enter

    def forward(self, x: Tensor) -> Tensor:
        output = self.enter(self.model, x)
        features: Tensor = output[0] if isinstance(output, tuple) else output
        scores: Tensor = self.last(features.mean(1))
        return scores


def call(model: Any, x: Tensor) -> Any:
    return model(x)


def build_conformer() -> Case:
    """It masks by lengths, whose largest it reads."""
    import torchaudio

    model = torchaudio.models.Conformer(32, 4, 64, 4, depthwise_conv_kernel_size=5)

    def enter(model: Any, x: Tensor) -> Any:
        return model(x, torch.full((len(x),), x.shape[1]))

    batch = (torch.randn(SAMPLES, 10, 32), make_labels(SAMPLES))
    return Case(Classifier(model, 32, enter), batch, blocks=4, channel=2)


def build_separator() -> Case:
    """Conv-TasNet: a signal in, two signals out."""
    import torchaudio

    model = torchaudio.models.ConvTasNet(
        num_sources=2,
        enc_kernel_size=8,
        enc_num_feats=16,
        msk_num_feats=8,
        msk_num_hidden_feats=16,
        msk_num_layers=3,
        msk_num_stacks=2,
    )
    batch = (torch.randn(SAMPLES, 1, 160), torch.randn(SAMPLES, 2, 160))
    return Case(model, batch, blocks=6, no_cuts="skips of all blocks are added at the end")


def build_frames(make: Callable[[Any], nn.Module], shape: tuple[int, ...], frames: int) -> Build:
    """A model with one output per frame, and its frames' labels."""

    def build() -> Case:
        import torchaudio

        batch = (torch.randn(SAMPLES, *shape), torch.randint(CLASSES, (SAMPLES, frames)))
        return Case(make(torchaudio.models), batch, blocks=5 if len(shape) > 2 else 12)

    return build


def build_wav2vec2() -> Case:
    import torchaudio

    model = torchaudio.models.wav2vec2_model(
        "group_norm",
        [(16, 10, 5), (16, 3, 2)],
        False,
        32,
        0.0,
        16,
        4,
        4,
        4,
        0.0,
        64,
        0.0,
        0.0,
        False,
        0.0,
        None,
    )
    batch = (torch.randn(SAMPLES, 400), make_labels(SAMPLES))
    return Case(Classifier(model, 32, call), batch, blocks=6)


class Speaker(nn.Module):
    """An encoder of speakers, and a classifier."""

    def __init__(self, encoder: nn.Module, width: int) -> None:
        super().__init__()
        self.encoder, self.last = encoder, nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.last(self.encoder(x).squeeze(1))
        return scores


def build_xvector() -> Case:
    """Its layers are called with lengths first, and the error is caught."""
    from speechbrain.lobes.models.Xvector import Xvector

    encoder: Any = Xvector(
        tdnn_channels=[16, 16, 16, 16, 32], lin_neurons=16, in_channels=12, device="cpu"
    )
    batch = (torch.randn(SAMPLES, 40, 12), make_labels(SAMPLES))
    return Case(Speaker(encoder, 16), batch, blocks=6)


def build_ecapa() -> Case:
    from speechbrain.lobes.models.ECAPA_TDNN import ECAPA_TDNN

    encoder: Any = ECAPA_TDNN(
        12, lin_neurons=16, channels=[16, 16, 16, 16, 48], attention_channels=8, se_channels=8
    )
    batch = (torch.randn(SAMPLES, 40, 12), make_labels(SAMPLES))
    why = "the last block reads what all blocks return"
    return Case(Speaker(encoder, 16), batch, blocks=5, no_cuts=why)


def build_other_conformer() -> Case:
    from conformer import Conformer

    model: Any = Conformer(dim=32, depth=4, dim_head=8, heads=4)
    batch = (torch.randn(SAMPLES, 10, 32), make_labels(SAMPLES))
    return Case(Classifier(model, 32, call), batch, blocks=4, channel=2)


def build_transcriber() -> Case:
    """wav2letter with its loss, that of characters without their places."""
    import torchaudio

    def loss(scores: Tensor, labels: Tensor) -> Tensor:
        lengths = torch.full((scores.shape[0],), scores.shape[2])
        counts = torch.full((scores.shape[0],), labels.shape[1])
        frames = scores.permute(2, 0, 1)
        found: Tensor = nn.functional.ctc_loss(frames, labels, lengths, counts)
        return found

    model = torchaudio.models.Wav2Letter(num_classes=CLASSES, input_type="mfcc", num_features=13)
    batch = (torch.randn(SAMPLES, 13, 60), torch.randint(1, CLASSES, (SAMPLES, 4)))
    return Case(model, batch, lp.task(loss=loss), blocks=12)


CASES: Cases = {
    "audio:conformer": build_conformer,
    "audio:convtasnet": build_separator,
    "audio:deepspeech": build_frames(
        lambda models: models.DeepSpeech(13, n_hidden=32, n_class=CLASSES), (1, 20, 13), 20
    ),
    "audio:wav2letter": build_transcriber,
    "audio:wav2vec2": build_wav2vec2,
    "speechbrain:xvector": build_xvector,
    "speechbrain:ecapa": build_ecapa,
    "conformer:conformer": build_other_conformer,
}
