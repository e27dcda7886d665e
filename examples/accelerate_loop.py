"""A network on scikit-learn's digits, trained by local losses in a loop of Accelerate.

    python examples/accelerate_loop.py

The learner replaces the forward and the loss; accumulation, clipping, precision and the loop stay.
"""

import torch
from accelerate import Accelerator
from sklearn.datasets import load_digits
from torch.utils.data import DataLoader, TensorDataset

import localprop as lp

images, labels = map(torch.as_tensor, load_digits(return_X_y=True))
images = images.float().reshape(-1, 1, 8, 8) / 16
loader = DataLoader(TensorDataset(images[:600], labels[:600]), 25, shuffle=True)

torch.manual_seed(0)
accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2, mixed_precision="bf16")
model = lp.models.resnet8(num_classes=10, in_chans=1).to(accelerator.device)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
sample = next(iter(loader))
learner = lp.Learner(model, lp.backlink(), modules=4, optimizer=optimizer, sample=sample)
model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
accelerator.register_for_checkpointing(learner)  # save_state and load_state have the heads

for _ in range(3):
    for batch in loader:
        with accelerator.accumulate(model), accelerator.autocast():
            learner.backward(batch, backward=accelerator.backward)
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(learner.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()

outputs = learner.predict(images[600:900])
print("accuracy", round(float((outputs.argmax(1).cpu() == labels[600:900]).float().mean()), 2))
