"""GN-DGL's recipes."""

from __future__ import annotations

from localprop import experiments

GRID = {1: (1, 2, 4, 8), 2: (1, 2, 4, 8), 4: (1, 2, 4, 8), 8: (1, 2, 4), 16: (1, 2)}


def test_the_grid_of_modules_and_groups() -> None:
    rows = [f"g{groups}_k{k}" for k, numbers in GRID.items() for groups in numbers]
    wanted = {
        f"{network}_{data}_gn_dgl_{row}"
        for network in ("resnet32", "resnet32_x2")
        for data in ("cifar10", "cifar100")
        for row in rows
    }
    assert {*experiments.names("gn_dgl")} == wanted
    assert experiments.find("resnet32_cifar10_gn_dgl_g2_k1").claimed.startswith("not claimed")
