"""torch_geometric, whose edges are the same for all samples."""

from __future__ import annotations

from typing import Any

import torch
from cases import Build, Case, Cases
from torch import Tensor, nn

NODES, WIDTH, CLASSES = 30, 8, 3


class OnEdges(nn.Module):
    """A model of nodes on the edges of one graph."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("edges", torch.randint(NODES, (2, 80)))

    def forward(self, nodes: Tensor) -> Tensor:
        scores: Tensor = self.model(nodes, self.edges)
        return scores


def make_nodes() -> tuple[Tensor, Tensor]:
    return torch.randn(NODES, WIDTH), torch.randint(CLASSES, (NODES,))


def build_graph(name: str) -> Build:
    """A model that keeps its edges."""

    def build() -> Case:
        from torch_geometric.nn import models

        model = getattr(models, name)(WIDTH, 16, num_layers=4, out_channels=CLASSES)
        return Case(OnEdges(model), make_nodes(), blocks=4)

    return build


def build_graph_with_edges() -> Case:
    """The edges are an input, which all nodes share."""
    from torch_geometric.nn import models

    model: Any = models.GCN(WIDTH, 16, num_layers=4, out_channels=CLASSES)
    nodes, labels = make_nodes()
    batch = ((nodes, torch.randint(NODES, (2, 80))), labels)
    return Case(model, batch, batch_dims=((0, None), 0), blocks=4)


class ByHand(nn.Module):
    """Layers of torch_geometric in a list."""

    def __init__(self) -> None:
        super().__init__()
        from torch_geometric.nn import GCNConv

        self.layers = nn.ModuleList(
            GCNConv(a, b) for a, b in ((WIDTH, 16), (16, 16), (16, 16), (16, CLASSES))
        )
        self.register_buffer("edges", torch.randint(NODES, (2, 80)))

    def forward(self, x: Tensor) -> Tensor:
        for i, layer in enumerate(self.layers):
            x = layer(x, self.edges)
            x = x.relu() if i < 3 else x
        return x


def build_by_hand() -> Case:
    return Case(ByHand(), make_nodes(), blocks=4)


CASES: Cases = {
    **{f"pyg:{name}": build_graph(name) for name in ("GCN", "GAT", "GIN", "GraphSAGE")},
    "pyg:edges_as_input": build_graph_with_edges,
    "pyg:by_hand": build_by_hand,
}
