"""The methods beyond the layer-wise paper's: against plain references, by identities, and what is particular to each."""

import copy
import math
import random
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from flat import ONE_PASS
from helpers import STEPS, batch, criterion, plain_gradient, shifted, small_chain, total_norm
from test_methods import base, distance, gradients, run

from sam_repro.optim import UserError, create
from sam_repro.optim.when import mean_change

PLAN = {"total_steps": STEPS, "steps_per_epoch": 4, "dataset_size": 48}


@pytest.mark.parametrize(
    ("name", "knobs", "other", "others"),
    [
        ("sam_n", {"n": 1}, "sam", {}),
        ("msam", {"m": 1, "rho": 0.05}, "sam", {}),
        ("looksam", {"k": 1}, "sam", {}),
        ("vsam", {"s1": 20.0, "N": 20, "cap": 1.0, "alpha": 0.0}, "sam", {}),
        ("vsam", {"start": 100}, "sam", {}),
        ("esam", {"beta": 1.0, "gamma": 1.0}, "sam", {}),
        ("layerwise", {"k": "all", "normalize": True}, "generalized_sam", {"normalize": True}),
        ("layerwise", {"k": "all", "tensors": "weights"}, "generalized_sam", {"tensors": "weights"}),
        ("asam", {"rho": 0.0}, "sgd", {}),
        ("layersam", {"rho": 0.0}, "sgd", {}),
        ("msam", {"rho": 0.0, "m": 1}, "sgd", {}),
        ("looksam", {"rho": 0.0}, "sgd", {}),
        ("aesam", {"lambda1": 1e9, "lambda2": 1e9}, "sgd", {}),
        ("aesam", {"lambda1": -1e9, "lambda2": -1e9}, "sam", {}),
        ("vsam", {"rho": 0.0}, "sgd", {}),
        ("saf", {"start": 99}, "sgd", {}),
        ("mesa", {"start": 99}, "sgd", {}),
        ("saf", {"start": 0, "delay": 1, "lam": 0.0}, "sgd", {}),
        ("sam", {"when": "window", "when.percent": 100.0}, "sam", {}),
        ("sam", {"when": "window", "when.percent": 0.0}, "sgd", {}),
        ("gsam", {"alpha": 0.0, "rho": 0.05, "rho_end": 0.05}, "sam", {}),
        ("gsam", {"rho": 0.0, "rho_end": 0.0}, "sgd", {}),
        ("gsam", {"combine": "mix", "rho": 0.2, "rho_end": 0.2}, "sam", {"rho": 0.2}),
        ("wsam", {"gamma": 0.5}, "sam", {}),
        ("wsam", {"gamma": 0.0}, "sgd", {}),
        ("wsam", {"gamma": 0.2}, "generalized_sam", {"normalize": True, "r": 0.05, "alpha": 0.25}),
        ("renormalised_sam", {"rho": 0.0}, "sgd", {}),
        ("renormalised_sam", {"mix": 0.0}, "sgd", {}),
        ("rst", {"p": 1.0}, "sam", {}),
        ("rst", {"p": 0.0, "c": 7.0}, "sgd", {}),
        ("rst", {"p": 1.0, "p_end": 0.0, "p_schedule": "piecewise"}, "sam", {"when": "window", "when.percent": 50.0, **PLAN}),
        ("late", {"percent": 100.0}, "sam", {}),
        ("late", {"percent": 0.0}, "sgd", {}),
        ("late_layerwise", {"percent": 100.0, "k": 2}, "layerwise", {"k": 2}),
        ("late_layerwise", {"percent": 50.0, "k": 0}, "sgd", {}),
        ("layerwise", {"k": "all", "where": "layers", "when": "every", "when.n": 1}, "generalized_sam", {}),
        ("layerwise", {"k": "all", "samples": "micro", "samples.m": 1}, "generalized_sam", {}),
        ("sam_on", {"where.tensors": "all"}, "sam", {"rho": 0.5}),
        ("asam_on", {"where.tensors": "all", "where.biases": False}, "asam", {"rho": 10.0, "eta": 0.0}),
        ("sam_on", {"rho": 0.0}, "sgd", {}),
        ("fsam", {"sigma": 0.0, "lam": 0.3}, "sam", {"rho": 0.2}),
        ("fsam", {"sigma": 0.0, "lam": 0.9}, "sam", {"rho": 0.2}),
        ("vasso", {"lam": 0.0}, "sam", {"rho": 0.2}),
        ("s2sam", {"rho": 0.0}, "sgd", {}),
        ("momentum_sam", {"rho": 0.0}, "sgd", {}),
        ("async_sam", {"rho": 0.0}, "sgd", {}),
        ("random_sam", {"std": 0.0}, "sgd", {}),
        ("fisher_sam", {"eta": 0.0}, "sam", {}),
        ("unified_sam", {"lambd": 1.0, "rho": 0.05}, "sam", {}),
        ("unified_sam", {"lambd": 0.0, "rho": 0.1}, "generalized_sam", {"alpha": 1.0}),
        ("zsharp", {"percentile": 0.0}, "sam", {}),
        ("ssam_f", {"sparsity": 0.0}, "sam", {"rho": 0.1}),
        ("ssam_d", {"sparsity": 0.0}, "sam", {"rho": 0.1}),
        ("ssam_f", {"sparsity": 1.0}, "sgd", {}),
        ("ssam_d", {"sparsity": 1.0}, "sgd", {}),
    ],
)
def test_identities(name, knobs, other, others):
    model, twin = small_chain(), small_chain()
    gradient, same = create(name, model, **PLAN, **knobs), create(other, twin, **others)
    optimizers = base(model), base(twin)
    for step in range(STEPS):
        places = torch.arange(12) + 12 * (step % 4)
        gradient.backward(*batch(seed=step), criterion, indices=places)
        same.backward(*batch(seed=step), criterion)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    assert distance(model.state_dict().values(), twin.state_dict().values()) < 1e-12


# -- passes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "knobs", "cost"),
    [
        ("sam_n", {"n": 3}, [(2, 2), (1, 1), (1, 1), (2, 2)]),
        ("asam", {}, [(2, 2)] * 2),
        ("looksam", {"k": 2}, [(2, 2), (1, 1), (2, 2), (1, 1)]),
        ("layersam", {}, [(2, 2)] * 2),
        ("looklayersam", {"k": 2}, [(2, 2), (1, 1), (2, 2)]),
        ("aesam", {"lambda1": -9.0, "lambda2": -9.0}, [(2, 2)] * 2),
        ("aesam", {"lambda1": 9.0, "lambda2": 9.0, "delta": 0.5}, [(1, 1)] * 2),
        ("vsam", {"start": 2, "s1": 0.0, "alpha": 0.0, "N": 50}, [(2, 2), (2, 2), (1, 1), (1, 1)]),
        ("vsam_a", {"start": 1, "s1": 0.0, "alpha": 0.0, "N": 50}, [(2, 2), (1, 1), (1, 1)]),
        ("msam", {"m": 4}, [(2, 2)] * 2),
        ("esam", {"beta": 1.0, "gamma": 0.5}, [(2.5, 1.5)] * 2),
        ("rst", {"p": 1.0, "p_end": 0.0, "p_schedule": "piecewise"}, [(2, 2)] * 6 + [(1, 1)] * 6),
        ("gsam", {}, [(2, 2)] * 2),
        ("wsam", {}, [(2, 2)] * 2),
        ("renormalised_sam", {}, [(2, 2)] * 2),
        ("late", {"percent": 20.0, "rho": 0.1}, [(1, 1)] * 10 + [(2, 2)] * 2),
        ("late_layerwise", {"percent": 20.0, "k": "all"}, [(1, 1)] * 10 + [(2, 2)] * 2),
        ("saf", {"start": 0, "delay": 1}, [(1, 1)] * 6),
        ("mesa", {"start": 0}, [(1, 1)] * 4 + [(2, 1)] * 2),
        *((name, {}, [(2, 2)] * 3) for name in ("sam_on", "asam_on", "fsam", "vasso", "fisher_sam", "unified_sam", "zsharp")),
        *((name, {}, [(2, 2)] * 5) for name in ("ssam_f", "ssam_d")),
        *((name, {}, [(1, 1)] * 3) for name in ("s2sam", "momentum_sam", "random_sam")),
        ("s2sam", {"when": "every", "when.n": 2}, [(1, 1)] * 4),
        ("async_sam", {"batch": 0.25}, [(1.25, 1.25)] * 3),
        ("async_sam", {"batch": 1.0}, [(2, 2)] * 3),
    ],
)
def test_passes_of_every_step(name, knobs, cost):
    model = small_chain()
    gradient = create(name, model, **PLAN, **knobs)
    samples = []
    model.register_forward_hook(lambda module, inputs, output: samples.append(len(output)))
    for step, (forward, backward) in enumerate(cost):
        samples.clear()
        report = gradient.backward(*batch(seed=step), criterion, indices=torch.arange(12) + 12 * (step % 4))
        assert (report.forward_units, report.backward_units) == pytest.approx((forward, backward)), f"step {step}"
        teacher = name == "mesa" and forward == 2  # a network of its own
        assert sum(samples) == pytest.approx(12 * (forward - teacher))
        ascends = step % 2 == 0 if "when" in knobs else name in ONE_PASS or (forward > 1 and name not in ("saf", "mesa"))
        assert report.ascended == ascends
        assert len(report.outputs) == 12


# -- what is particular to each ----------------------------------------------------------------------------------------


def test_looksam_keeps_the_part_orthogonal_to_the_whole_gradient():
    model = small_chain()
    _, clean = plain_gradient(model, *batch(), train_statistics=False)
    gradient = create("looksam", model, k=2, rho=0.1)
    gradient.backward(*batch(), criterion)
    unit = gradient.between.vector
    by_parameter = {id(p): g for p, g in zip(model.parameters(), clean, strict=True)}
    ordered = [by_parameter[id(p)] for p in gradient.structure.parameters]
    inner = sum((u * g).sum() for u, g in zip(unit, ordered, strict=True)) / total_norm(ordered)
    assert abs(inner) < 1e-12
    assert total_norm(unit) == pytest.approx(1.0)
    # It is the whole vector that is orthogonal, and not every tensor.
    assert max(abs((u * g).sum() / (u.norm() * g.norm())) for u, g in zip(unit, ordered, strict=True) if g.norm() > 1e-9) > 1e-3
    model.zero_grad()
    gradient.backward(*batch(), criterion)
    assert distance(gradients(model), clean) > 1e-4, "the step in between is not the plain gradient"


def test_looksam_with_parallel_gradients_reuses_nothing():
    model = torch.nn.Linear(1, 1, bias=False).double()
    gradient = create("looksam", model, k=2, rho=0.1)
    for _ in range(2):
        model.zero_grad()
        gradient.backward(torch.ones(4, 1).double(), torch.zeros(4), lambda outputs, targets: outputs[:, 0] ** 2)
    assert model.weight.grad.item() == pytest.approx(2 * model.weight.item())


def test_bf16_bends_what_is_a_difference_of_gradients():
    """The cosine of g_v, and of vSAM's PSF, with its value in fp32: a difference of gradients that agree in all but a few per cent."""
    from sam_repro.models import create as model_of

    found = {}
    for precision in (torch.float32, torch.bfloat16):
        torch.manual_seed(0)
        model = model_of("resnet20", 10, 1)
        x, y = torch.randn(128, 1, 16, 16), torch.randint(10, (128,))
        optimizer = torch.optim.SGD(model.parameters(), 0.05)
        for name in ("looksam", "vsam"):
            gradient = create(name, model, rho=0.05)
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16):
                gradient.backward(x, y, lambda o, t: criterion(o.float(), t))
            found[name, precision] = torch.cat([part.flatten() for part in gradient.between.vector])
            found["gradient", precision] = torch.cat([g.flatten() for g in gradients(model)])
            optimizer.zero_grad()

    def agreement(name):
        return torch.cosine_similarity(found[name, torch.float32], found[name, torch.bfloat16], 0).item()

    assert agreement("gradient") > 0.99
    assert 0.6 < agreement("looksam") < 0.95
    assert 0.6 < agreement("vsam") < 0.95


def test_looksam_reports_the_sizes_of_what_it_reuses_and_of_what_it_is_taken_from():
    model = small_chain()
    gradient = create("looksam", model, k=2, rho=0.1)
    report = gradient.backward(*batch(), criterion)
    assert report.reused.keys() == {"g_v_norm", "g_s_norm"}
    assert report.reused["g_s_norm"].item() == pytest.approx(total_norm(gradients(model)).item())
    _, g = plain_gradient(model, *batch(), train_statistics=False)
    g_s = list(gradients(model))
    along = sum((a * b).sum() for a, b in zip(g, g_s, strict=True)) / total_norm(g)
    assert report.reused["g_v_norm"].item() == pytest.approx(math.sqrt(total_norm(g_s) ** 2 - along**2))
    assert gradient.backward(*batch(), criterion).reused == {}


def test_layersam_whole_is_as_long_as_rho_and_its_layers_are_in_the_ratio_of_local():
    model = small_chain()
    local, whole = (create("layersam", model, rho=0.3, trust=trust) for trust in ("local", "whole"))
    g = [torch.randn_like(p) for p in whole.structure.parameters]
    eps, others = (m.where.perturbation(m.where.everything, g) for m in (whole, local))
    assert total_norm(eps).item() == pytest.approx(0.3)
    assert torch.allclose(torch.cat([e.flatten() for e in eps]) * total_norm(others) / 0.3, torch.cat([e.flatten() for e in others]))


def test_layersam_perturbs_each_layer_by_its_trust_ratio():
    for trust in ("printed", "local"):
        model = small_chain()
        gradient = create("layersam", model, rho=0.3, trust=trust)
        _, g = plain_gradient(model, *batch(), train_statistics=False)
        by_parameter = {id(p): t for p, t in zip(model.parameters(), g, strict=True)}
        ordered = [by_parameter[id(p)] for p in gradient.structure.parameters]
        eps = gradient.where.perturbation(gradient.where.everything, ordered)
        for index, layer in enumerate(gradient.structure.layers):
            size = total_norm([e for e, of in zip(eps, gradient.structure.layer_of, strict=True) if of == index])
            expected = 0.3 * total_norm([p.detach() for p in layer.parameters]) / (1 if trust == "local" else total_norm(g))
            assert size.item() == pytest.approx(expected.item())


def test_esam_draws_whole_tensors_and_divides_by_their_norm():
    model = small_chain()
    gradient = create("esam", model, rho=0.1, beta=0.5, gamma=0.5)
    drawn = []
    for step in range(40):
        selected = gradient.where.select()
        drawn.append(tuple(selected))
        seen = [torch.randn_like(gradient.structure.parameters[i]) for i in selected]
        if seen:
            assert total_norm(gradient.where.perturbation(selected, seen)).item() == pytest.approx(0.2)
        gradient.backward(*batch(seed=step), criterion)
        model.zero_grad()
    assert drawn[0] == tuple(gradient.where.everything), "all of them at the first step"
    share = sum(map(len, drawn[1:])) / (39 * len(drawn[0]))
    assert 0.4 < share < 0.6
    assert len(set(drawn)) > 20


def test_esam_keeps_a_share_of_the_samples_and_at_least_one_also_where_they_tie():
    for gamma, n, expected in ((0.5, 12, 6), (0.3, 12, 3), (0.01, 12, 1), (0.5, 1, 1)):
        model = small_chain().eval()
        kept = []
        model.register_forward_hook(lambda module, inputs, output, kept=kept: kept.append(len(output)))
        create("esam", model, rho=0.0, gamma=gamma).backward(*batch(n), criterion)
        assert kept == [n, n, expected]


def test_aesam_samples_about_half_of_a_stationary_sequence():
    gradient = create("aesam", small_chain(), total_steps=4000)
    generator = torch.Generator().manual_seed(0)
    decisions = []
    for step in range(4000):
        square = 5 + torch.randn(1, generator=generator, dtype=torch.float64)
        decisions.append(gradient.when.decides(step, [square.clamp_min(0).sqrt()]))
    early, late = sum(decisions[:1000]) / 1000, sum(decisions[3000:]) / 1000
    assert 0.4 < sum(decisions) / 4000 < 0.6, "50 % of a normal sequence; vSAM's Table 3 has 49.5 to 50.2 %"
    assert early < 0.35 < 0.65 < late


def test_aelooksam_is_a_combination():
    model = small_chain()
    gradient = create("aesam", model, total_steps=STEPS, between="orthogonal", delta=0.2, lambda1=0.5)
    reports = run(gradient, model, base(model), STEPS)
    assert 0 < sum(report.ascended for report in reports) < STEPS
    with pytest.raises(UserError, match="does not go with samples=micro"):
        create("aesam", model, total_steps=STEPS, samples="micro")


def test_vsam_sets_its_rate_by_equations_8_to_15():
    gradient = create("vsam", small_chain(), N=4, M=2, s1=2.0, start=0, alpha=0.5, cap=1.0, norm_layers=4)
    norms = [(2.0, 1.0), (6.0, 3.0), (1.0, 2.0), (3.0, 4.0), (2.0, 2.0), (5.0, 4.0), (4.0, 8.0), (1.0, 4.0)]
    when = gradient.when
    when.norms.extend(norms)

    def spread(values):
        halves = [sorted(values)[: math.ceil(len(values) / 2)], sorted(values)[math.ceil(len(values) / 2) :]]
        variances = [sum((x - sum(h) / len(h)) ** 2 for x in h) / len(h) for h in halves if h]
        return sum(variances) / len(variances)

    psf = [p for p, _ in norms]
    v = [spread(psf[i - 3 : i + 1]) for i in (4, 5, 6, 7)]
    r = [p / s for p, s in norms[4:]]
    change = sum((after - before) / before for values in (v, r) for before, after in pairwise(values)) / 3
    expected = 2.0 * (1 + 0.5 * change)
    when._set_rate()
    assert when.s == pytest.approx(min(max(expected, 1.0), 4.0))
    assert mean_change([0.0, 5.0, 10.0]) == 0.5


def test_vsam_measures_the_psf_and_sgd_norms_of_the_last_layers():
    model = small_chain()
    gradient = create("vsam", model, start=5, norm_layers=2, rho=0.2)
    _, g = plain_gradient(model, *batch(), train_statistics=False)
    gradient.backward(*batch(), criterion)
    _, g_s = plain_gradient(shifted(model, set(range(len(g))), [0.2 * t / total_norm(g) for t in g]), *batch(), train_statistics=False)
    last = {id(p) for layer in gradient.structure.layers[-2:] for p in layer.parameters}
    chosen = [i for i, p in enumerate(model.parameters()) if id(p) in last]
    gradient.when._arrived()
    psf, sgd = gradient.when.norms[0]
    assert psf == pytest.approx(total_norm([g_s[i] - g[i] for i in chosen]).item())
    assert sgd == pytest.approx(total_norm([g[i] for i in chosen]).item())


def rate_after(spread, updates, seed, n=50):
    """s / s1 where every norm is drawn for itself around 1, after so many new rates."""
    draws = random.Random(seed)
    when = create("vsam", small_chain(), N=n, s1=10.0, start=0, cap=1.0, norm_layers=4).when
    for update in range(updates + 2):
        when.norms.extend((draws.gauss(1, spread), draws.gauss(2, spread)) for _ in range(n))
        if update:
            when._set_rate()
    return when.s / 10.0


def test_vsam_leaves_its_rate_where_nothing_changes_and_hardly_moves_it_by_noise():
    assert rate_after(0.0, 38, seed=0) == 1.0
    drifts = [rate_after(0.1, 38, seed) for seed in range(5)]
    assert all(1.0 < drift < 1.1 for drift in drifts), drifts
    assert 1.03 < sum(rate_after(0.2, 38, seed) for seed in range(5)) / 5 < 1.35


def test_vsam_keeps_its_first_rate_until_every_window_is_full():
    when = create("vsam", small_chain(), N=10, s1=3.0, start=0, cap=1.0, norm_layers=4).when
    for filled in range(1, 21):
        when.norms.append((float(filled), 1.0))
        when._set_rate()
        assert (when.s == 3.0) == (filled < 20)


def test_vsam_neither_dies_nor_passes_its_cap():
    when = create("vsam", small_chain(), N=10, s1=5.0, start=0, cap=0.8, alpha=0.9).when
    for changing in (0.5, 2.0):  # PSF norms that fall, then rise, without end
        size = 1.0
        taken = []
        for step in range(2000):
            if when.ascends(step):
                size = min(max(size * changing, 1e-200), 1e200)
                when.norms.append((size, 1.0))
                taken.append(step)
        windows = [sum(start <= t < start + 10 for t in taken) for start in range(0, 2000, 10)]
        assert max(windows) <= 8
        assert 1.0 <= when.s <= 8.0
        assert len(taken) > 50


def test_msam_splits_a_shorter_last_batch_by_its_samples():
    model, twin = small_chain(), small_chain()
    create("msam", model, m=4, rho=0.1).backward(*batch(3), criterion)  # three micro-batches of one sample
    create("msam", twin, m=3, rho=0.1).backward(*batch(3), criterion)
    assert distance(gradients(model), gradients(twin)) == 0
    report = create("msam", model, m=5).backward(*batch(12), criterion)
    assert report.outputs.shape == (12, 3)
    assert report.forward_units == pytest.approx(2.0)


def test_msam_moves_the_statistics_once_for_every_micro_batch():
    model = small_chain()
    create("msam", model, m=4).backward(*batch(), criterion)
    assert {value.item() for name, value in model.named_buffers() if "num_batches" in name} == {4}


def test_a_window_is_the_first_or_last_part_of_the_training():
    for part, expected in (("first", range(3)), ("last", range(9, 12))):
        model = small_chain()
        gradient = create("msam", model, total_steps=12, m=2, when="window", **{"when.percent": 25.0, "when.part": part})
        assert [i for i, report in enumerate(run(gradient, model, base(model), 12)) if report.ascended] == list(expected)


@pytest.mark.parametrize("total", [7, 12, 31, 200])
@pytest.mark.parametrize("percent", [0.0, 12.5, 30.0, 50.0, 100.0])
def test_late_sam_makes_as_many_ascents_as_its_percent_of_the_steps_at_their_end(total, percent):
    when = create("late", small_chain(), total_steps=total, percent=percent).when
    ascents = [step for step in range(total) if when.ascends(step)]
    assert ascents == list(range(total - round(percent / 100 * total), total))


@pytest.mark.parametrize(("percent", "other"), [(100.0, "sam"), (0.0, "sgd")])
def test_late_sam_is_sam_or_sgd_to_the_last_bit(percent, other):
    model, twin = small_chain(), small_chain()
    run(create("late", model, **PLAN, percent=percent), model, base(model), STEPS)
    run(create(other, twin), twin, base(twin), STEPS)
    assert distance(model.state_dict().values(), twin.state_dict().values()) == 0


@pytest.mark.parametrize(("name", "percent"), [("late", 30.0), ("late_layerwise", 30.0)])
@pytest.mark.parametrize("saved", [7, 8, 9])
def test_a_resume_around_the_change_to_sam_is_bit_equal(name, percent, saved):
    """Of 12 steps the last four ascend; saved before, at and after the change."""
    knobs = {"k": 2, "r": 0.3} if name == "late_layerwise" else {"rho": 0.1}
    model, straight, resumed = small_chain(), small_chain(), small_chain()
    gradient, optimizer = create(name, model, **PLAN, percent=percent, **knobs), base(model)
    run(gradient, model, optimizer, saved)
    again, fresh = create(name, resumed, **PLAN, percent=percent, **knobs), base(resumed)
    for part, state in ((resumed, model), (fresh, optimizer), (again, gradient)):
        part.load_state_dict(copy.deepcopy(state.state_dict()))
    reports = run(again, resumed, fresh, STEPS - saved, first=saved)
    run(create(name, straight, **PLAN, percent=percent, **knobs), straight, base(straight), STEPS)
    assert [report.ascended for report in reports] == [step >= 8 for step in range(saved, STEPS)]
    assert distance(resumed.state_dict().values(), straight.state_dict().values()) == 0


@pytest.mark.parametrize("name", ["looksam", "vsam"])
def test_late_methods_that_reuse_an_ascent_reuse_none_before_the_first(name):
    model, plain = small_chain(), small_chain()
    gradient = create(name, model, **PLAN, when="window", **{"when.part": "last", "when.percent": 25.0})
    run(gradient, model, base(model), 9)
    run(create("sgd", plain), plain, base(plain), 9)
    assert distance(model.state_dict().values(), plain.state_dict().values()) == 0
    assert gradient.between.vector == []
    run(gradient, model, base(model), 1, first=9)
    assert gradient.between.vector
    assert gradient.between.age == 0


def test_the_first_layers_of_late_layerwise_sam_are_those_of_the_plain_gradient_before():
    model = small_chain()
    gradient = create("late_layerwise", model, **PLAN, k=1, percent=25.0)
    reports = run(gradient, model, base(model), 10)
    assert reports[9].layers == [gradient.structure.layers[reports[8].layer_norms.argmax()].name]


@pytest.mark.parametrize(("schedule", "expected"), [("constant", 3000), ("linear", 5000), ("piecewise", 5000)])
def test_the_coin_of_rst_falls_as_often_as_it_should(schedule, expected):
    when = create("rst", small_chain(), total_steps=10_000, p=0.3, p_end=0.7, p_schedule=schedule).when
    probabilities, ascents = [], []
    for step in range(10_000):
        ascents.append(when.ascends(step))
        probabilities.append(when.rate)
    assert sum(probabilities) == pytest.approx(expected, abs=1)
    assert abs(sum(ascents) - sum(probabilities)) < 4 * math.sqrt(sum(p * (1 - p) for p in probabilities))
    if schedule != "constant":
        assert (probabilities[0], probabilities[-1]) == pytest.approx((0.3, 0.7), abs=1e-4)
        assert sum(ascents[:5000]) < sum(ascents[5000:])


def test_rst_tosses_at_every_step_from_the_seed_alone_and_goes_on_after_a_reload():
    def tosses(when, first, last):
        return [when.ascends(step) for step in range(first, last)]

    whens = [create("rst", small_chain(), seed=seed, p=p).when for seed, p in ((5, 0.5), (5, 0.5), (6, 0.5), (5, 0.25))]
    straight, same, other, seldom = (tosses(when, 0, 200) for when in whens)
    assert straight == same != other
    assert all(often for often, rare in zip(straight, seldom, strict=True) if rare), "the same draws, whatever p is"
    assert whens[0].ascends(3) in (True, False)
    again = create("rst", small_chain(), seed=99, p=0.5).when
    again.load_state_dict(whens[1].state_dict())
    assert tosses(again, 200, 300) == tosses(whens[1], 200, 300)


def test_g_rst_is_sam_on_average():
    """c = 1/p: the mean over both outcomes of the lot, g with 1 - p and g + c (g' - g) with p."""
    found = {}
    for name, knobs in (("sgd", {}), ("sam", {}), ("rst", {"p": 0.25, "c": 4.0})):
        gradient = create(name, model := small_chain(), **knobs)
        if name == "rst":
            gradient.when.ascends = lambda step: True
        gradient.backward(*batch(), criterion)
        found[name] = gradients(model)
    mean = [0.75 * g + 0.25 * up for g, up in zip(found["sgd"], found["rst"], strict=True)]
    assert distance(mean, found["sam"]) < 1e-14
    assert distance(found["rst"], found["sam"]) > 1e-3


def test_saf_holds_to_what_the_sample_had_so_many_epochs_ago():
    model = small_chain()
    gradient = create("saf", model, **PLAN, lam=0.5, tau=2.0, start=2, delay=2)
    optimizer, said = base(model), {}
    for step in range(24):
        epoch, place = step // 4, torch.arange(12) + 12 * (step % 4)
        x, y = batch(seed=step)
        twin = copy.deepcopy(model)
        outputs = twin(x)
        loss = criterion(outputs, y).mean()
        if epoch > 2:
            old = said[epoch - 2, step % 4]
            p = (old / 2).softmax(1)
            loss = loss + 0.5 * 4 * (p * (p.log() - F.log_softmax(outputs / 2, 1))).sum(1).mean()
        said[epoch, step % 4] = outputs.detach().half().double()
        report = gradient.backward(x, y, criterion, indices=place)
        expected = torch.autograd.grad(loss, list(twin.parameters()))
        assert distance(gradients(model), expected) < 1e-12, f"step {step}"
        assert report.loss.item() == pytest.approx(criterion(outputs, y).mean().item())
        optimizer.step()
        optimizer.zero_grad()
    assert gradient.teacher.bank.shape == (2, 48, 3)
    assert gradient.teacher.bank.dtype == torch.float16


def test_saf_has_no_term_for_samples_it_did_not_see_then():
    """Half of the samples of an epoch fall to another replica: their entries are missing or older."""
    model = small_chain()
    gradient = create("saf", model, total_steps=9, steps_per_epoch=1, dataset_size=24, lam=0.5, tau=2.0, start=0, delay=1)
    x, y = batch()
    gradient.backward(x, y, criterion, indices=torch.arange(12))
    model.zero_grad()
    half = torch.cat([torch.arange(6), torch.arange(18, 24)])  # six seen in the epoch before, six not
    twin = copy.deepcopy(model)
    outputs, old = twin(x), gradient.teacher.bank[0][half].double()
    p = (old / 2).softmax(1)
    divergence = (p * (p.log() - F.log_softmax(outputs / 2, 1))).sum(1)[:6].sum() / 12
    loss = criterion(outputs, y).mean() + 0.5 * 4 * divergence
    gradient.backward(x, y, criterion, indices=half)
    assert distance(gradients(model), torch.autograd.grad(loss, list(twin.parameters()))) < 1e-12


@pytest.mark.parametrize(("name", "knobs"), [("saf", {"start": 0, "delay": 1}), ("mesa", {"start": 0, "decay": 0.5})])
def test_a_failed_step_of_a_teacher_can_be_repeated(name, knobs):
    model, straight = small_chain(), small_chain()
    plan = {"total_steps": 9, "steps_per_epoch": 1, "dataset_size": 12}
    gradient, optimizer = create(name, model, **plan, **knobs), base(model)
    other, others = create(name, straight, **plan, **knobs), base(straight)
    for step in range(4):
        x, y = batch(seed=step)
        statistics = {key: value.clone() for key, value in model.named_buffers()}
        with pytest.raises(RuntimeError, match="power cut"):
            gradient.backward(x, y, failing_backward, indices=torch.arange(12))
        model.load_state_dict(statistics, strict=False)
        gradient.backward(x, y, criterion, indices=torch.arange(12))
        other.backward(x, y, criterion, indices=torch.arange(12))
        for each in (optimizer, others):
            each.step()
            each.zero_grad()
    assert distance(model.state_dict().values(), straight.state_dict().values()) == 0


def failing_backward(outputs, targets):
    losses = criterion(outputs, targets)

    def cut(_):
        raise RuntimeError("power cut")

    losses.register_hook(cut)
    return losses


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_what_saf_keeps_of_a_blow_up_is_finite(dtype):
    """The largest number of float16 is no number of bfloat16, which would round it up."""
    model = small_chain().to(dtype)
    gradient = create("saf", model, total_steps=9, steps_per_epoch=1, dataset_size=12, start=0, delay=1)
    with torch.no_grad():
        model[3][2].weight.mul_(1e9)
    for step in range(2):
        model.zero_grad()
        x, y = batch(seed=step)
        gradient.backward(x.to(dtype), y, lambda o, t: criterion(o.float(), t), indices=torch.arange(12))
    assert torch.isfinite(gradient.teacher.bank).all()
    assert all(torch.isfinite(g).all() for g in gradients(model))


def test_vsam_keeps_its_rate_when_the_loss_is_scaled():
    rates = []
    for scaled in (False, True):
        model = small_chain()
        gradient, optimizer = create("vsam", model, N=10, s1=4.0, start=20, rho=0.1), base(model)
        for step in range(40):
            scaler = torch.amp.GradScaler("cpu", init_scale=4.0 ** (step % 6)) if scaled else None
            gradient.backward(*batch(seed=step), criterion, scaler=scaler)
            if scaler is not None:
                scaler.unscale_(optimizer)
            optimizer.step()
            optimizer.zero_grad()
        rates.append(gradient.when.s)
    assert rates[0] == pytest.approx(rates[1], rel=1e-9)
    assert rates[0] != 4.0


def test_mesa_holds_to_the_moving_mean_of_its_weights():
    model = small_chain()
    gradient = create("mesa", model, **PLAN, lam=0.5, tau=2.0, start=0, decay=0.8)
    optimizer, teacher = base(model), copy.deepcopy(model).eval()
    for step in range(12):
        x, y = batch(seed=step)
        if step:
            for t, p in zip(teacher.state_dict().values(), model.state_dict().values(), strict=True):
                t.copy_(t * 0.8 + p * 0.2 if t.is_floating_point() else p)
        twin = copy.deepcopy(model)
        outputs = twin(x)
        loss = criterion(outputs, y).mean()
        if step >= 4:
            p = (teacher(x).detach() / 2).softmax(1)
            loss = loss + 0.5 * 4 * (p * (p.log() - F.log_softmax(outputs / 2, 1))).sum(1).mean()
        gradient.backward(x, y, criterion)
        assert distance(gradients(model), torch.autograd.grad(loss, list(twin.parameters()))) < 1e-10, f"step {step}"
        optimizer.step()
        optimizer.zero_grad()


def test_where_only_some_layers_move_only_they_are_reused():
    model = small_chain()
    gradient = create("layerwise", model, k=1, alpha=1.0, r=0.3, when="every", between="orthogonal", **{"when.n": 2})
    gradient.backward(*batch(), criterion)
    assert {gradient.structure.layer_of[i] for i in gradient.between.kept} == {3}
    model.zero_grad()
    _, clean = plain_gradient(model, *batch(seed=1), train_statistics=False)
    gradient.backward(*batch(seed=1), criterion)
    head = {id(p) for p in gradient.structure.layers[3].parameters}
    for p, g in zip(model.parameters(), clean, strict=True):
        assert torch.allclose(p.grad, g, atol=1e-12) != (id(p) in head)


@pytest.mark.parametrize("lag", [0, 1])
def test_layers_are_chosen_by_the_last_step_also_where_it_made_no_ascent(lag):
    model = small_chain()
    gradient = create("layerwise", model, k=1, r=0.3, lag=lag, when="every", **{"when.n": 3})
    reports = run(gradient, model, base(model), 7)
    largest = [[gradient.structure.layers[report.layer_norms.argmax()].name] for report in reports]
    assert [report.layers for report in reports[3::3]] == largest[2 - lag : 6 : 3]
    assert largest[2 - lag] != largest[0] or largest[5 - lag] != largest[1], "they differ from the first steps' choices"


@pytest.mark.parametrize(
    ("name", "knobs", "says"),
    [
        ("aesam", {}, "give total_steps="),
        ("sam", {"when": "window"}, "give total_steps="),
        ("late", {}, "give total_steps="),
        ("rst", {"p_schedule": "linear"}, "changes p over the training: give total_steps="),
        ("rst", {"p": 1.5}, "p=1.5 is out of range"),
        ("gsam", {}, "where=annealed changes rho over the training: give total_steps="),
        ("gsam", {"rho_schedule": "step"}, "rho_schedule is one of linear, cosine"),
        ("wsam", {"gamma": 1.0}, "gamma=1.0 is out of range"),
        ("sgd", {"combine": "gop"}, "Did you mean 'gap'"),
        ("saf", {"combine": "gap"}, "saf has no knob 'combine'"),
        ("saf", {"steps_per_epoch": 4}, "give dataset_size="),
        ("mesa", {}, "give steps_per_epoch="),
        ("saf", {**PLAN, "when": "always"}, "saf has no knob 'when'"),
        ("esam", {"beta": 0.0}, "beta=0.0 is out of range"),
        ("esam", {"gamma": 0.0}, "gamma=0.0 is out of range"),
        ("msam", {"m": 0}, "m=0 is out of range"),
        ("looksam", {"k": 0}, "k=0 is out of range"),
        ("vsam", {"M": 60}, "M=60 slices do not fit"),
        ("layersam", {"trust": "globl"}, "Did you mean 'local'"),
    ],
)
def test_what_a_method_needs_and_did_not_get_is_said_at_once(name, knobs, says):
    with pytest.raises(UserError, match=says):
        create(name, small_chain(), **knobs)


def test_saf_asks_for_the_places_of_the_samples():
    x, y = batch()
    gradient = create("saf", small_chain(), **PLAN)
    for inputs, targets, places in (
        (x, y, None),
        (x, y, torch.arange(5)),
        ([x[:6], x[6:]], [y[:6], y[6:]], torch.arange(12)),
        (x, y, [torch.arange(6), torch.arange(6)]),
    ):
        with pytest.raises(UserError, match="indices="):
            gradient.backward(inputs, targets, criterion, indices=places)
    gradient.backward([x[:6], x[6:]], [y[:6], y[6:]], criterion, indices=[torch.arange(6), torch.arange(6, 12)])


def test_what_differs_from_pytorch_optimizers_looksam():
    """Theirs makes two passes at every step, whatever k, and projects tensor by tensor: 4 % off the paper's direction here."""
    theirs = pytest.importorskip("pytorch_optimizer", reason="the oracle pytorch-optimizer is not installed (extra 'dev')")
    model, counts = small_chain().eval(), []
    model.register_forward_hook(lambda *_: counts.append(1))
    wrapped = theirs.LookSAM(model.parameters(), torch.optim.SGD, rho=0.1, k=3, lr=0.1)

    def closure():
        wrapped.zero_grad()
        loss = criterion(model(batch()[0]), batch()[1]).mean()
        loss.backward()
        return loss

    for _ in range(6):
        closure()
        wrapped.step(closure)
    assert len(counts) == 12  # ours: 8
    gradient = create("looksam", model, rho=0.1, k=3)
    counts.clear()
    run(gradient, model, base(model), 6)
    assert len(counts) == 8

    model = small_chain()
    _, g = plain_gradient(model, *batch(), train_statistics=False)
    moved = shifted(model, set(range(len(g))), [0.1 * t / total_norm(g) for t in g])
    _, g_s = plain_gradient(moved, *batch(), train_statistics=False)
    along = sum((a * b).sum() for a, b in zip(g, g_s, strict=True)) / total_norm(g) ** 2
    whole = [s - along * t for s, t in zip(g_s, g, strict=True)]
    by_tensor = [s - (s * t).sum() / (t * t).sum() * t for s, t in zip(g_s, g, strict=True)]
    cosine = sum((a * b).sum() for a, b in zip(whole, by_tensor, strict=True)) / total_norm(whole) / total_norm(by_tensor)
    assert 0.95 < cosine < 0.97
