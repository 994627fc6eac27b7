"""A method in Hugging Face's Trainer: ``training_step`` hands the batch to the method instead of calling backward.

The Trainer's own optimizer, schedule, clipping and checkpoints stay as they are.
"""

import torch
from torch import nn
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments

from sam_repro.optim import create


class SharpnessAwareTrainer(Trainer):
    """``SharpnessAwareTrainer(..., method="sam", knobs={"rho": 0.05})``."""

    def __init__(self, *args, method, knobs=None, **kwargs):
        super().__init__(*args, **kwargs)
        self.gradient = create(method, self.model, **(knobs or {}))

    def training_step(self, model, inputs, num_items_in_batch=None):  # noqa: ARG002
        model.train()
        inputs = self._prepare_inputs(inputs)
        labels = inputs.pop("labels")
        criterion = nn.CrossEntropyLoss(reduction="none")
        with self.compute_loss_context_manager():
            report = self.gradient.backward(dict(inputs), labels, lambda outputs, targets: criterion(outputs["logits"], targets))
        return report.loss


class Sentences(torch.utils.data.Dataset):
    """Random tokens; the label is whether the first is even."""

    def __init__(self, n):
        self.tokens = torch.randint(2, 100, (n, 8), generator=torch.Generator().manual_seed(0))

    def __len__(self):
        return len(self.tokens)

    def __getitem__(self, index):
        return {"input_ids": self.tokens[index], "labels": self.tokens[index, 0] % 2}


def main(folder):
    torch.manual_seed(0)
    config = BertConfig(vocab_size=100, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64)
    arguments = TrainingArguments(folder, max_steps=20, per_device_train_batch_size=16, report_to=[], use_cpu=True, save_strategy="no")
    trainer = SharpnessAwareTrainer(
        BertForSequenceClassification(config), arguments, train_dataset=Sentences(64), method="layerwise", knobs={"k": 2}
    )
    print(trainer.train().training_loss, trainer.gradient.step, "steps")
    return trainer


if __name__ == "__main__":
    main("trainer_output")
