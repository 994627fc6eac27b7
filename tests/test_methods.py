"""One battery over all methods: a new method is a row of METHODS."""

import copy
from collections import OrderedDict
from typing import NamedTuple

import pytest
import torch
from flat import NAMES, ONE_PASS, Flat
from helpers import METHODS, STEPS, Family, Reference, Turns, as_module, batch, criterion, make, places, plain_gradient, small_chain
from torch import nn

from sam_repro.chain import Chain
from sam_repro.optim import UserError, create

each_method = pytest.mark.parametrize(("name", "knobs"), METHODS, ids=lambda v: v if isinstance(v, str) else "-".join(map(str, v.values())))
# Those whose first step makes an ascent.
PLAIN_FIRST = ("sgd", "saf", "mesa", "late", "late_layerwise")
ASCENDING = [
    (name, knobs)
    for name, knobs in METHODS
    if name not in PLAIN_FIRST and (name, knobs.get("lag")) != ("aesam", 1) and (name != "budget" or "costs" in knobs)
]
each_ascending_method = pytest.mark.parametrize(("name", "knobs"), ASCENDING)
both_kinds = pytest.mark.parametrize("kind", [lambda m: m, as_module], ids=["chain", "module"])


def base(model):
    return torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=0.01)


def gradients(model):
    return [None if p.grad is None else p.grad.clone() for p in model.parameters()]


def distance(a, b):
    return max(((x - y).abs().max().item() for x, y in zip(a, b, strict=True)), default=0.0)


def run(gradient, model, optimizer, steps, first=0):
    reports = []
    for step in range(first, first + steps):
        reports.append(gradient.backward(*batch(seed=step), criterion, indices=places(step)))
        optimizer.step()
        optimizer.zero_grad()
    return reports


REFERENCES = dict.fromkeys(("sgd", "sam", "generalized_sam", "layerwise"), Reference) | dict.fromkeys(NAMES, Flat) | {"budget": Turns}


@pytest.mark.parametrize(("name", "knobs"), [row for row in METHODS if row[0] not in ("saf", "mesa") and row[1].get("beta") != 0.6])
@both_kinds
def test_trajectory_equals_the_reference(name, knobs, kind):
    """SAF, MESA and ESAM's draws have tests of their own in test_family.py."""
    model = kind(small_chain())
    if name == "budget" and kind is as_module:
        pytest.skip("it is for chains")
    twin = copy.deepcopy(model)
    gradient, reference = make(name, model, knobs), REFERENCES.get(name, Family)(name, twin, **knobs)
    ours, theirs = base(model), base(twin)
    for step in range(STEPS):
        x, y = batch(seed=step)
        report = gradient.backward(x, y, criterion)
        reference.sampled.append(report.ascended)
        for p, g in zip(twin.parameters(), reference.gradient(x, y), strict=True):
            p.grad = g
        assert distance(gradients(model), gradients(twin)) < 1e-12, f"step {step}"
        for optimizer in (ours, theirs):
            optimizer.step()
            optimizer.zero_grad()
    assert distance(model.state_dict().values(), twin.state_dict().values()) < 1e-10
    sometimes = ("aesam", "vsam", "vsam_a", "sam_n", "looksam", "looklayersam", "late", "late_layerwise", "rst", "budget")
    if name in sometimes and "costs" not in knobs:
        assert 0 < sum(reference.sampled) < STEPS, "the trajectory has both kinds of steps"


@pytest.mark.parametrize(
    ("name", "knobs"),
    [("sam", {"rho": 0.0}), ("generalized_sam", {"r": 0.0}), ("layerwise", {"k": 2, "r": 0.0}), ("layerwise", {"k": 0})],
)
def test_no_perturbation_is_the_base_optimizer(name, knobs):
    model, plain = small_chain(), small_chain()
    reports = run(create(name, model, **knobs), model, base(model), 6)
    run(create("sgd", plain), plain, base(plain), 6)
    assert distance(model.state_dict().values(), plain.state_dict().values()) < 1e-12
    assert all(report.ascended == (knobs.get("k") != 0) for report in reports)


@pytest.mark.parametrize(("criterion", "chosen"), [("high", ["block2.0", "head.2"]), ("low", ["stem.0", "block1.0"])])
def test_a_tie_at_the_first_step_goes_to_the_output_and_with_low_to_the_input(criterion, chosen):
    report = run(create("layerwise", model := small_chain(), k=2, criterion=criterion), model, base(model), 1)[0]
    assert report.layers == chosen


def test_random_layers_are_drawn_from_the_first_step_on():
    firsts = {tuple(create("layerwise", small_chain(), k=2, criterion="random", seed=seed).where.chosen) for seed in range(20)}
    assert len({tuple(sorted(chosen)) for chosen in firsts}) > 3


@pytest.mark.parametrize("name", ["layerwise", "generalized_sam"])
def test_weights_alone_are_all_there_is_in_a_network_of_weights(name):
    def network():
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(2, 4, 3, bias=False), nn.Tanh(), nn.Flatten(), nn.Linear(36, 3, bias=False)).double()

    models = network(), network()
    for model, tensors in zip(models, ("all", "weights"), strict=True):
        run(create(name, model, r=0.3, normalize=True, tensors=tensors, **({"k": 1} if name == "layerwise" else {})), model, base(model), 4)
    assert distance(*(model.parameters() for model in models)) == 0


def test_weights_alone_leave_vectors_where_they_are():
    model = small_chain()
    seen = []
    model[1].register_forward_hook(lambda *_: seen.append([p.detach().clone() for p in model.parameters()]))
    create("generalized_sam", model, r=0.3, tensors="weights").backward(*batch(), criterion)
    moved = [not torch.equal(a, b) for a, b in zip(*seen, strict=True)]
    assert moved == [p.ndim > 1 for p in model.parameters()]


def test_all_layers_are_generalized_sam():
    model, general = small_chain(), small_chain()
    run(create("layerwise", model, k="all", r=0.2, alpha=0.7), model, base(model), 6)
    run(create("generalized_sam", general, r=0.2, alpha=0.7), general, base(general), 6)
    assert distance(model.parameters(), general.parameters()) == 0


class Quadratic(nn.Module):
    """Sample i has the loss w'Aw / 2, whatever the input; the gradient is Aw."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64))
        self.register_buffer("a", torch.diag(torch.tensor([3.0, 1.0, 0.2], dtype=torch.float64)))

    def forward(self, x):
        return (0.5 * self.w @ self.a @ self.w).expand(len(x))


def test_a_mix_above_one_goes_on_beyond_the_gradient_at_the_perturbed_point():
    found = {}
    for alpha in (0.0, 1.0, 2.5):
        create("generalized_sam", model := small_chain(), alpha=alpha).backward(*batch(), criterion)
        found[alpha] = gradients(model)
    beyond = [g + 2.5 * (s - g) for g, s in zip(found[0.0], found[1.0], strict=True)]
    assert distance(found[2.5], beyond) < 1e-13
    with pytest.raises(UserError, match=r"mix=-0\.1 is out of range: mix is at least 0"):
        create("generalized_sam", model, alpha=-0.1)


@pytest.mark.parametrize(
    ("name", "knobs", "closed_form"),
    [
        ("sgd", {}, lambda a, w: a @ w),
        ("sam", {"rho": 0.1}, lambda a, w: a @ (w + 0.1 * a @ w / (a @ w).norm())),
        ("generalized_sam", {"r": 0.1, "alpha": 0.8}, lambda a, w: a @ w + 0.8 * 0.1 * a @ a @ w),
        ("layerwise", {"k": 1, "r": 0.1, "alpha": 0.8}, lambda a, w: a @ w + 0.8 * 0.1 * a @ a @ w),
    ],
)
def test_closed_form_on_a_quadratic(name, knobs, closed_form):
    model = Quadratic()
    report = create(name, model, **knobs).backward(torch.zeros(4, 1), torch.zeros(4), lambda outputs, targets: outputs)
    assert torch.allclose(model.w.grad, closed_form(model.a, model.w.detach()), rtol=0, atol=1e-14)
    assert report.loss.item() == pytest.approx(2 * 1.5 / 2 + 2 + 0.025, abs=1e-12)


# -- passes ------------------------------------------------------------------------------------------------------------


def count_passes(model):
    """How often each stage runs forward."""
    counts = {name: 0 for name, _ in model.named_children()}
    for name, stage in model.named_children():
        stage.register_forward_hook(lambda *_, name=name: counts.__setitem__(name, counts[name] + 1))
    return counts


@pytest.mark.parametrize(
    ("name", "knobs", "ran", "units"),
    [
        ("sgd", {}, (1, 1, 1, 1), 1.0),
        ("sam", {}, (2, 2, 2, 2), 2.0),
        ("generalized_sam", {}, (2, 2, 2, 2), 2.0),
        ("layerwise", {"k": 1}, (1, 1, 1, 2), None),
        ("layerwise", {"k": 2}, (1, 1, 2, 2), None),
        ("layerwise", {"k": "all"}, (2, 2, 2, 2), 2.0),
        ("layerwise", {"k": 0}, (1, 1, 1, 1), 1.0),
    ],
)
def test_passes_of_a_step(name, knobs, ran, units):
    model = small_chain()
    gradient = create(name, model, **knobs)
    gradient.backward(*batch(), criterion)  # the first step of a chain also measures its FLOPs, and takes the last k layers
    counts = count_passes(model)
    gradient = create(name, model, **knobs)
    gradient.passes._suffix = [1.0, 0.9, 0.5, 0.1]
    report = gradient.backward(*batch(), criterion)
    assert tuple(counts.values()) == ran
    suffix = units if units is not None else 1.0 + [1.0, 0.9, 0.5, 0.1][4 - knobs["k"]]
    assert report.forward_units == pytest.approx(suffix)
    assert report.backward_units == pytest.approx(suffix)
    assert report.ascended == (name != "sgd" and knobs.get("k") != 0)


def test_units_are_the_flop_share_of_the_stages():
    model = Chain(OrderedDict({"a": nn.Linear(10, 30, bias=False), "b": nn.Linear(30, 10, bias=False), "c": nn.Linear(10, 5)}))
    report = create("layerwise", model, k=1).backward(torch.randn(8, 10), torch.randint(5, (8,)), criterion)
    assert report.forward_units == pytest.approx(1 + 50 / 650)
    assert report.layers == ["c"]


def test_layers_that_come_after_the_chosen_ones_take_the_gradient_at_the_perturbed_point():
    """Algorithm 1, line 6: for all i; only the chosen layer is mixed."""
    model, twin = small_chain(), small_chain()
    gradient = create("layerwise", model, k=1, r=0.5, alpha=0.25)
    gradient.where._chosen = [1]
    gradient.backward(*batch(), criterion)
    _, clean = plain_gradient(twin, *batch(), train_statistics=False)
    ours = gradients(model)
    chosen = [i for i, p in enumerate(model.parameters()) if any(p is q for q in gradient.structure.layers[1].parameters)]
    assert all(not torch.equal(ours[i], clean[i]) for i in range(len(ours)) if i not in chosen and ours[i].abs().max() > 1e-12)


@pytest.mark.parametrize("chosen", [[3], [2], [1, 3], [0]])
def test_prefix_reuse_equals_two_full_passes(chosen):
    chain, whole = small_chain(), as_module(small_chain())
    results = []
    for model in (chain, whole):
        gradient = create("layerwise", model, k=len(chosen), r=0.4)
        gradient.where._chosen = chosen
        results.append((gradient.backward(*batch(), criterion), gradients(model), dict(model.named_buffers())))
    (reused, ours, statistics), (full, theirs, expected) = results
    assert distance(ours, theirs) < 1e-12
    assert distance(statistics.values(), expected.values()) < 1e-12
    assert all(value.item() == 1 for name, value in statistics.items() if "num_batches" in name)
    assert full.forward_units == 2.0
    assert reused.forward_units < 2.0 or chosen == [0]


def test_a_stage_that_writes_into_its_input_is_refused():
    model = Chain(OrderedDict(a=nn.Linear(4, 4), b=nn.Sequential(nn.ReLU(inplace=True), nn.Linear(4, 3))))
    with pytest.raises(RuntimeError, match="Stage 1 writes into its input"):
        create("layerwise", model, k=1).backward(torch.randn(8, 4), torch.randint(3, (8,)), criterion)


@pytest.mark.parametrize("kind", [lambda m: m, as_module], ids=["chain", "module"])
def test_so_is_one_that_writes_into_the_samples(kind):
    model = kind(Chain(OrderedDict(a=nn.Sequential(nn.ReLU(inplace=True), nn.Linear(4, 3)))))
    with pytest.raises(RuntimeError, match="writes into its input"):
        create("sam", model).backward(torch.randn(8, 4), torch.randint(3, (8,)), criterion)


@each_method
def test_the_host_reads_nothing_from_the_device(name, knobs):
    """But for AE-SAM's decision, which with a lag is by what has arrived. A read is ``aten::_local_scalar_dense``, on a GPU a wait."""
    model = small_chain()
    gradient = make(name, model, knobs)
    for step in range(4):
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            gradient.backward(*batch(seed=step), criterion, indices=places(step))
        if step:  # the first one also counts FLOPs
            reads = sum(event.count for event in profile.key_averages() if event.key == "aten::_local_scalar_dense")
            assert reads == (name == "aesam" and step >= 2 * knobs.get("lag", 0))


def test_parameters_frozen_in_the_meantime_are_left_alone():
    for name, knobs in METHODS:
        model = small_chain()
        gradient = make(name, model, knobs)
        model[1].requires_grad_(False)
        gradient.backward(*batch(), criterion, indices=places(0))
        assert model[1][0].weight.grad is None
        assert model[0][0].weight.grad is not None
    model.requires_grad_(False)
    with pytest.raises(UserError, match="nothing to train"):
        create("sam", model)


def test_instance_norm_in_evaluation_mode_normalises_by_its_statistics():
    torch.manual_seed(0)
    model = (
        nn.Sequential(nn.Conv2d(2, 3, 3), nn.InstanceNorm2d(3, track_running_stats=True), nn.Flatten(), nn.Linear(27, 3)).double().eval()
    )
    twin = copy.deepcopy(model)
    create("sam", model, rho=0.0).backward(*batch(), criterion)
    create("sgd", twin).backward(*batch(), criterion)
    assert distance(gradients(model), gradients(twin)) == 0


def test_outputs_may_be_named_tuples():
    class Outputs(NamedTuple):
        logits: torch.Tensor
        extra: torch.Tensor

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(4, 3)

        def forward(self, x):
            return Outputs(self.linear(x), x)

    x, y = torch.randn(6, 4), torch.randint(3, (6,))
    for name, knobs in (("sam", {}), ("msam", {"m": 3})):
        report = create(name, Model(), **knobs).backward(x, y, lambda outputs, targets: criterion(outputs.logits, targets))
        assert report.outputs.logits.shape == (6, 3)
        assert not report.outputs.logits.requires_grad


def test_batchnorm_statistics_of_both_passes_when_asked():
    model = small_chain()
    create("layerwise", model, k=1, bn="both").backward(*batch(), criterion)
    assert all(value.item() == 2 for name, value in model.named_buffers() if "num_batches" in name)


def test_a_batchnorm_in_evaluation_mode_stays_as_it_is():
    model = small_chain().eval()
    before = {name: value.clone() for name, value in model.named_buffers()}
    gradient = create("sam", model)
    gradient.backward(*batch(), criterion)
    assert distance(before.values(), dict(model.named_buffers()).values()) == 0
    assert all(m.track_running_stats for m in gradient.passes.buffers.modules[0])


def test_both_passes_draw_the_same_dropout_mask():
    """With r = 0 both passes see the same weights, so that only the masks could make them differ."""
    for knobs in ({"k": 1}, {"k": 3}, {"k": "all"}):
        model, plain = small_chain(dropout=0.5), small_chain(dropout=0.5)
        torch.manual_seed(7)
        create("layerwise", model, r=0.0, alpha=1.0, **knobs).backward(*batch(), criterion)
        torch.manual_seed(7)
        create("sgd", plain).backward(*batch(), criterion)
        assert distance(gradients(model), gradients(plain)) == 0
    torch.manual_seed(7)
    model.zero_grad()
    create("layerwise", model, k="all", r=0.0, alpha=1.0, same_dropout=False).backward(*batch(), criterion)
    assert distance(gradients(model), gradients(plain)) > 1e-3


# -- robustness --------------------------------------------------------------------------------------------------------


@each_method
def test_weights_are_restored_exactly(name, knobs):
    model = small_chain()
    before = [p.detach().clone() for p in model.parameters()]
    where = [p.data_ptr() for p in model.parameters()]
    make(name, model, knobs).backward(*batch(), criterion, indices=places(0))
    assert distance(before, model.parameters()) == 0
    assert where == [p.data_ptr() for p in model.parameters()]


@each_ascending_method
def test_an_exception_in_the_second_pass_leaves_everything_as_it_was(name, knobs):
    model = small_chain()
    gradient = make(name, model, knobs)
    model[3][2].weight.grad = torch.ones_like(model[3][2].weight)
    before = [p.detach().clone() for p in model.parameters()]
    calls = []

    def failing(outputs, targets):
        calls.append(1)
        if len(calls) == (1 if name in ONE_PASS else 2):
            raise RuntimeError("power cut")
        return criterion(outputs, targets)

    with pytest.raises(RuntimeError, match="power cut"):
        gradient.backward(*batch(), failing)
    assert distance(before, model.parameters()) == 0
    assert torch.equal(model[3][2].weight.grad, torch.ones_like(model[3][2].weight))
    assert model[0][0].weight.grad is None
    assert all(m.track_running_stats for m in gradient.passes.buffers.modules[0])
    assert gradient.step == 0


@each_method
def test_a_zero_gradient_is_no_nan_and_a_zero_loss_still_steps(name, knobs):
    model = small_chain()
    optimizer = base(model)
    before = [p.detach().clone() for p in model.parameters()]
    report = make(name, model, knobs).backward(*batch(), lambda outputs, targets: outputs.sum(1) * 0.0, indices=places(0))
    assert report.loss.item() == 0.0
    assert all(torch.equal(g, torch.zeros_like(g)) for g in gradients(model))
    optimizer.step()  # weight decay alone
    assert distance(before, model.parameters()) > 0


class SometimesSkips(nn.Module):
    """Uses its second layer in every other pass only."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 4).double(), nn.Linear(4, 4).double()
        self.passes = 0

    def forward(self, x):
        self.passes += 1
        x = self.a(x)
        return self.b(x) if self.passes % 2 == self.odd else x


@pytest.mark.parametrize("odd", [0, 1])
@pytest.mark.parametrize(("name", "knobs"), [row for row in ASCENDING if not row[0].endswith(("sam_on", "budget"))])  # no norms, no chain
def test_a_gradient_missing_in_one_pass_leaves_no_perturbation_behind(name, knobs, odd):
    if knobs.get("k") == 2:
        knobs = {**knobs, "k": "all"}
    model = SometimesSkips()
    model.odd = odd
    before = [p.detach().clone() for p in model.parameters()]
    gradient = make(name, model, knobs)
    gradient.backward(torch.randn(6, 4).double(), torch.randint(4, (6,)), criterion)
    assert distance(before, model.parameters()) == 0


def test_frozen_and_tied_parameters():
    model = small_chain()
    model[0].requires_grad_(False)
    gradient = create("layerwise", model, k="all")
    assert [layer.name for layer in gradient.structure.layers] == ["block1.0", "block2.0", "head.2"]
    report = gradient.backward(*batch(), criterion)
    assert model[0][0].weight.grad is None
    assert 1.0 < report.forward_units < 2.0  # the frozen stem runs once

    tied = Chain(OrderedDict({"a": nn.Linear(3, 3), "b": nn.Linear(3, 3), "c": nn.Linear(3, 3)})).double()
    tied.c.weight = tied.a.weight
    whole = as_module(copy.deepcopy(tied))
    found = []
    for model in (tied, whole):
        gradient = create("layerwise", model, k=1, r=0.5)
        gradient.where._chosen = [0]
        gradient.backward(torch.ones(2, 3).double(), torch.tensor([0, 1]), criterion)
        found.append(gradients(model))
    assert distance(*found) < 1e-12


@each_method
def test_n_steps_and_n_more_after_a_reload_are_2n_steps(name, knobs):
    model, straight = small_chain(), small_chain()
    gradient, optimizer = make(name, model, knobs), base(model)
    run(gradient, model, optimizer, 4)
    saved = copy.deepcopy([model.state_dict(), optimizer.state_dict(), gradient.state_dict()])
    resumed = small_chain()
    again, fresh = make(name, resumed, knobs), base(resumed)
    for part, state in zip((resumed, fresh, again), saved, strict=True):
        part.load_state_dict(state)
    run(again, resumed, fresh, 4, first=4)
    run(make(name, straight, knobs), straight, base(straight), 8)
    assert distance(resumed.state_dict().values(), straight.state_dict().values()) == 0


def test_random_layers_are_reproducible_and_survive_a_reload():
    def chosen(gradient, model, steps):
        return [report.layers for report in run(gradient, model, base(model), steps)]

    model, other = small_chain(), small_chain()
    gradient = create("layerwise", model, k=2, criterion="random", seed=5)
    first = chosen(gradient, model, 5)
    again = create("layerwise", other, k=2, criterion="random", seed=6)
    again.load_state_dict(gradient.state_dict())
    assert chosen(again, other, 5) == chosen(gradient, model, 5)
    assert chosen(create("layerwise", other, k=2, criterion="random", seed=5), other, 5) == first
    assert len({tuple(names) for names in first}) > 1


# -- accumulation and precision ----------------------------------------------------------------------------------------


@each_method
def test_gradients_add_to_what_is_there(name, knobs):
    model, alone = small_chain(), small_chain()
    for p in model.parameters():
        p.grad = torch.full_like(p, 2.0)
    make(name, model, knobs).backward(*batch(), criterion, indices=places(0))
    make(name, alone, knobs).backward(*batch(), criterion, indices=places(0))
    assert distance(gradients(model), [g + 2.0 for g in gradients(alone)]) < 1e-12


@pytest.mark.parametrize(("name", "knobs"), [row for row in METHODS if row[0] not in ("msam", "esam", "saf", "mesa", "async_sam")])
def test_accumulated_micro_batches_have_one_perturbation(name, knobs):
    """In evaluation mode BatchNorm mixes no samples: then 5 + 7 samples are exactly one batch of 12."""
    model, whole = small_chain().eval(), small_chain().eval()
    x, y = batch(12)
    report = make(name, model, knobs).backward([x[:5], x[5:]], [y[:5], y[5:]], criterion)
    expected = make(name, whole, knobs).backward(x, y, criterion)
    assert distance(gradients(model), gradients(whole)) < 1e-12
    assert report.loss.item() == pytest.approx(expected.loss.item(), abs=1e-12)
    assert [len(outputs) for outputs in report.outputs] == [5, 7]


@each_ascending_method
def test_the_perturbation_works_inside_an_outer_autocast(name, knobs):
    """autocast keeps low-precision copies of the weights: without clearing them the second pass would not see the move."""
    found = []
    for size in (0.0, 5.0):
        model = small_chain().float()
        x, y = batch()
        with torch.autocast("cpu", torch.bfloat16):
            gradient = make(name, model, {**knobs, next(key for key in ("r", "rho", "std") if key in knobs): size})
            for _ in range(1 + (name in (*ONE_PASS, "async_sam"))):  # their perturbation is of the step before
                gradient.backward(x.float(), y, criterion)
            model(x.float())
        found.append(gradients(model))
    assert distance(*found) > 1e-2
    assert all(g.dtype == torch.float32 for g in found[0])


@each_method
def test_a_scaled_loss_gives_the_scaled_gradient(name, knobs):
    model, plain = small_chain(), small_chain()
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    report = make(name, model, knobs).backward(*batch(), criterion, indices=places(0), scaler=scaler)
    expected = make(name, plain, knobs).backward(*batch(), criterion, indices=places(0))
    assert distance(gradients(model), [g * 1024 for g in gradients(plain)]) < 1e-9
    assert distance([report.layer_norms], [expected.layer_norms]) < 1e-12


@pytest.mark.parametrize("bad_pass", [1, 2])
@each_ascending_method
def test_an_overflow_skips_the_step_and_leaves_the_model_clean(name, knobs, bad_pass):
    model = small_chain()
    optimizer, scaler = base(model), torch.amp.GradScaler("cpu", init_scale=4.0)
    before = [p.detach().clone() for p in model.parameters()]
    calls = []
    if name == "esam" and bad_pass == 2:
        bad_pass = 3  # its second pass only chooses samples
    if name in ONE_PASS:
        bad_pass = 1
    if name == "async_sam":
        bad_pass = 2  # the first one is for the next step: it is skipped itself, and not the step

    def overflowing(outputs, targets):
        calls.append(1)
        return criterion(outputs, targets) * (float("inf") if len(calls) == bad_pass else 1.0)

    gradient = make(name, model, knobs)
    gradient.backward(*batch(), overflowing, scaler=scaler)
    scaler.unscale_(optimizer)
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    scaler.step(optimizer)
    scaler.update()
    assert distance(before, model.parameters()) == 0
    assert all(torch.isfinite(value).all() for value in model.state_dict().values())
    assert scaler.get_scale() == 2.0
    for step in range(4):  # nothing of the overflow was remembered
        gradient.backward(*batch(seed=step), criterion, scaler=scaler)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
    assert distance(before, model.parameters()) > 0
    assert all(torch.isfinite(value).all() for value in model.state_dict().values())


# -- the outside -------------------------------------------------------------------------------------------------------


def test_sam_agrees_with_pytorch_optimizer(monkeypatch):
    pytest.importorskip("pytorch_optimizer", reason="the oracle pytorch-optimizer is not installed (extra 'dev')")
    from pytorch_optimizer.optimizer import sam as theirs

    def norm_squared(groups, **_):  # theirs sums in float32, which alone makes a difference of 1e-9
        return sum(p.grad.square().sum() for group in groups for p in group["params"]).view(1)

    for exact, tolerance in ((False, 1e-7), (True, 1e-10)):
        if exact:
            monkeypatch.setattr(theirs, "get_global_gradient_norm", norm_squared)
        model, twin = small_chain().eval(), small_chain().eval()  # theirs has no answer to BatchNorm's statistics
        gradient, optimizer = create("sam", model, rho=0.1), base(model)
        wrapped = theirs.SAM(twin.parameters(), torch.optim.SGD, rho=0.1, lr=0.1, momentum=0.9, weight_decay=0.01)
        for step in range(8):
            x, y = batch(seed=step)
            gradient.backward(x, y, criterion)
            optimizer.step()
            optimizer.zero_grad()
            for advance in (wrapped.first_step, wrapped.second_step):
                criterion(twin(x), y).mean().backward()
                advance(zero_grad=True)
        assert distance(model.parameters(), small_chain().parameters()) > 0
        assert distance(model.parameters(), twin.parameters()) < tolerance


@pytest.mark.parametrize(
    ("name", "knobs", "says"),
    [
        ("layerwize", {}, "Did you mean 'layerwise'"),
        ("sgd", {"k": 4}, "sgd has no knob 'k'"),
        ("layerwise", {"k": 5}, "the model has 4 layers"),
        ("layerwise", {"k": -1}, "k=-1 is out of range"),
        ("layerwise", {"k": "some"}, "k is a whole number or all"),
        ("layerwise", {"criterion": "hgih"}, "Did you mean 'high'"),
        ("layerwise", {"r": "much"}, "r is a number"),
        ("layerwise", {"where": "model", "k": 3}, "'k' is not read"),
        ("layerwise", {"where.kk": 3}, "Did you mean 'k'"),
        ("sam", {"bn": "none"}, "bn is one of clean, both"),
    ],
)
def test_wrong_words_are_answered_in_one_sentence(name, knobs, says):
    with pytest.raises(UserError, match=says):
        create(name, small_chain(), **knobs)


def test_a_criterion_that_averages_is_refused():
    with pytest.raises(ValueError, match="reduction='none'"):
        create("sam", small_chain()).backward(*batch(), nn.CrossEntropyLoss())


def test_parts_combine_into_methods_without_a_name():
    model = small_chain()
    report = create("layerwise", model, where="model", **{"where.normalize": False, "where.rho": 0.3}).backward(*batch(), criterion)
    twin = small_chain()
    create("generalized_sam", twin, r=0.3, alpha=0.8).backward(*batch(), criterion)
    assert distance(gradients(model), gradients(twin)) == 0
    assert len(report.layers) == 4


def test_inputs_may_be_tuples_and_dicts():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(4, 3)

        def forward(self, a, b):
            return self.linear(a + b)

    model = Two()
    a, b, y = torch.ones(5, 4), torch.ones(5, 4), torch.zeros(5, dtype=torch.long)
    create("sam", model).backward((a, b), y, criterion)
    first = gradients(model)
    model.zero_grad()
    create("sam", model).backward({"a": a, "b": b}, y, criterion)
    assert distance(first, gradients(model)) == 0


@each_method
def test_dtype_and_memory_format_are_kept(name, knobs):
    model = small_chain().to(dtype=torch.bfloat16, memory_format=torch.channels_last)
    x, y = batch()
    gradient = make(name, model, knobs)
    formats = [p.stride() for p in model.parameters()]
    for step in range(2):
        report = gradient.backward(
            x.to(torch.bfloat16).to(memory_format=torch.channels_last), y, lambda o, t: criterion(o.float(), t), indices=places(step)
        )
    assert all(p.dtype == p.grad.dtype == torch.bfloat16 for p in model.parameters())
    assert formats == [p.stride() for p in model.parameters()]
    assert report.layer_norms.dtype == torch.float32  # norms are not taken in half precision
    assert torch.isfinite(report.layer_norms).all()
