"""What is made of the gradients at w and at w + eps: of vectors given, and in a step."""

import math

import pytest
import torch
from helpers import batch, criterion, small_chain, total_norm
from test_methods import base, distance, gradients, run
from torch import nn

from sam_repro.optim import StaticStep, UserError, create
from sam_repro.optim.combine import OPTIONS

KNOBS = {"mix": {}, "weighted": {"gamma": 0.8}, "gap": {"alpha": 0.4}, "renormalise": {}}
PLAN = {"total_steps": 8}


def vectors(seed=0):
    """g and g', in parts, and as they are alike in a training."""
    draw = torch.Generator().manual_seed(seed)
    g = [torch.randn(*shape, generator=draw, dtype=torch.float64) for shape in ((3, 4), (5,), (2, 2, 2))]
    return g, [part + 0.3 * torch.randn(part.shape, generator=draw, dtype=torch.float64) for part in g]


def flat(parts):
    return torch.cat([part.flatten() for part in parts])


def made(option, g, g_s, mix=1.0, **knobs):
    """What an option makes of both, as one vector."""
    combination = OPTIONS[option](**knobs)
    combination.setup(None, mix)
    clean, sam = [part.clone() for part in g], [part.clone() for part in g_s]
    if combination.needs_clean:
        combination.combine(range(len(sam)), clean, sam, None)
    return flat(sam)


@pytest.mark.parametrize("mix", [1.0, 0.3, 1.7])
def test_every_option_is_its_formula(mix):
    parts = vectors()
    g, g_s = map(flat, parts)
    a = 0.8 / (1 - 0.8)
    h = {
        "mix": g_s,
        "weighted": (1 - a) * g + a * g_s,
        "gap": g_s - 0.4 * (g - (g @ g_s) / (g_s @ g_s) * g_s),
        "renormalise": g_s * g.norm() / g_s.norm(),
    }
    assert h.keys() == OPTIONS.keys()
    for option, direction in h.items():
        assert (made(option, *parts, mix, **KNOBS[option]) - ((1 - mix) * g + mix * direction)).abs().max() < 1e-14, option


def test_the_gap_takes_away_what_is_orthogonal_to_the_whole_perturbed_gradient():
    parts = vectors()
    g, g_s = map(flat, parts)
    vertical = g - (g @ g_s) / (g_s @ g_s) * g_s
    for alpha in (0.1, 0.6, 2.0):
        found = made("gap", *parts, alpha=alpha)
        assert abs((found - g_s) @ g_s) < 1e-12
        assert (found @ found).item() == pytest.approx((g_s @ g_s + alpha**2 * vertical @ vertical).item(), rel=1e-12)
    parallel = [3 * part for part in parts[0]]
    assert (made("gap", parts[0], parallel, alpha=0.6) - flat(parallel)).abs().max() < 1e-14


def test_the_renormalised_gradient_is_as_long_as_that_at_w():
    parts = vectors()
    found = made("renormalise", *parts)
    assert found.norm().item() == pytest.approx(flat(parts[0]).norm().item(), rel=1e-14)
    assert torch.cosine_similarity(found, flat(parts[1]), 0).item() == pytest.approx(1.0, abs=1e-14)


@pytest.mark.parametrize("option", KNOBS)
def test_no_gradient_at_either_point_is_no_nan(option):
    g, g_s = vectors()
    nothing = [torch.zeros_like(part) for part in g]
    for clean, sam in ((nothing, g_s), (nothing, nothing)):
        assert torch.isfinite(made(option, clean, sam, **KNOBS[option])).all()
    found = made(option, g, nothing, **KNOBS[option])
    assert torch.isfinite(found).all()
    if option in ("gap", "renormalise"):
        assert found.abs().max() == 0, "nothing is orthogonal to no vector, and none has a length"


@pytest.mark.parametrize("option", KNOBS)
def test_a_loss_scale_is_that_of_the_result(option):
    parts = vectors()
    for mix in (1.0, 0.3):
        scaled = [[part * 2.0**16 for part in vector] for vector in parts]
        assert torch.equal(made(option, *scaled, mix, **KNOBS[option]), made(option, *parts, mix, **KNOBS[option]) * 2.0**16)


@pytest.mark.parametrize("option", ["gap", "renormalise"])
def test_in_half_precision_the_numbers_are_of_single(option):
    exact = vectors()
    found = made(option, *([part.bfloat16() for part in vector] for vector in exact), **KNOBS[option])
    expected = made(option, *exact, **KNOBS[option])
    assert found.dtype == torch.bfloat16
    assert (found - expected).norm() < 0.01 * expected.norm()


@pytest.mark.parametrize("option", ["weighted", "gap", "renormalise"])
def test_where_layers_are_chosen_it_is_theirs_that_are_combined(option):
    """As a layer-wise step without it, on the other layers; as its formula, on the chosen."""
    knobs = {f"combine.{key}": value for key, value in KNOBS[option].items()}
    found = {}
    for combine, more in (("mix", {}), (option, knobs)):
        gradient = create("layerwise", model := small_chain(), k=2, alpha=1.0, r=0.3, combine=combine, **more)
        gradient.backward(*batch(), criterion)
        chosen = {id(p) for layer in gradient.structure.layers[2:] for p in layer.parameters}
        found[combine] = gradients(model), [id(p) in chosen for p in model.parameters()]
    create("sgd", plain := small_chain()).backward(*batch(), criterion)
    (g_s, inside), (ours, _) = found["mix"], found[option]
    assert all(torch.equal(a, b) for a, b, one in zip(g_s, ours, inside, strict=True) if not one)
    picked = [[part for part, one in zip(vector, inside, strict=True) if one] for vector in (gradients(plain), g_s, ours)]
    assert (made(option, picked[0], picked[1], **KNOBS[option]) - flat(picked[2])).abs().max() < 1e-13


def test_looksam_remembers_the_gradients_as_they_were():
    kept = []
    for combine in ("mix", "gap"):
        gradient = create("looksam", small_chain(), rho=0.1, combine=combine)
        gradient.backward(*batch(), criterion)
        kept.append([part.clone() for part in gradient.between.vector])
    assert distance(*kept) == 0


def test_weighted_recordings_serve_chosen_layers_and_gap_gives_its_reason():
    StaticStep(create("layerwise", small_chain(), k=2, combine="weighted"))
    StaticStep(create("sam", small_chain(), combine="gap"))
    with pytest.raises(
        UserError, match="graphs=true does not go with this method: combine=renormalise takes norms of other layers in each"
    ):
        StaticStep(create("layerwise", small_chain(), k=2, combine="renormalise"))


# -- GSAM's radius ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_the_radius_of_gsam_follows_the_formula_of_the_learning_rate(schedule):
    gradient = create("gsam", model := small_chain(), total_steps=10, rho=0.6, rho_end=0.1, rho_schedule=schedule)
    lengths = []
    for step in range(10):
        gradient.backward(*batch(seed=step), criterion)
        lengths.append(total_norm(gradient.where.perturbation(gradient.where.everything, gradients(model))).item())
        model.zero_grad()
    lr = [1 - t / 10 if schedule == "linear" else (1 + math.cos(math.pi * t / 10)) / 2 for t in range(10)]
    assert lengths == pytest.approx([0.1 + 0.5 * rate for rate in lr], rel=1e-12)


def test_a_step_of_a_quadratic_in_one_dimension_has_no_gap():
    """g and g' are parallel."""
    model = nn.Linear(1, 1, bias=False).double()
    gradient = create("gsam", model, total_steps=2, rho=0.1, rho_end=0.1, alpha=0.6)
    w = model.weight.item()
    gradient.backward(torch.ones(4, 1).double(), torch.zeros(4), lambda outputs, targets: outputs[:, 0] ** 2)
    assert model.weight.grad.item() == pytest.approx(2 * (w + math.copysign(0.1, w)), rel=1e-14)


# -- WSAM ------------------------------------------------------------------------------------------------------------------


def test_coupled_wsam_is_the_decoupled_one_without_momentum_and_another_with_it():
    """Decoupled: the base optimizer takes g, then w <- w - lr a (g' - g)."""
    lr, a, rho = 0.1, 0.8 / (1 - 0.8), 0.05
    for momentum, alike in ((0.0, True), (0.9, False)):
        model, twin = small_chain(), small_chain()
        optimizers = [torch.optim.SGD(each.parameters(), lr, momentum) for each in (model, twin)]
        coupled, plain, sam = create("wsam", model, gamma=0.8, rho=rho), create("sgd", twin), create("sam", twin, rho=rho)
        for step in range(3):
            run(coupled, model, optimizers[0], 1, first=step)
            buffers = [b.clone() for b in twin.buffers()]
            found = []
            for method in (sam, plain):
                for b, before in zip(twin.buffers(), buffers, strict=True):
                    b.copy_(before)
                method.backward(*batch(seed=step), criterion)
                found.append(gradients(twin))
                twin.zero_grad()
            for p, g in zip(twin.parameters(), found[1], strict=True):
                p.grad = g
            optimizers[1].step()
            twin.zero_grad()
            with torch.no_grad():
                for p, g_s, g in zip(twin.parameters(), *found, strict=True):
                    p -= lr * a * (g_s - g)
            apart = distance(model.parameters(), twin.parameters())
            assert (apart < 1e-12) == (alike or step == 0), (momentum, step, apart)


def test_for_a_small_radius_wsam_adds_the_gradient_of_the_norm():
    """G -> g + a rho grad |g|, by finite differences of the norm along a direction."""
    rho, gamma, h = 1e-5, 0.8, 1e-5

    def norm_at(shift, direction):
        model = small_chain().eval()
        with torch.no_grad():
            for p, d in zip(model.parameters(), direction, strict=True):
                p += shift * d
        create("sgd", model).backward(*batch(), criterion)
        return total_norm(gradients(model)).item(), gradients(model)

    torch.manual_seed(1)
    direction = [torch.randn_like(p) for p in small_chain().parameters()]
    slope = (norm_at(h, direction)[0] - norm_at(-h, direction)[0]) / (2 * h)
    create("wsam", model := small_chain().eval(), rho=rho, gamma=gamma).backward(*batch(), criterion)
    g = norm_at(0.0, direction)[1]
    added = sum(((ours - plain) * d).sum() for ours, plain, d in zip(gradients(model), g, direction, strict=True)).item()
    assert added / rho == pytest.approx(gamma / (1 - gamma) * slope, rel=1e-3)


@pytest.mark.parametrize(("name", "knobs"), [("wsam", {"gamma": 0.5}), ("gsam", {"alpha": 0.0, "rho": 0.05, "rho_end": 0.05})])
def test_at_their_limit_they_are_sam(name, knobs):
    model, twin = small_chain(), small_chain()
    run(create(name, model, **PLAN, **knobs), model, base(model), 6)
    run(create("sam", twin), twin, base(twin), 6)
    apart = distance(model.state_dict().values(), twin.state_dict().values())
    assert apart == 0 if name == "wsam" else apart < 1e-14
