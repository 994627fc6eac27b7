import json
import math
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
import yaml

from sam_repro.config import compose
from sam_repro.results.claims import kdd24_checks as checks
from sam_repro.results.claims.kdd24 import CHECKS, METRICS
from sam_repro.results.declare import EXPERIMENTS, Printed, load

CLAIMS = yaml.load(Path(EXPERIMENTS, "kdd24/claims.yaml").read_text(), Loader=yaml.BaseLoader)["claims"]
PARTS = [(name, {**claim, **part}) for name, claim in CLAIMS.items() for part in claim.get("parts", [{}])]
EFFECTS = ("difference", "ratio", "value", "slope", "rank", "check")
COLUMNS = {"score_last", "forward_per_step", "backward_per_step", "perturbations"}  # of the frame of runs


def words_of(part):
    runs = next(part[effect] for effect in EFFECTS if effect in part)
    return [] if "check" in part else [runs] if isinstance(runs, str) else runs


def frames(runs=None, epochs=(), layers=()):
    """Hand-made frames; of runs with a schedule of steps where nothing else is said."""
    usual = {"config.schedule.name": "step", "steps": 10, "step_cost": math.nan, "path": "nowhere"}
    table = pd.DataFrame.from_dict({run: {**usual, **row} for run, row in (runs or {"a": {}}).items()}, orient="index")
    curves = pd.DataFrame(epochs, columns=["run", "epoch", "lr", "grad_norm", "train_loss"])
    by_layer = pd.DataFrame(layers, columns=["run", "epoch", "layer", "depth", "grad_norm", "perturbations"])
    for frame in (curves, by_layer):  # as the frames are: of a kind of their own, with names that have no row
        frame["run"] = pd.Categorical(frame.run, [*table.index, "another"])
    return SimpleNamespace(runs=table, epochs=curves, layers=by_layer)


def of(name, *given, **parts):
    """The metric of every run, as a dictionary."""
    return {str(run): value for run, value in METRICS[name](frames(*given, **parts)).items()}


def layers(norms, perturbations=None, run="a", epoch=1):
    """A row a layer, the first next to the input."""
    counts = perturbations or [0] * len(norms)
    return [(run, epoch, f"l{depth}", depth, norm, count) for depth, (norm, count) in enumerate(zip(norms, counts, strict=True))]


# -- the declaration -----------------------------------------------------------------------------------------------------


def test_every_part_has_one_effect_a_region_and_a_metric_that_exists():
    for name, part in PARTS:
        assert len([effect for effect in EFFECTS if effect in part]) == 1, name
        assert part["holds"].split()[0] in ("above", "below", "within", "between", "exactly"), name
        if "check" in part:
            assert part["check"] in CHECKS, name
            assert not {"on", "of"} & part.keys(), name
        else:
            assert {part["of"], part.get("with", part["of"])} <= COLUMNS | METRICS.keys(), name
            assert part["on"], name
            assert "over" not in part or len(part["over"]) == len(part["slope"]), name
        assert {"where", "says"} <= part.keys(), name


def test_every_metric_and_check_is_asked_for():
    assert {part["check"] for _, part in PARTS if "check" in part} == CHECKS.keys()
    assert METRICS.keys() == {part[key] for _, part in PARTS for key in ("of", "with") if part.get(key) in METRICS}


@pytest.mark.long
def test_every_run_is_a_configuration():
    every = {(benchmark, words) for _, part in PARTS for benchmark in part.get("on", []) for words in words_of(part)}
    for benchmark, words in sorted(every):
        compose([f"experiment={benchmark}", *words.split()])


def test_the_papers_values_are_those_of_its_tables():
    """A run's are printed for that run, whichever table has them."""
    printed = defaultdict(set)
    for cell in (cell for number in range(1, 5) for cell in load(EXPERIMENTS, f"kdd24/table{number}").cells):
        printed[words_of_run(cell.words)].add((cell.paper.value, cell.paper.std))
    compared = 0
    for name, part in PARTS:
        for benchmark, values in part.get("paper", {}).items():
            assert benchmark in part["on"], name
            assert ("paper_n" in part) == ("±" in values[0]), name
            for words, value in zip(words_of(part), values, strict=True):
                paper = Printed.read(value)
                assert (paper.value, paper.std) in printed[words_of_run((f"experiment={benchmark}", *words.split()))], (name, words)
                compared += 1
    assert compared > 200


def words_of_run(words):
    """LookSAM's precision says nothing of the paper."""
    return frozenset(word for word in words if not word.startswith("precision="))


# -- the metrics ---------------------------------------------------------------------------------------------------------


def test_speed_is_one_over_the_cost_of_a_step():
    assert of("speed", {"a": {"step_cost": 2.0}, "b": {"step_cost": 1.0}}) == {"a": 0.5, "b": 1.0}


EPOCHS = [("a", epoch, lr, norm, loss) for epoch, lr, norm, loss in ((1, 0.05, 5, 4), (2, 0.1, 3, 2), (3, 0.01, 2, 1), (4, 0.001, 4, 0.5))]


def test_the_norm_before_and_after_the_first_decay():
    assert of("grad_norm_before_decay", epochs=EPOCHS) == {"a": 4}  # the rise of a warm-up is no decay
    assert of("grad_norm_after_decay", epochs=EPOCHS) == {"a": 3}
    cosine = {"a": {"config.schedule.name": "cosine"}}
    assert of("grad_norm_before_decay", cosine, epochs=EPOCHS) == {}
    assert of("grad_norm_after_decay", cosine, epochs=EPOCHS) == {}


def test_the_first_epoch_of_a_run_is_no_decay_from_the_one_before():
    both = [*EPOCHS, *(("b", epoch, 0.0001, 7, 1) for epoch in (1, 2))]
    assert of("grad_norm_before_decay", {"a": {}, "b": {}}, epochs=both) == {"a": 4, "b": 7}


def test_the_area_under_the_log_loss():
    assert of("log_loss_area", epochs=EPOCHS) == pytest.approx({"a": math.log(4 * 2 * 1 * 0.5) / 4})


def test_the_median_layer_is_perturbed_in_a_share_of_the_steps():
    rows = [*layers([1, 1, 1], [5, 0, 2]), *layers([1, 1, 1], [5, 1, 2], epoch=2)]
    assert of("median_layer_perturbations", layers=rows) == {"a": 0.4}


def test_depth_against_perturbations_and_norms():
    rows = [*layers([1, 4, 2, 8], [4, 3, 2, 1]), *layers([1, 4, 2, 8], [4, 3, 2, 1], epoch=2)]
    assert of("depth_and_perturbations", layers=rows) == pytest.approx({"a": -1})
    assert of("depth_and_norm", layers=rows) == pytest.approx({"a": 0.8})
    assert math.isnan(of("depth_and_perturbations", layers=layers([1, 2], [3, 3]))["a"])


def test_the_few_largest_layers():
    norms = [1, 1, 1, 2, 1, 2, 2, 2]
    assert of("top_share", layers=layers(norms)) == {"a": 16 / 20}
    assert of("output_side_of_top", layers=layers(norms)) == {"a": 0.75}
    assert of("smallest_over_largest", layers=layers(norms)) == {"a": 0.5}


def test_how_far_the_largest_layers_stay_the_same():
    usual, other = [9, 9, 9, 9, 1, 1], [9, 9, 1, 1, 8, 8]
    rows = [row for epoch, norms in enumerate([usual, usual, usual, other]) for row in layers(norms, epoch=epoch)]
    assert of("top_stays", layers=rows) == {"a": (1 + 1 + 1 + 0.5) / 4}


def test_the_variation_within_a_phase_knows_no_decay_and_no_first_epochs():
    """A layer that jumps at the decay alone does not vary; the last one swings by a fifth about its mean."""
    epochs = [("a", epoch, 0.1 if epoch <= 9 else 0.01, 1, 1) for epoch in range(1, 19)]
    rows = []
    for epoch in range(1, 19):
        jump = 1 if epoch <= 9 else 5
        start = 100 if epoch in (1, 5, 10, 14) else 0
        rows += layers([jump + start, jump + start, 10 + 2 * (-1) ** epoch], epoch=epoch)
    swing = np.std([8, 12, 8, 12], ddof=1) / 10
    # The 80th percentile of 0, 0 and the swing lies three fifths of the way from the second to the third.
    assert of("norm_variation", epochs=epochs, layers=rows) == pytest.approx({"a": 0.6 * swing})
    assert of("norm_variation", {"a": {"config.schedule.name": "cosine"}}, epochs=epochs, layers=rows) == {}


def drawn(place, rises, center=1.0, **other):
    """Landscapes whose points all lie a rise above the weights, but for the weights themselves and a point that is no number."""
    (place / "landscape").mkdir(parents=True)
    for layer, rise in rises.items():
        loss = [[center + rise] * 5 for _ in range(5)]
        loss[2][2], loss[0][0] = center, None
        content = {"layer": layer, "dimensions": 2, "points": 40, "distance": 1.0, "center": center, "loss": loss, **other}
        (place / "landscape" / f"{layer}.json").write_text(json.dumps(content))
    return {"path": str(place)}


def test_landscapes(tmp_path):
    runs = {
        "a": drawn(tmp_path / "a", {"l0": 1.0, "l1": 2.0, "l2": 4.0, "all": 9.0}),
        "one": drawn(tmp_path / "one", {"l0": 1.0}),
        "coarse": drawn(tmp_path / "coarse", {"l0": 1.0, "l1": 2.0}, distance=2.0),
        "hole": drawn(tmp_path / "hole", {"l0": -0.5, "l1": 2.0}),
        "none": {"path": str(tmp_path / "none")},
    }
    norms = [row for run in runs for row in layers([1, 3, 2], run=run)]
    assert of("landscape_rise", runs, layers=norms) == pytest.approx({"a": 2.0})
    assert of("landscape_spread", runs, layers=norms) == pytest.approx({"a": 2.0})
    assert of("norm_and_rise", runs, layers=norms) == pytest.approx({"a": 0.5, "hole": 1.0})


# -- the checks ----------------------------------------------------------------------------------------------------------


def test_the_gradients_of_layers_that_stay_are_not_computed_and_sam_computes_them():
    assert checks.uncounted_flops([[9, 17]]) < [1e-9]
    assert checks.uncounted_flops([[19]], own="sam")[0] > 0.1


def test_theorem_1_holds_for_its_steps_and_not_for_any():
    assert checks.theorem1_ratio(problems=4)[0] < 1
    assert checks.theorem1_ratio(stretch=8.0, problems=4)[0] > 1


def test_a_problems_gradients_are_as_smooth_as_it_says():
    torch.manual_seed(1)
    net = checks.Problem()
    waves = net.waves
    for w in torch.randn(20, 20):
        hessian = net.square - waves.T @ torch.diag((waves @ w).cos()) @ waves
        assert torch.linalg.matrix_norm(hessian, 2) <= net.beta * (1 + 1e-5)


def rows_of(predicted=(), ascents=(), measured=()):
    columns = zip(predicted or ascents, ascents or predicted, measured, strict=True)
    return [SimpleNamespace(predicted=a, ascents=b, measured=c) for a, b, c in columns]


def test_slopes_fits_and_shares_of_known_times(monkeypatch):
    def timed(*replicates):
        checks._eq8.cache_clear()
        monkeypatch.setattr(checks, "_in_turns", lambda *_a, **_k: [rows_of(**replicate) for replicate in replicates])

    timed({"predicted": [1, 2, 3], "measured": [2, 4, 6]}, {"predicted": [1, 2, 3], "measured": [1, 0, 1]})
    assert checks.eq8_slope() == pytest.approx([2, 0])
    assert checks.eq8_fit() == pytest.approx([1, 0])
    timed({"ascents": [1 / 2, 1 / 3, 1 / 4, 1 / 5], "measured": [1.5, 4 / 3, 1.25, 1.2]})
    assert checks.eq9_slope() == pytest.approx([1])
    timed({"predicted": [1, 1], "measured": [1.8, 1.2]})
    assert checks.input_side_cost() == pytest.approx([1.5])
    timed({"predicted": [1, 1], "measured": [2.0, 1.75]})
    assert checks.parameterwise_saving() == pytest.approx([0.25])
    checks._eq8.cache_clear()


def test_collecting_norms_a_hundred_times_is_not_free():
    few, many = checks.norm_collection(batch_size=8), checks.norm_collection(batch_size=8, times=20)
    assert len(few) == 10
    assert 0 < np.median(few) < np.median(many)


@pytest.mark.long
def test_the_limits_are_the_methods_they_are_called_and_one_layer_is_not_sgd():
    assert checks.limit_difference()[0] < 1e-12
    assert checks.limit_difference([(("layerwise", {"k": 1}), ("sgd", {}))])[0] > 1e-3


@pytest.mark.long
@pytest.mark.parametrize("name", ["eq8_slope", "eq8_fit", "eq9_slope", "input_side_cost", "parameterwise_saving", "norm_collection"])
def test_what_is_timed_comes_out_as_finite_numbers(name):
    found = CHECKS[name]()
    assert len(found) >= 5
    assert all(math.isfinite(number) for number in found)


@pytest.mark.long
def test_the_last_layer_saves_what_tensors_drawn_at_random_do_not():
    assert np.median(checks.parameterwise_saving(("layerwise", {"k": 1}))) > 0.5
