"""A network on scikit-learn's digits, trained by local losses in a loop of Lightning Fabric.

    python examples/fabric_loop.py

The learner replaces the forward and the loss; accumulation, clipping, precision and the loop stay.
"""

import torch
from lightning.fabric import Fabric
from sklearn.datasets import load_digits
from torch.utils.data import DataLoader, TensorDataset

import localprop as lp

PARTS = 2
images, labels = map(torch.as_tensor, load_digits(return_X_y=True))
images = images.float().reshape(-1, 1, 8, 8) / 16
loader = DataLoader(TensorDataset(images[:600], labels[:600]), 25, shuffle=True)

torch.manual_seed(0)
fabric = Fabric(accelerator="cpu", precision="bf16-mixed")
network = lp.models.resnet8(num_classes=10, in_chans=1).to(fabric.device)
optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
sample = next(iter(loader))
learner = lp.Learner(network, lp.backlink(), modules=4, optimizer=optimizer, sample=sample)
model, optimizer = fabric.setup(network, optimizer)
loader = fabric.setup_dataloaders(loader)

for _ in range(3):
    for number, batch in enumerate(loader):
        with fabric.autocast():
            learner.backward(batch, backward=lambda loss: fabric.backward(loss / PARTS))
        if (number + 1) % PARTS == 0:
            fabric.clip_gradients(model, optimizer, max_norm=1.0)
            optimizer.step()
            optimizer.zero_grad()

outputs = learner.predict(images[600:900])
print("accuracy", round(float((outputs.argmax(1).cpu() == labels[600:900]).float().mean()), 2))
