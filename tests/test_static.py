"""Recorded steps equal the method run as it is, bit for bit."""

import itertools

import pytest
import torch
from helpers import METHODS, batch, criterion, make, places, small_chain
from pretended_gpu import pretended_gpu
from taped import Tapes
from torch import nn

from sam_repro import models
from sam_repro.optim import Method, StaticStep, UserError, create
from sam_repro.optim.static import Recording

RECORDED = [row for row in METHODS if not make(row[0], small_chain(), row[1]).varies]
SIZES = (12, 12, 12, 7)  # of the batches in turn: the last of an epoch is shorter
STEPS = 24
CROSS_ENTROPY = nn.CrossEntropyLoss(reduction="none")


def base(model):
    return torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=0.01)


def tensors_of(method: Method):
    """All that a step moves."""
    parts = [method, *(getattr(method, name, None) for name in ("where", "between", "teacher"))]
    own = [value for part in parts if part is not None for value in vars(part).values()]
    lists = [value for value in own if isinstance(value, list) and value and isinstance(value[0], torch.Tensor)]
    networks = [method.passes.model, *(value for value in own if isinstance(value, nn.Module))]
    state = [t for network in networks for t in (*network.parameters(), *network.buffers())]
    return [*state, *(t for value in lists for t in value), *(value for value in own if isinstance(value, torch.Tensor))]


def steps_of(subject, method, scaled=False):
    """What is left of some steps: reports, weights and buffers."""
    model, seen = method.passes.model, []
    optimizer = base(model)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0) if scaled else None
    for step in range(STEPS):
        n = SIZES[step % len(SIZES)]
        report = subject.backward(*batch(n, seed=step), criterion, indices=places(step)[:n], scaler=scaler)
        seen.append((report.ascended, report.layers, report.forward_units, report.backward_units, [*report.reused.items()]))
        seen.append([t.clone() for t in (report.loss, report.outputs, report.layer_norms)])
        seen.append([p.grad.clone() for p in model.parameters()])
        if scaler is None:
            optimizer.step()
        else:
            scaler.step(optimizer)
            scaler.update(8.0 * 2 ** (step % 3))
        optimizer.zero_grad()
    return seen, [t.clone() for t in model.state_dict().values()]


def same(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


@pytest.mark.parametrize("recorded", [False, True], ids=["as it is", "replayed"])
@pytest.mark.parametrize(("name", "knobs"), RECORDED)
def test_a_static_step_is_bit_equal_to_the_method(name, knobs, recorded):
    method, other = (make(name, small_chain(), knobs) for _ in range(2))
    tapes = Tapes(lambda: tensors_of(other))
    expected = steps_of(method, method)
    found = steps_of(StaticStep(other, tapes if recorded else None), other)
    assert same(found, expected)
    assert method.state_dict().keys() == other.state_dict().keys()
    if recorded:
        assert 2 <= tapes.count <= 8, "one for each size of a batch and kind of a step"


@pytest.mark.parametrize("name", ["sam", "looksam", "vsam", "layerwise", "gsam", "wsam", "renormalised_sam"])
def test_a_replayed_step_under_a_scaler_is_bit_equal(name):
    knobs = dict(next(knobs for one, knobs in RECORDED if one == name))
    method, other = (make(name, small_chain(), knobs) for _ in range(2))
    assert same(steps_of(StaticStep(other, Tapes(lambda: tensors_of(other))), other, scaled=True), steps_of(method, method, scaled=True))


def test_every_method_has_a_static_step_or_a_reason():
    offered = {name for name, _ in RECORDED}
    assert offered == {name for name, _ in METHODS} - {"saf", "ssam_f", "ssam_d", "random_sam"}
    for (name, knobs), reason in {("saf", ()): "every epoch", ("aesam", ()): "lag=1", ("esam", ()): "other tensors"}.items():
        with pytest.raises(UserError, match=f"graphs=true does not go with this method: .*{reason}"):
            StaticStep(create(name, small_chain(), total_steps=4, steps_per_epoch=2, dataset_size=24, **dict(knobs)))
    for knobs, reason in (
        ({"normalize": True}, "norm of other layers"),
        ({"when": "variation"}, "remembers is of other layers"),
        ({"combine": "gap"}, "gap takes norms of other layers"),
    ):
        with pytest.raises(UserError, match=reason):
            StaticStep(create("layerwise", small_chain(), k=2, **knobs))


def test_one_recording_serves_all_choices_behind_a_cut():
    model = small_chain()
    method = create("layerwise", model, k=2, r=0.3)
    tapes = Tapes(lambda: tensors_of(method))
    static, optimizer = StaticStep(method, tapes), base(model)
    choices = itertools.cycle([[1, 3], [0, 2], [1, 2], [0, 3], [2, 3], [2, 3], [0, 1]])
    for _, chosen in zip(range(28), choices, strict=False):
        method.where._chosen = chosen
        method.where._arriving.clear()
        report = static.backward(*batch(), criterion)
        assert report.layers == [method.structure.layers[layer].name for layer in chosen]
        optimizer.step()
        optimizer.zero_grad()
    assert tapes.count == 3, "the cuts before stages 0, 1 and 2"


def test_gradients_accumulate_over_replays():
    model, twin = small_chain(), small_chain()
    static, plain = StaticStep(create("sam", model), Tapes(lambda: [*model.parameters(), *model.buffers()])), create("sam", twin)
    for subject in (static, plain):
        for step in range(4):
            subject.backward(*batch(seed=step), criterion)
    assert all(torch.equal(p.grad, q.grad) for p, q in zip(model.parameters(), twin.parameters(), strict=True))


def test_dropout_is_refused():
    with pytest.raises(UserError, match="does not go with dropout"):
        StaticStep(create("sam", small_chain(dropout=0.5))).backward(*batch(), criterion)


def test_criteria_that_change_are_refused_before_they_fill_the_memory():
    static = StaticStep(create("sgd", small_chain()))
    with pytest.raises(UserError, match="the same criterion"):
        for _ in range(300):
            static.backward(*batch(), lambda outputs, targets: criterion(outputs, targets))


def test_a_watched_step_is_run_as_it_is():
    method = create("layerwise", small_chain(), k=2)
    static = StaticStep(method, Tapes(lambda: tensors_of(method)))
    method.watch = True
    watched = [static.backward(*batch(seed=step), criterion).watched for step in range(3)]
    assert all(one.psf_norm > 0 for one in watched)


def test_a_tape_repeats_what_it_recorded_and_refuses_to_read():
    x, numbers = torch.zeros(3), itertools.count(1)
    recording = Tapes(lambda: [x])(lambda: x.add_(next(numbers)) * 2)
    for expected in (1.0, 2.0, 3.0):
        recording.replay()
        assert x.tolist() == [expected] * 3
        assert recording.step.tolist() == [2 * expected] * 3
    with pytest.raises(RuntimeError, match="reads a value"):
        Tapes(list)(lambda: x.sum().item())


@pytest.mark.parametrize(
    "name", ["sam", "looksam", "layerwise", "msam", "vsam", "mesa", "layersam", "gsam", "wsam", "renormalised_sam", "rst"]
)
def test_while_it_is_recorded_nothing_waits_for_a_gpu_and_nothing_comes_from_the_host(name):
    with pretended_gpu() as gpu:
        network = models.create("resnet20").to("cuda", memory_format=torch.channels_last)
        method = create(name, network, total_steps=100, steps_per_epoch=2, dataset_size=32, **({"start": 0} if name == "mesa" else {}))
        seen = []

        def record(function):
            gpu.take()
            recording = Recording(lambda: None, function())
            seen.append(gpu.take())
            return recording

        static = StaticStep(method, record)
        x = torch.zeros(16, 3, 32, 32, device="cuda").to(memory_format=torch.channels_last)
        y = torch.zeros(16, dtype=torch.int64, device="cuda")
        for _ in range(6):
            with torch.autocast("cuda", torch.bfloat16):
                static.backward(x, y, CROSS_ENTROPY)
    assert seen
    assert not [wait for one in seen for wait in one.waits]
