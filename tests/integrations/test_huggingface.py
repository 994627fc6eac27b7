"""SAMTrainer: by two processes as by one in a loop of one's own, resumed as never stopped, with the Trainer's own options."""

import loops
import pytest
import torch
import torch.nn.functional as F
from loops import (
    ACCUMULATE,
    BATCH,
    CASES,
    CLIP,
    LR,
    MOMENTUM,
    PROCESSES,
    ROWS,
    SEED,
    STEPS,
    Tagger,
    agree,
    apart,
    as_on_a_gpu,
    halved,
    plain,
    rows,
    together,
    weights,
)  # fmt: skip
from torch import nn

from sam_repro.schema import UserError

pytestmark = pytest.mark.long
FEW = torch.arange(STEPS * BATCH).split(BATCH)


class Labelled(nn.Module):
    """A network that, given labels, also returns its loss."""

    def __init__(self, dropout=0.0):
        super().__init__()
        self.network = Tagger(dropout)

    def forward(self, tokens, labels=None):
        logits = self.network(tokens)
        loss = None if labels is None else F.cross_entropy(logits.flatten(0, 1), labels.flatten())
        return {"loss": loss, "logits": logits} if labels is not None else {"logits": logits}


class Rows(torch.utils.data.Dataset):
    def __init__(self, n):
        self.tokens, self.labels = (part[:n] for part in rows())

    def __len__(self):
        return len(self.tokens)

    def __getitem__(self, index):
        return {"tokens": self.tokens[index], "labels": self.labels[index]}


def trainer(folder, method, knobs, *, n=STEPS * BATCH, dropout=0.0, trainer_class=None, **arguments):
    from transformers import PreTrainedConfig, TrainingArguments

    from sam_repro.integrations.huggingface import SAMTrainer

    model = Labelled(dropout)
    model.config = PreTrainedConfig()  # what the Trainer smooths has one
    base = torch.optim.SGD(model.parameters(), LR, momentum=MOMENTUM)
    usual = {"max_steps": STEPS, "per_device_train_batch_size": BATCH, "max_grad_norm": CLIP, "lr_scheduler_type": "constant"}
    usual |= {"use_cpu": True, "report_to": [], "disable_tqdm": True, "save_strategy": "no", "train_sampling_strategy": "sequential"}
    settings = TrainingArguments(str(folder), logging_steps=1, seed=SEED, **{**usual, **arguments})
    kind = trainer_class or SAMTrainer
    return kind(model, settings, train_dataset=Rows(n), optimizers=(base, None), method=method, knobs=knobs)


def of_two(method, knobs, folder):
    made = trainer(folder, method, knobs, n=ROWS, gradient_accumulation_steps=ACCUMULATE)
    made.train()
    return weights(made.model)


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    return together(of_two, tmp_path_factory.mktemp("hf"))


@pytest.mark.parametrize("method", CASES)
def test_two_processes_that_accumulate_are_a_plain_loop(two, method):
    agree([found[method] for found in two], method, torch.arange(ROWS).split(BATCH * ACCUMULATE * PROCESSES), seed=SEED)


@pytest.mark.parametrize("method", ["looksam", "vsam"])
def test_a_resumed_training_goes_on_bit_by_bit(tmp_path, method):
    def made(folder, steps):
        return trainer(
            folder, method, CASES[method], dropout=0.2, save_strategy="steps", save_steps=steps, gradient_accumulation_steps=2, n=64
        )

    straight = made(tmp_path / "a", 4)
    straight.train()
    resumed = made(tmp_path / "b", 100)
    resumed.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-4"))
    assert apart(weights(straight.model), weights(resumed.model)) == 0
    assert straight.state.log_history[-1]["sampling_number"] == resumed.state.log_history[-1]["sampling_number"]
    (tmp_path / "a" / "checkpoint-4" / "sharpness.pt").unlink()
    with pytest.raises(UserError, match=r"holds no sharpness\.pt"):
        made(tmp_path / "b", 100).train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-4"))


def test_the_logs_hold_the_passes_and_the_loss(tmp_path):
    made = trainer(tmp_path, "looksam", CASES["looksam"])
    made.train()
    _, reports = plain("looksam", FEW, **CASES["looksam"])
    logs = made.state.log_history
    assert [row["loss"] for row in logs[:-1]] == pytest.approx([report.loss.item() for report in reports], abs=1e-4)
    assert [row["sampling_number"] for row in logs] == [1, 1, 1, 2, 2, 2, 2]
    assert logs[-1]["forward_units"] == logs[-1]["backward_units"] == STEPS + 2


def test_labels_are_smoothed(tmp_path):
    def smoothed(logits, labels):
        losses = F.cross_entropy(logits.transpose(1, 2), labels, reduction="none", label_smoothing=0.3)
        return losses.sum(1) / labels.ne(-100).sum(1), labels.ne(-100).sum(1)

    made = trainer(tmp_path, "sam", {"rho": 0.1}, label_smoothing_factor=0.3)
    made.train()
    wanted, _ = plain("sam", FEW, loss=smoothed, rho=0.1)
    assert apart(weights(made.model), wanted) < 1e-5
    assert apart(plain("sam", FEW, rho=0.1)[0], wanted) > 1e-3


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_without_an_ascent_it_is_the_trainer(tmp_path, smoothing):
    """A causal language model: labels are shifted, and count by tokens over accumulated batches."""
    from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

    from sam_repro.integrations.huggingface import SAMTrainer

    tokens, labels = rows(64)
    data = [{"input_ids": row, "labels": row.where(kept != -100, -100)} for row, kept in zip(tokens, labels, strict=True)]
    arguments = {"max_steps": 4, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "save_strategy": "no", "seed": SEED}
    arguments |= {"optim": "sgd", "learning_rate": 0.3, "use_cpu": True, "report_to": [], "disable_tqdm": True, "logging_steps": 1}
    found = []
    for kind, more in ((SAMTrainer, {"method": "sgd"}), (Trainer, {})):
        torch.manual_seed(0)
        sizes = {"vocab_size": 11, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
        config = LlamaConfig(**sizes, bos_token_id=0, eos_token_id=0)
        settings = TrainingArguments(str(tmp_path), label_smoothing_factor=smoothing, **arguments)
        made = kind(LlamaForCausalLM(config), settings, train_dataset=data, **more)
        made.train()
        found.append((weights(made.model), [row.get("loss") for row in made.state.log_history]))
    assert apart(found[0][0], found[1][0]) < 1e-5
    assert found[0][1][:-1] == pytest.approx(found[1][1][:-1], abs=1e-4)


def test_a_loss_of_ones_own(tmp_path):
    from sam_repro.integrations.huggingface import SAMTrainer

    class Own(SAMTrainer):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            outputs = model(tokens=inputs["tokens"])
            return 2 * F.cross_entropy(outputs["logits"].flatten(0, 1), inputs["labels"].flatten())

    class Twice(SAMTrainer):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            return model(**inputs)["loss"] + model(**inputs)["loss"]

    class Beside(SAMTrainer):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            return self.model(**inputs)["loss"]

    made = trainer(tmp_path, "sam", {"rho": 0.1}, trainer_class=Own)
    made.train()
    wanted, _ = plain("sam", FEW, loss=lambda *both: (2 * loops.criterion(*both)[0], loops.criterion(*both)[1]), rho=0.1)
    assert apart(weights(made.model), wanted) < 1e-5
    for kind, says in ((Twice, "more than once"), (Beside, "does not call the model that it is given")):
        with pytest.raises(UserError, match=says):
            trainer(tmp_path, "sam", {"rho": 0.1}, trainer_class=kind).train()


@pytest.mark.parametrize("fp16", [False, True])
def test_half_precision(tmp_path, fp16):
    made = trainer(tmp_path, "looksam", CASES["looksam"], bf16=True)
    if fp16:
        as_on_a_gpu(made.accelerator)
    made.train()
    wanted = halved("looksam", FEW, fp16)
    assert apart(weights(made.model), wanted) < 1e-5
    assert apart(plain("looksam", FEW, **CASES["looksam"])[0], wanted) > 1e-5


def test_what_is_refused(tmp_path):
    for method, says in (("esam", "looks at every sample"), ("mesa", "looks at every sample"), ("looksan", "no method 'looksan'")):
        with pytest.raises(UserError, match=says):
            trainer(tmp_path, method, {})
    with pytest.raises(UserError, match="no knob 'k'"):
        trainer(tmp_path, "sam", {"k": 3})
