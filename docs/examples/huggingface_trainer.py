import torch
from transformers import BertConfig, BertForSequenceClassification, TrainingArguments

from sam_repro.integrations.huggingface import SAMTrainer

config = BertConfig(vocab_size=100, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64)
tokens = torch.randint(2, 100, (64, 8))
data = [{"input_ids": row, "labels": row[0] % 2} for row in tokens]
arguments = TrainingArguments("output", max_steps=20, gradient_accumulation_steps=2, label_smoothing_factor=0.1, report_to=[], use_cpu=True)
trainer = SAMTrainer(BertForSequenceClassification(config), arguments, train_dataset=data, method="layerwise", knobs={"k": 2})
trainer.train()
print(trainer.state.log_history[-1])
