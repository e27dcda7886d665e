"""A network on scikit-learn's digits, trained by local losses in a plain loop.

    python examples/plain_loop.py

The learner replaces the forward, the loss, the backward and the step of the optimizer.
"""

import torch
from sklearn.datasets import load_digits
from torch.utils.data import DataLoader, TensorDataset

import localprop as lp

images, labels = map(torch.as_tensor, load_digits(return_X_y=True))
images = images.float().reshape(-1, 1, 8, 8) / 16
loader = DataLoader(TensorDataset(images[:600], labels[:600]), 25, shuffle=True)

torch.manual_seed(0)
model = lp.models.resnet8(num_classes=10, in_chans=1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
sample = next(iter(loader))
learner = lp.Learner(model, lp.backlink(), modules=4, optimizer=optimizer, sample=sample)
print(learner.summary())

for _ in range(3):
    for batch in loader:
        losses = learner.step(batch)

accuracy = (learner.predict(images[600:900]).argmax(1) == labels[600:900]).float().mean()
print(f"accuracy {accuracy:.3f}")
