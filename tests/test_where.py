"""Where the weights are moved: what is particular to each answer, beside the battery of test_methods.py."""

import copy
from itertools import pairwise

import pytest
import torch
from flat import ONE_PASS
from helpers import PLAN, as_module, batch, criterion, plain_gradient, small_chain, total_norm
from test_methods import base, distance, gradients, run
from torch import nn

from sam_repro.optim import UserError, create
from sam_repro.optim.structure import Structure

KEEPING = {"fsam": {}, "vasso": {"lam": 0.5}, "s2sam": {}, "async_sam": {}, "momentum_sam": {"rho": 0.1}, "ssam_f": {}, "ssam_d": {}}


class Slope(nn.Module):
    """The loss a w: the gradient is a at every step."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64))

    def forward(self, x):
        return (self.w * torch.tensor([3.0, 1.0, -2.0], dtype=torch.float64)).sum().expand(len(x))


class Bowl(nn.Module):
    """The loss w'Hw / 2."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64))
        self.register_buffer("h", torch.tensor([3.0, 1.0, 0.2], dtype=torch.float64))

    def forward(self, x):
        return (0.5 * self.h * self.w**2).sum().expand(len(x))


def itself(outputs, targets):
    return outputs


def moves(name, model, steps, **knobs):
    """The perturbation of every step but the last, as one vector each, and the gradient taken."""
    gradient, optimizer = create(name, model, **PLAN, **knobs), base(model)
    seen, found = [], []
    hook = model.register_forward_hook(lambda *_: seen.append(vector(model.parameters())))
    for step in range(steps):
        seen.clear()
        gradient.backward(*batch(seed=step), criterion)
        found.append((seen[-1] - vector(model.parameters()), vector(gradients(model))))
        optimizer.step()
        optimizer.zero_grad()
    hook.remove()
    return found


def vector(tensors):
    return torch.cat([t.detach().flatten() for t in tensors])


# -- normalisations alone ------------------------------------------------------------------------------------------------


def test_a_normalisation_is_known_by_its_type_and_never_by_its_name():
    class BatchRenorm(nn.Module):
        def __init__(self):
            super().__init__()
            self.gain = nn.Parameter(torch.ones(3))

    class NormalisedLinear(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight, self.bias = nn.Parameter(torch.ones(3, 3)), nn.Parameter(torch.ones(3))

    shortcut = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))
    others = [nn.LayerNorm([3, 2]), nn.GroupNorm(1, 3), nn.InstanceNorm1d(3, affine=True), nn.RMSNorm(3), nn.SyncBatchNorm(3)]
    model = nn.ModuleDict({"shortcut": shortcut, "norm": nn.Linear(3, 3), "own": BatchRenorm(), "bn": NormalisedLinear()})
    model.update({f"x{place}": module for place, module in enumerate(others)})
    found = Structure(model)
    names = {found.names[index] for index in found.of_norms}
    expected = {"shortcut.1.weight", "shortcut.1.bias", "own.gain", "x0.weight", "x0.bias", "x1.weight", "x1.bias", "x2.weight", "x2.bias"}
    assert names == expected | {"x3.weight", "x4.weight", "x4.bias"}


def test_timms_normalisations_are_found():
    timm = pytest.importorskip("timm", reason="timm is not installed (extra 'timm')")
    model = timm.create_model("convnext_atto")
    found = Structure(model)
    named = {name for name, _ in model.named_parameters() if "norm" in name or "downsample.0" in name or name.startswith("stem.1")}
    assert {found.names[index] for index in found.of_norms} == named


NORMS_ALONE = [("sam_on", {}), ("generalized_sam", {"tensors": "norm"}), ("layerwise", {"k": "all", "tensors": "norm"})]


@pytest.mark.parametrize(("name", "knobs"), NORMS_ALONE)
def test_normalisations_alone_move(name, knobs):
    model, moved = small_chain(), []
    model[1].register_forward_hook(lambda *_: moved.append([p.detach().clone() for p in model.parameters()]))
    create(name, model, **knobs).backward(*batch(), criterion)
    owners = [owner for owner in model.modules() for _ in owner.parameters(recurse=False)]
    assert [not torch.equal(a, b) for a, b in zip(*moved, strict=True)] == [isinstance(owner, nn.BatchNorm2d) for owner in owners]
    if name == "sam_on":
        assert total_norm([b - a for a, b in zip(*moved, strict=True)]).item() == pytest.approx(0.5)


def test_a_model_without_normalisations_is_refused():
    for name, knobs in (("sam_on", {}), ("asam_on", {}), ("layerwise", {"tensors": "norm", "k": 1})):
        with pytest.raises(UserError, match="the model trains none: use tensors=all"):
            create(name, nn.Linear(3, 3), **knobs)
    model = small_chain()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.requires_grad_(False)
    with pytest.raises(UserError, match="the model trains none"):
        create("sam_on", model)


# -- what is kept from step to step --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["fsam", "vasso", "s2sam", "momentum_sam", "async_sam", "zsharp"])
def test_the_perturbation_is_as_long_as_rho(name):
    found = moves(name, small_chain(), 4, rho=0.3)
    silent = name in ("s2sam", "momentum_sam", "async_sam")
    assert [eps.norm().item() for eps, _ in found] == pytest.approx([0.0 if silent else 0.3, 0.3, 0.3, 0.3], abs=1e-12)


@pytest.mark.parametrize("name", ["fsam", "vasso"])
def test_the_first_step_is_sams(name):
    (ours, _), (sams, _) = moves(name, small_chain(), 1, rho=0.2)[0], moves("sam", small_chain(), 1, rho=0.2)[0]
    assert torch.equal(ours, sams)


def test_fsam_of_a_constant_gradient_has_nowhere_to_go():
    model = Slope()
    gradient, seen = create("fsam", model, sigma=1.0), []
    model.register_forward_hook(lambda *_: seen.append(model.w.detach().clone()))
    for step in range(4):
        seen.clear()
        gradient.backward(torch.zeros(2, 1), torch.zeros(2), itself)
        assert torch.isfinite(model.w.grad).all()
        assert (seen[1] - seen[0]).norm().item() == pytest.approx(0.2 if step == 0 else 0.0, abs=1e-12)


def test_the_mean_keeps_what_is_asked():
    """lam=1: for ever the first gradient, and with it VaSSO's direction; lam=0: d is the difference to the gradient before."""
    model = small_chain()
    gradient, optimizer = create("fsam", model, lam=1.0), base(model)
    run(gradient, model, optimizer, 1)
    first = [v.clone() for v in gradient.where.vector]
    run(gradient, model, optimizer, 3, first=1)
    assert distance(first, gradient.where.vector) < 1e-15
    directions = [eps for eps, _ in moves("vasso", small_chain(), 4, lam=1.0)]
    assert all((eps - directions[0]).norm() < 1e-12 for eps in directions)

    model = small_chain()
    gradient = create("fsam", model, lam=0.0, rho=0.1)
    gradient.backward(*batch(seed=0), criterion)
    before = vector(gradient.where.vector)
    model.zero_grad()
    seen = []
    model.register_forward_hook(lambda *_: seen.append(vector(model.parameters())))
    now = vector(plain_gradient(model, *batch(seed=1), train_statistics=False)[1])
    seen.clear()
    gradient.backward(*batch(seed=1), criterion)
    expected = 0.1 * (now - before) / (now - before).norm()
    assert (seen[1] - seen[0] - expected).norm() < 1e-12


def test_noise_and_mean_keep_the_same_vector_of_the_same_gradients():
    kept = []
    for take in ("noise", "mean"):
        model = Slope()
        gradient = create("fsam", model, lam=0.7, **{"where.take": take})
        for step in range(5):
            gradient.backward(torch.zeros(2, 1), torch.zeros(2), lambda outputs, targets, step=step: outputs * (step + 1.0))
        kept.append(gradient.where.vector)
    assert distance(*kept) == 0


def test_s2sam_on_a_bowl_is_what_its_formula_says():
    model = Bowl()
    gradient, optimizer = create("s2sam", model, rho=0.3), torch.optim.SGD(model.parameters(), 0.1)
    w, last = model.w.detach().clone(), None
    for _ in range(6):
        last = model.h * (w if last is None else w + 0.3 * last / last.norm())
        w = w - 0.1 * last
        gradient.backward(torch.zeros(2, 1), torch.zeros(2), itself)
        optimizer.step()
        optimizer.zero_grad()
        assert (model.w.detach() - w).abs().max() < 1e-14


def test_momentum_sam_goes_where_sgd_goes_and_unnormalised_it_is_nesterovs_look_ahead():
    """The method's buffer is that of SGD: with rho = lr mu the gradient is taken at w - lr mu v."""
    model = small_chain()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    gradient = create("momentum_sam", model, rho=0.09, **{"where.normalize": False})
    for step in range(5):
        looked = copy.deepcopy(model)
        with torch.no_grad():
            for p, q in zip(looked.parameters(), model.parameters(), strict=True):
                if step:
                    p -= 0.1 * 0.9 * optimizer.state[q]["momentum_buffer"]
        _, expected = plain_gradient(looked, *batch(seed=step), train_statistics=False)
        gradient.backward(*batch(seed=step), criterion)
        assert distance(gradients(model), expected) < 1e-12
        optimizer.step()
        optimizer.zero_grad()
    buffers = [optimizer.state[p]["momentum_buffer"] for p in gradient.structure.parameters]
    assert distance(buffers, gradient.where.vector) < 1e-12
    held = vector(gradient.where.vector)
    eps = vector(gradient.where.perturbation(gradient.where.everything, []))
    assert torch.cosine_similarity(eps, held, 0).item() == pytest.approx(-1.0)


def test_with_ascents_at_some_steps_the_stale_gradient_is_the_last_steps():
    model = small_chain()
    gradient, optimizer = create("s2sam", model, when="every", **{"when.n": 3}), base(model)
    for step in range(4):
        gradient.backward(*batch(seed=step), criterion)
        assert distance(gradient.where.vector, [p.grad for p in gradient.structure.parameters]) == 0
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("name", KEEPING)
def test_a_failed_step_moves_nothing_and_can_be_repeated(name):
    found = []
    for fails in (False, True):
        model = small_chain().eval()
        gradient, optimizer = create(name, model, **PLAN, **KEEPING[name]), base(model)
        for step in range(5):
            if fails:
                passes = iter(range(9))

                def failing(outputs, targets, last=1 - (name in ONE_PASS), passes=passes):
                    if next(passes) == last:
                        raise RuntimeError("power cut")
                    return criterion(outputs, targets)

                with pytest.raises(RuntimeError, match="power cut"):
                    gradient.backward(*batch(seed=step), failing)
            gradient.backward(*batch(seed=step), criterion)
            optimizer.step()
            optimizer.zero_grad()
        found.append([*model.parameters(), *gradient.where.vector])
    assert distance(*found) == 0


@pytest.mark.parametrize("bad", [1, 2])
@pytest.mark.parametrize("name", KEEPING)
def test_an_overflow_never_enters_what_is_kept(name, bad):
    model = small_chain()
    gradient = create(name, model, **PLAN, **KEEPING[name])
    run(gradient, model, base(model), 3)
    before, passes = [v.clone() for v in gradient.where.vector], iter(range(1, 9))
    last = 1 if name in ONE_PASS else 2

    def overflowing(outputs, targets):
        return criterion(outputs, targets) * (float("inf") if next(passes) == min(bad, last) else 1.0)

    gradient.where.made = -1  # a mask would be made anew
    gradient.backward(*batch(seed=3), overflowing)
    assert distance(before, gradient.where.vector) == 0


@pytest.mark.parametrize("name", KEEPING)
def test_a_state_of_another_model_is_refused(name):
    model = small_chain()
    gradient = create(name, model, **PLAN, **KEEPING[name])
    run(gradient, model, base(model), 1)
    with pytest.raises(UserError, match="one of another model"):
        create(name, nn.Sequential(nn.Flatten(), nn.Linear(50, 3)).double(), **PLAN, **KEEPING[name]).load_state_dict(gradient.state_dict())


# -- one pass a step -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ONE_PASS)
def test_the_only_pass_moves_the_statistics_once(name):
    for kind in (lambda m: m, as_module):
        model = kind(small_chain())
        gradient = create(name, model)
        for step in range(3):
            report = gradient.backward(*batch(seed=step), criterion)
            assert {value.item() for key, value in model.named_buffers() if "num_batches" in key} == {step + 1}
            assert report.outputs.shape == (12, 3)


def test_the_pass_of_async_sam_for_the_next_step_moves_no_statistics():
    model = small_chain()
    gradient = create("async_sam", model)
    gradient.backward(*batch(), criterion)
    assert {value.item() for key, value in model.named_buffers() if "num_batches" in key} == {1}
    model = small_chain()
    create("async_sam", model, bn="both").backward(*batch(), criterion)
    assert {value.item() for key, value in model.named_buffers() if "num_batches" in key} == {2}


@pytest.mark.parametrize(
    ("knobs", "says"),
    [
        ({"mix": 0.8}, "a mix other than 1 needs the gradient or the losses at w, where where=stale makes no pass"),
        ({"when": "gradient_norm", "total_steps": 4}, "when=gradient_norm needs"),
        ({"when": "gradient_norm", "when.lag": 1, "total_steps": 4}, "when=gradient_norm needs"),
        ({"when": "variation"}, "when=variation needs"),
        ({"between": "orthogonal"}, "between=orthogonal needs"),
        ({"samples": "sharpest"}, "samples=sharpest needs"),
        ({"samples": "micro"}, "where=stale has one perturbation a step, the same everywhere: it does not go with samples=micro"),
        ({"scope": "replica"}, "does not go with scope=replica"),
    ],
)
def test_what_needs_a_pass_at_w_is_refused(knobs, says):
    with pytest.raises(UserError, match=says):
        create("s2sam", small_chain(), **knobs)


@pytest.mark.parametrize("name", [*KEEPING, "random_sam"])
def test_one_perturbation_a_step(name):
    for knobs in ({"samples": "micro"}, {"scope": "replica"}):
        with pytest.raises(UserError, match="it does not go with"):
            create(name, small_chain(), **PLAN, **knobs)


def test_esams_choice_of_samples_goes_with_a_moving_mean():
    model = small_chain()
    run(create("fsam", model, samples="sharpest"), model, base(model), 3)


@pytest.mark.parametrize("name", ONE_PASS)
def test_there_is_nothing_to_watch_and_no_harm(name):
    model = small_chain()
    gradient = create(name, model)
    gradient.watch = True
    watched = [gradient.backward(*batch(seed=step), criterion).watched for step in range(2)]
    assert all(one.plain_norm is None and one.curvature is None for one in watched)


# -- the metric, single weights, noise -----------------------------------------------------------------------------------


def test_fisher_sams_perturbation_has_its_length_in_its_metric():
    gradient = create("fisher_sam", small_chain(), rho=0.3, eta=20.0)
    g = [torch.randn_like(p) * (torch.rand_like(p) > 0.2) for p in gradient.structure.parameters]
    eps = gradient.where.perturbation(gradient.where.everything, g)
    assert sum((e**2 * (1 + 20.0 * t**2)).sum() for e, t in zip(eps, g, strict=True)).item() == pytest.approx(0.09)
    assert all(torch.equal(e == 0, t == 0) for e, t in zip(eps, g, strict=True))
    assert all((e == 0).all() for e in gradient.where.perturbation(gradient.where.everything, [t * 0 for t in g]))


@pytest.mark.parametrize(("lam", "weights"), [("1/t", [1.0, 1 / 2, 1 / 3]), ("1-1/t", [0.0, 1 / 2, 2 / 3]), (0.25, [0.25] * 3)])
def test_unified_sam_is_between_both(lam, weights):
    gradient = create("unified_sam", small_chain(), rho=0.1, lambd=lam)
    g = [torch.randn_like(p) for p in gradient.structure.parameters]
    for step, weight in enumerate(weights):
        gradient.where.begin(step)
        length = total_norm(gradient.where.perturbation(gradient.where.everything, g)).item()
        assert length == pytest.approx(0.1 * ((1 - weight) * total_norm(g).item() + weight))


def test_zsharp_keeps_what_the_z_score_of_its_authors_keeps():
    """Their threshold is a quantile of |z|, and what lies above it is kept: for these sizes as many."""
    gradient = create("zsharp", small_chain(), percentile=0.95)
    torch.manual_seed(0)
    for shape in ((64, 16, 3, 3), (10, 64), (5, 4), (1000, 1)):
        g = torch.randn(shape, dtype=torch.float64) + 0.3
        z = ((g - g.mean()) / g.std()).abs()
        assert torch.equal(gradient.where._kept(g) != 0, z > torch.quantile(z, 0.95))


@pytest.mark.parametrize("name", ["ssam_f", "ssam_d"])
def test_the_mask_has_its_size_and_the_perturbation_the_masked_length(name):
    model = small_chain()
    gradient, optimizer = create(name, model, sparsity=0.7, **PLAN), base(model)
    total, masks = sum(p.numel() for p in model.parameters()), []
    for step in range(8):
        g = plain_gradient(model, *batch(seed=step), train_statistics=False)[1]
        mask = vector(gradient.where.held(gradient.where.everything)).clone()
        assert set(mask.tolist()) == {0.0, 1.0}
        assert mask.sum().item() == total - -(-total * 7 // 10)
        eps = vector(gradient.where.perturbation(gradient.where.everything, g))
        assert eps.norm().item() == pytest.approx(0.1 * (mask * vector(g)).norm().item() / vector(g).norm().item())
        run(gradient, model, optimizer, 1, first=step)
        masks.append(mask)
    changed = [not torch.equal(a, b) for a, b in pairwise(masks)]
    assert changed == [True, False] * 3 + [True], "after the first step of every epoch, of two steps each"


def test_noise_is_the_same_for_a_step_and_another_for_the_next():
    model = small_chain()
    gradient = create("random_sam", model, std=0.5, seed=3)
    first, again = (vector(gradient.where.perturbation(gradient.where.everything, [])) for _ in range(2))
    gradient.where.begin(1)
    assert torch.equal(first, again)
    assert not torch.equal(first, vector(gradient.where.perturbation(gradient.where.everything, [])))
    other = create("random_sam", model, std=0.5, seed=4).where
    assert not torch.equal(first, vector(other.perturbation(other.everything, [])))


def test_noise_is_as_large_as_the_filter_it_falls_on():
    torch.manual_seed(0)
    model = nn.Linear(4000, 2).double()
    with torch.no_grad():
        model.weight.copy_(torch.randn(2, 4000) * torch.tensor([[1.0], [10.0]]))
    where = create("random_sam", model, std=0.1).where
    noise = where.perturbation(where.everything, [])[0]
    for row in range(2):
        assert noise[row].std().item() == pytest.approx(0.1 * model.weight[row].norm().item(), rel=0.05)


def test_the_memory_of_a_method_is_that_of_its_vectors():
    model = small_chain()
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    expected = {"sam": 3, "fsam": 4, "s2sam": 3, "async_sam": 4, "momentum_sam": 3, "random_sam": 2, "ssam_f": 4, "zsharp": 3}
    for name, vectors in expected.items():
        assert create(name, model, **PLAN).memory(10) == vectors * size
