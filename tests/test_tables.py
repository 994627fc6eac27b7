"""Declared tables: what the papers print, which runs fill it, and what is rendered of them."""

import csv
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from scipy.stats import t as student

from sam_repro.__main__ import launch
from sam_repro.config import compose, identity
from sam_repro.schema import UserError
from sam_repro.tables.__main__ import dispatch
from sam_repro.tables.declare import EXPERIMENTS, load, names, select
from sam_repro.tables.fill import fill
from sam_repro.tables.latex import as_latex
from sam_repro.tables.lookup import Request, Shelf, configuration
from sam_repro.tables.measurements import missing
from sam_repro.tables.metrics import METRICS
from sam_repro.tables.readme import BEGIN, END, index, update
from sam_repro.tables.recipe import PARTS, SETTINGS, agrees
from sam_repro.tables.render import as_csv, as_markdown, caption
from sam_repro.tables.report import report
from sam_repro.tables.sheet import sheet
from sam_repro.tables.values import COLUMNS
from sam_repro.tables.work import Work, tasks
from sam_repro.train.store import Run

ROOT = Path(__file__).resolve().parents[1]
# Rows, columns, and the sums of values and deviations: taken from the papers' text by a script, not from the declarations.
PAPERS = {
    "kdd24/table1": (4, 4, 1349.55, 7.7),
    "kdd24/table2": (4, 4, 5202.89, 0),
    "kdd24/table3": (12, 1, 979.03, 6.5),
    "kdd24/table4": (15, 2, 1246.51 + 6005.9, 8.1),
    "vsam/table1": (6, 3, 505.17 + 199603 + 2734, 0),
    "vsam/table2": (4, 3, 337.61 + 102345 + 1947, 0),
    "vsam/table3": (36, 6, 3492.59 + 554977 + 38916 + 2982.75 + 552280 + 39111, 4.8),
    "vsam/table4": (3, 4, 289.64 + 7677 + 241.78 + 7692, 0),
    "vsam/table5": (4, 4, 355.66 + 4109 + 336.88 + 3934, 0),
    "msam/table2": (9, 3, 2293.55, 4.07),
    "msam/table3": (4, 3, 1024.48, 4.51),
    "msam/table4": (2, 3, 0, 0),
    "msam/table5": (3, 3, 279.85, 0),
    "msam/tableB1": (3, 3, 98071, 257),
    "msam/tableB2": (3, 3, 279.85, 2.35),
}
OTHERS = {
    "kdd24/equations8_9": (21, 2), "kdd24/figure1": (1, 2), "kdd24/figure2": (1, 1), "kdd24/figure3": (4, 3), "kdd24/figure4": (4, 3),
    "kdd24/figure5": (3, 3), "kdd24/figure6": (1, 1), "vsam/figure1": (6, 4), "vsam/figure2": (1, 3), "msam/figure1": (5, 2),
    "msam/figureB1": (12, 2), "looksam/table8": (12, 10), "looksam/table9": (14, 10), "looksam/table10": (4, 6),
}  # fmt: skip
SEEDS = {"kdd24": 3, "vsam": 3, "msam": 5}


def declared(name):
    return load(EXPERIMENTS, name)


def number(text):
    return float(text) if text else 0.0


# -- the declarations ----------------------------------------------------------------------------------------------------


def test_every_table_and_figure_is_declared():
    assert [name for name in names() if name.startswith("looksam/")] == ["looksam/table8", "looksam/table9", "looksam/table10"]
    assert sorted(names()) == sorted([*PAPERS, *OTHERS])


@pytest.mark.parametrize("name", PAPERS)
def test_a_table_has_the_cells_and_the_values_of_the_paper(name):
    table, (rows, columns, values, deviations) = declared(name), PAPERS[name]
    assert (len(table.rows), len(table.columns), len(table.cells)) == (rows, columns, rows * columns)
    assert sum(number(cell.paper.value) for cell in table.cells) == pytest.approx(values)
    assert sum(number(cell.paper.std) for cell in table.cells) == pytest.approx(deviations)
    assert table.seeds == SEEDS[name.partition("/")[0]]
    assert table.footnotes


@pytest.mark.parametrize("name", OTHERS)
def test_figures_and_recipes_have_their_cells(name):
    table = declared(name)
    assert (len(table.rows), len(table.columns)) == OTHERS[name]
    assert table.kind == ("recipe" if "looksam" in name else "table" if "equations" in name else "figure")
    known = {**SETTINGS, **PARTS} if table.kind == "recipe" else METRICS
    assert {cell.metric for cell in table.cells} <= known.keys()


def test_printed_ratios_are_those_of_the_printed_speeds():
    """An oracle for the numbers as typed: the paper rounds its ratios to percent, from speeds rounded before."""
    checked = 0
    for name in ("vsam/table1", "vsam/table3", "vsam/table5"):
        for cell in declared(name).cells:
            if cell.paper.ratio and not cell.quoted:
                own = [c for c in declared(name).cells if c.metric == cell.metric and c.words == (cell.words[0], "optimizer=sam")]
                assert 100 * number(cell.paper.value) / number(own[0].paper.value) == pytest.approx(number(cell.paper.ratio), abs=1)
                checked += 1
    assert checked == 6 + 2 * 3 * 8 + 2 * 3


def test_values_that_stand_in_two_places_agree():
    three = {(cell.words, cell.metric): cell.paper for name in ("vsam/table3",) for cell in declared(name).cells if cell.words}
    assert all(three[cell.words, cell.metric] == cell.paper for cell in declared("vsam/figure1").cells)
    fours = {"k=4", "optimizer=layerwise"}  # in both tables
    found = (cell for name in ("kdd24/table4", "kdd24/table2") for cell in declared(name).cells)
    throughput = {(cell.words, cell.metric): cell.paper for cell in found if not fours <= {*cell.words}}
    same = [cell for cell in declared("kdd24/equations8_9").cells if (cell.words, cell.metric) in throughput]
    assert len(same) == 3 * 6
    assert all(throughput[cell.words, cell.metric] == cell.paper for cell in same)


def test_quoted_cells_have_no_run_and_all_others_have_one():
    for name in PAPERS | OTHERS:
        for cell in declared(name).cells:
            assert bool(cell.words) != bool(cell.quoted), (name, cell)
    quoted = {cell.row.partition(" / ")[2] for cell in declared("vsam/table3").cells if cell.quoted}
    assert quoted == {"ESAM¹", "SAF²", "MESA²", "AE-SAM³"}


@pytest.mark.parametrize("name", [*PAPERS, *OTHERS])
def test_every_cell_composes(name):
    """At the paper's scale, and with its substitute at the scale that has one."""
    table = declared(name)
    wanted = {(cell.words, scale): cell for cell in table.cells if cell.words for scale in ("paper", *cell.substitutes)}
    for (words, scale), cell in wanted.items():
        config = configuration(replace(cell, words=words), scale, Request())
        assert config["scale"] == scale
        for substituted in cell.substitutes[scale].words if scale in cell.substitutes else ():
            key = substituted.partition("=")[0]
            assert substituted == f"{key}={config['model']['name'] if key == 'model' else config[key]}"


def test_a_declaration_that_does_not_fit_is_refused_in_one_sentence(tmp_path):
    for content, said in [
        ("rows: {a: {run: optimizer=sgd, papr: [1]}}", "no key 'papr'. Did you mean 'paper'?"),
        ("rows: {a: {run: optimizer=sgd, paper: [1, 2]}}", "row 'a' has 2 values for 1 columns"),
        ("rows: {a: 'optimizer={x}'}", "row 'a'"),
        ("rows: {a: {run: 'optimizer={x}'}}", "row 'a': there is no value for {x}, which with: would give"),
        ("metric: acuracy\nrows: {a: {run: optimizer=sgd}}", "There is no metric 'acuracy'. Did you mean 'accuracy'?"),
        ("kind: figure\nrows: {a: {run: optimizer=sgd}}", "a figure has plot:"),
        ("seeds: -1\nrows: {a: {run: optimizer=sgd}}", "not '-1'"),
        ("measure: [cots]\nrows: {a: {run: optimizer=sgd}}", "Did you mean 'cost'?"),
        ("measure: cost\nrows: {a: {run: optimizer=sgd}}", "measure is a list"),
        ("measure: [cost run=abc]\nrows: {a: {run: optimizer=sgd}}", "run= is what 'tables run' sets itself"),
        ("measure: [landscape]\nrows: {a: {run: optimizer=sgd}}", "landscape needs a layer"),
        ("ratio_to: SGD\nrows: {a: {run: optimizer=sgd}}", "'SGD' is not among the references"),
        ("rows: {a: {paper: [98.1+-0.2]}}", "row 'a': '98.1+-0.2' is not as 91.96 ± 0.3"),
        ("rows: {a: {paper: [98.1.2 ± 0.2]}}", "row 'a': '98.1.2 ± 0.2' is not as 91.96 ± 0.3"),
        ("rows: {a: optimizer=sgd}", "'optimizer=sgd' is no mapping"),
        ("rows: {a: {run: optimizer=sgd, paper: 98}}", "row 'a': paper is a list, a value for each column, not '98'."),
        ("rows: {a: {run: [optimizer=sgd]}}", "a word, a list or a mapping stands where another of them belongs"),
        ("blocks: {b: {rows: {}}}\nrows: {a: {run: optimizer=sgd}}", "not both"),
        ("citation: [C]\nrows: {a: {run: optimizer=sgd}}", "citation is text, not ['C']."),
        ("rows: {a: {run: optimizer=sgd, total: many}}", "total is a number of steps, not 'many'."),
        ("rows: {a: {run: optimizer=sgd}}\nfootnotes: hello", "footnotes is a list of sentences."),
        ("rows: [", "is not YAML"),
    ]:
        folder = tmp_path / str(abs(hash(content)))
        declare(folder, content)
        with pytest.raises(UserError, match=r"t\.yaml") as error:
            load(folder, "own/t")
        assert said.replace("row 'a'", "") in str(error.value)
    with pytest.raises(UserError, match="Did you mean 'kdd24/table1'"):
        select(["kdd24/tabel1"])


# -- tables of our own, filled by hand ------------------------------------------------------------------------------------


HEAD = """title: T
citation: C, 2024.
source: Table 0
kind: table
metric: accuracy
seeds: 3
run: dataset=digits epochs=1
columns: {c: {}}
"""
METHODS = """references: {SGD: optimizer=sgd, SAM: optimizer=sam}
ratio_to: SGD
columns: {Acc.: {metric: accuracy}, Speed: {metric: images_per_second}, Sampling: {metric: sampling_number, total: 50}}
rows:
  SGD: {run: optimizer=sgd, paper: [91.96 ± 0.3, 200, ~]}
  SAM: {run: optimizer=sam, paper: [92.64 ± 0.4, 100, 50]}
  layer-wise: {run: optimizer=layerwise, paper: [92.81, 160 (81%), 50], cells: {Sampling: k=2}}
  quoted: {quoted: "elsewhere, 2022", paper: [95.0, ~, ~]}
"""


def declare(folder, content, name="own/t"):
    path = folder / f"{name}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(HEAD.replace("columns: {c: {}}\n", "") + content if "columns:" in content else HEAD + content)
    return folder


ROW = {"train_loss": 0.5, "train_score": 50.0, "lr": 0.1, "images_per_second": 9.0, "sampling_number": 0, "steps": 25, "split": "test"}


def put(runs_dir, *overrides, score=50.0, speed=100.0, ascents=0, passes=1.2, seed=0, device="cpu"):
    """A finished run as the trainer leaves it, with the numbers a test wants."""
    config = compose(["dataset=digits", "epochs=1", *overrides]) | {"seed": seed, "device": device}
    run = Run(runs_dir, identity(config))
    layers = {"stem": 3, "head": 1}
    model, method = config["model"]["name"], config["optimizer"]["name"]
    with run.held({**config, "rerun": False}, f"python -m sam_repro {' '.join(overrides)} data_dir=/elsewhere"):
        rows = [{"epoch": e, "score": score + e - 2, "grad_norm": 1 / e, "seconds": 2.0, **ROW} for e in (1, 2)]
        run.record(rows, [{"epoch": e, "layer": k, "grad_norm": 1 / 3, "perturbations": n} for e in (1, 2) for k, n in layers.items()])
        run.finish({
            "run_id": run.id, "dataset": config["dataset"]["name"], "model": model, "optimizer": method, "seed": seed, "epochs": 2,
            "steps": 50, "metric": "accuracy", "score_last": score, "score_best": score + 1,
            "best_epoch": 2, "split": "test", "train_loss": 0.5, "images_per_second": speed,
            "sampling_number": ascents, "forward_units": 50 * passes, "backward_units": 50 * passes, "perturbations": layers,
            "grad_norm": 0.5, "seconds": 4.0, "hardware": "a machine", "device": device, "scale": config["scale"], "versions": {},
        })  # fmt: skip
    return run


def time_steps(run, measured, passes, steps=24):
    """What ``measure cost`` leaves of a SAM run: its step in SGD's, the forward passes that the timed ones made."""
    rows = [{"method": "sgd", "measured": 1.0, "forward_units": 1.0}, {"method": "sam", "measured": measured, "forward_units": passes}]
    (run.path / "cost.json").write_text(json.dumps({"methods": rows, "steps": steps, "date": "2026-01-02T03:04:05", "commit": "abc"}))


def sheet_of(tmp_path, table, **request):
    asked = Request(runs_dir=str(tmp_path / "runs"), results_dir=str(tmp_path / "results"), **request)
    return sheet(table, asked, Shelf(asked.runs_dir, asked.results_dir))


def lines_of(sheet):
    return {(row["row"], row["column"], row["metric"]): row for row in csv.DictReader(as_csv(sheet.lines).splitlines())}


@pytest.fixture
def methods(tmp_path):
    return load(declare(tmp_path / "experiments", METHODS), "own/t")


def test_a_ratio_of_speeds_is_that_of_steps_timed_in_turns_where_there_is_one(tmp_path, methods):
    """The speeds of runs on a shared machine tell more of its other users than of the method."""
    put(tmp_path / "runs", "optimizer=sgd", speed=100)
    sam = put(tmp_path / "runs", "optimizer=sam", speed=20)
    assert lines_of(sheet_of(tmp_path, methods))["SAM", "Speed", "images_per_second_ratio"]["mean"] == "20"
    time_steps(sam, 2.0, 1.2)
    sheet = sheet_of(tmp_path, methods)
    assert "; steps timed in turns 2026-01-02, commit abc; filled by" in sheet.notes[0]
    lines = lines_of(sheet)
    assert lines["SAM", "Speed", "images_per_second_ratio"]["mean"] == "50"
    assert lines["SAM", "Speed", "images_per_second"]["mean"] == "20"


def test_timed_steps_count_at_the_passes_of_all_training(tmp_path, methods):
    """Steps without an ascent do not stand for a run that had some; others are scaled to as many, or to as many layers."""
    put(tmp_path / "runs", "optimizer=sgd", speed=100)
    vsam = put(tmp_path / "runs", "optimizer=sam", speed=20, passes=1.4)
    for timed, ratio in ((1.0, "20"), (1.1, "20"), (1.4, "80"), (1.8, "88.888889")):  # 1 / 1.25, and 1 / (1 + 0.25 * 0.4 / 0.8)
        time_steps(vsam, 1.25, timed + 4e-16)
        assert lines_of(sheet_of(tmp_path, methods))["SAM", "Speed", "images_per_second_ratio"]["mean"] == ratio
    (vsam.path / "cost.json").write_text("{")
    with pytest.raises(UserError, match=r"cost\.json is damaged: measure the run again"):
        sheet_of(tmp_path, methods)


def test_what_speeds_are_relative_to_is_measured_too(tmp_path):
    content = """references: {SGD: optimizer=sgd, SAM: optimizer=sam}
ratio_to: SAM
measure: [cost steps=5]
rows: {a: {run: optimizer=vsam}}"""
    table, request = load(declare(tmp_path, content), "own/t"), Request(device="cpu", seeds=(0,))
    wanted = missing(tasks([table], request, Shelf("none", "none")))
    assert [one.task.config["optimizer"]["name"] for one in wanted] == ["vsam", "sam"]


def test_a_measurement_of_less_does_not_stand_for_the_one_declared(tmp_path):
    columns = "columns: {l: {metric: lambda_max, measure: [sharpness]}, s: {metric: images_per_second, measure: [cost steps=5]}}"
    table = load(declare(tmp_path / "experiments", f"{columns}\nrows: {{a: {{run: optimizer=sam}}}}"), "own/t")
    run, shelf = put(tmp_path / "runs", "optimizer=sam"), Shelf(tmp_path / "runs", "none")
    wanted = tasks([table], Request(device="cpu", seeds=(0,)), shelf)
    for samples, steps, left in ((40, 3, ["sharpness", "cost"]), (50, 3, ["cost"]), (50, 5, [])):
        (run.path / "sharpness.json").write_text(json.dumps({"lambda_max": 7.5, "samples": samples, "of": 50}))
        time_steps(run, 2.0, 1.2, steps)
        assert [one.words[0] for one in missing(wanted)] == left
        assert lines_of(sheet_of(tmp_path, table))["a", "l", "lambda_max"]["mean"] == ("7.5" if samples == 50 else "")


def test_a_page_to_look_at_comes_with_the_report(tmp_path, methods, monkeypatch, capsys):
    run = put(tmp_path / "runs", "optimizer=sgd", score=61.5)
    words = ["report", "own/t", "--html", f"experiments={tmp_path / 'experiments'}", f"runs_dir={tmp_path / 'runs'}"]
    dispatch([*words, f"results_dir={tmp_path / 'results'}"])
    page = (tmp_path / "results" / "own" / "t.html").read_text()
    assert ">91.96 ± 0.3<" in page
    assert "61.50" in page
    assert run.id in page
    assert "t.html" in capsys.readouterr().out


def test_the_csv_has_the_agreed_columns_and_the_sample_deviation(tmp_path, methods):
    runs = [
        put(tmp_path / "runs", "optimizer=sgd", score=score, speed=speed, seed=seed) for seed, score, speed in [(0, 60, 90), (1, 63, 110)]
    ]
    put(tmp_path / "runs", "optimizer=sam", score=61, speed=45, ascents=25, seed=1)
    put(tmp_path / "runs", "optimizer=layerwise", "k=2", ascents=10)
    sheet = sheet_of(tmp_path, methods)
    assert as_csv(sheet.lines).splitlines()[0] == ",".join(COLUMNS) == (
        "row,column,metric,dataset,model,optimizer,paper,paper_std,mean,std,n,scale,device,run_ids"
    )  # fmt: skip
    lines = lines_of(sheet)
    first = lines["SGD", "Acc.", "accuracy"]
    ids = ";".join(run.id for run in runs)
    expected = ("SGD", "Acc.", "accuracy", "digits", "resnet20", "sgd", "91.96", "0.3", "61.5", "", "2", "paper", "cpu", ids)
    assert first | {"std": ""} == dict(zip(COLUMNS, expected, strict=True))
    assert float(first["std"]) == pytest.approx(3 / math.sqrt(2))
    sam = lines["SAM", "Acc.", "accuracy"]
    assert (sam["n"], sam["mean"], sam["std"]) == ("1", "61", "")
    ratio = lines["SAM", "Speed", "images_per_second_ratio"]  # paired: seed 1 only
    assert (ratio["paper"], ratio["n"], float(ratio["mean"])) == ("50.0", "1", pytest.approx(100 * 45 / 110))
    assert lines["layer-wise", "Speed", "images_per_second_ratio"]["paper"] == "81"  # as printed, not as computed
    assert lines["SAM", "Sampling", "sampling_rate"]["mean"] == "50"
    assert lines["layer-wise", "Sampling", "sampling_number"]["mean"] == "10"  # the exception's k=2; k=4 was not run
    assert lines["layer-wise", "Acc.", "accuracy"]["n"] == ""
    assert lines["quoted", "Acc.", "accuracy"]["optimizer"] == "quoted"


def test_a_page_says_what_is_ours_and_what_is_the_papers(tmp_path, methods):
    for seed, score in enumerate((60, 63)):
        put(tmp_path / "runs", "optimizer=sgd", "scale=small", "precision=bf16", score=score, seed=seed)
    request = Request(runs_dir=str(tmp_path / "runs"), results_dir=str(tmp_path / "results"))
    report(methods, request, Shelf(request.runs_dir, request.results_dir))
    page = (tmp_path / "results" / "own" / "t.md").read_text()
    for said in (
        "# own/t: T", "Table 0 of: C, 2024.", "`python -m sam_repro.tables report own/t`",
        "scale small (epochs x 1, data x 0.1), cpu bf16, a machine", "2 runs, seeds 0, 1",
        "run own/t scale=small device=cpu precision=bf16 seeds=0,1`", "last training loss 0.5",
        "**61.50 ± 2.12** (2)<br>best 62.50<br>paper 91.96 ± 0.3<br>Δ −30.46", "100.0 ± 0.0 % of SGD", "paper 95.0 (quoted)",
    ):  # fmt: skip
        assert said in page, said
    tex = (tmp_path / "results" / "own" / "t.tex").read_text()
    assert r"\shortstack[r]{{}\textbf{61.50 $\pm$ 2.12} (2)\\{}best 62.50\\{}paper 91.96 $\pm$ 0.3\\{}$\Delta$ $-$30.46}" in tex
    assert "2 runs, seeds 0, 1" in tex


def test_the_paired_test_is_the_textbooks(tmp_path, methods):
    ours, theirs = (62.0, 64.5, 63.0), (60.0, 63.0, 62.5)
    for seed in range(3):
        put(tmp_path / "runs", "optimizer=sam", score=ours[seed], seed=seed)
        put(tmp_path / "runs", "optimizer=sgd", score=theirs[seed], seed=seed)
    (test,) = [one for one in sheet_of(tmp_path, methods).tests if one.row == "SAM"]
    d = [a - b for a, b in zip(ours, theirs, strict=True)]
    mean = sum(d) / 3
    t = mean / math.sqrt(sum((x - mean) ** 2 for x in d) / 2 / 3)
    assert (test.against, test.n, test.difference) == ("SGD", 3, pytest.approx(mean))
    assert (test.t, test.p) == (pytest.approx(t), pytest.approx(2 * student.sf(t, 2)))
    few = Request(seeds=(0, 1), runs_dir=str(tmp_path / "runs"), results_dir=str(tmp_path))
    assert not sheet(methods, few, Shelf(few.runs_dir, few.results_dir)).tests


def test_scales_devices_and_precisions_never_mix_in_a_benchmark(tmp_path, methods):
    """Two small runs on the CPU and one paper run on a GPU: the paper's scale is shown alone, and the rest is named."""
    for seed in (0, 1):
        put(tmp_path / "runs", "optimizer=sgd", "scale=small", score=10, seed=seed)
        put(tmp_path / "runs", "optimizer=sam", "scale=small", score=10, seed=seed)
    put(tmp_path / "runs", "optimizer=sgd", score=20, device="cuda")
    put(tmp_path / "runs", "optimizer=sgd", "precision=bf16", score=30, device="cuda", seed=1)
    put(tmp_path / "runs", "optimizer=sgd", "scale=smoke", score=40)
    sheet = sheet_of(tmp_path, methods)
    line = lines_of(sheet)["SGD", "Acc.", "accuracy"]
    assert (line["mean"], line["n"], line["scale"], line["device"]) == ("20", "1", "paper", "cuda")
    assert lines_of(sheet)["SAM", "Acc.", "accuracy"]["n"] == ""
    assert any(
        "not shown" in note and "4 of scale small on cpu" in note and "1 of scale paper on cuda bf16" in note for note in sheet.notes
    )
    small = lines_of(sheet_of(tmp_path, methods, scale="small"))
    assert {small[row, "Acc.", "accuracy"]["mean"] for row in ("SGD", "SAM")} == {"10"}
    half = lines_of(sheet_of(tmp_path, methods, precision="bf16"))
    assert (half["SGD", "Acc.", "accuracy"]["mean"], half["SGD", "Acc.", "accuracy"]["device"]) == ("30", "cuda bf16")
    assert lines_of(sheet_of(tmp_path, methods, scale="smoke"))["SGD", "Acc.", "accuracy"]["mean"] == "40"


def test_a_substitute_is_named_and_counts_at_its_scale_alone(tmp_path):
    content = 'scales: {small: {run: model=wrn16_2, note: "two cores"}}\nrows: {a: {run: optimizer=sgd model=resnet20}}'
    table = load(declare(tmp_path / "experiments", content), "own/t")
    put(tmp_path / "runs", "optimizer=sgd", "scale=small", "model=wrn16_2")
    put(tmp_path / "runs", "optimizer=sgd", "scale=small", "model=resnet20", score=1)
    sheet = sheet_of(tmp_path, table)
    assert (lines_of(sheet)["a", "c", "accuracy"]["model"], lines_of(sheet)["a", "c", "accuracy"]["mean"]) == ("wrn16_2", "50")
    assert "At scale small: two cores." in sheet.notes
    assert "Ours: scale small (epochs x 1, data x 0.1), cpu (two cores); python" in caption(sheet)
    assert sheet_of(tmp_path, table, scale="paper").cells[0].line.model == "resnet20"


def test_what_is_not_the_papers_setting_is_said_beside_every_number(tmp_path, methods):
    put(tmp_path / "runs", "optimizer=sgd", "epochs=3")
    sheet = sheet_of(tmp_path, methods, overrides=("epochs=3",), experiments="mine")
    assert lines_of(sheet)["SGD", "Acc.", "accuracy"]["scale"] == "paper epochs=3"
    page = as_markdown(sheet, pictures=False)
    assert "Rendered by `python -m sam_repro.tables report own/t epochs=3 experiments=mine`" in page
    assert "run own/t device=cpu seeds=0 epochs=3 experiments=mine`" in page


def test_finished_runs_at_another_setting_are_pointed_to(tmp_path, methods, capsys):
    for method in ("sgd", "sam"):
        put(tmp_path / "runs", f"optimizer={method}", "scale=small", "precision=bf16")
    words = ["show", "own/t", "device=cpu", "seeds=0", f"experiments={tmp_path / 'experiments'}", f"runs_dir={tmp_path / 'runs'}"]
    pointer = "Runs of the same cells that are finished with scale=small device=cpu precision=bf16: 2.\n"
    dispatch(words)
    assert pointer in capsys.readouterr().out
    dispatch([*words, "scale=small", "precision=bf16"])
    assert pointer not in capsys.readouterr().out


def test_a_ratio_of_fewer_seeds_says_so(tmp_path, methods):
    for seed in range(2):
        put(tmp_path / "runs", "optimizer=sgd", seed=seed)
        sam = put(tmp_path / "runs", "optimizer=sam", seed=seed)
    time_steps(sam, 2.0, 1.2)
    page = as_markdown(sheet_of(tmp_path, methods), pictures=False)
    assert "**100.0 ± 0.0** (2)<br>50.0 % of SGD (1)" in page


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("metrics.jsonl", ""), ("metrics.jsonl", "[1, 2]\n"), ("layers.csv", ""), ("layers.csv", "epoch,layer,grad_norm,perturbations\n"),
        ("summary.json", "[1]"), ("summary.json", "{"), ("summary.json", '{"epochs": 2}'), ("status.json", "[1]"), ("config.yaml", ""),
        ("metrics.jsonl", '{"epoch": 1}\n{"epoch": 2}\n'), ("layers.csv", "epoch,layer\n1,stem\n"), ("sharpness.json", "{}"),
        ("steps.csv", ""), ("steps.csv", "step,epoch\n1,1\n"), ("cost.json", '{"a": 1}'), ("cost.json", "[]"),
        ("landscape/stem.json", "x"), ("steps.csv", "junk\n1,2\n"), ("steps.csv", "a,b\n1,2\n"),
    ],
)  # fmt: skip
def test_a_damaged_run_is_named_and_never_replaces_a_whole_one(tmp_path, methods, capsys, name, content):
    run = put(tmp_path / "runs", "optimizer=sgd", score=61)
    request = Request(runs_dir=str(tmp_path / "runs"), results_dir=str(tmp_path / "results"))
    report(methods, request, Shelf(request.runs_dir, request.results_dir))
    kept = tmp_path / "results" / "runs" / run.id
    whole = {path: path.read_bytes() for path in kept.rglob("*") if path.is_file()}
    (run.path / name).parent.mkdir(exist_ok=True)
    (run.path / name).write_text(content)
    sheet = report(methods, request, Shelf(request.runs_dir, request.results_dir))
    assert lines_of(sheet)["SGD", "Acc.", "accuracy"]["mean"] == "61"
    assert {path: path.read_bytes() for path in kept.rglob("*") if path.is_file()} == whole
    said = capsys.readouterr().out.replace("\n", " ")
    assert f"{run.id}/{name} is" in said
    assert "Until then" in said
    shutil.rmtree(kept)
    with pytest.raises(UserError, match=rf"{run.id}/{name} is"):
        report(methods, request, Shelf(request.runs_dir, request.results_dir))


def test_what_the_store_lost_stays_in_the_archive_until_the_run_is_trained_anew(tmp_path, methods, capsys):
    run = put(tmp_path / "runs", "optimizer=sam", score=61)
    time_steps(run, 2.0, 1.2)
    request = Request(runs_dir=str(tmp_path / "runs"), results_dir=str(tmp_path / "results"))
    kept = tmp_path / "results" / "runs" / run.id
    for score, there in ((61, True), (62, False)):
        report(methods, request, Shelf(request.runs_dir, request.results_dir))
        (run.path / "cost.json").unlink(missing_ok=True)
        put(tmp_path / "runs", "optimizer=sam", score=score)
        report(methods, request, Shelf(request.runs_dir, request.results_dir))
        assert (kept / "cost.json").exists() == there
    shutil.rmtree(tmp_path / "runs")
    (kept / "summary.json").write_text("{")
    with pytest.raises(UserError, match=rf"restore it, or remove {kept}, and 'tables run' makes the run anew"):
        report(methods, request, Shelf(request.runs_dir, request.results_dir))


def test_the_archive_renders_the_same_without_the_store(tmp_path, methods):
    run = put(tmp_path / "runs", "optimizer=layerwise", "k=4", score=61)
    (run.path / "landscape").mkdir()
    grid = {"layer": "head", "x": [0, 1], "y": [0], "loss": [[1, 2]], "samples": 50, "of": 50}
    (run.path / "landscape" / "head.json").write_text(json.dumps(grid))
    request = Request(runs_dir=str(tmp_path / "runs"), results_dir=str(tmp_path / "results"))
    report(methods, request, Shelf(request.runs_dir, request.results_dir))
    kept = tmp_path / "results" / "runs" / run.id
    files = sorted(path.relative_to(kept).as_posix() for path in kept.rglob("*") if path.is_file())
    assert files == ["config.yaml", "landscape/head.json", "layers.csv", "metrics.jsonl", "status.json", "summary.json"]
    assert not [word for path in kept.iterdir() if path.is_file() for word in ("dir", "host", "pid") if word in path.read_text()]
    before = {path: path.read_bytes() for path in (tmp_path / "results").rglob("*") if path.is_file()}
    elsewhere = Request(runs_dir=str(tmp_path / "empty"), results_dir=str(tmp_path / "results"))
    report(methods, elsewhere, Shelf(elsewhere.runs_dir, elsewhere.results_dir))
    assert {path: path.read_bytes() for path in (tmp_path / "results").rglob("*") if path.is_file()} == before
    archived = Run(tmp_path / "results" / "runs", run.id)
    assert identity(archived.config | {"device": "cpu"}) == run.id


# -- the papers' tables, rendered -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*PAPERS, *OTHERS])
def test_every_table_renders_with_the_papers_values_alone(name, tmp_path):
    request = Request(runs_dir=str(tmp_path / "runs"), results_dir=str(tmp_path / "results"))
    table = declared(name)
    report(table, request, Shelf(request.runs_dir, request.results_dir))
    with (tmp_path / "results" / f"{name}.csv").open(newline="") as file:
        rows = {(row["row"], row["column"], row["metric"]): row for row in csv.DictReader(file)}
    for cell in table.cells:
        assert rows[cell.row, cell.column, cell.metric]["paper"] == cell.paper.value
    assert not any(row["n"] or row["run_ids"] for row in rows.values())
    page = (tmp_path / "results" / f"{name}.md").read_text()
    assert all(label in page for label in (*table.rows, *table.columns, *table.footnotes))
    assert (tmp_path / "results" / f"{name}.tex").exists()
    assert (tmp_path / "results" / f"{name}.png").exists() == (name == "vsam/figure1")  # the one whose points the text prints


FIGURES = {
    "layer_norms": "rows: {a: {run: optimizer=sgd}}",
    "learning_curves": "rows: {a: {run: optimizer=sgd}, b: {run: optimizer=sam}}",
    "grad_norm": "rows: {a: {run: optimizer=sgd}, b: {run: optimizer=sam}}",
    "perturbations": "rows: {a: {run: optimizer=sgd}, b: {run: optimizer=sam}}",
    "landscape": "rows: {a: {run: optimizer=sgd}}",
    "psf": "rows: {a: {run: optimizer=sgd}}",
    "micro_batches": "rows: {m=4: {run: optimizer=sgd}, m=8: {run: optimizer=sam}}",
    "switch": "blocks: {first: {rows: {'20': {run: optimizer=sgd}}}, last: {rows: {'20': {run: optimizer=sam}}}}",
}


def test_every_kind_of_figure_is_drawn_from_runs(tmp_path):
    for seed in (0, 1):
        run = put(tmp_path / "runs", "optimizer=sgd", seed=seed)
        put(tmp_path / "runs", "optimizer=sam", seed=seed)
        (run.path / "landscape").mkdir()
        grid = {"layer": "head", "x": [-1, 0, 1], "y": [-1, 0, 1], "loss": [[5, 1, None], [1, 0, 1], [5, 1, 5]], "samples": 50, "of": 50}
        (run.path / "landscape" / "head.json").write_text(json.dumps(grid))
        (run.path / "steps.csv").write_text("step,epoch,plain_norm,psf_norm\n0,1,2.0,0.1\n1,1,,\n2,1,1.0,0.2\n")
    request = Request(seeds=(1,), runs_dir=str(tmp_path / "runs"), results_dir=str(tmp_path / "results"))
    for plot, content in FIGURES.items():
        declare(tmp_path / plot, f"plot: {plot}\n{content}".replace("kind: table", "kind: figure"))
        report(load(tmp_path / plot, "own/t"), request, Shelf(request.runs_dir, request.results_dir))
        picture = tmp_path / "results" / "own" / "t.png"
        assert picture.read_bytes().startswith(b"\x89PNG"), plot
        drawn = picture.with_suffix(".svg").read_text()
        assert "<svg" in drawn
        report(load(tmp_path / plot, "own/t"), request, Shelf("none", request.results_dir))
        assert picture.with_suffix(".svg").read_text() == drawn, f"{plot} is another from the archive"
        picture.unlink()
    kept = tmp_path / "results" / "runs" / run.id / "steps.csv"
    assert kept.read_text() == "step,plain_norm,psf_norm\n0,2,0.1\n2,1,0.2\n"


def test_a_recipe_reads_the_architecture_from_the_model(tmp_path):
    content = """columns:
  {Params: {metric: parameters}, P: {metric: patch}, S: {metric: sequence}, H: {metric: hidden}, N: {metric: heads}, L: {metric: layers},
  LR: {metric: lr}, D: {metric: decay}, O: {metric: base}, ρ: {metric: rho}}
run: model=timm model.arch=vit_small_patch32_224 lr=0.003
rows: {S-32: {run: optimizer=sam, paper: [23M, 32×32, 49, 384, 6, 12, 3e-3, step, sgd, 0.18]}}"""
    folder = declare(tmp_path / "experiments", content)
    path = folder / "own" / "t.yaml"
    path.write_text(path.read_text().replace("kind: table", "kind: recipe"))
    cells = sheet_of(tmp_path, load(folder, "own/t")).cells
    assert [agrees(cell.line) for cell in cells] == [True] * 9 + [False]
    assert (cells[0].line.mean, cells[-1].line.mean) == ("22.9M", "0.05")


def test_the_committed_tables_are_what_the_committed_runs_render_to(tmp_path):
    results = ROOT / "results"
    request = Request(runs_dir=str(tmp_path / "none"), results_dir=str(results))
    for table in select(names()):
        filled, path = sheet(table, request, Shelf(request.runs_dir, results)), results / table.name
        pictures = path.with_suffix(".png").exists()
        for content, kind in ((as_csv(filled.lines), "csv"), (as_markdown(filled, pictures), "md"), (as_latex(filled, pictures), "tex")):
            assert content == path.with_suffix(f".{kind}").read_text(), path.with_suffix(f".{kind}")
    readme = (ROOT / "README.md").read_text()
    (tmp_path / "README.md").write_text(readme)
    update(tmp_path / "README.md", results)
    assert (tmp_path / "README.md").read_text().replace(os.path.relpath(results, tmp_path), "results") == readme
    assert index(results) == (results / "README.md").read_text()


def test_the_readme_shows_what_has_runs(tmp_path, methods):
    put(tmp_path / "runs", "optimizer=sgd", "scale=small", score=61)
    request = Request(runs_dir=str(tmp_path / "runs"), results_dir=str(tmp_path / "results"))
    report(methods, request, Shelf(request.runs_dir, request.results_dir))
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{BEGIN}\nformer\n{END}\nafter\n")
    for _ in range(2):  # the second time it stays as it is
        update(readme, tmp_path / "results", tmp_path / "experiments")
        text = readme.read_text()
        assert text.startswith(f"before\n{BEGIN}\n")
        assert text.endswith(f"{END}\nafter\n")
        assert "former" not in text
        assert "1 of 1 tables and figures have runs" in text
        assert "**[own/t](results/own/t.md)** T (scale small on cpu)" in text
        assert "| SGD | **61.00** (1); paper 91.96 ± 0.3 |" in text
        assert "layer-wise" not in text
    assert "| [Table 0](own/t.md) | T | 3 of 12: scale small on cpu |" in index(tmp_path / "results", tmp_path / "experiments")
    with pytest.raises(UserError, match="needs a line <!-- tables:begin -->"):
        (tmp_path / "other.md").write_text("nothing")
        update(tmp_path / "other.md", tmp_path / "results")


# -- the commands -----------------------------------------------------------------------------------------------------------


def command(*words, cwd, **more):
    return subprocess.Popen(
        [sys.executable, "-m", "sam_repro.tables", *words], cwd=cwd, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT)}, **more,
    )  # fmt: skip


TINY = """run: dataset=digits train_fraction=0.05 epochs=1
columns: {Acc.: {metric: accuracy}, Norm: {metric: grad_norm}}
rows: {SGD: {run: optimizer=sgd}, SAM: {run: optimizer=sam}, diverges: {run: optimizer=sgd lr=1e30}}
"""


def test_run_does_what_is_missing_and_survives_a_failure(tmp_path):
    """Two processes at a time: one run is new, one diverges, and one, made by the ordinary command, is not made again."""
    folder = declare(tmp_path / "experiments", TINY)
    overrides = ["dataset=digits", "train_fraction=0.05", "epochs=1", "optimizer=sgd", "device=cpu", f"runs_dir={tmp_path / 'runs'}"]
    launch(compose(overrides), overrides)
    process = command("run", "own/t", "device=cpu", f"experiments={folder}", "seeds=0", "jobs=2", cwd=tmp_path)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 1, err
    assert "1 of 3 runs are done, 0 at work elsewhere, 2 to do." in out
    assert out.count("done in") == 1
    assert out.count("failed after") == 1
    assert "The loss became" in out
    assert "1 of 2 runs did not finish" in err
    table = load(folder, "own/t")
    request = Request(device="cpu", seeds=(0,), runs_dir=str(tmp_path / "runs"), results_dir=str(tmp_path / "results"))
    everything = tasks([table], request, Shelf(request.runs_dir, request.results_dir))
    assert [task.run.state for task in everything] == ["done", "done", "failed"]
    lines = lines_of(report(table, request, Shelf(request.runs_dir, request.results_dir)))
    assert [lines[row, "Acc.", "accuracy"]["run_ids"] for row in table.rows] == [everything[0].run.id, everything[1].run.id, ""]
    assert lines["SAM", "Norm", "grad_norm"]["mean"] == f"{everything[1].run.summary['grad_norm']:.6f}".rstrip("0")


def test_a_launcher_of_hydras_does_the_runs_which_are_measured_afterwards(tmp_path):
    """One that diverges stops no other. SGD's own step needs no timing; runs of the archive have no weights to measure."""
    content = "run: dataset=digits train_fraction=0.05 epochs=1\nmeasure: [cost steps=1, landscape layer=head.linear points=2]\n"
    content += "rows: {c: {run: optimizer=sgd lr=1e30}, a: {run: optimizer=sgd}, b: {run: optimizer=sam}}"
    folder = declare(tmp_path / "experiments", content)
    words = ["own/t", "device=cpu", f"experiments={folder}", "seeds=0"]
    with pytest.raises(UserError, match=r"no_such.*Launchers that are installed: .*basic"):
        dispatch(["run", *words, "hydra/launcher=no_such", f"runs_dir={tmp_path / 'runs'}"])
    for wrong in (["show", *words], ["run", *words, "jobs=2"]):
        with pytest.raises(UserError, match="goes with 'run', and not with jobs="):
            dispatch([*wrong, "hydra/launcher=basic"])
    process = command("run", *words, "hydra/launcher=basic", cwd=tmp_path)
    out, err = process.communicate(timeout=200)
    assert process.returncode == 1, out
    assert "0 of 3 runs are done, 0 at work elsewhere, 3 to do." in out
    assert "1 of 3 runs did not finish" in err
    done = {json.loads(path.read_text())["optimizer"]: path.parent for path in (tmp_path / "runs").glob("*/summary.json")}
    found = {method: sorted(path.name for path in place.rglob("*.json")) for method, place in done.items()}
    always = ["head.linear.json", "status.json", "summary.json"]
    assert found == {"sgd": always, "sam": ["cost.json", *always]}
    again, _ = command("run", *words, cwd=tmp_path).communicate(timeout=60)
    assert again.splitlines()[0] == "2 of 3 runs are done, 0 at work elsewhere, 1 to do."
    assert "cost" not in again

    request = Request(device="cpu", seeds=(0,), runs_dir=str(tmp_path / "runs"), results_dir=str(tmp_path / "results"))
    report(load(folder, "own/t"), request, Shelf(request.runs_dir, request.results_dir))
    (tmp_path / "results" / "runs" / done["sam"].name / "cost.json").unlink()
    shown, _ = command("show", *words, "runs_dir=empty", cwd=tmp_path).communicate(timeout=60)
    assert "to be measured: cost steps=1" in shown
    assert "still to be measured: 2." in shown  # the cost of SAM, the landscape of what diverges
    archived, _ = command("run", *words, "runs_dir=empty", cwd=tmp_path).communicate(timeout=60)
    assert f"{done['sam'].name} has no weights, which this makes anew: python -m sam_repro dataset=digits" in archived


def test_a_run_that_another_command_began_at_the_same_moment_is_no_failure(tmp_path, methods, monkeypatch, capsys):
    request = Request(device="cpu", seeds=(0,), runs_dir=str(tmp_path))
    todo = tasks([methods], request, Shelf(tmp_path, "none"))[:1]
    states = iter(["new", "running", "running"])
    monkeypatch.setattr(Run, "state", property(lambda _: next(states)))
    monkeypatch.setattr(type(todo[0]), "command", lambda *_: [sys.executable, "-c", "raise SystemExit(1)"])
    assert Work(todo, todo, request, [{}]).go() == []
    assert f"[1/1] {todo[0].run.id} is at work elsewhere" in capsys.readouterr().out


def test_an_interrupted_run_stops_its_processes_which_can_resume(tmp_path):
    folder = declare(tmp_path / "experiments", "run: dataset=digits epochs=5000\nrows: {a: {run: optimizer=sgd}}")
    words = ["own/t", "device=cpu", f"experiments={folder}", "seeds=0"]
    process = command("run", *words, cwd=tmp_path)
    deadline = time.monotonic() + 60
    while not list((tmp_path / "runs").glob("*/checkpoint/last.pt")) and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "the same command resumes" in err
    (run,) = [Run(tmp_path / "runs", path.parent.name) for path in (tmp_path / "runs").glob("*/status.json")]
    assert (run.state, run.is_held()) == ("stopped", False)
    shown, _ = command("show", *words, cwd=tmp_path).communicate(timeout=60)
    assert f"{run.id}  stopped" in shown
    assert f"{len(run.metrics())}/5000" in shown
    assert "0 of 1 runs are done, 1 are missing; one after the other they train for about" in shown


def test_what_is_asked_wrongly_is_said_in_one_sentence_before_torch_is_imported(tmp_path):
    for words, said in [
        (["report", "kdd24/tabel1"], "Did you mean 'kdd24/table1'?"),
        (["report", "kdd24/table1", "scale=smal"], "Did you mean 'small'?"),
        (["show", "kdd24/table1", "seeds=a"], "as in seeds=0,1,2"),
        (["show", "kdd24/table1", "seed=1"], "seeds= here"),
        (["run", "kdd24/table1", "jobs=many"], "as in jobs=2"),
        (["run", "kdd24/table1", "jobs=0"], "as in jobs=2"),
        (["show", "kdd24/table1", "seeds="], "seeds= has no value"),
        (["show", "kdd24/table1", "jobs=2"], "it goes with 'run'"),
        (["run", "kdd24/table1", "rerun=true"], "runs rm"),
        (["show", "kdd24/table1", "device=cpu", "rhoo=1"], "rhoo"),
        (["show", "kdd24/table1", "epochs=1,2"], "'epochs=1,2' is more than one value"),
        (["report", "kdd24/table1", "--htlm"], "There is no '--htlm'. Did you mean '--html'?"),
        (["run", "kdd24/table1", "--html"], "'--html' goes with report."),
        (["report", "kdd24/table1", "--all"], "usage"),
        (["run", "kdd24/table1", "hydra.sweep.dir=x"], "of Hydra's there are hydra/launcher="),
        (["list", "experiments=/no/such"], "There is no folder /no/such"),
        (["run", "kdd24", "experiment=kdd24/cifar01"], "No cell here runs experiment=kdd24/cifar01. Did you mean 'kdd24/cifar10'?"),
        (["report", "kdd24/table1", "experiment=kdd24/cifar10"], "experiment= says which runs of a table 'show' and 'run' take"),
        (["report", "kdd24/table1", "runs_dir=/no/such"], "There is no folder /no/such: runs_dir= names the store"),
        (["lst"], "There is no command 'lst'. Did you mean 'list'?"),
        (["show"], "usage: python -m sam_repro.tables list"),
    ]:
        with pytest.raises(UserError) as error:
            dispatch([*words, f"results_dir={tmp_path}"])
        assert said in str(error.value)
    loaded = (
        "import sys; from sam_repro.tables.__main__ import dispatch; "
        "dispatch(['show', 'kdd24/table1', 'device=cpu']); print('torch' in sys.modules)"
    )
    answer = subprocess.run([sys.executable, "-c", loaded], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert answer.stdout.splitlines()[-1] == "False"
    assert "0 of 48 runs are done, 48 are missing; how long they take is known once one like them has trained." in answer.stdout
    assert "dry_run=true\n" in answer.stdout


def test_the_hydra_sweep_and_the_table_mean_the_same_runs():
    """The command of the table's documentation: the ids of its jobs are those the table looks for."""
    jobs = [
        identity(compose(["experiment=kdd24/cifar10", f"optimizer={method}", f"seed={seed}", "device=cpu"]))
        for method in ("sgd", "generalized_sam", "looksam", "layerwise") for seed in (0, 1, 2)
    ]  # fmt: skip
    table, request = declared("kdd24/table1"), Request(device="cpu")
    wanted = tasks([table], replace(request, experiment="kdd24/cifar10"), Shelf("none", "none"))
    assert {task.run.id for task in wanted} == set(jobs)
    assert not fill(table, request, Shelf("none", "none")).chosen
