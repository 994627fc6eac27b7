"""What a CUDA step would launch, and where its host would wait, on a GPU that is pretended; nothing here has run on a real one."""

import itertools
from pathlib import Path

import pytest
import torch
from pretended_gpu import pretended_gpu
from torch import nn
from torch.nn import functional as F

from sam_repro import models
from sam_repro.config import compose
from sam_repro.device import resolve_device
from sam_repro.optim import create
from sam_repro.schema import options
from sam_repro.store import Run
from sam_repro.train.job import Job
from sam_repro.train.loop import train

STEPS, BATCH = 12, 16
READ = (2.0, 1.0, 0.5)  # in turn, of whatever the host reads: AE-SAM then ascends at some steps
EVENTFUL = {
    "vsam": {"start": 2, "N": 4, "M": 2}, "vsam_a": {"start": 2, "N": 4, "M": 2}, "saf": {"start": 0, "delay": 1}, "mesa": {"start": 0},
    "layerwise lag=1": {"lag": 1}, "aesam lag=1": {"lag": 1}, "late": {"percent": 95.0}, "late_layerwise": {"percent": 95.0},
}  # fmt: skip
LAGGING = ("layerwise lag=1", "aesam lag=1")  # what they decide by is of a step earlier, and there
# Where the host waits in a step, how often in 12 of them, and why. All other methods never do.
WAITS = {
    "layerwise": ("layers.py", 12, "the layers that the last step's norms choose decide what the next pass computes"),
    "late_layerwise": ("layers.py", 8, "the same, in the steps that make an ascent"),
    "budget": ("budget.py", 12, "the layers that hold the most of the last step's norms decide, as above"),
    "aesam": ("when.py", 12, "whether a step ascends depends on its own gradient"),
    "vsam": ("when.py", 3, "the rate is set anew every N = 4 steps"),
    "vsam_a": ("when.py", 3, "the rate is set anew every N = 4 steps"),
}
# Operations of a step on ResNet-20 with SGD's own, with and without an ascent, in fp32 and bf16: what a change adds shows here.
LAUNCHES = {
    "aesam": ((350, 185), (440, 230)), "aesam lag=1": ((351, 186), (441, 231)),
    "layerwise lag=1": ((329.5, None), (401.2, None)), "asam": ((350, None), (440, None)), "esam": ((420.5, None), (504, None)),
    "generalized_sam": ((339, None), (429, None)), "layersam": ((366, None), (456, None)), "layerwise": ((339, None), (412, None)),
    "late": ((346, 181), (436, 226)), "late_layerwise": ((339, 183), (412, 228)),
    "looklayersam": ((510, 187), (600, 232)), "looksam": ((490, 187), (580, 232)), "mesa": ((None, 263.7), (None, 331.6)),
    "msam": ((1550, None), (1910, None)), "saf": ((None, 207), (None, 255.8)), "sam": ((346, None), (436, None)),
    "gsam": ((428, None), (518, None)), "wsam": ((347, None), (437, None)), "renormalised_sam": ((358, None), (448, None)),
    "rst": ((346, 181), (436, 226)), "sam_n": ((346, 181), (436, 226)), "sgd": ((None, 181), (None, 226)), "vsam": ((358, 184), (448, 229)),
    "vsam_a": ((355, 181), (445, 226)),
    "fsam": ((373, None), (463, None)), "vasso": ((376, None), (466, None)), "s2sam": ((210, None), (255, None)),
    "momentum_sam": ((212, None), (257, None)), "async_sam": ((364, None), (454, None)), "sam_on": ((343, None), (412, None)),
    "asam_on": ((347, None), (416, None)), "fisher_sam": ((352, None), (442, None)), "unified_sam": ((350, None), (440, None)),
    "zsharp": ((485, None), (575, None)), "ssam_f": ((457.5, None), (547.5, None)), "ssam_d": ((462, None), (552, None)),
    "random_sam": ((439, None), (484, None)), "budget": ((214.6, None), (269.8, None)),
}  # fmt: skip


@pytest.mark.parametrize("half", [False, True], ids=["fp32", "bf16"])
@pytest.mark.parametrize(
    "name",
    [one if one in ("layerwise", "vsam") else pytest.param(one, marks=pytest.mark.long) for one in [*options("optimizer"), *LAGGING]],
)
def test_a_step_waits_only_where_it_must_and_launches_what_it_did(name, half):
    with pretended_gpu(itertools.cycle(READ).__next__) as gpu:
        network = models.create("resnet20").to("cuda", memory_format=torch.channels_last)
        plan = {"total_steps": 100, "steps_per_epoch": 2, "dataset_size": 2 * BATCH}
        method = create(name.removesuffix(" lag=1"), network, **plan, **EVENTFUL.get(name, {}))
        base = torch.optim.SGD(network.parameters(), 0.1, 0.9)
        x = torch.zeros(BATCH, 3, 32, 32, device="cuda").to(memory_format=torch.channels_last)
        y, places = (torch.zeros(BATCH, dtype=torch.int64, device="cuda") for _ in range(2))
        waits, launches = [], {True: [], False: []}
        for step in range(STEPS + 1):
            gpu.take()
            with torch.autocast("cuda", torch.bfloat16, enabled=half):
                report = method.backward(x, y, nn.CrossEntropyLoss(reduction="none"), indices=places)
            base.step()
            base.zero_grad()
            if step:  # what the first one brings to the device stays there
                seen = gpu.take()
                waits += [wait.stack for wait in seen.waits]
                launches[report.ascended].append(seen.total)
    place, count, _ = WAITS.get(name, ("", 0, ""))
    assert len(waits) == count, waits
    assert all(any(f"/{place}:" in line for line in stack[:3]) for stack in waits), waits
    found = tuple(round(sum(some) / len(some), 1) if some else None for some in launches.values())
    assert found == LAUNCHES[name][half]


INSIDE = {  # of the trainer's loop over the steps of an epoch
    "optimizer=sgd base=adamw lr=0.001": {},
    "optimizer=sam precision=bf16": {},
    "optimizer=sam precision=fp16 clip=1": {},  # the scaler decides on the device, where the base optimizer is fused
    "optimizer=looksam base=adamw lr=0.001 precision=fp16": {},
    "optimizer=sgd base=adam lr=0.001 ema=0.9": {},
    "optimizer=sgd mixup=0.4 cutmix=1 swa=0.4": {},
    "optimizer=layerwise k=2": {"layers.py": "one a step, as above"},
    "optimizer=layerwise k=2 lag=1": {},
    "model=mobilenet model.bits=8 optimizer=sgd": {"lsq.py": "one a quantised layer, in the first batch, which sets the step sizes"},
}


SELDOM = (
    "optimizer=sgd base=adam lr=0.001 ema=0.9",
    "optimizer=sgd mixup=0.4 cutmix=1 swa=0.4",
    "model=mobilenet model.bits=8 optimizer=sgd",
)


@pytest.mark.parametrize("words", [pytest.param(one, marks=pytest.mark.long if one in SELDOM else ()) for one in INSIDE])
def test_the_trainer_waits_for_the_device_only_where_the_method_does(tmp_path, words):
    """Two epochs, the second one resumed."""
    for epochs in (1, 2):
        with pretended_gpu(itertools.cycle(READ).__next__) as gpu:
            words_of = [f"runs_dir={tmp_path}", "train_fraction=0.1", *words.split(), f"epochs={epochs}", "device=cuda"]
            config, run = resolve_device(compose(words_of)), Run(tmp_path, "pretended")
            with run.held(config, "pretended"):
                train(config, run)
            inside = [wait.stack for wait in gpu.waits if any(line.endswith(" train_epoch") for line in wait.stack)]
        stray = [stack for stack in inside if not any(f"/{place}:" in line for place in INSIDE[words] for line in stack[:2])]
        assert not stray


@pytest.mark.parametrize(("device", "index"), [("cuda", 0), ("cuda:1", 1)])
def test_the_device_of_a_run_is_the_current_one_before_anything_is_put_on_it(monkeypatch, device, index):
    def current(number):
        raise InterruptedError(number)

    monkeypatch.setattr(torch.cuda, "set_device", current)
    with pytest.raises(InterruptedError) as caught:
        Job({**compose([]), "device": device})
    assert caught.value.args == (index,)


# One wait each.
PLANTED = {
    "a loss is read": lambda x: x.sum().item(),
    "a branch on a value": lambda x: 1 if x.sum() > 0 else 0,
    "a mask in the brackets": lambda x: x[x > 0],
    "a list in the brackets": lambda x: x[[0, 2]],
    "a number becomes a tensor": lambda x: x * torch.tensor(2.0, device=x.device),
    "a copy out of pageable memory": lambda x: x + torch.ones(4).to(x.device),
    "a copy into pageable memory": lambda x: torch.empty(4).copy_(x, non_blocking=True),
    "repeated without output_size": lambda x: x.repeat_interleave(x.long()),
    "an event is waited for": lambda _: torch.cuda.Event().synchronize(),
}
# Each raises.
MIXTURES = {
    "a sum across devices": lambda x: x + torch.ones(4),
    "the host's tensor, the device's index": lambda x: torch.arange(4)[x.long()],
    "targets left on the host": lambda x: F.cross_entropy(x.view(1, 4), torch.tensor([1])),
    "a generator of the host": lambda x: torch.randperm(4, generator=torch.Generator(), device=x.device),
    "an array of the device's": lambda x: x.numpy(),
}
# None of both.
CLEAN = {
    "a number beside a tensor": lambda x: x * torch.tensor(2.0) + 1,
    "a copy nobody waits for": lambda x: (x.to("cpu", non_blocking=True), torch.ones(4).pin_memory().to(x.device, non_blocking=True)),
    "to where it is": lambda x: x.to("cuda").cuda().to(x.device),
    "a mask that fills": lambda x: x.clone().masked_fill_(x > 0, 0.0).__setitem__(x > 0, 1.0),
    "draws": lambda x: torch.rand(4, generator=torch.Generator("cuda").manual_seed(0), device="cuda")[x.long()],
}


def test_what_is_planted_is_seen_and_nothing_else():
    with pretended_gpu() as gpu:
        x = torch.ones(4, device="cuda")
        for name, function in {**PLANTED, **CLEAN}.items():
            gpu.take()
            function(x)
            waits = gpu.take().waits
            assert len(waits) == (name in PLANTED), (name, waits)
            assert all(wait.stack[0].startswith(f"{Path(__file__).name}:{function.__code__.co_firstlineno} ") for wait in waits)
        for function in MIXTURES.values():
            with pytest.raises((RuntimeError, TypeError)):
                function(x)
    assert not torch.cuda.is_available()
