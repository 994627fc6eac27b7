"""Accelerate's loop: by two processes as by one without it, resumed as never stopped, clipped, accumulated, scaled."""

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
    as_on_a_gpu,
    criterion,
    halved,
    plain,
    rows,
    together,
    weights,
)  # fmt: skip
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from sam_repro.integrations import reachable
from sam_repro.schema import UserError

pytestmark = pytest.mark.long
FEW = torch.arange(STEPS * BATCH).split(BATCH)


def loop(method, knobs, n, *, accumulate=1, fp16=False, save=(0, ""), resume=(0, ""), **settings):
    """Trains for the steps that ``n`` rows make; after step ``save[0]`` the state is kept, or taken up from step ``resume[0]``."""
    from accelerate import Accelerator

    from sam_repro.integrations.accelerate import create

    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=accumulate, **settings)
    if fp16:
        as_on_a_gpu(accelerator)
    model = Tagger()
    base = torch.optim.SGD(model.parameters(), LR, momentum=MOMENTUM)
    batches = DataLoader(TensorDataset(*(part[:n] for part in rows())), BATCH)
    model, base, batches = accelerator.prepare(model, base, batches)
    gradient = create(method, accelerator, model, total_steps=STEPS, **knobs)
    if resume[0]:
        accelerator.load_state(resume[1])
        batches = accelerator.skip_first_batches(batches, resume[0] * accumulate)
    done = resume[0]
    for inputs, targets in batches:
        with accelerator.accumulate(model):
            gradient.backward(inputs, targets, criterion)
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(model.parameters(), CLIP)
            base.step()
            base.zero_grad()
        done += accelerator.sync_gradients
        if accelerator.sync_gradients and done == save[0]:
            accelerator.save_state(save[1])
    return weights(accelerator.unwrap_model(model)), gradient.counts


def of_two(method, knobs, folder):
    found, _ = loop(method, knobs, ROWS, accumulate=ACCUMULATE)
    with pytest.raises(UserError) as refused:  # what is not prepared
        reachable(Tagger())
    return found, str(refused.value)


@pytest.fixture(autouse=True)
def anew():
    """Accelerate keeps its precision for the life of a process."""
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    return together(of_two, tmp_path_factory.mktemp("accelerate"))


@pytest.mark.parametrize("method", CASES)
def test_two_processes_that_accumulate_are_a_plain_loop(two, method):
    agree([found[method][0] for found in two], method, torch.arange(ROWS).split(BATCH * ACCUMULATE * PROCESSES))


def test_a_replica_that_would_train_by_itself_is_refused(two):
    assert "2 processes train, and the model is not DistributedDataParallel" in two[0]["sam"][1]


@pytest.mark.parametrize("method", ["looksam", "vsam"])
def test_a_resumed_training_goes_on_bit_by_bit(tmp_path, method):
    straight, counts = loop(method, CASES[method], STEPS * BATCH * 2, accumulate=2, save=(4, str(tmp_path)))
    resumed, after = loop(method, CASES[method], STEPS * BATCH * 2, accumulate=2, resume=(4, str(tmp_path)))
    assert apart(straight, resumed) == 0
    assert counts == after


@pytest.mark.parametrize("fp16", [False, True])
def test_half_precision(fp16):
    found, _ = loop("looksam", CASES["looksam"], STEPS * BATCH, fp16=fp16, mixed_precision="bf16")
    wanted = halved("looksam", FEW, fp16)
    assert apart(found, wanted) < 1e-5
    assert apart(plain("looksam", FEW, **CASES["looksam"])[0], wanted) > 1e-5


def test_wrappers_that_no_method_reaches_through():
    with pytest.raises(UserError, match="do not reach through DataParallel"):
        reachable(nn.DataParallel(Tagger()))
