"""Base optimizers, schedules and what else a step of the loop consists of."""

import math
import os
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from sam_repro.config import compose
from sam_repro.optim import StaticStep
from sam_repro.schema import Diverged, UserError
from sam_repro.store import Run
from sam_repro.train.backends import backends
from sam_repro.train.base import base_optimizer, eager, schedule
from sam_repro.train.job import Job
from sam_repro.train.loop import EpochRecord, train, train_epoch
from sam_repro.train.score import accuracy

EPOCHS, STEPS = 8, 5


def rates(*overrides):
    """The learning rate of every step of a training."""
    config = compose([*overrides, "lr=0.4"])
    base = base_optimizer(config["base"], [torch.nn.Parameter(torch.zeros(1))], config["lr"], 0.0)
    plan = schedule(config["schedule"], base, EPOCHS, STEPS)
    found = []
    for _ in range(EPOCHS * STEPS):
        found.append(base.param_groups[0]["lr"])
        base.step()
        plan.step()
    return found


def torchs(make, per_epoch=False):
    base = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], 0.4)
    plan = make(base)
    found = []
    for step in range(EPOCHS * STEPS):
        found.append(base.param_groups[0]["lr"])
        base.step()
        if not per_epoch or (step + 1) % STEPS == 0:
            plan.step()
    return found


def test_schedules_are_torchs():
    from torch.optim import lr_scheduler

    total = EPOCHS * STEPS
    assert rates("schedule=constant") == [0.4] * total
    assert rates("schedule=step") == pytest.approx(torchs(lambda base: lr_scheduler.MultiStepLR(base, [20, 30], 0.1)))
    assert rates("schedule=cosine") == pytest.approx(torchs(lambda base: lr_scheduler.CosineAnnealingLR(base, EPOCHS), per_epoch=True))
    assert rates("schedule=cosine", "schedule.per=step") == pytest.approx(torchs(lambda base: lr_scheduler.CosineAnnealingLR(base, total)))
    one_cycle = torchs(lambda base: lr_scheduler.OneCycleLR(base, 0.4, total, pct_start=0.05, cycle_momentum=False))
    assert rates("schedule=onecycle") == pytest.approx(one_cycle)
    assert rates("schedule=linear") == pytest.approx([0.4 * (1 - step / total) for step in range(total)])


@pytest.mark.parametrize("shape", ["linear", "cosine", "1-sqrt"])
def test_wsd_is_constant_and_then_falls_to_zero_over_its_last_share(shape):
    total, last = EPOCHS * STEPS, 12
    fall = {"linear": lambda x: 1 - x, "cosine": lambda x: (1 + math.cos(math.pi * x)) / 2, "1-sqrt": lambda x: 1 - x**0.5}[shape]
    expected = [0.4] * (total - last) + [0.4 * fall(step / last) for step in range(last)]
    assert rates("schedule=wsd", "schedule.decay=0.3", f"schedule.shape={shape}") == pytest.approx(expected)
    warm = rates("schedule=wsd", "schedule.decay=0.3", f"schedule.shape={shape}", "schedule.warmup=2")
    assert warm == pytest.approx([0.4 * (step + 1) / 10 for step in range(10)] + expected[10:])
    assert rates("schedule=wsd", "schedule.decay=0") == [0.4] * total
    assert rates("schedule=wsd", "schedule.decay=1", f"schedule.shape={shape}")[:: total // 2] == pytest.approx([0.4, 0.4 * fall(0.5)])


def test_a_decay_within_the_warm_up_is_refused():
    with pytest.raises(UserError, match=r"schedule\.decay=0\.8 begins after 4 of 20 epochs, within a warm-up of 5: make "):
        compose(["schedule=wsd", "schedule.decay=0.8", "schedule.warmup=5"])
    compose(["schedule=wsd", "schedule.decay=0.8", "schedule.warmup=4"])


def test_one_cycle_with_a_single_step_of_warm_up():
    """Where torch's would divide by zero."""
    found = rates("schedule=onecycle", f"schedule.warmup_share={1 / (EPOCHS * STEPS)}")
    assert max(found) == pytest.approx(0.4, rel=1e-2)
    assert found[-1] < 1e-3


def test_norms_and_biases_can_be_left_undecayed():
    model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.LayerNorm(3))
    config = compose(["base=adamw", "lr=0.1", "weight_decay=0.5", "decayed=weights"])
    base = base_optimizer(config["base"], list(model.parameters()), 0.1, 0.5, config["decayed"])
    before = [p.detach().clone() for p in model.parameters()]
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    base.step()
    for p, old in zip(model.parameters(), before, strict=True):
        assert torch.allclose(p, old * (0.95 if p.ndim == 2 else 1.0))


def test_a_batch_in_parts_gives_the_gradient_of_the_whole():
    """Without BatchNorm nothing tells the difference; the perturbation is that of the whole batch."""

    def gradient(*overrides):
        config = compose(["optimizer=sam", "model=timm", "model.arch=vit_tiny_patch16_224", "dataset.size=16", "device=cpu", *overrides])
        job = Job(config)
        job.model.train()
        report = job.backward(next(iter(job.batches.epoch(0))))
        return report, torch.cat([p.grad.flatten() for p in job.parameters])

    pytest.importorskip("timm", reason="timm is not installed (extra 'timm')")
    (whole, expected), (parts, found) = gradient("batch_size=10"), gradient("batch_size=10", "accumulate=4")
    assert torch.allclose(found, expected, atol=1e-5)
    assert torch.allclose(parts.outputs, whole.outputs, atol=1e-4)
    assert torch.allclose(parts.loss, whole.loss, atol=1e-5)
    with pytest.raises(UserError, match="accumulate=2 does not go with mSAM"):
        compose(["optimizer=msam", "m=4", "accumulate=2"])


def test_a_model_that_does_not_take_the_images_is_refused_before_work_starts():
    pytest.importorskip("timm", reason="timm is not installed (extra 'timm')")
    with pytest.raises(UserError, match="model=timm does not take the inputs of dataset=digits: "):
        Job(compose(["model=timm", "model.arch=swin_tiny_patch4_window7_224", "device=cpu", "dataset.size=32"]))


@pytest.mark.parametrize("name", ["constant", "step", "cosine", "linear", "wsd"])
def test_warm_up_is_linear_from_the_first_step(name):
    warm = rates(f"schedule={name}", "schedule.warmup=2")
    assert warm[:10] == pytest.approx([0.4 * (step + 1) / 10 for step in range(10)])
    assert max(warm) == warm[9] == pytest.approx(0.4)
    with pytest.raises(UserError, match="leave nothing of a training"):
        rates(f"schedule={name}", "schedule.warmup=8")


def test_base_optimizers_take_their_numbers_from_the_configuration():
    def built(*overrides):
        config = compose(list(overrides))
        return base_optimizer(config["base"], [torch.nn.Parameter(torch.zeros(1))], config["lr"], config["weight_decay"])

    sgd = built("lr=0.3", "momentum=0.8", "base.nesterov=true", "weight_decay=0.01")
    assert isinstance(sgd, torch.optim.SGD)
    assert {"lr": 0.3, "momentum": 0.8, "nesterov": True, "weight_decay": 0.01}.items() <= sgd.defaults.items()
    adamw = built("base=adamw", "lr=0.001", "base.beta2=0.95", "base.eps=1e-6", "weight_decay=0.3")
    assert isinstance(adamw, torch.optim.AdamW)
    assert {"lr": 0.001, "betas": (0.9, 0.95), "eps": 1e-6, "weight_decay": 0.3}.items() <= adamw.defaults.items()


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        (torch.optim.SGD, {"momentum": 0.9, "nesterov": True}),
        (torch.optim.AdamW, {"weight_decay": 0.1}),
        (torch.optim.Adam, {"amsgrad": True}),
    ],
)
def test_the_base_optimizer_steps_as_torchs_own(kind, settings):
    weights = {}
    for one in (kind, eager(kind)):
        torch.manual_seed(0)
        model = torch.nn.Linear(4, 3)
        base, steps = one(model.parameters(), lr=0.1, **settings), []
        handle = base.register_step_post_hook(lambda *_, steps=steps: steps.append(1))
        for _ in range(3):
            model(torch.randn(5, 4)).square().sum().backward()
            base.step()
            base.zero_grad()
            assert model.weight.grad is None
            base.load_state_dict(base.state_dict())
        handle.remove()
        assert len(steps) == 3
        weights[one] = [p.detach().clone() for p in model.parameters()]
    assert repr(base).startswith(kind.__name__)
    theirs, ours = weights.values()
    assert all(torch.equal(a, b) for a, b in zip(theirs, ours, strict=True))


def job(*overrides):
    return Job(compose(["device=cpu", "train_fraction=0.1", "epochs=1", "schedule=constant", *overrides]))


def moved(*overrides):
    """How far one epoch of one step takes the weights."""
    subject = job("batch_size=144", "momentum=0", "weight_decay=0", "optimizer=sgd", "lr=0.1", *overrides)
    before = torch.cat([p.detach().flatten().clone() for p in subject.parameters])
    train_epoch(subject, EpochRecord(subject))
    return (torch.cat([p.detach().flatten() for p in subject.parameters]) - before).norm().item()


def test_clipping_takes_the_final_gradient():
    assert moved("clip=0.5") == pytest.approx(0.05, rel=1e-3)
    assert moved() == moved("clip=1000000") > 0.1


def test_label_smoothing_is_in_the_loss():
    outputs, targets = torch.randn(5, 10), torch.randint(10, (5,))
    smoothed = job("label_smoothing=0.1").criterion(outputs, targets)
    assert smoothed.shape == (5,)
    assert torch.allclose(smoothed.mean(), F.cross_entropy(outputs, targets, label_smoothing=0.1))


def test_weight_decay_is_the_base_optimizers_at_w():
    """With a loss that does not depend on them, the weights shrink by lr times decay, perturbed or not."""
    subject = job("optimizer=sam", "momentum=0", "weight_decay=0.5", "lr=0.1", "batch_size=144")
    subject.criterion = lambda outputs, targets: outputs.sum(1) * 0.0
    before = [p.detach().clone() for p in subject.parameters]
    train_epoch(subject, EpochRecord(subject))
    assert all(torch.allclose(p, 0.95 * q) for p, q in zip(subject.parameters, before, strict=True))


def test_decay_in_the_loss_is_that_of_the_weights_of_each_pass():
    """Of a loss that is nothing else, SAM's second gradient is the decay of the perturbed weights; decayed=weights leaves vectors alone."""
    words = ["optimizer=generalized_sam", "alpha=1", "r=0.5", "momentum=0", "weight_decay=0.2", "lr=0.1", "batch_size=144"]
    subject = job(*words, "decay_in_loss=true", "decayed=weights", "accumulate=2")
    outputs, targets = torch.randn(5, 10), torch.randint(10, (5,))
    assert torch.equal(subject.criterion(outputs, targets), F.cross_entropy(outputs, targets, reduction="none")), "what is measured"
    assert (subject.objective(outputs, targets) > subject.criterion(outputs, targets)).all()
    parts = subject.gradient.passes
    before = [p.detach().clone() for p in subject.parameters]
    plain = F.cross_entropy
    try:
        F.cross_entropy = lambda outputs, targets, **_: outputs.sum(1) * 0.0
        record = EpochRecord(subject)
        train_epoch(subject, record)
    finally:
        F.cross_entropy = plain
    assert parts.forward_units == pytest.approx(2.0)
    for p, q in zip(subject.parameters, before, strict=True):
        # w' = w + r (wd w); the gradient there is wd w'
        expected = q - 0.1 * 0.2 * (q + 0.5 * 0.2 * q) if p.ndim > 1 else q
        assert torch.allclose(p, expected, atol=1e-7)
    assert record.loss.item() == pytest.approx(0.0, abs=1e-2), "what is reported is the loss of the samples"


def test_a_short_last_batch_can_be_left_out():
    subject = job("drop_last=true", "batch_size=30")
    samples = len(subject.parts.train)
    assert samples % 30
    assert len(subject.batches) == samples // 30
    seen = []
    for number in (0, 1):
        batches = list(subject.batches.epoch(number))
        assert [len(batch.targets) for batch in batches] == [30] * (samples // 30)
        seen.append(set(torch.cat([batch.indices for batch in batches]).tolist()))
    assert seen[0] != seen[1], "in every epoch others are left out"
    with pytest.raises(UserError, match="drop_last=true leaves nothing of 1437 samples in batches of 2000: lower batch_size"):
        Job(compose(["device=cpu", "drop_last=true"]) | {"batch_size": 2000})


def test_bfloat16_trains_close_to_float32():
    losses = []
    for precision in ("fp32", "bf16"):
        subject = job(f"precision={precision}", "k=3", "train_fraction=0.3", "lr=0.02")
        record = EpochRecord(subject)
        train_epoch(subject, record)
        losses.append(record.close()[0]["train_loss"])
        assert all(p.dtype == torch.float32 for p in subject.parameters)
    assert losses[0] != losses[1]
    assert losses[0] == pytest.approx(losses[1], rel=0.05)


def test_accuracy_is_in_percent():
    assert accuracy(torch.tensor([1, 2, 3, 3]), torch.tensor([1, 2, 0, 3])).item() == 75.0


@pytest.mark.parametrize("method", ["saf", "mesa", "vsam", "aesam", "msam", "esam", "looksam"])
def test_the_trainer_gives_every_method_what_it_needs(method):
    subject = job(f"optimizer={method}", "train_fraction=0.2", "epochs=2", *(["start=0", "delay=1"] if method == "saf" else []))
    for _ in range(2):
        record = EpochRecord(subject)
        train_epoch(subject, record)
        row, layers = record.close()
    assert row["steps"] == 5
    assert len(layers) == 20


@pytest.mark.parametrize("words", ["optimizer=layerwise k=2", "optimizer=looksam precision=bf16", "optimizer=vsam accumulate=2 clip=1"])
def test_a_training_of_static_steps_has_the_same_numbers(words):
    """On the CPU they are recorded nowhere; on a GPU the same steps are."""
    rows = []
    for graphs in ("false", "true"):
        subject = job(*words.split(), "train_fraction=0.2", f"graphs={graphs}")
        record = EpochRecord(subject)
        train_epoch(subject, record)
        row, layers = record.close()
        rows.append(({key: value for key, value in row.items() if key not in ("seconds", "images_per_second")}, layers))
        assert isinstance(subject.stepper, StaticStep) == (graphs == "true")
    assert rows[0] == rows[1]


def test_graphs_are_refused_where_the_method_or_the_model_has_no_static_step():
    with pytest.raises(UserError, match="graphs=true does not go with this method: every epoch writes its logits"):
        job("optimizer=saf", "graphs=true")


# -- how PyTorch's libraries compute -------------------------------------------------------------------------------------


def flags():
    cuda, cudnn = torch.backends.cuda, torch.backends.cudnn
    precisions = [part.fp32_precision for part in (cuda.matmul, cudnn.conv, cudnn.rnn)]
    return [*precisions, cudnn.benchmark, torch.are_deterministic_algorithms_enabled(), os.environ.get("CUBLAS_WORKSPACE_CONFIG")]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], [*3 * ["ieee"], True, False, None]),
        (["tf32=true", "cudnn_benchmark=false"], [*3 * ["tf32"], False, False, None]),
        (["deterministic=true"], [*3 * ["ieee"], False, True, ":4096:8"]),
    ],
)
def test_the_flags_of_the_process_are_the_runs_while_it_trains(words, expected):
    before = flags()
    with pytest.raises(ZeroDivisionError), backends(compose(words)):
        assert flags() == expected
        raise ZeroDivisionError
    assert flags() == before


def test_what_has_no_deterministic_version_is_named_in_a_sentence(tmp_path, monkeypatch):
    def put(outputs, targets, **_):
        return outputs.sum(1) * torch.zeros(len(targets)).put_(torch.tensor([0]), torch.ones(1))

    monkeypatch.setattr(F, "cross_entropy", put)
    config = compose(["device=cpu", "train_fraction=0.1", "epochs=1", "deterministic=true"])
    with pytest.raises(UserError, match=r"deterministic=true: PyTorch's put_ cannot; .* deterministic=false") as caught:
        train(config, Run(tmp_path, "run"))
    assert "\n" not in str(caught.value)


def test_images_and_weights_lie_as_they_are_told():
    for word, layout in (("true", torch.channels_last), ("false", torch.contiguous_format)):
        subject = job(f"channels_last={word}")
        images = [next(iter(found)).inputs for found in (subject.batches.epoch(0), subject.scored_samples())]
        weight = subject.model.get_submodule("block1.conv1").weight
        assert all(t.is_contiguous(memory_format=layout) for t in (*images, weight))
    assert not weight.is_contiguous(memory_format=torch.channels_last)


# -- fp16 ----------------------------------------------------------------------------------------------------------------

HALF = ("precision=fp16", "batch_size=48", "optimizer=layerwise", "k=3", "lr=0.02")


def test_float16_trains_close_to_float32():
    losses = []
    for precision in ("fp32", "fp16"):
        subject = job(*HALF, f"precision={precision}")
        subject.scaler = torch.amp.GradScaler("cpu", init_scale=256.0, enabled=precision == "fp16")  # small enough for the first step
        record = EpochRecord(subject)
        train_epoch(subject, record)
        row = record.close()[0]
        losses.append(row["train_loss"])
        assert row.get("skipped_steps") == (0 if precision == "fp16" else None)
    assert losses[0] != losses[1]
    assert losses[0] == pytest.approx(losses[1], rel=0.02)


def test_a_step_that_overflows_is_left_out_counted_and_scaled_less():
    subject = job(*HALF, "momentum=0", "weight_decay=0", "clip=1")
    subject.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**30, backoff_factor=2.0**-22)
    record, weights = EpochRecord(subject), []
    step = subject.step

    def watched():
        before = [p.detach().clone() for p in subject.parameters]
        taken = step()
        weights.append(any(not torch.equal(p, q) for p, q in zip(subject.parameters, before, strict=True)))
        assert weights[-1] == bool(taken)
        return taken

    subject.step = watched
    train_epoch(subject, record)
    row, layers = record.close()
    assert weights == [False, True, True]
    assert (row["steps"], row["skipped_steps"]) == (3, 1)
    assert subject.scaler.get_scale() == 2.0**8
    assert 0 < row["grad_norm"] < 1e3
    assert all(0 <= layer["grad_norm"] < 1e3 for layer in layers)
    assert subject.schedule.last_epoch == 3, "the schedule goes on"


def test_an_epoch_without_a_step_has_diverged():
    subject = job(*HALF)
    subject.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**100)
    record = EpochRecord(subject)
    train_epoch(subject, record)
    with pytest.raises(Diverged, match="gradient norm"):
        record.close()


def test_fused_base_optimizers_are_those_of_gpus(monkeypatch):
    on_gpu = [SimpleNamespace(device=torch.device("cuda"), ndim=2)]
    monkeypatch.setattr("sam_repro.train.base.eager", lambda _: lambda *_, **more: more)
    for name in ("sgd", "adamw"):
        settings = compose([f"base={name}", "lr=0.1"])["base"]
        assert base_optimizer(settings, on_gpu, 0.1, 0.0)["fused"] is True
        assert "fused" not in base_optimizer(settings, [torch.nn.Parameter(torch.zeros(1))], 0.1, 0.0)
