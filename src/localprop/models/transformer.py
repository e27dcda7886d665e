"""Decoder-only transformers: language models that predict the next token at each position."""

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional

from localprop.errors import check
from localprop.models.problems import builds_network, find_count_problems, find_dropout_problems

INIT_STD = 0.02  # standard deviation of all initial weights


class Embedding(nn.Module):
    """A vector for each token plus one for each position: (N, T), int64 -> (N, T, width).

    Args:
        vocabulary: tokens.
        context: positions, the largest T.
        width: channels.
        dropout: probability with which a number is dropped.

    Example:
        >>> Embedding(256, 16, 8)(torch.zeros(2, 5, dtype=torch.int64)).shape
        torch.Size([2, 5, 8])
    """

    def __init__(self, vocabulary: int, context: int, width: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, width)
        self.positions = nn.Parameter(torch.empty(context, width))
        self.dropout = dropout

    def forward(self, tokens: Tensor) -> Tensor:
        """Map tokens (N, T) to vectors (N, T, width)."""
        vectors = self.tokens(tokens) + self.positions[: tokens.shape[1]]
        return functional.dropout(vectors, self.dropout, self.training)


class CausalAttention(nn.Module):
    """Causal self-attention: (N, T, width) -> (N, T, width).

    A position attends to itself and to the positions before it.

    Args:
        width: channels.
        heads: attention heads, a divisor of the width.
        dropout: probability with which an attention weight is dropped.

    Example:
        >>> CausalAttention(8, heads=2)(torch.zeros(2, 5, 8)).shape
        torch.Size([2, 5, 8])

    Source: Vaswani et al., Attention Is All You Need, 2017, arXiv 1706.03762.
    """

    def __init__(self, width: int, heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.heads = heads
        self.dropout = dropout
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, T, width) to (N, T, width)."""
        split = self.qkv(x).unflatten(2, (3, self.heads, -1))  # (N, T, 3, heads, width / heads)
        query, key, value = split.permute(2, 0, 3, 1, 4)  # each (N, heads, T, width / heads)
        dropout = self.dropout if self.training else 0.0
        attended = functional.scaled_dot_product_attention(
            query, key, value, dropout_p=dropout, is_causal=True
        )
        out: Tensor = self.out(attended.transpose(1, 2).flatten(2))
        return out


class TransformerBlock(nn.Module):
    """Causal attention, then an MLP with a hidden layer four times as wide.

    Each has a LayerNorm before it and a shortcut around both. Shapes stay (N, T, width).

    Args:
        width: channels.
        heads: attention heads.
        dropout: probability, for attention weights and for the branches added to the shortcuts.

    Example:
        >>> TransformerBlock(8, heads=2)(torch.zeros(2, 5, 8)).shape
        torch.Size([2, 5, 8])

    Source: Radford et al., Language Models are Unsupervised Multitask Learners (GPT-2), 2019.
    """

    def __init__(self, width: int, heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = CausalAttention(width, heads, dropout)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, T, width) to (N, T, width)."""
        x = x + self.drop(self.attention(self.norm1(x)))
        out: Tensor = x + self.drop(self.mlp(self.norm2(x)))
        return out


class TransformerLM(nn.Module):
    """A decoder-only language model: embedding, blocks, LayerNorm and unembedding.

    It has 1 + `blocks` layers. The last layer includes the norm and the unembedding. All weights
    are drawn from N(0, 0.02 squared), but for the last weight of each residual branch the standard
    deviation is divided by sqrt(2 * blocks). Biases are zero. The unembedding is `unembed.weight`,
    (vocabulary, width).

    Args:
        vocabulary: tokens.
        context: the longest sequence.
        width: channels.
        heads: attention heads of each block, a divisor of the width.
        blocks: transformer blocks.
        dropout: probability.
        tied: the embedding and the unembedding share one weight.

    Example:
        >>> TransformerLM(256, 16, 8, heads=2, blocks=1)(torch.zeros(2, 5, dtype=torch.int64)).shape
        torch.Size([2, 5, 256])

    Source: Radford et al., Language Models are Unsupervised Multitask Learners (GPT-2), 2019.
    """

    def __init__(
        self,
        vocabulary: int,
        context: int,
        width: int,
        heads: int,
        blocks: int,
        dropout: float = 0.0,
        tied: bool = False,
    ) -> None:
        super().__init__()
        self.embed = Embedding(vocabulary, context, width, dropout)
        self.blocks = nn.Sequential(
            *(TransformerBlock(width, heads, dropout) for _ in range(blocks))
        )
        self.norm = nn.LayerNorm(width)
        self.unembed = nn.Linear(width, vocabulary, bias=False)
        if tied:
            self.unembed.weight = self.embed.tokens.weight
        _init_weights(self)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map tokens (N, T), with T <= context, to logits of the next tokens (N, T, vocabulary)."""
        x = self.embed(tokens)
        # A loop, because a call of `self.blocks` would hold its argument until the last block ends.
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.unembed(self.norm(x))
        return logits


def _init_weights(model: TransformerLM) -> None:
    # Each block adds two branches to the residual stream. GPT-2 scales the last weight of each by
    # the square root of their number, so that the variance of the sum does not grow with depth.
    branch_std = INIT_STD / math.sqrt(2 * max(len(model.blocks), 1))
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:
            ends_branch = name.endswith(("attention.out.weight", "mlp.2.weight"))
            nn.init.normal_(parameter, std=branch_std if ends_branch else INIT_STD)
        elif name.endswith("bias"):
            nn.init.zeros_(parameter)


@builds_network
def transformer_lm(
    vocabulary: int = 256,
    context: int = 128,
    width: int = 128,
    heads: int = 4,
    blocks: int = 4,
    dropout: float = 0.0,
    tied: bool = False,
) -> TransformerLM:
    """The `TransformerLM` of these sizes.

    Args:
        vocabulary: tokens.
        context: the longest sequence.
        width: channels.
        heads: attention heads of each block, a divisor of the width.
        blocks: transformer blocks.
        dropout: probability.
        tied: the embedding and the unembedding share one weight.

    Returns:
        A network from tokens (N, T) of dtype int64 to logits (N, T, vocabulary).

    Raises:
        BadInput: if a count is less than one, the heads do not divide the width, or the probability
            lies outside [0, 1).

    Example:
        >>> network = transformer_lm(vocabulary=50, context=16, width=32, blocks=2)
        >>> network.unembed.weight.shape
        torch.Size([50, 32])

    Source: Radford et al., Language Models are Unsupervised Multitask Learners (GPT-2), 2019.
    """
    problems = [
        *find_count_problems(
            vocabulary=vocabulary, context=context, width=width, heads=heads, blocks=blocks
        ),
        *_find_head_problems(width, heads),
        *find_dropout_problems(dropout),
    ]
    check(problems)
    return TransformerLM(vocabulary, context, width, heads, blocks, dropout, tied)


def _find_head_problems(width: int, heads: int) -> Iterator[str]:
    if heads > 0 and width % heads:
        yield f"heads={heads} do not divide width={width}: take a divisor of the width."
