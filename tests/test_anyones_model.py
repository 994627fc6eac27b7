"""Models and batches that are not this repository's: what a forward moves, checkpoints, takes and returns."""

import copy

import pytest
import torch
import torch.nn.functional as F
from helpers import batch, criterion, small_chain
from taped import Tapes
from torch import nn

from sam_repro.chain import Chain
from sam_repro.optim import StaticStep, UserError, create


def reference(model, loss, rho=0.05):
    """SAM's gradient by two full passes over a copy, from the formula; ``loss(model)`` is the mean loss."""
    model = copy.deepcopy(model)
    parameters = [p for p in model.parameters() if p.requires_grad]
    g = torch.autograd.grad(loss(model), parameters)
    norm = torch.sqrt(sum(t.abs().square().sum() for t in g))
    with torch.no_grad():
        for p, t in zip(parameters, g, strict=True):
            p.add_(rho * t / norm)
    return torch.autograd.grad(loss(model), parameters)


def apart(model, expected):
    found = [p.grad for p in model.parameters() if p.requires_grad]
    return max((a.to_dense() - b).abs().max().item() for a, b in zip(found, expected, strict=True))


# -- buffers ---------------------------------------------------------------------------------------------------------------


class Codebook(nn.Module):
    """A moving mean and a counter: moved in place, through ``.data``, or by putting new tensors in their places."""

    def __init__(self, how):
        super().__init__()
        self.how = how
        self.register_buffer("mean", torch.zeros(4, dtype=torch.float64))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))
        self.register_buffer("absent", None)

    def forward(self, x):
        mean = x.detach().mean((0, 2, 3))
        if self.how == "replaced":
            self.mean, self.count, self.absent = 0.9 * self.mean + 0.1 * mean, self.count + 1, mean
        else:
            (self.mean.data if self.how == "data" else self.mean).lerp_(mean, 0.1)
            self.count += 1
        return x - mean.view(1, -1, 1, 1)


class OwnForward(nn.BatchNorm2d):
    """Moves its statistics whatever ``track_running_stats`` says."""

    def forward(self, x):
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, True, 0.1, self.eps)


def evonorm():
    return pytest.importorskip("timm.layers").EvoNorm2dB0(4)


MOVING = {
    "BatchNorm": lambda: nn.BatchNorm2d(4), "InstanceNorm": lambda: nn.InstanceNorm2d(4, affine=True, track_running_stats=True),
    "EvoNorm": evonorm, "spectral norm": lambda: nn.utils.parametrizations.spectral_norm(nn.Conv2d(4, 4, 3)),
    "spectral norm, the older one": lambda: nn.utils.spectral_norm(nn.Conv2d(4, 4, 3)), "own forward": lambda: OwnForward(4),
    **{f"codebook, {how}": lambda how=how: Codebook(how) for how in ("in place", "data", "replaced")},
}  # fmt: skip
IMAGES = torch.randn(8, 4, 6, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
LABELS = torch.arange(8) % 3


def moving(kind):
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(4, 4, 1), MOVING[kind](), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 3)).double()


def buffers_of(model):
    return {name: t.clone() for name, t in model.named_buffers()}


@pytest.mark.parametrize("name", ["sam", "msam", "esam", "layerwise"])
@pytest.mark.parametrize("kind", MOVING)
def test_the_perturbed_pass_leaves_every_buffer_as_the_clean_pass_left_it(kind, name):
    """So that training moves them as SGD does, which sees the same batches."""
    knobs = {"msam": {"m": 1}, "layerwise": {"k": 1}}.get(name, {})
    model, plain = moving(kind), moving(kind)
    method = create(name, model, **knobs)
    for step in range(3):
        method.backward(IMAGES, LABELS, criterion)
        model.zero_grad()
        plain(IMAGES)
        found, expected = buffers_of(model), buffers_of(plain)
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[key], expected[key]) for key in expected), step


def test_both_passes_move_all_buffers_where_asked():
    model = moving("codebook, in place")
    create("sam", model, bn="both").backward(IMAGES, LABELS, criterion)
    assert model[1].count == 2


def test_each_of_several_perturbed_passes_begins_with_the_buffers_that_the_clean_ones_left():
    model = moving("spectral norm")
    create("sam", model).backward(list(IMAGES.split(4)), list(LABELS.split(4)), criterion)
    plain = moving("spectral norm")
    for part in IMAGES.split(4):
        plain(part)
    assert all(torch.equal(a, b) for a, b in zip(model.buffers(), plain.buffers(), strict=True))


def test_an_exception_leaves_buffers_as_they_were_and_a_replay_puts_them_back():
    model, calls = moving("codebook, in place"), []

    def fails_at_the_second(outputs, targets):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return criterion(outputs, targets)

    with pytest.raises(KeyboardInterrupt):
        create("sam", model).backward(IMAGES, LABELS, fails_at_the_second)
    assert model[1].count == 1
    model = moving("codebook, in place")
    static = StaticStep(create("sam", model), Tapes(lambda: [*model.parameters(), *model.buffers()]))
    for step in range(4):
        static.backward(IMAGES, LABELS, criterion)
        assert model[1].count == step + 1
    with pytest.raises(UserError, match=r"puts a new tensor in the place of 1.mean; write into it"):
        StaticStep(create("sam", moving("codebook, replaced"))).backward(IMAGES, LABELS, criterion)


def test_a_model_without_such_buffers_pays_nothing_for_them():
    """No operation that copies, and no hook."""
    for model in (small_chain(), nn.Sequential(nn.Flatten(), nn.Linear(50, 3)).double()):
        told, copied = create("sam", model).passes.buffers.modules
        assert not copied
        assert len(told) == 3 * isinstance(model, Chain)
        with torch.profiler.profile() as profile, create("sam", model).passes.buffers.kept():
            model(batch()[0])
        assert "aten::_foreach_copy_" not in {event.key for event in profile.key_averages()}
