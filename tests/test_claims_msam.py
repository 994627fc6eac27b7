"""The claims of mSAM and LookSAM: declarations, the numbers of runs that they need, and their checks."""

import math
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from sam_repro.config import compose
from sam_repro.results import recipe
from sam_repro.results.claims import looksam, looksam_checks, msam, msam_checks, msam_edge, msam_theory, toy
from sam_repro.results.claims.declare import load as load_claims
from sam_repro.results.declare import EXPERIMENTS, load

MODULES = {"looksam": looksam, "msam": msam}
CLAIMS = {paper: load_claims(EXPERIMENTS / paper / "claims.yaml", paper).claims for paper in MODULES}
PARTS = [(paper, claim.id, part) for paper, claims in CLAIMS.items() for claim in claims for part in claim.parts]

# -- the declarations ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("paper", MODULES)
def test_every_metric_and_check_is_somebodys(paper):
    parts = [part for of, _, part in PARTS if of == paper]
    assert {part.check for part in parts if part.check} == MODULES[paper].CHECKS.keys()
    assert {part.of for part in parts} >= MODULES[paper].METRICS.keys()


@pytest.mark.long
@pytest.mark.parametrize("scale", ["paper", "small"])
def test_every_run_can_be_configured(scale):
    wanted = set()
    for part in (part for _, _, part in PARTS if part.runs):
        for benchmark in part.on:
            instead = part.substitutes[benchmark].get(scale)
            wanted |= {(benchmark, run, instead.words if instead else ()) for run in part.runs}
    for benchmark, run, stand_in in sorted(wanted):
        config = compose((f"experiment={benchmark}", f"scale={scale}", *run.split(), *stand_in))
        assert config["optimizer"]["name"] == run.split()[0].partition("=")[2]
        assert (config["model"]["name"] == "resnet20") == (bool(stand_in) or benchmark == "kdd24/cifar10")


def test_a_stand_in_has_the_micro_batches_of_the_paper():
    """Batches of 512 and m = 32 at the reduced scale, too."""
    (stand_in,) = {one["small"].words for _, name, part in PARTS if name == "msam-m-up-to-32" for one in part.substitutes.values()}
    for scale, more in (("paper", ()), ("small", stand_in)):
        config = compose(("experiment=msam/cifar100_resnet50", f"scale={scale}", "optimizer=msam", *more))
        assert config["batch_size"] / config["optimizer"]["samples"]["m"] == 16


def test_the_papers_numbers_are_those_of_its_tables():
    metrics = {"accuracy": "score_last", "matthews": "score_last", "seconds": "step_cost", "hours": "step_cost"}
    printed = {}
    for table in (load(EXPERIMENTS, f"msam/{name}") for name in ("table2", "table3", "tableB1", "tableB2")):
        for cell in table.cells:
            words = dict(word.split("=", 1) for word in cell.words)
            printed[words["experiment"], words["optimizer"], metrics[cell.metric]] = (float(cell.paper.value), float(cell.paper.std))
    compared = 0
    for paper, name, part in PARTS:
        for benchmark, numbers in part.paper.items():
            assert (paper, part.paper_n) == ("msam", 5), name
            for run, number in zip(part.runs, numbers, strict=True):
                if number:
                    of = "step_cost" if part.of == "seconds" else part.of
                    assert run in ("optimizer=sgd", "optimizer=sam", "optimizer=msam"), name
                    assert printed[benchmark, run.partition("=")[2], of] == number, name
                    compared += 1
    assert compared > 180


def test_what_the_paper_prints_is_complete():
    """Of every claim on accuracy of Tables 2 and 3 as they are."""
    for _, name, part in PARTS:
        if part.effect == "difference" and {*part.runs} <= {"optimizer=sgd", "optimizer=sam", "optimizer=msam"} and name.startswith("msam"):
            assert part.paper.keys() == {*part.on}, name


# -- numbers of runs -----------------------------------------------------------------------------------------------------


def frame(rows):
    """The frame of runs, alike where a row says nothing else."""
    usual = {
        "scale": "paper", "device": "cuda", "precision": "fp32", "seed": 0, "epochs": 200, "train_samples": 50000, "config.batch_size": 512,
        "dataset": "cifar10", "model": "resnet50", "config.lr": 0.5, "config.optimizer.where.rho": 0.2, "score_last": 90.0,
        "optimizer": "sam", "config.optimizer.when.name": "always", "config.optimizer.samples.m": math.nan,
    }  # fmt: skip
    return pd.DataFrame([{**usual, **row} for row in rows]).set_index("run")


def pair(name, gain, **more):
    """A run of SAM, and one of mSAM that gains so much."""
    m = {"optimizer": "msam", "config.optimizer.samples.m": 32.0, "score_last": 90.0 + gain}
    return [{"run": f"sam {name}", **more}, {"run": name, **m, **more}]


def of(name, runs):
    return msam.METRICS[name](SimpleNamespace(runs=runs)).to_dict()


def test_log_of_the_largest_eigenvalue():
    assert of("log_lambda_max", pd.DataFrame({"lambda_max": [math.e]}, index=["a"])) == {"a": pytest.approx(1)}


def test_gains_are_compared_over_data_and_networks():
    rows = [
        *pair("10 rn", 0.5),
        *pair("100 rn", 2.0, dataset="cifar100"),
        *pair("10 wrn", 0.25, model="wrn28_10", **{"config.lr": 0.75}),
        *pair("100 wrn", 1.0, dataset="cifar100", model="wrn28_10", **{"config.lr": 0.75}),
        *pair("other seed", 9.0, seed=1),
        *pair("a part of it", 9.0, dataset="cifar100", seed=1, **{"config.optimizer.when.name": "window"}),
        *pair("other m", 9.0, dataset="cifar100", seed=1)[1:],
    ]
    rows[-1]["config.optimizer.samples.m"] = 16.0
    assert of("gain_over_cifar10", frame(rows)) == {"100 rn": 1.5, "100 wrn": 0.75}
    assert of("gain_over_resnet50", frame(rows)) == {"10 wrn": -0.25, "100 wrn": -1.0}


def test_deviation_beside_the_large_tasks():
    scores = {"glue_cola": [60, 62, 67], "glue_sst2": [95, 96, 98], "glue_qqp": [92, 92, 93]}
    rows = [
        {"run": f"{task} {seed}", "dataset": task, "model": "roberta_base", "seed": seed, "score_last": float(score)}
        for task, of_seeds in scores.items()
        for seed, score in enumerate(of_seeds)
    ]
    found = of("deviation_beside_large", frame(rows))
    assert found == {"glue_cola 0": 2 - 0.5, "glue_cola 1": 0.0, "glue_cola 2": 5 - 1.5}
    assert of("deviation_beside_large", frame(rows[:6])) == {}  # one of the large tasks is missing
    assert of("deviation_beside_large", frame(rows).drop(columns="config.optimizer.samples.m")) == found  # nobody ran mSAM
    others = [{**row, "run": f"{row['run']} sgd", "optimizer": "sgd", "score_last": 50.0} for row in rows]
    assert of("deviation_beside_large", frame([*rows, *others])).items() > found.items()


def test_complexity_term_of_the_bound():
    runs = pd.DataFrame({"parameters": [10], "train_samples": [101], "config.optimizer.where.rho": [0.5]}, index=["a"])
    epochs = pd.DataFrame({"run": ["a", "a"], "epoch": [1, 2], "weight_norm": [9.0, 2.0]})
    found = looksam.complexity_term(SimpleNamespace(runs=runs, epochs=epochs))["a"]
    ball = 2.0**2 / 0.5**2 * (1 + math.sqrt(math.log(101) / 10)) ** 2
    assert found == pytest.approx(math.sqrt((10 * math.log(1 + ball) + 4 * math.log(101 / 0.05)) / 100))


# -- checks of LookSAM -------------------------------------------------------------------------------------------------------


def test_networks_and_settings_of_the_tables(monkeypatch):
    pytest.importorskip("timm", reason="timm is not installed")
    assert [looksam.CHECKS[f"million_parameters_{name}"]() for name in ("b16", "b32", "s16", "s32")] == [[87.0], [88.0], [22.0], [23.0]]
    assert looksam_checks.million_parameters("vit_b16", head="two_layers") == [87.0]  # 0.6 million more: not another million
    assert looksam_checks.other_shapes() == [0.0]
    assert [looksam.CHECKS[f"{name}_growth"]() for name in ("lr", "warmup_steps", "warmup_epochs")] == [[2.0], [0.35], [pytest.approx(5.6)]]
    assert looksam_checks.recipe_growth("lr", "8192") == [pytest.approx(1.7)]
    monkeypatch.setitem(recipe.PARTS, "heads", lambda _model: 8)
    assert looksam_checks.other_shapes() == [4.0]


def test_identities_of_looksam(monkeypatch):
    assert looksam_checks.k1_difference() == [0.0]
    assert looksam_checks.k1_difference(k=2)[0] > 1e-3
    assert looksam_checks.reused_length()[0] < 1e-12
    assert looksam_checks.reused_length(alpha=0.5)[0] == pytest.approx(2 / 7)
    assert looksam_checks.other_passes()[0] < 1e-9
    assert looksam_checks.other_passes("sam")[0] == pytest.approx(0.9)
    assert looksam_checks.reused_cosine()[0] < 1e-12
    monkeypatch.setattr("sam_repro.optim.between.dot", lambda a, b: torch.zeros((), dtype=torch.float64))  # nothing is projected out
    assert looksam_checks.reused_cosine()[0] > 0.1


def test_identities_of_layersam():
    assert looksam_checks.layersam_error()[0] < 1e-12
    assert looksam_checks.layersam_error(trust="local")[0] > 0.1
    assert looksam_checks.layersam_spread()[0] < 1e-12
    assert looksam_checks.layersam_spread([("sam", {})])[0] > 0.1


@pytest.mark.long
def test_premises_of_the_bound():
    assert min(looksam_checks.imitation_error_slope()) > 0.01
    assert abs(np.mean(looksam_checks.imitation_error_slope(alpha=0.0))) < 0.005  # then nothing is reused that could grow old
    near, far = looksam_checks.noise_rise(0.05), looksam_checks.noise_rise(0.2)
    assert np.array(far) / near == pytest.approx([16] * 5, rel=0.02)  # without the slope the rise is of second order


# -- checks of mSAM ----------------------------------------------------------------------------------------------------------


def test_identities_of_msam():
    assert msam_checks.m1_difference() == [0.0]
    assert msam_checks.m1_difference(m=2)[0] > 1e-3
    assert msam_checks.passes_ratio() == [1.0, 1.0]
    assert msam_checks.passes_ratio("sgd") == [2.0, 2.0]
    assert toy.passes("looksam", 4, k=2) == (6 * 16, 6 * 16)
    assert msam_theory.lemma34_error()[0] < 1e-12
    assert msam_theory.lemma34_error("sam")[0] > 0.1


def test_what_a_step_holds():
    assert msam_checks.memory_slope() == [pytest.approx(-1, abs=0.1)]
    assert msam_checks.memory_slope("sam") == [pytest.approx(0, abs=1e-9)]


@pytest.mark.long
def test_small_micro_batches_estimate_worse():
    assert max(msam_checks.microbatch_cosine_slope()) < -0.05
    assert np.abs(msam_checks.microbatch_cosine_slope(repeat=True)).max() < 1e-9


@pytest.mark.long
def test_two_processes_are_one():
    assert msam_checks.replicas_difference()[0] < 1e-9
    assert msam_checks.replicas_difference(of_each=2)[0] > 1e-3


@pytest.mark.long
def test_timed_checks_have_a_number_for_each_round():
    slopes, ratios = msam_checks.overhead_slope(), msam_checks.extra_time_ratio()
    assert len(slopes) == len(ratios) == 5
    assert np.abs(slopes).max() < 3


def test_ways_to_draw_a_batch():
    assert msam_theory.splits(3, 2, 1).tolist() == [[[0, 1]], [[0, 2]], [[1, 2]]]
    assert len(msam_theory.splits(6, 4, 2)) == 15 * 3


def test_lemmas():
    assert msam_theory.lemma31_error()[0] < 1e-12
    assert msam_theory.lemma31_error(power=1)[0] > 0.1
    assert msam_theory.lemma32_exceptions() == [0.0]
    assert msam_theory.lemma32_exceptions(bound=1.9)[0] > 0
    assert msam_theory.relaxation_exceptions() == [0.0]
    assert 0 < msam_theory.omega_least()[0] < 1


def test_theorem31_and_its_counterexample():
    assert 0.9 < msam_theory.theorem31a()[0] < 1
    assert msam_theory.theorem31b()[0] > 1
    assert 0.9 < msam_theory.theorem31b(variance=False)[0] < 1  # what the proof shows
    hessians = torch.tensor([1.4, 0, 1.5, 1.3, 0], dtype=torch.float64).view(1, 5, 1, 1)
    _, sam, both = msam_theory.linearised(hessians, torch.tensor(9.5), msam_theory.splits(5, 2, 2))
    assert msam_theory.unstable_from(sam).item() < 0.15 < msam_theory.unstable_from(both).item()


def test_the_edge_of_stability():
    assert all(1 < value < 1.2 for value in (msam_edge._settled("sgd", None, seed) * 0.05 for seed in (0, 1)))
    assert msam_edge._settled("sam", None, 0) < msam_edge._settled("sgd", None, 0)
    assert msam_edge._settled("sgd", None, 0, eta=0.01) * 0.005 < 0.9  # so slow a descent does not get there


@pytest.mark.long
@pytest.mark.parametrize("kind", ["full_batch", "batch_24"])
def test_the_order_of_the_edges(kind):
    assert max(msam.CHECKS[f"edge_sam_over_sgd_{kind}"]()) < 1
    assert max(msam.CHECKS[f"edge_msam_over_sam_{kind}"]()) < 1


@pytest.mark.long
def test_alignment():
    assert all(0.8 < cosine < 1 for cosine in msam_edge.alignment_cosine())
    assert msam_edge._alignment(0, rho=0.0)["msam"] == pytest.approx(msam_edge._alignment(0)["sgd"])  # without an ascent they are one
    assert msam_edge._alignment(0)["msam"][1] < msam_edge._alignment(0)["sgd"][1]
