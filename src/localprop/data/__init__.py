"""Image data in memory: data sets by name or from `.npz`, and batches augmented on the device.

```python
from localprop import data

digits = data.load("digits")
batches = data.Batches(digits, "train", 256, shuffle=True, augment=True, seed=0, device="cpu")
for images, labels in batches.epoch(0):
    ...
```
"""

from localprop.data.arrays import Augment, Dataset, Split
from localprop.data.batches import Batches
from localprop.data.npz import load_npz
from localprop.data.sources import load

__all__ = ["Augment", "Batches", "Dataset", "Split", "load", "load_npz"]
