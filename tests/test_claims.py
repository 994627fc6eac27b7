"""Claims: known samples give known verdicts, against scipy's and statsmodels' own tests; gaps, null effects, declarations, the report."""

import csv
import json
import math

import numpy as np
import pandas as pd
import pytest
from own_tables import ROOT, put
from scipy import stats
from statsmodels.formula.api import ols
from statsmodels.stats.power import TTestIndPower, TTestPower
from statsmodels.stats.weightstats import ttost_paired

from sam_repro.claims import dispatch
from sam_repro.config import compose, identity
from sam_repro.results.claims import commands, declare, evidence, judge, report
from sam_repro.results.claims.commands import judged
from sam_repro.results.claims.declare import load
from sam_repro.results.claims.judge import Estimate, Region, Ruling, combine, contrast, holm, mean, printed, rule, taus
from sam_repro.results.claims.report import COLUMNS, in_words
from sam_repro.results.select import Request
from sam_repro.schema import Diverged, UserError
from sam_repro.store import Run

DIFFERENCE = {"a": 1.0, "b": -1.0}


def region(text, ratio=False):
    return Region.read(text, ratio)


def draws(generator, methods, seeds, block=0.0):
    """Scores of methods over seeds, which share a part of their deviation."""
    shared = block * generator.standard_normal(seeds)
    return {m: {s: 90 + shared[s] + generator.standard_normal() for s in range(seeds)} for m in methods}


def bounds(found):
    half = stats.t.isf(0.025, found.df) * found.error
    return found.effect - half, found.effect + half


def test_a_number_is_inside_or_at_the_bound_however_small_the_bound_is():
    assert region("below 1e-12").has(5e-16)
    assert not region("below 1e-12").has(1e-12)
    assert region("between 1 and 2").has(2 * (1 + 1e-12))
    assert region("exactly 0").has(0.0)
    assert not region("above 0").has(0.0)
    assert not region("exactly 1.5").has(1.6)


# -- the estimates, beside those of scipy and statsmodels ------------------------------------------------------------------


def test_two_methods_over_the_same_seeds_are_the_paired_t_test():
    values = draws(np.random.default_rng(0), "ab", 5, block=2)
    expected = stats.ttest_rel(list(values["a"].values()), list(values["b"].values())).confidence_interval(0.95)
    assert bounds(contrast(values, DIFFERENCE)) == pytest.approx((expected.low, expected.high))


def test_all_methods_of_a_benchmark_give_the_residual_variance():
    values = draws(np.random.default_rng(1), "abcd", 3, block=1)
    del values["d"][1]  # a method that has not all seeds
    frame = pd.DataFrame([(m, s, y) for m, of in values.items() for s, y in of.items()], columns=["m", "s", "y"])
    expected = ols("y ~ C(m, Treatment('b')) + C(s)", frame).fit()
    found = contrast(values, DIFFERENCE)
    assert found.df == expected.df_resid == 5
    assert bounds(found) == pytest.approx(tuple(expected.conf_int().loc["C(m, Treatment('b'))[T.a]"]))


def test_methods_that_share_no_seed_are_not_paired():
    values = {"a": {0: 91.0, 1: 92.5, 2: 91.4}, "b": {3: 90.1, 4: 90.4, 5: 91.0}}
    expected = stats.ttest_ind(list(values["a"].values()), list(values["b"].values())).confidence_interval(0.95)
    assert bounds(contrast(values, DIFFERENCE)) == pytest.approx((expected.low, expected.high))


def test_pairing_helps_where_seeds_correlate():
    values = draws(np.random.default_rng(2), "ab", 6, block=5)
    apart = {"a": values["a"], "b": {seed + 6: y for seed, y in values["b"].items()}}
    assert contrast(values, DIFFERENCE).error < contrast(apart, DIFFERENCE).error / 2


def test_a_ratio_is_judged_on_logarithms():
    a, b = [2.1, 1.9, 2.3], [1.0, 1.1, 1.05]
    values = {"a": dict(enumerate(np.log(a))), "b": dict(enumerate(np.log(b)))}
    expected = stats.ttest_rel(np.log(a), np.log(b)).confidence_interval(0.95)
    ruling = rule(contrast(values, DIFFERENCE), region("between 1.2 and 3", True), ratio=True)
    assert ruling.effect == pytest.approx(stats.gmean(a) / stats.gmean(b))
    assert (ruling.low, ruling.high) == pytest.approx((math.exp(expected.low), math.exp(expected.high)))
    assert ruling.verdict == "supported"


def test_a_slope_is_the_coefficient_over_the_levels_with_seeds_as_blocks():
    generator, over = np.random.default_rng(3), {"a": 1.0, "b": 2.0, "c": 4.0}
    values = {m: {s: 3 * x + s + generator.standard_normal() for s in range(3)} for m, x in over.items()}
    frame = pd.DataFrame([(over[m], s, y) for m, of in values.items() for s, y in of.items()], columns=["x", "s", "y"])
    expected = ols("y ~ x + C(s)", frame).fit()
    found = contrast(values, dict.fromkeys(over, 1.0), over=over)
    assert found.df == expected.df_resid == 5
    assert bounds(found) == pytest.approx(tuple(expected.conf_int().loc["x"]))


def test_a_rank_is_kendalls_tau_of_each_seed():
    scores = {"a": {0: 1, 1: 1, 2: 2}, "b": {0: 2, 1: 3, 2: 1}, "c": {0: 3, 1: 2, 2: 3}}
    counts = {"a": dict.fromkeys(range(3), 1), "b": dict.fromkeys(range(3), 2), "c": dict.fromkeys(range(3), 3)}
    found = taus(scores, counts)  # 1, 1/3 and 1/3: of three pairs, none or one is out of order
    assert found.effect == pytest.approx(5 / 9)
    assert found.error == pytest.approx(np.std([1, 1 / 3, 1 / 3], ddof=1) / math.sqrt(3))


def test_equal_taus_are_exact_only_where_chance_hardly_makes_them():
    order = {"a": dict.fromkeys(range(3), 1), "b": dict.fromkeys(range(3), 2), "c": dict.fromkeys(range(3), 3)}
    assert rule(taus(order, order), region("above 0")).verdict == "supported"  # (1/6)^3
    two = {m: {s: y for s, y in of.items() if s < 2} for m, of in order.items()}
    assert rule(taus(two, two), region("above 0")).verdict == "undecided"  # (1/6)^2 is more than 2.5 %
    swapped = {"a": order["b"], "b": order["a"], "c": order["c"]}
    assert rule(taus(swapped, order), region("above 0")).verdict == "undecided"  # tau 1/3 thrice: (1/2)^3


def test_the_papers_numbers_are_judged_by_welch():
    found = printed([(92.81, 0.3), (91.96, 0.4)], [1, -1], 3, ratio=False)
    expected = stats.ttest_ind_from_stats(92.81, 0.3, 3, 91.96, 0.4, 3, equal_var=False, alternative="greater")
    assert rule(found, region("above 0")).p == pytest.approx(expected.pvalue)
    assert math.isnan(printed([(92.81, 0.3), (91.96, None)], [1, -1], 3, ratio=False).error)
    assert printed([(92.81, 0.3), None], [1, -1], 3, ratio=False) is None


# -- verdicts --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "holds", "verdict"),
    [
        ([1.0, 1.1, 0.9], "above 0", "supported"),
        ([1.0, 1.1, 0.9], "above 2", "contradicted"),
        ([1.0, 1.1, 0.9], "above 1", "undecided"),
        ([1.0, 1.1, 0.9], "below 2", "supported"),
        ([1.0, 1.1, 0.9], "below 0", "contradicted"),
        ([1.0, 1.1, 0.9], "within 2", "supported"),
        ([1.0, 1.1, 0.9], "within 1.1", "undecided"),
        ([1.0, 1.1, 0.9], "within 0.5", "contradicted"),
        ([1.0, 1.1, 0.9], "between 0.5 and 1.5", "supported"),
        ([1.0, 1.1, 0.9], "between 2 and 3", "contradicted"),
        ([1.0, 1.1, 0.9], "exactly 1", "undecided"),  # a number that deviates is none
        ([1.0, 1.1, 0.9], "exactly 2", "contradicted"),
        ([3.0], "exactly 3", "supported"),
        ([3.0], "above 3", "contradicted"),
        ([3.0, 3.0], "between 3 and 4", "supported"),
    ],
)
def test_known_samples_have_known_verdicts(values, holds, verdict):
    ruling = rule(mean(values, exact=True), region(holds))
    assert ruling.verdict == verdict
    if len({*values}) > 1:
        assert (ruling.low, ruling.high) == pytest.approx(stats.t.interval(0.95, 2, np.mean(values), stats.sem(values)))


def test_within_is_tost():
    values = draws(np.random.default_rng(4), "ab", 8, block=1)
    expected = ttost_paired(np.array([*values["a"].values()]), np.array([*values["b"].values()]), -1.5, 1.5)[0]
    assert rule(contrast(values, DIFFERENCE), region("within 1.5")).p == pytest.approx(expected)
    assert (region("within 0.25", True).low, region("within 0.25", True).high) == (0.8, 1.25)


def test_one_seed_decides_nothing_and_a_count_that_does_not_deviate_is_exact():
    assert rule(contrast({"a": {0: 91.0}, "b": {0: 90.0}}, DIFFERENCE), region("above 0")).verdict == "undecided"
    same = {"a": {0: 100.0, 1: 100.0}, "b": {0: 20.0, 1: 20.0}, "c": {0: 31.0, 1: 29.0}}
    assert rule(contrast(same, DIFFERENCE), region("exactly 80")).verdict == "supported"
    assert rule(contrast(same, DIFFERENCE, counted=False), region("exactly 80")).verdict == "undecided"  # a score: c's deviation
    assert contrast(same, {"a": 1, "c": -1}).df == 1  # b, which cannot deviate, says nothing of a and c


@pytest.mark.parametrize(("holds", "shift", "methods"), [("above 0", 0.0, "ab"), ("above 0", 0.0, "abcde"), ("within 2", 2.0, "abcd")])
def test_null_effects_are_rarely_called_supported(monkeypatch, holds, shift, methods):
    monkeypatch.setattr(judge, "needed", lambda *_: None)
    generator, wanted, found = np.random.default_rng(5), region(holds), []
    for _ in range(2000):
        values = draws(generator, methods, 3, block=1)
        values["a"] = {seed: y + shift for seed, y in values["a"].items()}
        found.append(rule(contrast(values, DIFFERENCE, counted=False), wanted).verdict)
    assert found.count("supported") <= 0.05 * 2000
    assert found.count("supported") + found.count("contradicted") > 0  # and not because nothing is ever decided


def test_the_seeds_that_would_decide():
    alone = mean([0.2, 1.4, -0.3, 0.9])
    ruling = rule(alone, region("above 0"))
    size = alone.effect / (alone.error * 2)
    assert ruling.needed == math.ceil(TTestPower().solve_power(size, alpha=0.025, power=0.8, alternative="larger"))
    apart = contrast({"a": {0: 1.0, 1: 2.0, 2: 1.5}, "b": {3: 0.8, 4: 1.9, 5: 0.9}}, DIFFERENCE)
    size = apart.effect / (apart.error / math.sqrt(2 / 3))
    expected = math.ceil(TTestIndPower().solve_power(size, alpha=0.025, power=0.8, alternative="larger"))
    assert rule(apart, region("above 0")).needed == expected
    assert rule(apart, region("above 1")).needed == rule(Estimate(2 - apart.effect, apart.error, 4, 3, (2, 2)), region("above 1")).needed
    assert rule(alone, region(f"above {alone.effect}")).needed is None  # no number of seeds decides what lies on the bound


def test_the_seeds_that_would_show_equivalence():
    generator, found = np.random.default_rng(6), Estimate(0.1, 1 / math.sqrt(5), 4, 5)
    n = rule(found, region("within 0.7")).needed
    shown = [rule(mean(list(0.1 + generator.standard_normal(n))), region("within 0.7")).verdict for _ in range(300)]
    assert 0.74 < shown.count("supported") / 300 < 0.87


def test_several_parts():
    good, bad = Ruling("supported", p=0.001, q=0.999), Ruling("contradicted", p=0.99, q=0.01)
    open_, none = Ruling("undecided", 0.3, 0.7), Ruling("not run")
    for given, all_, any_ in [
        ([good, good], "supported", "supported"), ([good, open_], "undecided", "supported"), ([good, bad], "contradicted", "supported"),
        ([good, none], "undecided", "supported"), ([bad, none], "contradicted", "undecided"), ([bad, bad], "contradicted", "contradicted"),
        ([bad, open_], "contradicted", "undecided"), ([none, none], "not run", "not run"),
    ]:  # fmt: skip
        assert combine(given, any_=False)[0].verdict == all_
        assert combine(given, any_=True)[0].verdict == any_
    weak = Ruling("supported", p=0.02, q=0.98)
    assert combine([weak, open_], any_=True)[0].verdict == "undecided"  # one of two by 0.02 is 0.04
    near, far = Ruling("supported", 0.01, 1, margin=2.0), Ruling("supported", 0.0, 1, margin=9.0)
    assert combine([far, near], any_=False)[1] == 1
    assert combine([near, far], any_=True)[1] == 1


def test_holm_by_hand():
    rulings = [Ruling("supported", p=0.02), Ruling("supported", p=0.001), Ruling("contradicted", q=0.012)]
    rulings += [Ruling("undecided", 0.4), Ruling("not run")]
    # Ordered 0.001 x 4, 0.012 x 3, 0.02 x 2, 0.4: the second is 0.036, and the third cannot be less.
    assert holm(rulings) == ["undecided", "supported", "undecided", "undecided", "not run"]
    assert holm([Ruling("contradicted", q=0.012), Ruling("supported", p=0.02)]) == ["contradicted", "supported"]


# -- declarations ------------------------------------------------------------------------------------------------------------

MINE = """seeds: 3
claims:
  mine-better:
    says: Layer-wise SAM is more accurate than SGD on my data.
    on: [dataset=digits epochs=1]
    difference: [optimizer=layerwise, optimizer=sgd]
    of: score_last
    holds: above 0
"""


def mine(tmp_path, content=MINE):
    path = tmp_path / "mine.yaml"
    path.write_text(content)
    return path


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("of: score_last", "of: score_lst", "'score_last'"),
        ("of: score_last", "of: optimizer", "no 'optimizer'"),
        ("holds: above 0", "hold: above 0", "'holds'"),
        ("holds: above 0", "holds: over 0", "above"),
        ("holds: above 0", "holds: above", "as 'above X'"),
        ("holds: above 0", "holds: between 2 and 1", "between X and Y"),
        ("holds: above 0", "holds: within -1", "above 0"),
        ("difference:", "ratio:", "above 0"),  # above 0 every ratio is
        ("    of: score_last\n", "", "'of' is missing"),
        ("[dataset=digits epochs=1]", "[kdd24/cifar11]", "'kdd24/cifar10'"),
        ("[optimizer=layerwise, optimizer=sgd]", "[optimizer=sgd]", "2 different runs"),
        ("[optimizer=layerwise, optimizer=sgd]", "[optimizer=sgd, optimizer=sgd]", "2 different runs"),
        ("[optimizer=layerwise, optimizer=sgd]", "[optimizer=sam seed=1, optimizer=sgd]", "seed="),
        ("    of: score_last\n", "    of: score_last\n    value: optimizer=sgd\n", "exactly one"),
        ("    of: score_last\n", "    of: score_last\n    over: [1, 2]\n", "slope"),
        ("difference: [optimizer=layerwise, optimizer=sgd]", "check: nothing", "no 'nothing'"),
        ("seeds: 3", "seeds: none", "whole number"),
        ("    of: score_last\n", "    of: score_last\n    paper: {dataset=digits epochs=1: [1 ± 2, 3 ± 4]}\n", "paper_n"),
        ("    of: score_last\n", "    of: score_last\n    of: train_loss\n", "stands twice"),
    ],
)
def test_a_declaration_that_does_not_fit_is_refused_by_file_and_claim(tmp_path, old, new, said):
    assert old in MINE
    with pytest.raises(UserError, match=r"mine\.yaml") as error:
        load(mine(tmp_path, MINE.replace(old, new, 1)))
    assert said in str(error.value)
    assert "mine-better" in str(error.value) or old == "seeds: 3" or "twice" in said


def test_the_examples_of_the_documentation_are_claims(tmp_path):
    blocks = (ROOT / "docs" / "claims.md").read_text().split("```")[1::2]
    examples = [block.removeprefix("yaml\n") for block in blocks if block.startswith("yaml")]
    assert [len(load(mine(tmp_path, example)).claims) for example in examples] == [2, 2]


# -- runs --------------------------------------------------------------------------------------------------------------------


def verdict(tmp_path, content=MINE, **request):
    asked = Request(runs_dir=str(tmp_path / "runs"), results_dir=str(tmp_path / "results"), **request)
    return judged(load(mine(tmp_path, content)), asked).verdicts[0]


def runs(tmp_path, better=(92.0, 93.0, 92.4), worse=(90.0, 90.5, 90.2), *more):
    for seed, score in enumerate(better):
        put(tmp_path / "runs", "optimizer=layerwise", *more, score=score, seed=seed)
    for seed, score in enumerate(worse):
        put(tmp_path / "runs", "optimizer=sgd", *more, score=score, seed=seed)


def test_a_users_own_claim_on_their_own_data(tmp_path):
    assert verdict(tmp_path).ours.verdict == "not run"
    runs(tmp_path, better=(92.0, 93.0, 92.4, 70.0))  # of a seed that is not declared
    found = verdict(tmp_path)
    expected = stats.ttest_rel([92, 93, 92.4], [90, 90.5, 90.2]).confidence_interval(0.95)
    assert (found.ours.verdict, found.holm, found.ours.n, len(found.run_ids)) == ("supported", "supported", 3, 6)
    assert (found.ours.low, found.ours.high) == pytest.approx((expected.low, expected.high))
    assert found.papers.verdict == "not run"


def test_a_gap_among_the_seeds_is_at_most_undecided(tmp_path):
    runs(tmp_path, better=(92.0, 93.0, 92.4, 92.2), worse=(90.0, 90.5, 90.2))
    found = verdict(tmp_path, MINE.replace("seeds: 3", "seeds: 4"))
    assert (found.ours.verdict, found.holm, found.ours.n) == ("undecided", "undecided", 3)
    assert found.ours.low > 0
    assert "optimizer=sgd: seed 3 is missing" in found.found[0].why


def test_a_missing_half_is_not_run_and_one_that_diverged_is_undecided(tmp_path):
    runs(tmp_path, worse=())
    assert verdict(tmp_path).ours.verdict == "not run"
    for seed in range(3):
        config = compose(["dataset=digits", "epochs=1", "optimizer=sgd"]) | {"seed": seed, "device": "cpu"}
        run = Run(tmp_path / "runs", identity(config))
        with pytest.raises(Diverged), run.held({**config, "rerun": False}, "python -m sam_repro"):
            raise Diverged("It diverged.", 1, ["loss"])
    found = verdict(tmp_path)
    assert (found.ours.verdict, found.found[0].why) == ("undecided", "optimizer=sgd: seeds 0, 1, 2 diverged")


def test_a_run_without_the_number_is_a_gap(tmp_path):
    runs(tmp_path)
    assert verdict(tmp_path, MINE.replace("of: score_last", "of: lambda_max")).ours.verdict == "not run"


def test_other_methods_of_the_claims_narrow_the_interval(tmp_path):
    runs(tmp_path)
    for seed, score in enumerate((91.0, 91.7, 91.2)):
        put(tmp_path / "runs", "optimizer=sam", score=score, seed=seed)
    other = "  mine-other: {says: S, on: [dataset=digits epochs=1], value: optimizer=sam, of: score_last, holds: above 0}\n"
    alone, pooled = verdict(tmp_path), verdict(tmp_path, MINE + other)
    assert pooled.ours.effect == pytest.approx(alone.ours.effect)
    assert pooled.ours.high - pooled.ours.low < (alone.ours.high - alone.ours.low) / 1.3  # four degrees of freedom, not two
    again = other.replace("mine-other", "mine-again").replace("optimizer=sam", "optimizer=sgd lr=0.1").replace("value", "seeds: 2, value")
    assert verdict(tmp_path, MINE + again).ours == alone.ours  # SGD in other words is no other method
    assert verdict(tmp_path, MINE + again.replace("lr=0.1", "lr=0.2")).ours == alone.ours  # which has no runs


def test_a_slope_a_ratio_and_a_rank_of_runs(tmp_path):
    for k, (ascents, score) in {1: (10, 90.0), 2: (20, 91.0), 4: (40, 92.5)}.items():
        for seed in range(3):
            put(tmp_path / "runs", "optimizer=layerwise", f"k={k}", ascents=ascents, score=score + seed / 10, seed=seed)
    methods = "[optimizer=layerwise k=1, optimizer=layerwise k=2, optimizer=layerwise k=4]"
    start = MINE[: MINE.index("    difference")]
    found = verdict(tmp_path, f"{start}    slope: {methods}\n    over: [1, 2, 4]\n    of: sampling_number\n    holds: exactly 10\n")
    assert (found.ours.verdict, found.ours.effect) == ("supported", 10)
    found = verdict(
        tmp_path, f"{start}    slope: {methods}\n    over: [1, 2, 4]\n    log: true\n    of: sampling_number\n    holds: exactly 15\n"
    )
    assert found.ours.verdict == "supported"
    found = verdict(tmp_path, f"{start}    rank: {methods}\n    with: sampling_number\n    of: score_last\n    holds: above 0.5\n")
    assert (found.ours.verdict, found.ours.effect) == ("supported", 1)
    pair = "[optimizer=layerwise k=4, optimizer=layerwise k=1]"
    found = verdict(tmp_path, f"{start}    ratio: {pair}\n    of: sampling_number\n    holds: between 3.9 and 4.1\n")
    assert (found.ours.verdict, found.ours.effect) == ("supported", pytest.approx(4))


def test_one_benchmark_does_not_stand_for_two(tmp_path):
    runs(tmp_path)
    found = verdict(tmp_path, MINE.replace("[dataset=digits epochs=1]", "[dataset=digits epochs=1, epochs=1 dataset=digits]"))
    assert (found.ours.verdict, found.partly, found.found[1].why) == ("undecided", True, "these are the runs of dataset=digits epochs=1")


def test_a_claim_of_which_a_part_has_runs_says_how_many_have_none(tmp_path):
    runs(tmp_path)
    path = mine(tmp_path, MINE.replace("[dataset=digits epochs=1]", "[dataset=digits epochs=1, dataset=digits epochs=2]"))
    dispatch(["report", f"file={path}", f"runs_dir={tmp_path / 'runs'}", f"results_dir={tmp_path / 'results'}"])
    page = (tmp_path / "results" / "mine.md").read_text()
    assert "| mine | 0 | 0 | 1 (1 partly run) | 0 | 1 |" in page
    assert "| **undecided**, 1 of 2 parts not run |" in page
    (line,) = csv.DictReader((tmp_path / "results" / "mine.csv").open())
    assert (line["verdict"], line["parts_not_run"]) == ("undecided", "1")


def test_a_reduced_scale_is_said_and_the_papers_comes_first(tmp_path):
    assert in_words("small") == "at a tenth of the data"
    runs(tmp_path, (92.0, 93.0, 92.4), (90.0, 90.5, 90.2), "scale=small")
    asked = ["report", f"file={mine(tmp_path)}", f"runs_dir={tmp_path / 'runs'}", f"results_dir={tmp_path / 'results'}"]
    dispatch(asked)
    assert "**supported**, at a tenth of the data" in (tmp_path / "results" / "mine.md").read_text()
    put(tmp_path / "runs", "optimizer=sgd", seed=0)
    found = verdict(tmp_path)
    assert (found.ours.verdict, found.scales) == ("not run", ["paper"])
    assert verdict(tmp_path, scale="small").ours.verdict == "supported"


def test_what_stands_in_may_be_of_one_benchmark_alone(tmp_path):
    both = MINE.replace("[dataset=digits epochs=1]", "[dataset=digits epochs=1, dataset=digits epochs=2]")
    scales = "scales: {small: {dataset=digits epochs=2: {run: model=wrn16_2, note: N}}}\n"
    for epochs, *more in (("epochs=1",), ("epochs=2", "model=wrn16_2")):
        runs(tmp_path, (92.0, 93.0, 92.4), (90.0, 90.5, 90.2), epochs, "scale=small", *more)
    found = verdict(tmp_path, scales + both, scale="small")
    assert (found.ours.verdict, [one.note for one in found.found]) == ("supported", ["", "N"])
    assert verdict(tmp_path, scales + both + "    scales: {}\n", scale="small").lacking == 1
    with pytest.raises(UserError, match="scales: there is no 'kdd24/nope'"):
        load(mine(tmp_path, scales.replace("dataset=digits epochs=2", "kdd24/nope") + both))


def test_the_report_is_byte_stable_and_keeps_the_runs(tmp_path):
    runs(tmp_path)
    paper = "    paper: {dataset=digits epochs=1: [92.8 ± 0.3, 91.9 ± 0.3]}\n    paper_n: 3\n"
    asked = ["report", f"file={mine(tmp_path, MINE + paper)}", f"runs_dir={tmp_path / 'runs'}", f"results_dir={tmp_path / 'results'}"]
    dispatch(asked)
    page, table = (tmp_path / "results" / f"mine.{kind}" for kind in ("md", "csv"))
    before = page.read_bytes(), table.read_bytes()
    (row,) = csv.DictReader(table.read_text().splitlines())
    assert tuple(row) == COLUMNS
    kept = {path.name for path in (tmp_path / "results" / "runs").iterdir()}
    assert kept == {*row["run_ids"].split(";")}
    assert [row[key] for key in ("paper", "claim", "verdict", "effect", "n", "paper_effect", "paper_verdict", "scale", "holm")] == [
        "mine", "mine-better", "supported", "2.23333", "3", "0.9", "supported", "paper", "supported"
    ]  # fmt: skip
    assert [float(row[key]) for key in ("low", "high")] == pytest.approx([1.60, 2.86], abs=0.02)
    (tmp_path / "runs").rename(tmp_path / "elsewhere")  # now from the archive
    dispatch(asked)
    assert (page.read_bytes(), table.read_bytes()) == before


def test_a_check_is_computed_stored_and_judged(tmp_path, monkeypatch):
    def fake(paper, name):
        return {"three": lambda: [3]} if name == "CHECKS" else {}

    for place in (declare, evidence, commands):
        monkeypatch.setattr(place, "module", fake)
    path = mine(tmp_path, "claims: {mine-three: {says: It is three., check: three, holds: exactly 3}}")
    places = [f"runs_dir={tmp_path / 'runs'}", f"results_dir={tmp_path / 'results'}", f"file={path}"]
    content = path.read_text()
    assert verdict(tmp_path, content).ours.verdict == "not run"
    dispatch(["run", "mine-three", *places])
    kept = json.loads((tmp_path / "results" / "measured" / "claims" / "mine-three.json").read_text())
    assert kept["checks"] == {"three": [3.0]}
    assert {"date", "commit", "hardware"} <= kept.keys()
    assert verdict(tmp_path, content).ours.verdict == "supported"


@pytest.mark.long
def test_run_trains_what_is_missing(tmp_path, capsys):
    runs(tmp_path, better=(92.0, 93.0), worse=(90.0,))
    path = mine(tmp_path, MINE.replace("seeds: 3", "seeds: 2"))
    places = [f"file={path}", f"runs_dir={tmp_path / 'runs'}", f"results_dir={tmp_path / 'results'}", "device=cpu"]
    dispatch(["run", "mine-better", *places])
    found = verdict(tmp_path, path.read_text())
    assert (found.ours.n, len(found.run_ids), found.found[0].why) == (2, 4, "")
    dispatch(["show", "mine-better", *places])
    assert "seed 1  sgd" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["shwo"], "'show'"), (["show", "mine-bettr"], "'mine-better'"), (["show"], "usage"), (["list", "scal=small"], "'scale'"),
        (["run", "x", "device=gpu"], "not .gpu."),
    ],
)  # fmt: skip
def test_the_command_says_what_it_does_not_know(tmp_path, words, said):
    with pytest.raises(UserError, match=said):
        dispatch([*words, f"file={mine(tmp_path)}", f"results_dir={tmp_path}"])


@pytest.mark.long
def test_the_committed_verdicts_are_what_the_committed_runs_and_checks_come_to(tmp_path):
    asked = Request(runs_dir=str(tmp_path / "none"), results_dir=str(ROOT / "results"))
    rendered = [(one.claims, one.verdicts) for one in (judged(paper, asked) for paper in declare.load_all())]
    assert [claims.paper for claims, _ in rendered] == ["kdd24", "looksam", "msam", "vsam"]
    for render, kind in ((report.as_csv, "csv"), (report.as_markdown, "md")):
        assert render(rendered) == (ROOT / "results" / f"claims.{kind}").read_text()
