"""A method of your own, beside greedy training: each loss also trains the first layer.

    python examples/own_method.py

A method is a function that returns a rule. Its credit is a table of losses by layers.
"""

from dataclasses import dataclass

import torch
from sklearn.datasets import load_digits

import localprop as lp


@dataclass(frozen=True)
class WithFirstLayer:
    """Each loss trains its own module and, weakly, the first layer of the network."""

    weight: float = 0.1

    def __call__(self, partition: lp.Partition) -> lp.CreditTable:
        def make_entry(loss: int, layer: int, module: int) -> lp.Entry | None:
            if module == loss:
                return lp.Entry(train=True)
            if module > loss:
                return None
            if layer == 0:
                return lp.Entry(train=True, weight=self.weight)
            return lp.Entry(train=False)  # the gradient passes through

        return lp.make_table(partition, make_entry)


def with_first_layer(weight: float = 0.1) -> lp.Rule:
    return lp.Rule(WithFirstLayer(weight), aux=lp.Head(convs=0, linears=1))


images, labels = map(torch.as_tensor, load_digits(return_X_y=True))
images = images.float().reshape(-1, 1, 8, 8) / 16

torch.manual_seed(0)
model = lp.models.resnet8(num_classes=10, in_chans=1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
sample = (images[:25], labels[:25])
learner = lp.Learner(model, with_first_layer(), modules=4, optimizer=optimizer, sample=sample)
print(learner.wiring.table)

for _ in range(6):
    for rows in torch.randperm(600).view(-1, 25):
        learner.step((images[rows], labels[rows]))

accuracy = (learner.predict(images[600:900]).argmax(1) == labels[600:900]).float().mean()
print(f"accuracy {accuracy:.3f}")
