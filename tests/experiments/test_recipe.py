"""A recipe with overrides, and what fewer epochs change."""

from __future__ import annotations

from localprop import experiments
from localprop.experiments import Recipe
from localprop.training.config import Config


def test_an_override_drops_what_it_excludes() -> None:
    recipe = experiments.find("resnet32_cifar10_backlink_k16")
    assert "cuts" not in recipe.with_overrides({"modules": 4})
    assert recipe.with_overrides({"modules": 4})["method"] == "backlink(layers=1)"
    assert recipe.with_overrides({"epochs": 2})["cuts"] == recipe.config.cuts
    pgl = experiments.find("resnet32_cifar10_pgl_k4").with_overrides({"method": "greedy()"})
    assert "phases" not in pgl
    dgl = experiments.find("vgg13_imagenet_dgl_k4")
    constant = dgl.with_overrides({"lr_schedule": "constant"})
    assert Config(**constant).find_problems() == []
    warm = experiments.find("resnet32_cifar10_dgl_k4")
    assert warm.config.warmup_from == 0.01
    assert "warmup_from" not in warm.with_overrides({"lr": 0.005})
    assert "warmup_from" not in warm.with_overrides({"lr_schedule": "constant"})


def test_epochs_change_only_what_no_longer_fits() -> None:
    config = Config(epochs=10, lr_schedule="multistep", milestones=(5, 8), warmup_epochs=2)
    steps = Recipe("steps", config, "nobody")
    assert steps.scaled_to_epochs({"epochs": 9}) == {}
    assert steps.scaled_to_epochs({"epochs": 4, "milestones": (5,)}) == {}
    assert steps.scaled_to_epochs({"epochs": 4}) == {"milestones": (2, 3)}
    assert steps.scaled_to_epochs({"epochs": 1}) == {
        "warmup_epochs": None,
        "milestones": (),
        "lr_schedule": "constant",
    }
    assert steps.scaled_to_epochs({"epochs": 1, "lr_schedule": "cosine"}) == {}


def test_phases_keep_their_shares_of_fewer_epochs() -> None:
    phases = "greedy() for 4; end_to_end() for 2 on 0,1"
    config = Config(phases=phases, epochs=12, lr_schedule="constant")
    recipe = Recipe("phases", config, "nobody")
    shortened = {"phases": "greedy() for 2; end_to_end() for 1 on 0,1"}
    assert recipe.scaled_to_epochs({"epochs": 6}) == {}
    assert recipe.scaled_to_epochs({"epochs": 3}) == shortened
    assert recipe.scaled_to_epochs({"epochs": 3, "lr_schedule": "cosine"}) == shortened
    assert recipe.scaled_to_epochs({"epochs": 3, "method": "greedy()"}) == {}
