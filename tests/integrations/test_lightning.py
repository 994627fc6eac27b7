"""SharpnessAware: by two processes as by one in a loop of one's own, resumed as never stopped, with the Trainer's own flags."""

import os
import warnings

import pytest
import torch
from loops import (
    ACCUMULATE,
    BATCH,
    CASES,
    CLIP,
    LR,
    MOMENTUM,
    PROCESSES,
    ROWS,
    STEPS,
    Tagger,
    agree,
    apart,
    criterion,
    halved,
    plain,
    rows,
    scaler,
    together,
    weights,
)  # fmt: skip
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from sam_repro.schema import UserError

pytestmark = pytest.mark.long
EPOCHS = 2
FEW = torch.arange(STEPS * BATCH).split(BATCH)


def module(method, dropout=0.0, **knobs):
    from pytorch_lightning import LightningModule

    from sam_repro.integrations.lightning import SharpnessAware

    class Module(SharpnessAware, LightningModule):
        def __init__(self):
            super().__init__(method, **knobs)
            self.network = Tagger(dropout)

        def forward(self, tokens):
            return self.network(tokens)

        def training_step(self, batch, _):
            return self.descend(*batch, criterion)

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), LR, momentum=MOMENTUM)

    return Module()


def fitted(folder, made, n=STEPS * BATCH, *, ckpt_path=None, **flags):
    from pytorch_lightning import Trainer

    warnings.filterwarnings("ignore", module="pytorch_lightning")
    usual = {
        "accelerator": "cpu",
        "devices": 1,
        "use_distributed_sampler": False,
        "max_epochs": EPOCHS,
        "gradient_clip_val": CLIP,
        "log_every_n_steps": 1,
    }
    usual |= {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    trainer = Trainer(default_root_dir=folder, **{**usual, **flags})
    data = TensorDataset(*(part[:n] for part in rows()))
    sampler = DistributedSampler(data, PROCESSES, int(os.environ["RANK"]), shuffle=False) if trainer.world_size > 1 else None
    trainer.fit(made, DataLoader(data, BATCH, sampler=sampler), ckpt_path=ckpt_path)
    return trainer


def of_two(method, knobs, folder):
    made = module(method, **knobs)
    strategy = "ddp_find_unused_parameters_true" if method == "sam" else "ddp"
    fitted(folder, made, ROWS, devices=PROCESSES, strategy=strategy, accumulate_grad_batches=ACCUMULATE)
    return weights(made)


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    return together(of_two, tmp_path_factory.mktemp("lightning"))


@pytest.mark.parametrize("method", CASES)
def test_two_processes_that_accumulate_are_a_plain_loop(two, method):
    # Its sampler gives every other row to a process.
    steps = [
        torch.cat(
            [
                torch.arange(start + rank, start + BATCH * PROCESSES, PROCESSES)
                for start in (step, step + BATCH * PROCESSES)
                for rank in (0, 1)
            ]
        )
        for step in range(0, ROWS, BATCH * ACCUMULATE * PROCESSES)
    ]
    agree([found[method] for found in two], method, EPOCHS * steps, total=EPOCHS * STEPS)


@pytest.mark.parametrize("method", ["looksam", "vsam"])
def test_a_resumed_training_goes_on_bit_by_bit(tmp_path, method):
    from pytorch_lightning.callbacks import ModelCheckpoint

    straight, resumed = (module(method, **CASES[method]) for _ in range(2))
    saving = {"enable_checkpointing": True, "callbacks": ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1), "accumulate_grad_batches": 3}
    fitted(tmp_path, straight, ROWS, **saving)
    last = fitted(tmp_path, resumed, ROWS, accumulate_grad_batches=3, ckpt_path=tmp_path / "epoch=0.ckpt")
    assert last.global_step == resumed.sharpness.method.step == EPOCHS * ROWS // BATCH // 3
    assert apart(weights(straight), weights(resumed)) == 0
    assert straight.sharpness.counts == resumed.sharpness.counts


def test_a_checkpoint_without_the_state_is_refused(tmp_path):
    first = fitted(tmp_path, module("looksam", **CASES["looksam"]), max_epochs=1)
    first.save_checkpoint(tmp_path / "first.ckpt")
    found = torch.load(tmp_path / "first.ckpt", weights_only=True)
    del found["sharpness"]
    torch.save(found, tmp_path / "bare.ckpt")
    with pytest.raises(UserError, match="holds no state of a method"):
        fitted(tmp_path, module("looksam", **CASES["looksam"]), ckpt_path=tmp_path / "bare.ckpt")


def test_the_logs_hold_the_passes_and_the_loss(tmp_path):
    made = module("looksam", **CASES["looksam"])
    logged = fitted(tmp_path, made, max_epochs=1).callback_metrics
    wanted, reports = plain("looksam", FEW, **CASES["looksam"])
    assert apart(weights(made), wanted) < 1e-6
    assert logged["train_loss"] == pytest.approx(reports[-1].loss.item())
    assert [logged[key] for key in ("sampling_number", "forward_units", "backward_units")] == [2, STEPS + 2, STEPS + 2]


@pytest.mark.parametrize("fp16", [False, True])
def test_half_precision(tmp_path, fp16):
    from pytorch_lightning.plugins import MixedPrecision

    made = module("looksam", **CASES["looksam"])
    half = MixedPrecision("16-mixed", "cpu", scaler=scaler()) if fp16 else MixedPrecision("bf16-mixed", "cpu")
    fitted(tmp_path, made, max_epochs=1, plugins=half)
    wanted = halved("looksam", FEW, fp16)
    assert apart(weights(made), wanted) < 1e-5
    assert apart(plain("looksam", FEW, **CASES["looksam"])[0], wanted) > 1e-5


def test_what_is_refused(tmp_path):
    with pytest.raises(UserError, match="no method 'looksan'"):
        module("looksan")
    made = module("sam")
    made.automatic_optimization = False
    with pytest.raises(UserError, match="Leave automatic_optimization on"):
        fitted(tmp_path, made, gradient_clip_val=None)
