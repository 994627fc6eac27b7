"""A method in Lightning: manual optimization, with the method in the place of ``manual_backward``."""

import lightning
import torch
from torch import nn

from sam_repro.optim import create


class SharpnessAwareModule(lightning.LightningModule):
    """Any network with any method."""

    def __init__(self, network, method, **knobs):
        super().__init__()
        self.automatic_optimization = False
        self.network = network
        self.gradient = create(method, network, **knobs)

    def training_step(self, batch, _):
        inputs, targets = batch
        report = self.gradient.backward(inputs, targets, nn.CrossEntropyLoss(reduction="none"))
        base = self.optimizers()
        base.step()
        base.zero_grad()
        self.log("loss", report.loss)

    def configure_optimizers(self):
        return torch.optim.SGD(self.network.parameters(), lr=0.05, momentum=0.9)

    def on_save_checkpoint(self, checkpoint):
        checkpoint["gradient"] = self.gradient.state_dict()

    def on_load_checkpoint(self, checkpoint):
        self.gradient.load_state_dict(checkpoint["gradient"])


def main(folder):
    torch.manual_seed(0)
    inputs = torch.randn(128, 8)
    data = torch.utils.data.TensorDataset(inputs, (inputs[:, 0] > 0).long())
    network = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2))
    module = SharpnessAwareModule(network, "looksam", k=5, rho=0.05)
    trainer = lightning.Trainer(max_epochs=3, accelerator="cpu", logger=False, enable_progress_bar=False, default_root_dir=folder)
    trainer.fit(module, torch.utils.data.DataLoader(data, 32))
    print(trainer.callback_metrics["loss"], module.gradient.step, "steps")
    return module


if __name__ == "__main__":
    main("lightning_output")
