"""Networks of timm and torchvision by name."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from localprop import models
from localprop.errors import BadInput


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("timm:resnet18", (1, 32, 32)),
        ("timm:vit_tiny_patch16_224", (3, 32, 48)),  # takes the size of its images, as a pair
        ("torchvision:resnet18", (3, 32, 32)),
        ("torchvision:vit_b_16", (3, 32, 32)),  # takes the size of its images, as one number
    ],
)
def test_library_models_are_built_for_the_data(name: str, shape: tuple[int, ...]) -> None:
    pytest.importorskip(name.partition(":")[0])
    with torch.device("meta"):
        model, inputs = models.create_model(name, 7, shape), torch.zeros(2, *shape)
    assert model(inputs).shape == (2, 7)


def test_options_reach_the_libraries() -> None:
    pytest.importorskip("timm")
    model = models.create_model("timm:resnet18,drop_rate=0.3", 10, (3, 32, 32))
    assert model.drop_rate == 0.3


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("timm:resnet18,0.1", (3, 32, 32), "without a name"),
        (
            "torchvision:resnet18,weights=DEFAULT",
            (3, 32, 32),
            "cannot take weights='DEFAULT': .* untrained.*--init FILE",
        ),
        ("timm:resnet18,img_size=4", (3, 32, 32), "cannot take img_size=4: the data decide that"),
        ("timm:resnet18,patch=4", (3, 32, 32), "cannot be built with {'patch': 4}"),
        (
            "torchvision:vit_b_16,patch_size=4",
            (3, 32, 32),
            "cannot be built with {'patch_size': 4}",
        ),
        ("timm:resnet19", (3, 32, 32), "did you mean .*resnet1"),
        ("torchvision:resnet19", (3, 32, 32), "did you mean .*resnet1"),
        ("torchvision:fcn_resnet50", (3, 32, 32), "no model 'fcn_resnet50'"),
        ("torchvision:resnet18", (1, 28, 28), r"1 channel.*timm:NAME"),
        ("torchvision:vit_b_16", (3, 30, 30), "cannot be built"),
    ],
)
def test_refusals_of_the_libraries(name: str, shape: tuple[int, ...], message: str) -> None:
    pytest.importorskip(name.partition(":")[0])
    with pytest.raises(BadInput, match=message):
        models.create_model(name, 10, shape)


def test_the_same_name_elsewhere_is_suggested(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("timm")
    pytest.importorskip("torchvision")
    with pytest.raises(
        BadInput, match=r"mean resnet18_cifar or timm:resnet18 or torchvision:resnet18\?"
    ):
        models.create_model("resnet18:widen=2", 10, (3, 32, 32))
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(BadInput, match=r"mean resnet18_cifar or torchvision:resnet18\?"):
        models.create_model("resnet18", 10, (3, 32, 32))


@pytest.mark.parametrize("package", ["timm", "torchvision"])
def test_a_missing_package_names_the_pip_line(
    monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setitem(sys.modules, "torchvision.models", None)
    with pytest.raises(BadInput, match=rf"{package} cannot.*pip install 'localprop\[vision\]'"):
        models.create_model(f"{package}:resnet18", 10, (3, 32, 32))


def test_timm_loads_pretrained_weights(tmp_path: Path) -> None:
    """From a file, which stands in for a download."""
    timm = pytest.importorskip("timm")
    file = tmp_path / "weights.pth"
    known = timm.create_model("test_resnet", num_classes=1000).eval()
    torch.save(known.state_dict(), file)
    name = f"timm:test_resnet,pretrained=True,pretrained_cfg_overlay={{'file': {str(file)!r}}}"
    model: Any = models.create_model(name, 7, (3, 32, 32)).eval()
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(model.forward_features(images), known.forward_features(images))
    assert model(images).shape == (2, 7)
    file.unlink()
    with pytest.raises(BadInput, match=r"weights of timm:test_resnet cannot be loaded \(.*--init"):
        models.create_model(name, 7, (3, 32, 32))
    models.create_model(name, 7, (3, 32, 32), pretrained=False)


def test_weights_that_timm_has_not_are_refused() -> None:
    timm = pytest.importorskip("timm")
    unknown = next(name for name in timm.list_models() if not timm.is_model_pretrained(name))
    with pytest.raises(BadInput, match=f"no pretrained weights of {unknown}: .*--init"):
        models.create_model(f"timm:{unknown},pretrained=True", 7, (3, 224, 224))
    with pytest.raises(BadInput, match="pretrained='yes': write True or False"):
        models.create_model("timm:resnet18,pretrained=yes", 7, (3, 32, 32))
