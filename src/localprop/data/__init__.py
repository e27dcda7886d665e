"""Data sets by name or from files, and their batches.

A data set has images in memory, images in folders, or text as bytes.

```python
from localprop import data

digits = data.load("digits")
batches = data.Batches(digits, "train", 256, shuffle=True, augment=True, seed=0, device="cpu")
for images, labels in batches.epoch(0):
    ...
```
"""

from localprop.data.arrays import Images, Split
from localprop.data.augment import Augment
from localprop.data.batches import Batches
from localprop.data.dataset import Dataset, Normalization
from localprop.data.folder import load_folder
from localprop.data.loading import LoadingOptions, is_text
from localprop.data.npz import load_npz
from localprop.data.sources import load
from localprop.data.text import load_text

__all__ = [
    "Augment",
    "Batches",
    "Dataset",
    "Images",
    "LoadingOptions",
    "Normalization",
    "Split",
    "is_text",
    "load",
    "load_folder",
    "load_npz",
    "load_text",
]
