import torch
from accelerate import Accelerator
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from sam_repro.integrations.accelerate import create

accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2, mixed_precision="bf16")
model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2))
inputs = torch.randn(256, 8)
batches = DataLoader(TensorDataset(inputs, (inputs[:, 0] > 0).long()), 16)
base = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
model, base, batches = accelerator.prepare(model, base, batches)
gradient = create("looksam", accelerator, model, k=5, rho=0.05)
for inputs, targets in batches:
    with accelerator.accumulate(model):
        gradient.backward(inputs, targets, nn.CrossEntropyLoss(reduction="none"))  # in place of accelerator.backward(loss)
        if accelerator.sync_gradients:
            accelerator.clip_grad_norm_(model.parameters(), 1.0)
        base.step()
        base.zero_grad()
accelerator.save_state("state")  # the method's with it; load_state gives it back
print(gradient.counts)
