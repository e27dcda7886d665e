"""The transformer against one written by hand, and what it lets each position see."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import localprop as lp
from localprop.errors import BadInput
from localprop.models import TransformerLM, transformer_lm

WIDTH, HEADS, HEAD_WIDTH, BLOCKS = 12, 3, 4, 2


def build_model(**options: Any) -> TransformerLM:
    return transformer_lm(
        vocabulary=11, context=8, width=WIDTH, heads=HEADS, blocks=BLOCKS, **options
    )


def make_tokens() -> Tensor:
    return torch.randint(11, (2, 8), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("t", [1, 4, 7])
def test_no_position_sees_a_later_one(t: int) -> None:
    model, before = build_model(), make_tokens()
    after = before.clone()
    after[:, t] = (after[:, t] + 1) % 11
    assert torch.equal(model(before)[:, :t], model(after)[:, :t])
    assert not torch.isclose(model(before)[:, t:], model(after)[:, t:]).all(-1).any()


class TransformerByHand:
    """The network from its weights alone, one head and one position at a time."""

    def __init__(self, model: nn.Module) -> None:
        self.weights = dict(model.named_parameters())

    def __call__(self, tokens: Tensor) -> Tensor:
        positions = self.weights["embed.positions"][: tokens.shape[1]]
        x = self.weights["embed.tokens.weight"][tokens] + positions
        for i in range(BLOCKS):
            x = x + self.attend(self.norm(x, f"blocks.{i}.norm1"), f"blocks.{i}.attention")
            hidden = self.linear(self.norm(x, f"blocks.{i}.norm2"), f"blocks.{i}.mlp.0")
            x = x + self.linear(functional.gelu(hidden), f"blocks.{i}.mlp.2")
        return self.norm(x, "norm") @ self.weights["unembed.weight"].T

    def attend(self, x: Tensor, name: str) -> Tensor:
        query, key, value = self.linear(x, f"{name}.qkv").chunk(3, dim=-1)
        mixed = torch.zeros_like(x)
        for head in range(HEADS):
            chans = slice(HEAD_WIDTH * head, HEAD_WIDTH * (head + 1))
            for t in range(x.shape[1]):
                products = (key[:, : t + 1, chans] * query[:, t : t + 1, chans]).sum(-1)
                shares = (products / HEAD_WIDTH**0.5).softmax(-1)
                mixed[:, t, chans] = (shares[..., None] * value[:, : t + 1, chans]).sum(1)
        return self.linear(mixed, f"{name}.out")

    def linear(self, x: Tensor, name: str) -> Tensor:
        return x @ self.weights[f"{name}.weight"].T + self.weights[f"{name}.bias"]

    def norm(self, x: Tensor, name: str) -> Tensor:
        weight, bias = self.weights[f"{name}.weight"], self.weights[f"{name}.bias"]
        return functional.layer_norm(x, x.shape[-1:], weight, bias)


@pytest.mark.parametrize("length", [8, 5])
def test_attention_by_hand(length: int) -> None:
    model = build_model().double()
    for parameter in model.parameters():
        nn.init.normal_(parameter)  # so that attention is far from uniform
    tokens = make_tokens()[:, :length]
    torch.testing.assert_close(model(tokens), TransformerByHand(model)(tokens))


@pytest.mark.parametrize(
    ("name", "std"),
    [
        ("blocks.3.mlp.0.weight", 0.02),
        ("blocks.3.mlp.2.weight", 0.02 / 4),
        ("blocks.3.attention.out.weight", 0.02 / 4),
        ("embed.positions", 0.02),
    ],
)
def test_initial_weights_of_the_transformer(name: str, std: float) -> None:
    model = transformer_lm(width=128, blocks=8)
    assert model.get_parameter(name).std().item() == pytest.approx(std, rel=0.02)


def test_initial_biases_and_scales_of_the_transformer() -> None:
    model = transformer_lm(width=128, blocks=8)
    assert model.get_parameter("blocks.3.attention.qkv.bias").abs().max() == 0
    assert model.get_parameter("blocks.3.norm1.weight").min() == 1


def test_dropout_of_the_transformer_ends_with_training() -> None:
    model = build_model(dropout=0.5)
    assert not torch.equal(model(make_tokens()), model(make_tokens()))
    assert torch.equal(model.eval()(make_tokens()), model(make_tokens()))


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_the_unembedding_is_found_by_name_in_the_last_layer(dropout: float) -> None:
    layers = lp.layers_of(build_model(dropout=dropout), make_tokens())
    assert layers.names == ("embed", "blocks.0", "blocks.1")
    assert "unembed.weight" in layers.parameters[2]
    assert layers.layer_of("unembed") == 2


def test_a_tied_unembedding_belongs_to_two_layers() -> None:
    model = build_model(tied=True)
    assert model.unembed.weight is model.embed.tokens.weight
    layers = lp.layers_of(model, make_tokens())
    uses = [i for i, names in enumerate(layers.parameters) if "embed.tokens.weight" in names]
    assert uses == [0, len(layers) - 1]


def test_refusals_of_the_transformer() -> None:
    with pytest.raises(BadInput) as caught:
        transformer_lm(vocabulary=0, width=10, heads=4, blocks=-1, dropout=2.0)
    assert len(caught.value.problems) == 4
