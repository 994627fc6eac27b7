"""``optimizer=budget``: the plan is the best that the budget pays for, the time is what was asked for, and its limits are other methods."""

import itertools
import random

import pytest
import torch
from helpers import FLOPS, as_module, batch, best_shares, criterion, small_chain
from test_methods import base, run
from torch import nn

from sam_repro.chain import Chain
from sam_repro.config import compose, identity
from sam_repro.measure import stages
from sam_repro.measure.compare import compare
from sam_repro.measure.cost import Costs
from sam_repro.optim import StaticStep, UserError, create
from sam_repro.optim.where.budget import NONE, Ascent, best_turns

COSTS = [1.1, 0.9, 0.4, 0.3]


def spent(reports):
    """In steps of SGD, a step on average."""
    return sum((report.forward_units + 2 * report.backward_units) / 3 - 1 for report in reports) / len(reports)


# -- the plan ------------------------------------------------------------------------------------------------------------


def drawn(stages, seed):
    """What a chain of so many stages offers: what lies behind an earlier cut costs more and holds more."""
    rng = random.Random(seed)
    costs = list(itertools.accumulate(rng.uniform(0.01, 1) for _ in range(stages)))
    held = list(itertools.accumulate(rng.expovariate(1) ** 3 for _ in range(stages)))
    return [Ascent(cost / costs[-1], norm, (place,)) for place, (cost, norm) in enumerate(zip(costs, held, strict=True))]


@pytest.mark.parametrize("budget", [0.0, 0.02, 0.1, 0.5, 0.9, 1.0, 3.0])
@pytest.mark.parametrize("stages", [1, 2, 5])
def test_no_other_plan_within_the_budget_holds_more(stages, budget):
    for seed in range(20):
        ascents = drawn(stages, seed)
        low, high = best_turns([NONE, *ascents], budget)
        often = 0.0 if low is high else (budget - low.cost) / (high.cost - low.cost)
        assert 0 <= often <= 1
        assert (1 - often) * low.cost + often * high.cost <= budget + 1e-12
        mine = (1 - often) * low.held + often * high.held
        assert mine == pytest.approx(best_shares([one[:2] for one in ascents], budget)[1])
        # ... nor does a schedule of 12 steps, of all that there are.
        every = itertools.combinations_with_replacement([NONE, *ascents], 12 if stages < 5 else 4)
        able = (some for some in every if sum(one.cost for one in some) <= len(some) * budget)
        assert max(sum(one.held for one in some) / len(some) for some in able) <= mine + 1e-12


@pytest.mark.parametrize(("budget", "k"), [(0.0, "all"), (0.0005, "all"), (0.05, "all"), (0.3, 2), (0.7, "all"), (0.95, 1), (4.0, "all")])
@pytest.mark.parametrize("costs", [[], COSTS])
def test_the_account_is_never_overdrawn_and_is_spent(budget, k, costs):
    model = small_chain()
    gradient = create("budget", model, budget=budget, k=k, costs=costs)
    prices = costs or [sum(FLOPS[stage:]) / sum(FLOPS) for stage in range(4)]
    stages = {layer.name: layer.stage for layer in gradient.structure.layers}
    total, optimizer = 0.0, base(model)
    for step in range(40):
        (report,) = run(gradient, model, optimizer, 1, first=step)
        total += min((prices[stages[name]] for name in report.layers[:1]), default=0.0)
        assert total <= budget * (step + 1) + 1e-6
    if k == "all" and budget < 0.9:
        assert total >= 40 * budget - 1.1 - 1e-9


def test_a_tenth_of_the_price_is_every_tenth_step():
    gradient = create("budget", model := small_chain(), budget=0.1, costs=[1.0, 1.0, 1.0, 1.0])
    ascended = [report.ascended for report in run(gradient, model, base(model), 30)]
    assert [step for step, made in enumerate(ascended, start=1) if made] == [10, 20, 30]


def test_the_cut_follows_the_norms():
    gradient = create("budget", small_chain(), budget=0.4, costs=COSTS)
    for norms, layers in ({(9.0, 1.0, 1.0, 1.0): (), (1.0, 1.0, 9.0, 1.0): (2, 3), (0.1, 0.1, 0.1, 9.0): (2, 3)}).items():
        gradient.where._held = [norm**2 for norm in norms]
        gradient.where._saved = 0.0
        gradient.where.select()
        assert tuple(gradient.where.chosen) == layers


def test_what_an_overflow_leaves_is_not_gone_by():
    gradient = create("budget", small_chain(), budget=0.4, costs=COSTS)
    for norms in ([1.0, 2.0, 3.0, 4.0], [1.0, float("nan"), 3.0, float("inf")]):
        gradient.where.observe(torch.tensor(norms))
        gradient.where.select()
        assert gradient.where._held == [1.0, 4.0, 9.0, 16.0]


@pytest.mark.parametrize("lag", [0, 1])
def test_the_norms_are_the_last_also_where_no_step_asked_for_them(lag):
    gradient = create("budget", small_chain(), budget=0.4, costs=COSTS, lag=lag)
    for norm in (1.0, 2.0, 3.0, 4.0):
        gradient.where.observe(torch.full((4,), norm))
    gradient.where.select()
    assert gradient.where._held == [(4.0 - lag) ** 2] * 4


# -- limits --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("knobs", "name", "others"),
    [
        ({"budget": 0.0}, "sgd", {}),
        ({"k": 0}, "sgd", {}),
        ({"budget": 1.0, "r": 0.3}, "generalized_sam", {"r": 0.3}),
        ({"budget": 1e6, "r": 0.3, "normalize": True}, "generalized_sam", {"r": 0.3, "normalize": True}),
        ({"budget": 1.0, "k": 2, "r": 0.3}, "layerwise", {"k": 2, "r": 0.3}),
        ({"budget": 1e6, "k": 3, "r": 0.3, "lag": 1, "costs": COSTS}, "layerwise", {"k": 3, "r": 0.3, "lag": 1}),
    ],
)
def test_the_limits_are_other_methods_bit_for_bit(knobs, name, others):
    model, twin = small_chain(), small_chain()
    reports = run(create("budget", model, **knobs), model, base(model), 12)
    expected = run(create(name, twin, **others), twin, base(twin), 12)
    assert all(torch.equal(p, q) for p, q in zip(model.state_dict().values(), twin.state_dict().values(), strict=True))
    assert [report.forward_units for report in reports] == [report.forward_units for report in expected]


# -- what a step costs where passes share nothing --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("knobs", "parts"),
    [({}, [12]), ({}, [5, 7]), ({"bn": "both"}, [12]), ({"samples": "micro", "samples.m": 3}, [12]), ({"samples": "sharpest"}, [12])],
)
def test_costs_are_those_of_the_passes_that_are_made(knobs, parts):
    gradient = create("budget", small_chain(), budget=0.1, **knobs)
    x, y = batch()
    inputs = (x, y) if len(parts) == 1 else (list(x.split(parts)), list(y.split(parts)))
    gradient.backward(*inputs, criterion)
    shares = [sum(FLOPS[stage:]) / sum(FLOPS) for stage in range(4)]
    reuse = len(parts) == 1 and knobs.get("samples") != "sharpest" and "bn" not in knobs
    forward = shares if reuse else [2.0 if knobs.get("samples") == "sharpest" else 1.0] * 4
    assert gradient.where.counted == pytest.approx([(f + 2 * share) / 3 for f, share in zip(forward, shares, strict=True)])


def test_the_pass_backward_of_sgd_ends_at_what_is_frozen():
    model = small_chain()
    model[0].requires_grad_(False)
    gradient = create("budget", model, budget=0.1)
    gradient.backward(*batch(), criterion)
    shares = [sum(FLOPS[stage:]) / sum(FLOPS) for stage in (1, 2, 3)]
    assert gradient.where.counted == pytest.approx([3 * share / (1 + 2 * shares[0]) for share in shares])


@pytest.mark.parametrize("when", [{"when": "every", "when.n": 3}, {"when": "gradient_norm", "when.lag": 1}, {"when": "gradient_norm"}])
def test_the_budget_holds_whatever_says_when(when):
    gradient = create("budget", model := small_chain(), budget=0.2, total_steps=60, **when)
    reports = run(gradient, model, base(model), 60)
    assert 0 < spent(reports) <= 0.2 + 1e-9
    assert any(report.ascended for report in reports)


def test_recordings_are_of_the_cuts():
    gradient = create("budget", model := small_chain(), budget=0.7)
    static = StaticStep(gradient)
    run(static, model, base(model), 40)
    assert 2 <= len(static._slots) <= 5


# -- costs by the clock --------------------------------------------------------------------------------------------------


def timing(model):
    x, y = batch()
    batches = itertools.repeat({"inputs": x, "targets": y, "criterion": criterion})
    return stages.Timing(model, base(model), batches, Costs(model, x), 2, lambda done: None)


def test_costs_by_the_clock_are_those_behind_each_stage_and_none_is_below_a_later_one(monkeypatch):
    taken = [1.0, 2.1, 1.5, 1.6, 0.9, 1.0]  # steps of SGD: its own, behind each stage, and that of the method that counts FLOPs
    found = []

    def timed(contestants, costs, batches, tick):
        made = compare(contestants, costs, batches, tick)
        found.extend(row.forward_units - 1 for row in made)
        return [row._replace(measured=value) for row, value in zip(made, taken, strict=True)]

    monkeypatch.setattr(stages, "compare", timed)
    priced = stages.price(timing(small_chain()))
    shares = [sum(FLOPS[stage:]) / sum(FLOPS) for stage in range(4)]
    assert [one.clock for one in priced] == pytest.approx([1.1, 0.6, 0.6, 0.001])
    assert [one.flops for one in priced] == pytest.approx(shares)
    assert found == pytest.approx([0.0, *shares, 0.0])  # what is timed is the ascent behind that stage


def test_budgets_are_asked_with_flops_and_with_these_costs(monkeypatch):
    seen = []

    def ratios(_, methods):
        seen.extend((method.where.budget, method.where.costs) for method in methods)
        return [method.where.budget + bool(method.where.costs) for method in methods]

    monkeypatch.setattr(stages.Timing, "ratios", ratios)
    asked = stages.ask(timing(small_chain()), [stages.Priced(stage, 0.0, cost) for stage, cost in enumerate(COSTS)])
    assert seen == [(budget, known) for budget in stages.BUDGETS for known in ([], COSTS)]
    assert asked == [(budget, budget, budget + 1) for budget in stages.BUDGETS]


def test_there_are_no_costs_of_stages_of_a_model_in_one_piece():
    with pytest.raises(UserError, match="this model is in one piece"):
        stages.price(timing(as_module(small_chain())))


# -- what is refused -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("knobs", "says"),
    [
        ({"budget": -0.1}, "budget=-0.1 is out of range: budget is at least 0"),
        ({"budget": "much"}, "budget is a number, not 'much'"),
        ({"costs": [1.0, 0.5]}, "costs= has 2 numbers, and the model 4 stages with layers, one cost each: .*measure cost"),
        ({"costs": [1.0, 0.5, 0.2, 0]}, "costs= is a list of numbers above 0"),
        ({"costs": [1.0, 0.5, 0.2, "x"]}, "costs= is a list of numbers above 0"),
        ({"costs": 0.5}, "costs is a list"),
        ({"k": 9}, "k=9 does not fit: the model has 4 layers"),
        ({"criterion": "low"}, "budget has no knob 'criterion'"),
    ],
)
def test_nonsense_is_refused_in_a_sentence(knobs, says):
    with pytest.raises(UserError, match=says):
        create("budget", small_chain(), **knobs)


def test_a_model_in_one_piece_is_refused_with_what_does_the_same():
    for model in (as_module(small_chain()), Chain(nn.Linear(2, 2))):
        with pytest.raises(UserError, match="this model is in one piece: use optimizer=sam_n n=10 for the same time"):
            create("budget", model, budget=0.1)


def test_the_costs_are_part_of_the_id():
    words = ["device=cpu", "optimizer=budget"]
    ids = [identity(compose([*words, *more])) for more in ([], ["budget=0.2"], ["costs=[1.0,0.5]"], ["costs=[1.0,0.6]"])]
    assert len(set(ids)) == 4
    with pytest.raises(UserError, match="is out of range: budget is at least 0"):
        compose([*words, "budget=-1"])
