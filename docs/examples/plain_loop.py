"""vSAM in a plain PyTorch loop: the method is the gradient, everything else is PyTorch's."""

import torch
from sklearn.datasets import load_digits
from torch import nn

from sam_repro.optim import create

images, labels = load_digits(return_X_y=True)
images, labels = torch.tensor(images / 16, dtype=torch.float32), torch.tensor(labels)
model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
base = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
schedule = torch.optim.lr_scheduler.CosineAnnealingLR(base, 300)

gradient = create("vsam", model, rho=0.1)
ascents = 0
for _ in range(300):
    chosen = torch.randint(len(images), (128,))
    report = gradient.backward(images[chosen], labels[chosen], nn.CrossEntropyLoss(reduction="none"))
    base.step()
    schedule.step()
    base.zero_grad()
    ascents += report.ascended
print(f"loss {report.loss:.3f}, {ascents} of 300 steps made an ascent")
