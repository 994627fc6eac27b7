"""The papers' tables: what is declared, that it composes, and what the committed runs render to."""

import csv
import shutil
from dataclasses import replace

import pytest
from own_tables import ROOT, declared

from sam_repro.config import compose, identity
from sam_repro.results.claims.declare import load as claims_of
from sam_repro.results.claims.evidence import cell_of
from sam_repro.results.declare import EXPERIMENTS, load, names, select
from sam_repro.results.frames import Frames
from sam_repro.results.metrics import METRICS
from sam_repro.results.numbers import extra_share
from sam_repro.results.readme import pages
from sam_repro.results.recipe import PARTS, SETTINGS
from sam_repro.results.render import as_csv, as_latex, as_markdown
from sam_repro.results.report import report
from sam_repro.results.select import Request, configuration, run_id, selection
from sam_repro.results.sheet import sheet
from sam_repro.results.work import tasks

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
    "kdd24/figure5": (3, 3), "kdd24/figure6": (2, 1), "vsam/figure1": (6, 4), "vsam/figure2": (1, 3), "msam/figure1": (5, 2),
    "msam/figureB1": (12, 2), "looksam/table8": (12, 10), "looksam/table9": (14, 10), "looksam/table10": (4, 6),
}  # fmt: skip


SEEDS = {"kdd24": 3, "vsam": 3, "msam": 5}


def at(sheet, row, column):
    return sheet.lines[(sheet.lines.row == row) & (sheet.lines.column == column)]


def number(text):
    return float(text) if text else 0.0


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


def test_the_papers_shares_of_extra_time_are_those_of_its_printed_speeds():
    """KDD'24's layer-wise SAM with k=4 on CIFAR-10: 604.2 images a second, SGD's 659.2, generalized SAM's 459.5."""
    assert extra_share(1 / 604.2, 1 / 659.2, 1 / 459.5) == pytest.approx(0.2095, abs=5e-5)
    names = ("kdd24/table2", "kdd24/equations8_9", "vsam/table1")
    one, two, relative_to_sam = (sheet(declared(name), Request(), Frames("none", "none")) for name in names)
    for cell in (at(one, "CIFAR-10", "Layer-wise SAM"), at(two, "CIFAR-10 / Layer-wise SAM, k=4", "Throughput (img/sec)")):
        papers = dict(zip(cell.metric, cell.paper, strict=True))
        assert papers == {"images_per_second": "604.2", "images_per_second_ratio": "91.7", "images_per_second_extra": "0.21"}
    assert not relative_to_sam.lines.metric.str.endswith("_extra").any()
    said = " ".join(declared("kdd24/table4").footnotes)  # that table has no SGD
    for dataset in ("CIFAR-10", "CIFAR-100", "Oxford_Flowers102"):
        shares = [at(two, f"{dataset} / Layer-wise SAM, k={k}", "Throughput (img/sec)").paper.iloc[-1] for k in (1, 2, 4, 8)]
        assert f"{', '.join(shares[:3])} and {shares[3]} on {dataset}" in said


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


@pytest.mark.parametrize("name", [*PAPERS, *OTHERS])
def test_every_table_renders_with_the_papers_values_alone(name, tmp_path):
    request = Request(runs_dir=str(tmp_path / "runs"), results_dir=str(tmp_path / "results"))
    table = declared(name)
    report(table, request, request.frames)
    with (tmp_path / "results" / f"{name}.csv").open(newline="") as file:
        rows = {(row["row"], row["column"], row["metric"]): row for row in csv.DictReader(file)}
    for cell in table.cells:
        assert rows[cell.row, cell.column, cell.metric]["paper"] == cell.paper.value
    assert not any(row["n"] or row["run_ids"] for row in rows.values())
    page = (tmp_path / "results" / f"{name}.md").read_text()
    assert all(label in page for label in (*table.rows, *table.columns, *table.footnotes))
    assert (tmp_path / "results" / f"{name}.tex").exists()
    assert (tmp_path / "results" / f"{name}.png").exists() == (name == "vsam/figure1")  # the one whose points the text prints


def test_the_committed_tables_are_what_the_committed_runs_render_to(tmp_path):
    results = ROOT / "results"
    request = Request(runs_dir=str(tmp_path / "none"), results_dir=str(results))
    for table in select(names()):
        filled, path = sheet(table, request, request.frames), results / table.name
        pictures = path.with_suffix(".png").exists()
        for content, kind in ((as_csv(filled.lines), "csv"), (as_markdown(filled, pictures), "md"), (as_latex(filled, pictures), "tex")):
            assert content == path.with_suffix(f".{kind}").read_text(), path.with_suffix(f".{kind}")
    shutil.copytree(ROOT / "docs" / "methods", tmp_path / "docs" / "methods")
    shutil.copytree(ROOT / "results", tmp_path / "results", dirs_exist_ok=True)
    (tmp_path / "README.md").write_text((ROOT / "README.md").read_text())
    for path, content in pages(tmp_path / "README.md", tmp_path / "results").items():
        if isinstance(content, str):
            said = f"python -m sam_repro.tables readme writes another {path.name}"
            assert content == (ROOT / path.relative_to(tmp_path)).read_text(), said


def test_the_hydra_sweep_and_the_table_mean_the_same_runs():
    """The command of the table's documentation: the ids of its jobs are those the table looks for."""
    jobs = [
        identity(compose(["experiment=kdd24/cifar10", f"optimizer={method}", f"seed={seed}", "device=cpu"]))
        for method in ("sgd", "generalized_sam", "looksam", "layerwise") for seed in (0, 1, 2)
    ]  # fmt: skip
    table, request = declared("kdd24/table1"), Request(device="cpu")
    wanted = tasks([table], replace(request, experiment="kdd24/cifar10"), Frames("none", "none"))
    assert {task.run.id for task in wanted} == set(jobs)
    assert selection(table, request, Frames("none", "none")).empty


@pytest.mark.long
@pytest.mark.parametrize("paper", ["kdd24", "vsam", "msam"])
def test_at_the_reduced_scale_the_claims_take_the_runs_of_the_tables(paper):
    """Else every number that both have would be trained twice."""
    request = Request(scale="small")

    def named(cell):
        return frozenset(word for word in cell.words if not word.startswith(("precision=", "norms_every=")))

    def runs(cells):
        return {named(cell): run_id(configuration(cell, "small", request), 0, "cpu") for cell in cells if "small" in cell.substitutes}

    of_tables = runs(cell for name in names(EXPERIMENTS) if name.startswith(paper) for cell in load(EXPERIMENTS, name).cells if cell.words)
    parts = [part for claim in claims_of(EXPERIMENTS / paper / "claims.yaml", paper).claims for part in claim.parts]
    of_claims = runs(cell_of(part, benchmark, run) for part in parts for benchmark in part.on for run in part.runs)
    both = of_tables.keys() & of_claims.keys()
    assert len(both) > 4
    assert {key: of_tables[key] for key in both} == {key: of_claims[key] for key in both}
