import torch
from torch import nn

from sam_repro.optim import create

model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2))
base = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
gradient = create("sam", model, rho=0.05)
for _ in range(100):
    inputs = torch.randn(32, 8)
    report = gradient.backward(inputs, (inputs[:, 0] > 0).long(), nn.CrossEntropyLoss(reduction="none"))  # in place of loss.backward()
    base.step()
    base.zero_grad()
print(report.loss.item(), report.ascended)
