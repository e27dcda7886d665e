"""LoPT: reconstruction of tokens, against one connected graph in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import localprop as lp
from tests.helpers.connected import Connected, Losses, compare
from tests.helpers.connected_losses import loss_of, task_loss
from tests.helpers.language_models import language_model, layers_of_language_model
from tests.helpers.reference import NETWORKS, network, sgd


def split_decoder(decoder: nn.Module) -> tuple[nn.LayerNorm, nn.Linear, nn.Linear]:
    norm, narrow, _, wide = decoder.children()
    assert isinstance(norm, nn.LayerNorm)
    assert isinstance(narrow, nn.Linear)
    assert isinstance(wide, nn.Linear)
    return norm, narrow, wide


def decode_tokens(loss: nn.Module, x: Tensor) -> Tensor:
    """The decoder of a loss, written out."""
    norm, narrow, wide = split_decoder(loss.get_submodule("decoder"))
    variance = x.var(-1, keepdim=True, unbiased=False)
    normed = (x - x.mean(-1, keepdim=True)) / torch.sqrt(variance + 1e-5)
    hidden = (normed * norm.weight + norm.bias) @ narrow.weight.T + narrow.bias
    return functional.gelu(hidden) @ wide.weight.T + wide.bias


def test_reconstruction_of_a_language_models_features() -> None:
    """The first module reconstructs the token embeddings, the second its input.

    The two share the weight.
    """

    def losses(connected: Connected) -> Losses:
        targets = [connected.inner["embed"].detach(), connected.outputs[1].detach()]
        values = {2: task_loss(connected)}
        for k, target in enumerate(targets):
            decoded = decode_tokens(connected.loss(k), connected.outputs[k + 1])
            values[k] = 10 / 2 * (decoded - target).square().mean()
        return values

    model, batches = language_model(blocks=5)
    learner = compare(lp.lopt(), model, batches, layers_of_language_model, losses, modules=3)
    shapes = [tuple(parameter.shape) for parameter in learner.heads["0"].parameters()]
    assert shapes == [(8,), (8,), (2, 8), (2,), (8, 2), (8,)]  # a quarter of the width


def test_the_decoder_of_tokens_starts_small() -> None:
    model, (batch, *_) = language_model()
    learner = lp.Learner(model, lp.lopt(hidden=6), modules=2, optimizer=sgd, sample=batch)
    _, narrow, wide = split_decoder(loss_of(learner, 0).get_submodule("decoder"))
    bound = 0.1 * (6 / (8 + 6)) ** 0.5  # Xavier, uniform, gain 0.1
    for linear in (narrow, wide):
        assert not linear.bias.any()
        assert 0.8 * bound < linear.weight.abs().max() <= bound


def test_an_embedding_alone_has_nothing_to_reconstruct() -> None:
    model, (batch, *_) = language_model()
    reason = r"module 0 is 'embed' alone, .* end the first module later"
    with pytest.raises(lp.BadInput, match=reason):
        lp.Learner(model, lp.lopt(), modules=5, optimizer=sgd, sample=batch)


def test_reconstruction_of_tokens_leaves_a_class_token_out() -> None:
    """The first module of a vision transformer reconstructs its patches, 4 of its 5 tokens."""

    def losses(connected: Connected) -> Losses:
        decoded = decode_tokens(connected.loss(0), connected.outputs[1])
        assert decoded.shape[1] == 5
        patches = connected.inner["patch_embed"].detach()
        error = (decoded[:, 1:] - patches).square().mean()
        return {0: 10 * error, 1: task_loss(connected)}

    model, (batch, *_) = network("timm_vit")
    learner = lp.Learner(model, lp.lopt(), modules=2, optimizer=sgd, sample=batch)
    connected = Connected(learner, NETWORKS["timm_vit"][1])
    (first, _) = learner.step(batch)
    assert first.item() == pytest.approx(connected.step(batch, losses)[0], abs=1e-9)
