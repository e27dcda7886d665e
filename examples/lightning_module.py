"""A network on scikit-learn's digits, trained by local losses in Lightning.

    python examples/lightning_module.py

Without localprop, `Classifier` derives from `LightningModule`, has no `learn_locally`, and returns
the cross-entropy in `training_step`.
"""

from typing import Any

import lightning.pytorch as lightning
import torch
from sklearn.datasets import load_digits
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

import localprop as lp
from localprop.hosts.lightning import LocalLearning

images, labels = map(torch.as_tensor, load_digits(return_X_y=True))
images = images.float().reshape(-1, 1, 8, 8) / 16
train = DataLoader(TensorDataset(images[:600], labels[:600]), 50, shuffle=True)
test = DataLoader(TensorDataset(images[600:900], labels[600:900]), 100)


class Classifier(LocalLearning):
    def __init__(self) -> None:
        super().__init__()
        self.model = lp.models.resnet8(num_classes=10, in_chans=1)
        sample = next(iter(train))
        self.learn_locally(self.model, lp.backlink(), modules=4, sample=sample)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.step_locally(batch, batch_idx).task

    def test_step(self, batch: Any, batch_idx: int) -> None:
        correct = self.model(batch[0]).argmax(1) == batch[1]
        self.log("accuracy", correct.float().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


lightning.seed_everything(0, verbose=False)
classifier = Classifier()
trainer = lightning.Trainer(
    max_epochs=3,
    accelerator="cpu",
    logger=False,
    enable_checkpointing=False,
    enable_progress_bar=False,
    enable_model_summary=False,
)
trainer.fit(classifier, train)
(result,) = trainer.test(classifier, test, verbose=False)
print("accuracy", round(result["accuracy"], 2))
