"""Hand-written models of sequences: embeddings, transformers of torch, recurrent layers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from cases import Build, Case, Cases, make_labels
from pattern_features import CLASSES, SAMPLES
from torch import Tensor, nn


class Encoder(nn.Module):
    """torch's transformer, batch first or, as is its default, time first."""

    def __init__(self, batch_first: bool) -> None:
        super().__init__()
        self.first = nn.Linear(5, 16)
        layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=batch_first)
        self.encoder = nn.TransformerEncoder(layer, 4, enable_nested_tensor=False)
        self.last, self.time = nn.Linear(16, CLASSES), 1 if batch_first else 0

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.last(self.encoder(self.first(x)).mean(self.time))
        return scores


def build_encoder(length: int, batch_first: bool) -> Build:
    def build() -> Case:
        shape = (SAMPLES, length, 5) if batch_first else (length, SAMPLES, 5)
        dims = ... if batch_first else (1, 0)
        batch = (torch.randn(*shape), make_labels(SAMPLES))
        return Case(Encoder(batch_first), batch, batch_dims=dims, blocks=4, channel=2)

    return build


class CausalModel(nn.Module):
    """A language model of torch's layers, which get a mask."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(40, 16)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True) for _ in range(5)
        )
        self.last = nn.Linear(16, 40)

    def forward(self, ids: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(ids.shape[1])
        x = self.embed(ids)
        for layer in self.layers:
            x = layer(x, src_mask=mask)
        scores: Tensor = self.last(x)
        return scores


def build_causal_model() -> Case:
    ids = torch.randint(40, (SAMPLES, 10))
    return Case(CausalModel(), (ids[:, :-1], ids[:, 1:]), blocks=6, channel=2, causal=True)


class Recurrent(nn.Module):
    def __init__(self, make: Callable[[int], Any], listed: bool) -> None:
        super().__init__()
        self.embed = nn.Embedding(40, 16)
        self.layers = nn.ModuleList(make(1) for _ in range(4)) if listed else make(4)
        self.last, self.listed = nn.Linear(16, CLASSES), listed

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        layers: Any = self.layers if self.listed else [self.layers]
        for layer in layers:
            x = layer(x)[0]
        scores: Tensor = self.last(x[:, -1])
        return scores


def build_recurrent(kind: type[nn.LSTM | nn.GRU], listed: bool) -> Build:
    def build() -> Case:
        batch = (torch.randint(40, (SAMPLES, 11)), make_labels(SAMPLES))
        model = Recurrent(lambda n: kind(16, 16, n, batch_first=True), listed)
        why = "" if listed else "all layers are in one module"
        return Case(model, batch, blocks=5, channel=2 if listed else None, no_cuts=why)

    return build


class Embedded(nn.Module):
    """How a forward hands its whole numbers to the embedding."""

    def __init__(self, enter: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.embed, self.enter = nn.Embedding(50, 16), enter
        self.blocks = nn.Sequential(
            *(nn.Sequential(nn.Linear(16, 16), nn.ReLU()) for _ in range(4))
        )
        self.last = nn.Linear(16, CLASSES)

    def forward(self, ids: Tensor) -> Tensor:
        scores: Tensor = self.last(self.blocks(self.enter(self.embed, ids)).mean(1))
        return scores


def build_embedded(
    enter: Callable[[nn.Module, Tensor], Tensor], dtype: torch.dtype = torch.long
) -> Build:
    def build() -> Case:
        batch = (torch.randint(50, (SAMPLES, 9)).to(dtype), make_labels(SAMPLES))
        return Case(Embedded(enter), batch, blocks=5, channel=2)

    return build


CASES: Cases = {
    "transformer_encoder": build_encoder(7, batch_first=True),
    "transformer_seq_first": build_encoder(7, batch_first=False),
    "transformer_seq_first_square": build_encoder(SAMPLES, batch_first=False),
    "causal_lm": build_causal_model,
    "lstm": build_recurrent(nn.LSTM, listed=False),
    "lstm_list": build_recurrent(nn.LSTM, listed=True),
    "gru": build_recurrent(nn.GRU, listed=False),
    "embedding_view": build_embedded(lambda embed, ids: embed(ids.view(-1, ids.shape[-1]))),
    "embedding_keyword": build_embedded(lambda embed, ids: embed(input=ids)),
    "embedding_long": build_embedded(lambda embed, ids: embed(ids.long()), torch.int32),
    "embedding_slice": build_embedded(lambda embed, ids: embed(ids[:, 1:])),
}
