"""Tables filled by hand: numbers, ratios, tests, pages, figures, and what a declaration must be."""

import json
import math
import re
from pathlib import Path

import pytest
from own_tables import declare, lines_of, put, sheet_of, time_steps
from scipy.stats import t as student

from sam_repro.results.archive import archive
from sam_repro.results.declare import Substitute, load, select
from sam_repro.results.figures import draw
from sam_repro.results.frames import Frames
from sam_repro.results.numbers import COLUMNS
from sam_repro.results.readme import BEGIN, END, index, pages
from sam_repro.results.recipe import agrees
from sam_repro.results.reference import methods_page
from sam_repro.results.render import as_csv, as_markdown, caption, latex
from sam_repro.results.report import page_of, report
from sam_repro.results.select import Request
from sam_repro.results.sheet import sheet
from sam_repro.schema import UserError
from sam_repro.store import CHECKSUMS, all_runs
from sam_repro.tables import dispatch

REFERENCES = "references: {SGD: optimizer=sgd, SAM: optimizer=sam}\n"
ROW = "rows: {a: {run: optimizer=sgd}}"


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
        (f"{REFERENCES}ratio_to: SGD\nextra_of: SMA\n{ROW}", "extra_of: 'SMA' is not among the references. Did you mean 'SAM'?"),
        (f"{REFERENCES}extra_of: SAM\n{ROW}", "extra_of: 'SAM' needs ratio_to"),
        (f"{REFERENCES}ratio_to: SAM\nextra_of: SAM\n{ROW}", "'SAM' is ratio_to's method, which takes no extra time"),
        (f"{REFERENCES}ratio_to: SGD\nextra_of: [SAM]\n{ROW}", "extra_of is text, not ['SAM']."),
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


def test_the_share_of_extra_time_is_that_of_steps_timed_in_turns_by_seed(tmp_path, methods):
    """SAM's steps cost 2 and 2.5 of SGD's, the layer-wise ones 1.25 and 1.75: shares of 0.25 and 0.5, whatever the speeds of the runs."""
    for seed, sam, layers in ((0, 2.0, 1.25), (1, 2.5, 1.75), (2, 3.0, None)):
        put(tmp_path / "runs", "optimizer=sgd", speed=100 + seed, seed=seed)
        time_steps(put(tmp_path / "runs", "optimizer=sam", speed=20, seed=seed), sam, 1.2)
        layerwise = put(tmp_path / "runs", "optimizer=layerwise", speed=90, seed=seed)
        if layers is not None:
            time_steps(layerwise, layers, 1.2)
    sheet = sheet_of(tmp_path, methods)
    shares = {row: line for (row, _, metric), line in lines_of(sheet).items() if metric == "images_per_second_extra"}
    line = shares["layer-wise"]
    assert (line["mean"], line["std"], line["n"], line["paper"]) == ("0.375", "0.176777", "2", "0.25")  # 1/160 between 1/200 and 1/100
    assert line["run_ids"].count(";") == 1
    assert [(shares[row]["mean"], shares[row]["std"], shares[row]["n"], shares[row]["paper"]) for row in ("SGD", "SAM")] == [
        ("0", "0", "3", "0.00"), ("1", "0", "3", "1.00"),
    ]  # fmt: skip
    page = as_markdown(sheet, pictures=False)
    assert "**0.38 ± 0.18 of SAM's extra time** (2)<br>paper 160, 81 % of SGD, 0.25 of SAM's extra time<br>Δ −12.4, +0.12 |" in page
    assert "(1/v − 1/v_SGD) / (1/v_SAM − 1/v_SGD)" in page


def test_the_share_of_extra_time_is_else_that_of_runs_on_like_hardware(tmp_path, methods):
    for seed, sgd, sam, layers in ((0, 100, 50, 80), (1, 100, 100, 80)):  # a SAM as fast as SGD takes no extra time to have a share of
        for method, speed in (("sgd", sgd), ("sam", sam), ("layerwise", layers)):
            run = put(tmp_path / "runs", f"optimizer={method}", speed=speed, seed=seed)
    line = lines_of(sheet_of(tmp_path, methods))["layer-wise", "Speed", "images_per_second_extra"]
    assert (line["mean"], line["n"]) == ("0.25", "1")  # (1/80 - 1/100) / (1/50 - 1/100)
    for method in ("sam", "sgd", "layerwise"):  # the last one's on another machine
        run = put(tmp_path / "other", f"optimizer={method}", speed=50)
    (run.path / "summary.json").write_text((run.path / "summary.json").read_text().replace("a machine", "another"))
    (run.path / CHECKSUMS).unlink()  # as of the time before there were any
    line = lines_of(sheet(methods, Request(runs_dir=str(tmp_path / "other")), Frames(tmp_path / "other")))
    assert line["layer-wise", "Speed", "images_per_second_extra"]["n"] == ""
    assert line["layer-wise", "Speed", "images_per_second"]["n"] == "1"


def test_absolute_speeds_and_times_of_ours_are_in_the_csv_alone(tmp_path):
    """They say more of the machine's other users than of the method; the paper's stay, and so do ours where there is no ratio."""
    content = """columns: {Speed: {metric: images_per_second}, Time: {metric: seconds}}
rows: {SGD: {run: optimizer=sgd, paper: [659.2, 7000]}, SAM: {run: optimizer=sam, paper: [459.5, 9000]}}"""
    ratios = load(declare(tmp_path / "experiments", f"{REFERENCES}ratio_to: SGD\nextra_of: SAM\n{content}"), "own/t")
    for method, speed in (("sgd", 353.5), ("sam", 176.75)):
        put(tmp_path / "runs", f"optimizer={method}", speed=speed)
    request = Request(runs_dir=str(tmp_path / "runs"), results_dir=str(tmp_path / "results"))
    report(ratios, request, request.frames)
    (tmp_path / "README.md").write_text(index(tmp_path / "results", tmp_path / "experiments"))
    lines = lines_of(sheet_of(tmp_path, ratios))
    assert [lines["SAM", "Speed", f"images_per_second{kind}"]["mean"] for kind in ("", "_ratio", "_extra")] == ["176.75", "50", "1"]
    assert [lines["SAM", "Time", f"seconds{kind}"]["mean"] for kind in ("", "_ratio")] == ["4", "100"]
    own = "**50.0 % of SGD** (1)<br>**1.00 of SAM's extra time** (1){}paper 459.5, 69.7 % of SGD, 1.00 of SAM's extra time"
    assert own.format("<br>") in (tmp_path / "results" / "own" / "t.md").read_text()
    assert own.format("; ") in (tmp_path / "README.md").read_text()
    texts = [(tmp_path / name).read_text() for name in ("README.md", "results/own/t.md", "results/own/t.tex")]
    page = page_of(sheet_of(tmp_path, ratios)).partition("<h2>digits")[0]  # the runs' own section has what they recorded
    for text in [*texts, page]:
        assert "176.8" not in text
        assert "176.75" not in text
        assert "459.5" in text
    assert ">images_per_second_extra<" in page
    assert "<td>659.2</td><td></td>" in page  # the paper's, and nothing of ours
    alone = load(declare(tmp_path / "alone", content), "own/t")
    assert "**176.8** (1)<br>paper 459.5 |" in as_markdown(sheet_of(tmp_path, alone), pictures=False)


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
    report(methods, request, request.frames)
    page = (tmp_path / "results" / "own" / "t.md").read_text()
    for said in (
        "# own/t: T", "Table 0 of: C, 2024.", "`python -m sam_repro.tables report own/t`",
        "scale small (epochs x 1, data x 0.1), cpu bf16, a machine", "2 runs, seeds 0, 1",
        "run own/t scale=small device=cpu precision=bf16 seeds=0,1`", "last training loss 0.5",
        "**61.50 ± 2.12** (2)<br>best 62.50<br>paper 91.96 ± 0.3<br>Δ −30.46", "**100.0 ± 0.0 % of SGD** (2)", "paper 95.0 (quoted)",
    ):  # fmt: skip
        assert said in page, said
    tex = (tmp_path / "results" / "own" / "t.tex").read_text()
    assert r"\shortstack[r]{{}\textbf{61.50 \ensuremath{\pm} 2.12} (2)\\{}best 62.50\\{}paper 91.96 \ensuremath{\pm} 0.3\\{}" in tex
    assert r"\ensuremath{\Delta} \ensuremath{-}30.46}" in tex
    assert "2 runs, seeds 0, 1" in tex


def test_the_paired_test_is_the_textbooks(tmp_path, methods):
    ours, theirs = (62.0, 64.5, 63.0), (60.0, 63.0, 62.5)
    for seed in range(3):
        put(tmp_path / "runs", "optimizer=sam", score=ours[seed], seed=seed)
        put(tmp_path / "runs", "optimizer=sgd", score=theirs[seed], seed=seed)
    (test,) = [one for one in sheet_of(tmp_path, methods).tests.itertuples() if one.row == "SAM"]
    d = [a - b for a, b in zip(ours, theirs, strict=True)]
    mean = sum(d) / 3
    t = mean / math.sqrt(sum((x - mean) ** 2 for x in d) / 2 / 3)
    assert (test.against, test.n, test.difference) == ("SGD", 3, pytest.approx(mean))
    assert (test.t, test.p) == (pytest.approx(t), pytest.approx(2 * student.sf(t, 2)))
    few = Request(seeds=(0, 1), runs_dir=str(tmp_path / "runs"), results_dir=str(tmp_path))
    assert sheet(methods, few, few.frames).tests.empty


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


def test_a_cell_may_have_a_precision_of_its_own(tmp_path):
    """Whatever the others have; the CSV says which."""
    rows = 'a: {run: optimizer=sgd}, b: {run: optimizer=looksam, scales: {small: {run: precision=fp32, note: "fp32"}}}'
    table = load(declare(tmp_path / "experiments", f"rows: {{{rows}}}"), "own/t")
    put(tmp_path / "runs", "optimizer=sgd", "scale=small", "precision=bf16")
    put(tmp_path / "runs", "optimizer=looksam", "scale=small", score=60)
    for asked in ({}, {"scale": "small", "precision": "bf16"}):
        sheet = sheet_of(tmp_path, table, **asked)
        assert list(zip(sheet.lines["mean"], sheet.lines.n, strict=True)) == [(50.0, 1), (60.0, 1)]
        assert "At scale small: fp32." in sheet.notes


def test_a_substitute_is_named_and_counts_at_its_scale_alone(tmp_path):
    content = 'scales: {small: {run: model=wrn16_2, note: "two cores"}}\nrows: {a: {run: optimizer=sgd model=resnet20}}'
    table = load(declare(tmp_path / "experiments", content), "own/t")
    put(tmp_path / "runs", "optimizer=sgd", "scale=small", "model=wrn16_2")
    put(tmp_path / "runs", "optimizer=sgd", "scale=small", "model=resnet20", score=1)
    sheet = sheet_of(tmp_path, table)
    assert (lines_of(sheet)["a", "c", "accuracy"]["model"], lines_of(sheet)["a", "c", "accuracy"]["mean"]) == ("wrn16_2", "50")
    assert "At scale small: two cores." in sheet.notes
    assert "Ours: scale small (epochs x 1, data x 0.1), cpu (two cores); python" in caption(sheet)
    assert sheet_of(tmp_path, table, scale="paper").lines.model[0] == "resnet20"


def test_what_stands_in_for_a_row_and_for_a_column_stands_in_together(tmp_path):
    content = """scales: {small: {run: model=wrn16_2, note: two cores}}
columns: {SGD: {run: optimizer=sgd, scales: {small: {run: precision=fp32 model=resnet20, note: in fp32}}}}
rows: {a: {}}"""
    (cell,) = load(declare(tmp_path / "experiments", content), "own/t").cells
    assert cell.substitutes["small"] == Substitute(("model=resnet20", "precision=fp32"), "two cores; in fp32")


def test_what_is_not_the_papers_setting_is_said_beside_every_number(tmp_path, methods):
    put(tmp_path / "runs", "optimizer=sgd", "epochs=3")
    sheet = sheet_of(tmp_path, methods, overrides=("epochs=3",), experiments="mine")
    assert lines_of(sheet)["SGD", "Acc.", "accuracy"]["scale"] == "paper epochs=3"
    page = as_markdown(sheet, pictures=False)
    assert "Rendered by `python -m sam_repro.tables report own/t epochs=3 experiments=mine`" in page
    assert "run own/t device=cpu seeds=0 epochs=3 experiments=mine`" in page


def test_a_ratio_of_fewer_seeds_says_so(tmp_path, methods):
    for seed in range(2):
        put(tmp_path / "runs", "optimizer=sgd", seed=seed)
        sam = put(tmp_path / "runs", "optimizer=sam", seed=seed)
    time_steps(sam, 2.0, 1.2)
    page = as_markdown(sheet_of(tmp_path, methods), pictures=False)
    assert "**50.0 % of SGD** (1)<br>**1.00 of SAM's extra time** (1)<br>paper 100" in page


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
        report(load(tmp_path / plot, "own/t"), request, request.frames)
        picture = tmp_path / "results" / "own" / "t.png"
        assert picture.read_bytes().startswith(b"\x89PNG"), plot
        drawn = picture.with_suffix(".svg").read_text()
        assert "<svg" in drawn
        report(load(tmp_path / plot, "own/t"), request, Frames("none", f"{request.results_dir}/runs"))
        assert picture.with_suffix(".svg").read_text() == drawn, f"{plot} is another from the archive"
        picture.unlink()
    kept = tmp_path / "results" / "runs" / run.id / "steps.csv"
    assert kept.read_text() == "step,plain_norm,psf_norm\n0,2,0.1\n2,1,0.2\n"


def test_norms_are_a_curve_for_each_layer_and_landscapes_a_line_for_each_method(tmp_path):
    for method in ("sgd", "sam"):
        run = put(tmp_path / "runs", f"optimizer={method}")
        (run.path / "landscape").mkdir()
        grid = {"layer": "head", "x": [0, 1], "y": [0, 1], "loss": [[0, 1], [1, 9]], "samples": 50, "of": 50}
        (run.path / "landscape" / "head.json").write_text(json.dumps(grid))
    request = Request(runs_dir=str(tmp_path / "runs"), results_dir=str(tmp_path / "results"))
    content = "plot: {}\nrows: {{a: {{run: optimizer=sgd}}, b: {{run: optimizer=sam}}}}"
    charts = {}
    for plot in ("layer_norms", "landscape"):
        table = load(declare(tmp_path / plot, content.format(plot)), "own/t")
        charts[plot] = draw(sheet(table, request, request.frames)).to_dict()
    curves, shades = charts["layer_norms"]["vconcat"][0]["hconcat"]
    assert (curves["mark"]["type"], shades["mark"]["type"]) == ("line", "rect")
    assert curves["encoding"]["color"]["scale"]["domain"] == list(run.summary["perturbations"])
    rows = [[one["title"] for one in row["hconcat"]] for row in charts["landscape"]["vconcat"]]
    assert rows == [["a, head"], ["b, head"]]
    assert {str(one["encoding"]["color"]["scale"]["domain"]) for row in charts["landscape"]["vconcat"] for one in row["hconcat"]} == {
        "[0, 4.5]"
    }


def test_a_recipe_reads_the_architecture_from_the_model(tmp_path):
    content = """columns:
  {Params: {metric: parameters}, P: {metric: patch}, S: {metric: sequence}, H: {metric: hidden}, N: {metric: heads}, L: {metric: layers},
  LR: {metric: lr}, D: {metric: decay}, O: {metric: base}, ρ: {metric: rho}}
run: model=timm model.arch=vit_small_patch32_224 lr=0.003
rows: {S-32: {run: optimizer=sam, paper: [23M, 32×32, 49, 384, 6, 12, 3e-3, step, sgd, 0.18]}}"""
    folder = declare(tmp_path / "experiments", content)
    path = folder / "own" / "t.yaml"
    path.write_text(path.read_text().replace("kind: table", "kind: recipe"))
    lines = sheet_of(tmp_path, load(folder, "own/t")).lines
    assert [agrees(line.mean, line.paper) for line in lines.itertuples()] == [True] * 9 + [False]
    assert [*lines["mean"]][:: len(lines) - 1] == ["22.9M", "0.05"]
    assert latex("✓, ✗ and α_1 & `a_b`") == (r"\ensuremath{\checkmark}, \ensuremath{\times} and \ensuremath{\alpha}\_1 \& \texttt{a\_b}")


def test_the_readme_says_what_the_runs_came_to_and_the_index_has_the_tables(tmp_path, methods):
    put(tmp_path / "runs", "optimizer=sgd", "scale=small", score=61)
    for k, score in ((1, 62), (4, 63)):
        time_steps(put(tmp_path / "runs", "optimizer=layerwise", f"k={k}", "scale=small", score=score), 1.0 + k / 10, 1.2)
    request = Request(runs_dir=str(tmp_path / "runs"), results_dir=str(tmp_path / "results"))
    report(methods, request, request.frames)
    for run in all_runs(tmp_path / "runs"):
        archive(run, tmp_path / "results" / "runs")
    readme, results, folder = tmp_path / "README.md", tmp_path / "results", tmp_path / "experiments"
    readme.write_text(f"before\n{BEGIN}\nformer\n{END}\nafter\n")
    for _ in range(2):  # the second time it stays as it is
        made = pages(readme, results, folder)
        assert {path.relative_to(tmp_path).as_posix() for path in made} == {
            "README.md", "results/README.md", "results/methods.png", "results/methods.svg"
        }  # fmt: skip
        text = made[readme]
        readme.write_text(text)
        assert text.startswith(f"before\n{BEGIN}\n")
        assert text.endswith(f"{END}\nafter\n")
        assert "former" not in text
        assert "scale small" in text
        assert "one seed each, from which no ranking follows" in text
        assert text.index("| layerwise | 63.00 | 1.40 |") < text.index("| layerwise k=1 | 62.00 | 1.10 |") < text.index("| sgd | 61.00 |")
        assert "1 of 1 tables and figures of the papers have runs" in text
    cards = methods_page(Path(__file__).parents[1] / "docs" / "methods", results)
    assert "epochs, scale small" in re.search("^Ours: .*$", cards, re.M)[0]
    for method, ours in {"layerwise": "63.00 · 1.40 · 1<br>k=1: 62.00 · 1.10 · 1", "sgd": "61.00 · 1.00 · 1", "sam": ""}.items():
        assert re.search(rf"^\| \[{method}\]\(.* \| {ours} \|$", cards, re.M), method
    tables = index(results, folder)
    assert re.search(r"^\| \[Table 0\]\(own/t\.md\) \| T \| [4-9] of 12: scale small on cpu \|$", tables, re.M)
    assert "**[own/t](own/t.md)** T (scale small on cpu)" in tables
    assert "| SGD | **61.00** (1); paper 91.96 ± 0.3 |" in tables
    with pytest.raises(UserError, match="needs a line <!-- tables:begin -->"):
        (tmp_path / "other.md").write_text("nothing")
        pages(tmp_path / "other.md", results, folder)
