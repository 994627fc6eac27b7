import torch
from pytorch_lightning import LightningModule, Trainer
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from sam_repro.integrations.lightning import SharpnessAware


class Classifier(SharpnessAware, LightningModule):
    def __init__(self):
        super().__init__("looksam", k=5, rho=0.05)
        self.network = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2))

    def forward(self, inputs):
        return self.network(inputs)

    def training_step(self, batch, _):
        inputs, targets = batch
        return self.descend(inputs, targets, nn.CrossEntropyLoss(reduction="none"))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


inputs = torch.randn(256, 8)
data = TensorDataset(inputs, (inputs[:, 0] > 0).long())
trainer = Trainer(max_epochs=3, accelerator="cpu", accumulate_grad_batches=2, gradient_clip_val=1.0, precision="bf16-mixed")
trainer.fit(Classifier(), DataLoader(data, 16))
print(trainer.callback_metrics)
