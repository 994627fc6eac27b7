"""Criteria that return ``(losses, weights)``: one weighted mean over the whole step, PyTorch's where it has one."""

import inspect
import re
import textwrap
from pathlib import Path

import helpers
import pytest
import torch
import torch.nn.functional as F
from flat import ONE_PASS
from helpers import METHODS, PLAN, STEPS, Family, batch, criterion, make, places, plain_gradient, shifted, small_chain
from spawned import spawned
from test_methods import REFERENCES, base, distance, each_method, gradients
from torch.nn.parallel import DistributedDataParallel

from sam_repro.optim import create
from sam_repro.optim.method import Method

pytestmark = pytest.mark.long
CLASS_WEIGHTS, IGNORED, SMOOTHING = torch.tensor([0.3, 1.0, 4.0], dtype=torch.float64), -100, 0.1


def with_weights(outputs, targets):
    """The targets are labels and weights."""
    labels, weights = targets
    return criterion(outputs, labels), weights


def torch_mean(outputs, labels):
    return F.cross_entropy(outputs, labels, CLASS_WEIGHTS, ignore_index=IGNORED, label_smoothing=SMOOTHING)


def recipe():
    """The criterion that the documents advise."""
    page = (Path(__file__).parents[1] / "docs" / "losses.md").read_text()
    code = re.search(r"```python\n(.*?)```", page, re.DOTALL)[1]
    assert textwrap.indent(code.strip(), "    ") in inspect.getdoc(Method.backward)
    names = {"F": F, "class_weights": CLASS_WEIGHTS, "ignored": IGNORED, "smoothing": SMOOTHING}
    exec(code, names)
    return names["criterion"]


def some_ignored(step):
    x, y = batch(seed=step)
    y[[step % 12, (step + 1) % 12, (step + 5) % 12]] = IGNORED
    return x, y


def weight_of(y):
    return CLASS_WEIGHTS[y[y != IGNORED]].sum()


# -- against the mean of PyTorch -----------------------------------------------------------------------------------------


class WeightedFamily(Family):
    """With torch_mean as the loss; what is left are the two methods that take parts of a batch."""

    def msam(self, x, y):
        parts = list(zip(x.tensor_split(self.knobs["m"]), y.tensor_split(self.knobs["m"]), strict=True))
        total = [torch.zeros_like(p) for p in self.model.parameters()]
        for part_x, part_y in parts:
            if weight_of(part_y) > 0:
                _, g = plain_gradient(self.model, part_x, part_y, train_statistics=False)
                sam = self.sam(part_x, part_y, g)
                total = [t + weight_of(part_y) / weight_of(y) * s for t, s in zip(total, sam, strict=True)]
        return total

    def esam(self, x, y):
        _, g = plain_gradient(self.model, x, y, train_statistics=False)
        moved = shifted(self.model, set(range(len(g))), self.perturbation(g))
        rise = recipe()(moved(x), y)[0] - recipe()(self.model(x), y)[0]
        keep = rise.argsort(descending=True)[: int(self.knobs["gamma"] * len(x))]
        return plain_gradient(moved, x[keep], y[keep], train_statistics=False)[1]


ROWS = [row for row in METHODS if row[0] not in ("saf", "mesa") and row[1].get("beta") != 0.6]
CASES = [(*row, parts) for row in ROWS for parts in ([12], [5, 7]) if parts == [12] or row[0] not in ("msam", "esam", "async_sam")]


@pytest.mark.parametrize(("name", "knobs", "parts"), CASES)
def test_the_documented_criterion_is_the_mean_of_torch(name, knobs, parts, monkeypatch):
    """In evaluation mode BatchNorm mixes no samples: then accumulated micro-batches are one batch."""
    monkeypatch.setattr(helpers, "criterion", torch_mean)
    model, twin = small_chain().eval(), small_chain().eval()
    gradient = make(name, model, knobs)
    more = {"accumulated": len(parts) > 1} if name == "budget" else {}
    reference = REFERENCES.get(name, WeightedFamily)(name, twin, **knobs, **more)
    optimizers = base(model), base(twin)
    for step in range(STEPS):
        x, y = some_ignored(step)
        inputs = (x, y) if len(parts) == 1 else (list(x.split(parts)), list(y.split(parts)))
        report = gradient.backward(*inputs, recipe())
        if name not in (*ONE_PASS, "async_sam"):  # of which it is the loss at w + eps
            assert report.loss.item() == pytest.approx(torch_mean(twin(x), y).item(), abs=1e-10)
        reference.sampled.append(report.ascended)
        for p, g in zip(twin.parameters(), reference.gradient(x, y), strict=True):
            p.grad = g
        assert distance(gradients(model), gradients(twin)) < 1e-10, f"step {step}"
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    assert distance(model.parameters(), small_chain().parameters()) > 1e-2


# -- identities ----------------------------------------------------------------------------------------------------------


@each_method
def test_weights_of_one_are_none(name, knobs):
    model, twin = small_chain(), small_chain()
    gradient, same = make(name, model, knobs), make(name, twin, knobs)
    optimizers = base(model), base(twin)
    for step in range(STEPS):
        x, y = batch(seed=step)
        report = gradient.backward(x, (y, torch.ones(12)), with_weights, indices=places(step))
        expected = same.backward(x, y, criterion, indices=places(step))
        assert distance(gradients(model), gradients(twin)) < 1e-12
        assert report.loss.item() == pytest.approx(expected.loss.item(), abs=1e-12)
        assert report.forward_units == expected.forward_units
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()


@pytest.mark.parametrize(("name", "knobs"), [row for row in METHODS if row[0] not in ("msam", "esam", "async_sam")])
def test_whole_weights_are_repeated_samples(name, knobs):
    model, twin = small_chain().eval(), small_chain().eval()
    gradient, same = make(name, model, knobs), make(name, twin, knobs)
    optimizers = base(model), base(twin)
    for step in range(STEPS):
        x, y = batch(seed=step)
        times = torch.arange(12) % 4
        report = gradient.backward(x, (y, times), with_weights, indices=places(step))
        repeated = [t.repeat_interleave(times, 0) for t in (x, y, places(step))]
        expected = same.backward(*repeated[:2], criterion, indices=repeated[2])
        assert distance(gradients(model), gradients(twin)) < 1e-12
        assert report.loss.item() == pytest.approx(expected.loss.item(), abs=1e-12)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()


def test_samples_of_some_weight_and_batches_without_any_mix():
    """A micro-batch for which the criterion gives no weights has those of one."""

    def sometimes(outputs, targets):
        return (criterion(outputs, targets), torch.ones(5)) if len(targets) == 5 else criterion(outputs, targets)

    x, y = batch()
    for name in ("sgd", "sam"):
        model, twin = small_chain().eval(), small_chain().eval()
        create(name, model).backward([x[:5], x[5:]], [y[:5], y[5:]], sometimes)
        create(name, twin).backward(x, y, criterion)
        assert distance(gradients(model), gradients(twin)) < 1e-12


# -- no weight at all ----------------------------------------------------------------------------------------------------


def test_a_micro_batch_of_no_weight_is_none():
    x, y = batch()
    weights = torch.arange(12.0) * (torch.arange(12) > 2)
    for name, knobs, fewer in (("msam", {"m": 4}, {"m": 3}), ("sam", {}, {}), ("generalized_sam", {"r": 0.2}, {"r": 0.2})):
        model, twin = small_chain().eval(), small_chain().eval()
        parts = (x, (y, weights)) if name == "msam" else ([x[:3], x[3:]], [(y[:3], weights[:3]), (y[3:], weights[3:])])
        report = create(name, model, **knobs).backward(*parts, with_weights)
        expected = create(name, twin, **fewer).backward(x[3:], (y[3:], weights[3:]), with_weights)
        assert distance(gradients(model), gradients(twin)) < 1e-12
        assert report.loss.item() == pytest.approx(expected.loss.item(), abs=1e-12)


@each_method
def test_a_step_of_no_weight_is_a_step_of_zeros(name, knobs):
    model = small_chain()
    gradient = make(name, model, knobs)
    x, y = batch()
    report = gradient.backward(x, (y, torch.zeros(12)), with_weights, indices=places(0))
    assert report.loss.item() == 0
    assert distance(gradients(model), [torch.zeros_like(p) for p in model.parameters()]) == 0
    for step in range(1, 4):  # and nothing of it was remembered
        gradient.backward(x, (y, torch.ones(12)), with_weights, indices=places(step))
        assert all(torch.isfinite(g).all() for g in gradients(model))


# -- robustness ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrong",
    [
        lambda losses: (losses, losses[:3]),
        lambda losses: (losses, losses.mean()),
        lambda losses: (losses.mean(), losses),
        lambda losses: (losses, losses[:, None]),
        lambda losses: (losses, 1.0),
        lambda losses: (losses, None),
        lambda losses: (losses, losses, losses),
        lambda losses: (),
        lambda losses: [losses, losses],
    ],
)
@pytest.mark.parametrize("name", ["sgd", "sam", "msam"])
def test_other_shapes_are_refused_in_one_sentence(name, wrong):
    with pytest.raises(ValueError, match=r"one loss per sample, shape \(\d+,\), or such losses and as many weights, not .+: pass"):
        create(name, small_chain(), **({"m": 2} if name == "msam" else {})).backward(*batch(), lambda o, t: wrong(criterion(o, t)))


@each_method
def test_a_scaled_loss_gives_the_scaled_gradient(name, knobs):
    model, plain = small_chain(), small_chain()
    x, y = batch()
    targets = (y, torch.arange(12.0))
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    report = make(name, model, knobs).backward(x, targets, with_weights, indices=places(0), scaler=scaler)
    expected = make(name, plain, knobs).backward(x, targets, with_weights, indices=places(0))
    assert distance(gradients(model), [g * 1024 for g in gradients(plain)]) < 1e-9
    assert distance([report.layer_norms], [expected.layer_norms]) < 1e-12
    assert report.loss.item() == pytest.approx(expected.loss.item(), abs=1e-12)


@each_method
def test_the_host_reads_nothing_from_the_device(name, knobs):
    """But for AE-SAM's decision."""
    model = small_chain()
    gradient = make(name, model, knobs)
    for step in range(2):
        x, y = batch(seed=step)
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            gradient.backward(x, (y, torch.arange(12) > 3), with_weights, indices=places(step))
        if step:
            assert sum(event.count for event in profile.key_averages() if event.key == "aten::_local_scalar_dense") == (
                name == "aesam" and step >= 2 * knobs.get("lag", 0)
            )


def test_a_mask_is_a_weight_also_in_half_precision():
    x, y = batch()
    mask = torch.arange(12) > 3
    for name in ("sam", "layerwise", "looksam"):
        model, twin = small_chain().eval().bfloat16(), small_chain().eval().bfloat16()
        create(name, model).backward(x.bfloat16(), (y, mask), with_weights)
        create(name, twin).backward(x[mask].bfloat16(), y[mask], criterion)
        assert all(p.grad.dtype == torch.bfloat16 for p in model.parameters())
        assert distance(gradients(model), gradients(twin)) < 0.02


# -- replicas ------------------------------------------------------------------------------------------------------------

# Samples of the first of two replicas, and the knobs with which one process does the same.
REPLICAS = [
    *((name, knobs, first, {}) for name, knobs in (("sgd", {}), ("sam", {"rho": 0.1})) for first in (5, 6)),
    ("generalized_sam", {"r": 0.2, "alpha": 0.6}, 5, {}),
    ("layerwise", {"k": 2, "r": 0.3, "alpha": 0.6}, 5, {}),
    ("looksam", {"rho": 0.1, "k": 3}, 5, {}),
    ("vsam", {"rho": 0.1, "start": 1, "s1": 10.0, "N": 20}, 5, {}),
    ("aesam", {"rho": 0.1, "lambda1": 0.5, "lambda2": 1.0, "delta": 0.2}, 5, {}),
    ("mesa", {"start": 0}, 5, {}),
    ("msam", {"rho": 0.1, "m": 2}, 6, {"m": 4}),
    ("sam", {"rho": 0.1, "scope": "replica"}, 6, {"samples": "micro", "samples.m": 2}),
    ("generalized_sam", {"r": 0.2, "alpha": 0.6, "scope": "replica"}, 6, {"samples": "micro", "samples.m": 2}),
    ("looksam", {"rho": 0.1, "k": 3, "scope": "replica"}, 6, {"samples": "micro", "samples.m": 2}),
]


def train(model, gradient, rows):
    bare = getattr(model, "module", model)
    optimizer = base(bare)
    for step in range(6):
        x, y = batch(seed=step)
        weights = torch.arange(12.0) ** 2 * (torch.arange(12) >= 6 * (step == 3))  # in the fourth step the first replica has none
        gradient.backward(x[rows], (y[rows], weights[rows]), with_weights, indices=torch.arange(12)[rows])
        optimizer.step()
        optimizer.zero_grad()
    return [p.detach().clone() for p in bare.parameters()]


def replica(rank, folder):
    found = []
    for name, knobs, first, _ in REPLICAS:
        model = DistributedDataParallel(small_chain().eval())
        found.append(train(model, make(name, model, knobs), slice(first) if rank == 0 else slice(first, None)))
    return found


def test_replicas_of_unequal_weights_are_one_process(tmp_path):
    ranks = spawned(replica, tmp_path)
    for (name, knobs, _, alone), first, second in zip(REPLICAS, *ranks, strict=True):
        model = small_chain().eval()
        knobs = {key: value for key, value in knobs.items() if key != "scope"}
        expected = train(model, create(name, model, **PLAN, **(knobs | alone)), slice(None))
        assert distance(expected, small_chain().parameters()) > 1e-3
        assert distance(first, second) == 0, (name, knobs)
        assert distance(first, expected) < 1e-12, (name, knobs)
