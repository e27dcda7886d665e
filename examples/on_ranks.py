"""A network on scikit-learn's digits, trained on as many ranks as there are.

    python examples/on_ranks.py
    torchrun --nproc-per-node 2 examples/on_ranks.py

Each rank trains one stage of a pipeline. All ranks see the same batches.
"""

import torch
from sklearn.datasets import load_digits

import localprop as lp

images, labels = map(torch.as_tensor, load_digits(return_X_y=True))
images = images.float().reshape(-1, 1, 8, 8) / 16

torch.manual_seed(0)
model = lp.models.resnet8(num_classes=10, in_chans=1)
learner = lp.Learner(
    model,
    lp.backlink(),
    modules=4,
    optimizer=lambda params: torch.optim.SGD(params, lr=0.1, momentum=0.9),
    sample=(images[:25], labels[:25]),
)
order = torch.Generator().manual_seed(0)  # the same on every rank
for _ in range(3):
    for rows in torch.randperm(600, generator=order).view(-1, 25):
        learner.step((images[rows], labels[rows]))

outputs = learner.predict(images[600:900])  # on all ranks
accuracy = (outputs.argmax(1) == labels[600:900]).float().mean()
print(f"accuracy {accuracy:.3f}")
