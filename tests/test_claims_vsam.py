import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import yaml

from sam_repro.config import compose
from sam_repro.results.claims import vsam_checks
from sam_repro.results.claims.vsam import CHECKS, METRICS
from sam_repro.results.declare import EXPERIMENTS, Printed, load

FILE = yaml.load(Path(EXPERIMENTS, "vsam/claims.yaml").read_text(), Loader=yaml.BaseLoader)
CLAIMS = FILE["claims"]
PARTS = [(name, {**claim, **part}) for name, claim in CLAIMS.items() for part in claim.get("parts", [{}])]
EFFECTS = ("difference", "ratio", "value", "slope", "rank", "check")


def words_of(part):
    runs = part.get("difference") or part.get("ratio") or part.get("slope") or part.get("rank") or part.get("value") or []
    return [runs] if isinstance(runs, str) else runs


def of(name, **parts):
    """The metric on hand-made frames, as a dictionary."""
    return METRICS[name](SimpleNamespace(**parts)).to_dict()


def steps(run, epochs, each, **columns):
    """``each`` recorded steps an epoch; a column is a function of epoch and step within it."""
    places = [(epoch, step) for epoch in range(1, epochs + 1) for step in range(each)]
    rows = {name: [value(epoch, step) for epoch, step in places] for name, value in columns.items()}
    return pd.DataFrame({"run": run, "step": range(len(places)), "epoch": [epoch for epoch, _ in places], **rows})


def benchmark(runs):
    """The frame of runs, of one benchmark where a run says nothing else."""
    usual = {
        "dataset": "cifar10", "model": "resnet18", "epochs": 9, "scale": "paper", "device": "cuda", "seed": 0, "train_samples": 50000,
        "config.batch_size": 128, "config.lr": 0.05, "config.rho": 0.05, "config.k": math.nan, "config.gamma": math.nan,
    }  # fmt: skip
    return pd.DataFrame([{**usual, **run} for run in runs]).set_index("run")


# -- the declaration -----------------------------------------------------------------------------------------------------


def test_every_part_has_one_effect_a_region_and_a_metric_that_exists():
    columns = {"score_last", "lambda_max", "sampling_number", "sampling_rate"}
    for name, part in PARTS:
        assert len([effect for effect in EFFECTS if effect in part]) == 1, name
        assert part["holds"].split()[0] in ("above", "below", "within", "between", "exactly"), name
        if "check" in part:
            assert part["check"] in CHECKS, name
            assert not {"on", "of"} & part.keys(), name
        else:
            assert part["of"] in columns | METRICS.keys(), name
            assert part["on"], name


def test_every_metric_and_check_is_somebodys():
    assert {part["of"] for _, part in PARTS if "of" in part} >= METRICS.keys()
    assert {part["check"] for _, part in PARTS if "check" in part} == CHECKS.keys()


@pytest.mark.long
@pytest.mark.parametrize("scale", ["paper", "small"])
def test_every_run_can_be_configured(scale):
    for experiment, words, stand_in in sorted(set(runs_at(scale))):
        config = compose((f"experiment={experiment}", f"scale={scale}", *words.split(), *stand_in.split()))
        assert config["optimizer"]["name"] == words.split()[0].partition("=")[2]
        assert (config["model"]["name"] == "resnet20") == bool(stand_in)


def runs_at(scale):
    for _, part in PARTS:
        stand_ins = part.get("scales", FILE["scales"])
        for on in part.get("on", ()):
            yield from ((on, words, stand_ins[scale]["run"] if scale in stand_ins else "") for words in words_of(part))


def test_the_papers_numbers_are_those_of_its_tables():
    """Of every difference and ratio that has some: the cells of Tables 1 to 5 for these runs."""
    metrics = {"score_last": "accuracy", "sampling_number": "sampling_number", "speed": "images_per_second"}
    quoted = {"AE-SAM³": "aesam", "MESA²": "mesa"}
    printed = {}
    for table in (load(EXPERIMENTS, f"vsam/table{number}") for number in range(1, 6)):
        by_column = {cell.column: next(w for w in cell.words if w.startswith("experiment=")) for cell in table.cells if cell.words}
        for cell in table.cells:
            row = cell.row.rpartition(" / ")[2]
            method = (f"optimizer={quoted[row]}",) if row in quoted else tuple(w for w in cell.words if "experiment=" not in w)
            block = cell.row.partition(" / ")[0]
            experiment = by_column[cell.column]
            if table.name == "vsam/table3":
                net = {"ResNet": "resnet18", "WideResNet": "wrn28_10", "PyramidNet": "pyramidnet110"}[block]
                experiment = f"experiment=vsam/{'cifar100' if 'CIFAR-100' in cell.column else 'cifar10'}_{net}"
            printed.setdefault((experiment, " ".join(method), cell.metric), []).append(cell.paper)
    compared = 0
    for name, part in PARTS:
        for benchmark, numbers in part.get("paper", {}).items():
            if not ("difference" in part or "ratio" in part):
                continue
            assert benchmark in part["on"], name
            for words, number in zip(words_of(part), numbers, strict=True):
                cells = printed[f"experiment={benchmark}", words, metrics[part["of"]]]
                if "optimizer=mesa" in words_of(part) and part["of"] == "speed":  # of other hardware: percent of the SAM beside it
                    assert number in [cell.ratio for cell in cells], (name, words)
                else:
                    assert Printed.read(number).value in [cell.value for cell in cells], (name, words)
                    assert Printed.read(number).std in [cell.std for cell in cells], (name, words)
                compared += 1
    assert compared > 300


# -- numbers of runs -----------------------------------------------------------------------------------------------------


def test_speed_is_what_a_step_costs_the_other_way_round():
    assert of("speed", runs=pd.DataFrame({"step_cost": [2.0, 1.0]}, index=["sam", "sgd"])) == {"sam": 0.5, "sgd": 1.0}


def test_sharpness_counts_over_the_whole_training_set_alone():
    rows = [
        ("a", "sam_sharpness", 0.3),
        ("a", "samples", 50),
        ("a", "of", 50),
        ("b", "sam_sharpness", 0.1),
        ("b", "samples", 10),
        ("b", "of", 50),
    ]
    found = pd.DataFrame([(run, "sharpness", name, value) for run, name, value in rows], columns=["run", "measure", "name", "value"])
    assert of("sam_sharpness", measurements=found) == {"a": 0.3}
    assert of("sam_sharpness", measurements=found.iloc[:0]) == {}


def test_trend_of_the_psf():
    rising = steps("up", 4, 2, psf_norm=lambda epoch, step: epoch + step)
    falling = steps("down", 4, 2, psf_norm=lambda epoch, step: -epoch)
    assert of("psf_trend", steps=pd.concat([rising, falling])) == {"up": 1.0, "down": -1.0}
    assert of("psf_trend", steps=pd.DataFrame({"run": ["a"], "step": [0]})) == {}  # nobody recorded any


def test_trend_of_its_amplitude():
    growing = steps("a", 3, 50, psf_norm=lambda epoch, step: 10 + epoch * (-1) ** step)
    assert of("psf_amplitude_trend", steps=growing) == {"a": 1.0}
    level = steps("a", 3, 50, psf_norm=lambda epoch, step: 10 * epoch + (3 - epoch) * (-1) ** step)  # it rises, and calms down
    assert of("psf_amplitude_trend", steps=level) == {"a": -1.0}


def test_early_variation():
    def norm(epoch, step):  # 30 % about its mean, then 10 %; wilder again after epoch 50, which does not count
        return epoch * (1 + (0.3 if epoch <= 5 else 0.1 if epoch <= 50 else 0.9) * (-1) ** step)

    assert of("early_variation", steps=steps("a", 60, 4, psf_norm=norm))["a"] == pytest.approx(3)


def test_courses_are_compared_with_resnet18s_of_the_same_seed():
    runs = benchmark([
        {"run": "resnet", "optimizer": "sam"}, {"run": "other seed", "optimizer": "sam", "seed": 1},
        {"run": "alike", "optimizer": "sam", "model": "wrn28_10"}, {"run": "unlike", "optimizer": "sam", "model": "pyramidnet110"},
        {"run": "alone", "optimizer": "sam", "model": "wrn28_10", "seed": 7},
    ])  # fmt: skip
    up, down = (lambda epoch, step: epoch), (lambda epoch, step: -epoch)
    courses = {"resnet": (up, down), "other seed": (down, up), "alike": (up, down), "unlike": (up, up), "alone": (up, down)}
    recorded = pd.concat([steps(run, 9, 2, psf_norm=psf, plain_norm=plain) for run, (psf, plain) in courses.items()])
    found = of("course_alike", runs=runs, steps=recorded)
    assert (found["alike"], found["unlike"]) == (1.0, -1.0)  # one norm alike is not enough
    assert math.isnan(found["alone"])
    assert math.isnan(found["resnet"])


def test_last_layers_by_depth_within_epochs():
    rng = np.random.default_rng(0)
    norms = np.exp(rng.normal(size=(300, 7))) * [100, 100, 1, 1, 1, 1, 1]  # two layers make nearly all of the norm
    frame = pd.DataFrame(norms, columns=[f"grad_norm.layer{place}" for place in range(7)])
    frame = frame.assign(run="a", step=range(300), epoch=np.repeat(range(3), 100), psf_norm=1.0, grad_norm=np.linalg.norm(norms, axis=1))
    first, last = ([{"run": "a", "layer": f"layer{place}", "depth": abs(turn - place)} for place in range(7)] for turn in (0, 6))
    assert of("last_layers_follow", steps=frame, layers=pd.DataFrame(last))["a"] > 0.99
    apart = of("last_layers_follow", steps=frame, layers=pd.DataFrame(first))["a"]
    assert abs(apart) < 0.2
    drift = frame.filter(like="grad_norm").mul(10.0**frame.epoch, axis=0)  # which they have in common
    assert of("last_layers_follow", steps=frame.assign(**drift), layers=pd.DataFrame(first))["a"] == pytest.approx(apart)


def test_rate_jumps_are_those_between_windows():
    runs = pd.DataFrame({"config.optimizer.when.N": [10, 10]}, index=["a", "still"])
    rates = {"a": [0.1] * 10 + [0.2] * 10 + [0.1] * 10, "still": [0.1] * 30}
    recorded = pd.concat([pd.DataFrame({"run": run, "step": range(30), "sampling_rate": rate}) for run, rate in rates.items()])
    found = of("rate_jumps", runs=runs, steps=recorded)
    assert found["a"] == pytest.approx(math.log(2))
    assert math.isnan(found["still"])


def test_who_is_both_faster_and_more_accurate():
    def run(name, method, cost, score, **more):
        return {"run": name, "optimizer": method, "step_cost": cost, "score_last": score, **more}

    nobody = [
        run("vsam", "vsam", 1.4, 80.0), run("sgd", "sgd", 1.0, 79.0, **{"config.rho": math.nan}), run("sam", "sam", 2.0, 81.0),
        run("looksam", "looksam", 1.2, 79.0, **{"config.k": 5}), run("esam", "esam", 1.5, 79.0, **{"config.gamma": 0.5}),
        run("saf", "saf", 1.0, 79.0, **{"config.rho": math.nan}),
    ]  # fmt: skip
    assert of("faster_and_more_accurate", runs=benchmark(nobody)) == {"vsam": 0.0}
    two = [
        *nobody[:-1],
        run("saf", "saf", 1.0, 81.0, **{"config.rho": math.nan}),
        run("looksam 2", "looksam", 1.2, 81.0, **{"config.k": 5}),
    ]
    assert of("faster_and_more_accurate", runs=benchmark(two)) == {"vsam": 2.0}
    others = [
        *nobody,
        run("x", "looksam", 1.2, 99.0, **{"config.k": 9}),
        run("y", "sgd", 1.0, 99.0, seed=1),
        run("z", "sam", 1.0, 99.0, model="wrn28_10"),
    ]
    assert of("faster_and_more_accurate", runs=benchmark(others)) == {"vsam": 0.0}
    assert math.isnan(of("faster_and_more_accurate", runs=benchmark(nobody[:-1]))["vsam"])  # not of all methods there is a run


# -- checks --------------------------------------------------------------------------------------------------------------


def test_the_remainder_is_of_second_order_for_sams_perturbation_alone():
    assert all(1.9 < order < 2.1 for order in vsam_checks.remainder_order())
    assert vsam_checks.remainder_order("asam")[0] == pytest.approx(1, abs=0.1)  # which is another direction: a remainder of first order


def test_lemma1_needs_definite_hessians():
    assert 0.9 < vsam_checks.lemma1_ratio()[0] < 1
    assert vsam_checks.lemma1_ratio(definite=False)[0] > 1


@pytest.mark.long
def test_the_gradient_grows_no_faster_than_lemma2_allows(monkeypatch):
    assert np.mean(vsam_checks.growth()) < 0.176
    monkeypatch.setattr("sam_repro.optim.between.DecayedPSF.reuse", growing)
    assert np.mean(vsam_checks.growth()) > 0.176


def growing(between, gradients, scale):
    between.age += 1
    for g in gradients:
        g.mul_(1.1**between.age)


def test_no_more_samples_than_the_cap():
    assert vsam_checks.most_samples() == [40.0]
    assert vsam_checks.most_samples(cap=1.0) == [50.0]


def test_gradients_of_a_step():
    assert [vsam_checks.gradients_per_step(method)[0] for method in ("esam", "sgd", "sam_n")] == [2.0, 1.0, pytest.approx(1.2)]


def test_aesam_asks_at_every_step():
    assert vsam_checks.evaluations_per_step() == [1.0]
    assert vsam_checks.evaluations_per_step("vsam") == [0.0]


def test_what_saf_and_mesa_hold():
    assert vsam_checks.held() == [1.0, 1.0]
    assert vsam_checks.held(samples=128)[0] == 0.5
    assert vsam_checks.held(delay=2)[0] == pytest.approx(2 / 3)


@pytest.mark.long
@pytest.mark.parametrize("check", ["weight_perturbation_speed", "reuse_speed"])
def test_timed_checks_have_a_ratio_for_each_round(check):
    found = CHECKS[check]()
    assert len(found) > 5
    assert all(0.3 < speed < 3 for speed in found)
