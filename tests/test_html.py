"""The report to look at: its numbers against the runs', and the page in a browser."""

import html
import json
import re
import shutil
import statistics
from html import escape
from html.parser import HTMLParser

import pytest
import vl_convert
import yaml
from own_tables import declare, put

from sam_repro import runs
from sam_repro.__main__ import launch
from sam_repro.config import compose, identity
from sam_repro.files import write
from sam_repro.results import Frames, load
from sam_repro.results.compare import benchmarks
from sam_repro.results.declare import load as load_table
from sam_repro.results.declare import select
from sam_repro.results.figures import colour
from sam_repro.results.page import page
from sam_repro.results.select import Request
from sam_repro.results.sheet import sheet as sheet_for
from sam_repro.schema import UserError, options
from sam_repro.store import CHECKSUMS, Run, all_runs
from sam_repro.tracking.describe import command_of
from sam_repro.train import loop

SMALL = ["device=cpu", "train_fraction=0.1", "epochs=2"]
NASTY = "</script><img src=x onerror=\"document.title='broken'\">"


def run_here(folder, *overrides) -> Run:
    overrides = [*SMALL, f"runs_dir={folder}", *overrides]
    config = compose(overrides)
    launch(config, overrides)
    return Run(folder, identity(config))


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """SGD with two seeds, two layer-wise settings, one run that failed in its second epoch, and another benchmark."""
    folder = tmp_path_factory.mktemp("runs")
    for overrides in (["optimizer=sgd"], ["optimizer=sgd", "seed=1"], ["k=1"], ["k=3"], ["optimizer=sgd", "train_fraction=0.05"]):
        run_here(folder, *overrides)
    evaluate, calls = loop.evaluate, []

    def failing(*args):
        calls.append(1)
        if len(calls) == 2:
            raise UserError(f"The loss became nan {NASTY}.")
        return evaluate(*args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "evaluate", failing)
        with pytest.raises(UserError):
            run_here(folder, "optimizer=sam")
    return folder


class Table(HTMLParser):
    """The cells of every row of a page's tables, as text."""

    def __init__(self, text):
        super().__init__()
        self.rows, self.inside = [], False
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        self.inside = tag in ("td", "th") or (self.inside and tag in ("a", "code"))

    def handle_endtag(self, tag):
        self.inside = self.inside and tag not in ("td", "th")

    def handle_data(self, data):
        if self.inside:
            self.rows[-1][-1] += data


def charts_of(text):
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.S)[1])


def page_of(store, title="All", sheet=None, notes=()):
    return page(load(store), [run.id for run in all_runs(store)], title, sheet, notes)


def compared(store):
    return benchmarks(load(store), [run.id for run in all_runs(store)])


def test_runs_are_compared_only_within_a_benchmark(store):
    known = compared(store)
    assert [(benchmark.name, benchmark.scale) for benchmark in known] == [
        ("digits · resnet20", "paper, 0.1 of the training set"),
        ("digits · resnet20", "paper, 0.05 of the training set"),
    ]
    assert known[0].runs.setting.value_counts().to_dict() == {"sgd": 2, "layerwise k=1": 1, "layerwise k=3": 1, "sam": 1}


def test_runs_on_wrong_labels_are_another_benchmark(tmp_path):
    runs = [put(tmp_path, "optimizer=sgd", *words) for words in ([], ["label_noise=0.2"])]
    known = benchmarks(load(tmp_path), [run.id for run in runs])
    assert [(one.scale, list(one.runs.setting)) for one in known] == [("paper", ["sgd"]), ("paper, 0.2 of the labels wrong", ["sgd"])]


def test_a_setting_is_named_by_what_is_not_usual_in_it_and_a_run_older_than_a_key_had_its_default(tmp_path):
    runs = [put(tmp_path, "optimizer=layerwise", f"k={k}", *words) for k, words in ((4, []), (1, []), (1, ["weight_decay=0.5"]))]
    config = runs[0].config
    del config["tf32"], config["processes"], config["lag"], config["optimizer"]["where"]["lag"]
    (runs[0].path / "config.yaml").write_text(yaml.safe_dump(config))
    (runs[0].path / CHECKSUMS).unlink()
    (known,) = benchmarks(load(tmp_path), [run.id for run in runs])
    assert list(known.runs.setting) == ["layerwise", "layerwise k=1", "layerwise k=1 weight_decay=0.5"]


def test_the_front_is_what_no_setting_beats_in_both(store):
    benchmark, _ = compared(store)
    points = {one.Index: (one.images_per_second, one.score_last) for one in benchmark.means.itertuples() if one.n}
    undominated = {
        name for name, (speed, score) in points.items()
        if not any(other != name and (a >= speed and b >= score) for other, (a, b) in points.items())
    }  # fmt: skip
    assert set(benchmark.front.index) == undominated


def test_the_table_holds_the_mean_and_the_deviation_of_the_finished_runs(store):
    runs = all_runs(store)
    rows = Table(page_of(store)).rows
    sgd = [run.summary for run in runs if run.config["optimizer"]["name"] == "sgd" and run.config["train_fraction"] == 0.1]
    scores = [summary["score_last"] for summary in sgd]
    row = next(row for row in rows if row[0] == "sgd")
    assert row[1] == f"{statistics.mean(scores):.2f} ± {statistics.stdev(scores):.2f}"
    assert row[4:9] == ["0.0", "1.00", "1.00", "2", "2"]
    assert next(row for row in rows if row[0] == "sam")[1:9] == ["", "", "", "", "", "", "0", "1 of 2 (failed)"]
    assert next(row for row in rows if row[0] == "layerwise k=3")[4] == "100.0"


def data_of(chart):
    """All rows that a specification has, whichever of its layers draws them."""
    return [row for rows in chart["datasets"].values() for row in rows]


def test_the_charts_draw_what_the_runs_recorded(store):
    runs, charts = {run.id: run for run in all_runs(store)}, charts_of(page_of(store))
    assert {*charts} == {"curves0", "speed0", "layers0", "curves1", "speed1", "layers1"}
    sgd = [run.metrics() for run in runs.values() if run.config["optimizer"]["name"] == "sgd" and run.config["train_fraction"] == 0.1]
    drawn = [row for row in data_of(charts["curves0"]) if (row["label"], row["panel"]) == ("sgd", "Score, %")]
    for row, scores in zip(drawn, zip(*([one["score"] for one in rows] for rows in sgd), strict=True), strict=True):
        assert (row["mean"], row["high"]) == pytest.approx(
            (statistics.mean(scores), sum((statistics.mean(scores), statistics.stdev(scores)))), rel=1e-4
        )
    points = {row["run"]: (row["images_per_second"], row["score_last"]) for row in data_of(charts["speed0"]) if "run" in row}
    assert points == {key: (run.summary["images_per_second"], run.summary["score_last"]) for key, run in runs.items() if key in points}
    assert len(points) == 4
    run = next(run for run in runs.values() if run.config["optimizer"]["where"].get("k") == 3)
    cells = {(row["layer"], row["epoch"]): row for row in data_of(charts["layers0"]) if row["label"] == "layerwise k=3, seed 0"}
    for row in run.layers():
        cell = cells[row["layer"], row["epoch"]]
        assert (cell["grad_norm"], cell["perturbations"]) == pytest.approx((row["grad_norm"], row["perturbations"]), rel=1e-4)


def test_every_chart_can_be_drawn(store):
    for name, chart in charts_of(page_of(store)).items():
        drawn = vl_convert.vegalite_to_svg(chart)
        assert drawn.count('aria-roledescription="circle"') + drawn.count("<path") > 4, name
        assert "undefined" not in drawn
        assert "NaN" not in drawn


@pytest.fixture
def sheet(store, tmp_path):
    """A declared table of the store's runs, one of whose rows has none and a name that is no name."""
    rows = f"'CIFAR-10 <b>': {{run: optimizer=sgd, paper: [91.96 ± 0.3]}}, {json.dumps(NASTY)}: {{run: optimizer=asam, paper: [1]}}"
    table = load_table(declare(tmp_path / "experiments", f"rows: {{{rows}}}"), "own/t")
    asked = Request(overrides=("epochs=2", "train_fraction=0.1"), runs_dir=str(store), results_dir=str(tmp_path / "none"))
    return sheet_for(table, asked, load(store))


def test_a_declared_table_shows_the_papers_values_beside_ours_and_empty_cells_empty(store, sheet):
    rows = Table(page_of(store, "T", sheet)).rows
    ours = sheet.lines.iloc[0]
    assert rows[1][:9] == [
        "CIFAR-10 <b>", "c", "accuracy", "91.96 ± 0.3", f"{ours['mean']:.2f} ± {ours['std']:.2f}", "2", f"{ours['mean'] - 91.96:+.2f}",
        "paper epochs=2 train_fraction=0.1", "cpu",
    ]  # fmt: skip
    assert rows[2] == [NASTY, "c", "accuracy", "1", "", "", "", "", "", ""]


def test_the_page_says_how_far_it_can_be_trusted_and_needs_nothing_else(store, sheet):
    runs = all_runs(store)
    text = page_of(store, NASTY, sheet, [NASTY])
    for said in ("5 done, 1 failed", "cpu fp32", runs[0].summary["hardware"], str(runs[0].status["commit"]), "Reduced runs"):
        assert said in text
    own = text.replace(vl_convert.javascript_bundle(), "")
    assert "<img" not in own
    assert not re.search(r"""(src|href)\s*=\s*["'](?!#)|url\(|@import|fetch\(""", own)
    for run in runs:
        assert text.count(f'id="run-{run.id}"') == 1
        assert f"#run-{run.id}" in text
        assert escape(command_of(run)) in text
    assert not re.search(r"(: |>| to )nan\b", re.sub(r"<script.*?</script>", "", own, flags=re.S))
    assert yaml.safe_load(html.unescape(re.search(r"<pre>(dataset:.*?)</pre>", text, re.S)[1]))["model"]["name"] == "resnet20"


def test_the_command_writes_the_page(store, tmp_path, capsys):
    out = tmp_path / "report.html"
    runs.run(["html", *(run.id[:5] for run in all_runs(store)[:2])], {"runs_dir": str(store), "out": str(out), "title": "Two"})
    assert out.read_text().count("<article") == 2
    with pytest.raises(UserError, match="There are no runs in"):
        runs.run(["html"], {"runs_dir": str(tmp_path)})
    with pytest.raises(UserError, match="go with html and export"):
        runs.run(["list"], {"out": "x"})


def test_a_recipes_words_stand_in_the_page(tmp_path):
    table = next(iter(select(["looksam/table10"])))
    rows = Table(page(Frames("none"), [], "T", sheet_for(table, Request(), Frames("none")))).rows
    assert ["87M", "86.6M"] in [row[3:5] for row in rows]


# -- in a browser


@pytest.fixture(scope="module")
def browser():
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    installed = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    with sync_api.sync_playwright() as playwright:
        try:
            chromium = playwright.chromium.launch(executable_path=installed, args=["--no-sandbox"])
        except sync_api.Error:
            pytest.skip("no Chromium: 'apt-get install chromium' or 'playwright install chromium'")
        yield chromium
        chromium.close()


@pytest.fixture
def visit(browser, store, tmp_path):
    """Open the page at a width; whatever it complains about or fetches fails the test."""
    out, trouble = tmp_path / "report.html", []
    write(out, page_of(store, NASTY, None, [NASTY]))

    def open_at(width=1200, **more):
        opened = browser.new_context(viewport={"width": width, "height": 800}, **more).new_page()
        opened.on("pageerror", lambda error: trouble.append(str(error)))
        opened.on("console", lambda message: trouble.append(message.text))
        opened.on("request", lambda request: trouble.append(request.url) if request.url != out.as_uri() else None)
        opened.goto(out.as_uri())
        opened.wait_for_selector("#curves0 canvas, #curves0 svg")
        return opened

    yield open_at
    assert trouble == []


@pytest.mark.long
def test_nothing_runs_that_a_run_has_written(visit):
    assert visit().title() == NASTY


@pytest.mark.long
def test_a_table_is_sorted_by_its_heads_with_empty_cells_last(visit):
    opened = visit()

    def column():
        return opened.eval_on_selector_all(
            "section:has(#curves0) tbody td:nth-child(2)", "cells => cells.map(cell => cell.dataset.value ?? '')"
        )

    button = opened.locator("section:has(#curves0) thead button", has_text="Score")
    for reverse, said in ((False, "ascending"), (True, "descending")):
        button.focus()
        opened.keyboard.press("Enter")
        values = column()
        assert values[-1] == ""
        assert [float(value) for value in values[:-1]] == sorted((float(value) for value in values[:-1]), reverse=reverse)
        assert opened.locator("section:has(#curves0) th[aria-sort]").get_attribute("aria-sort") == said


@pytest.mark.long
def test_a_link_leads_to_its_run_by_keyboard_and_opens_its_configuration(visit, store):
    opened = visit()
    link = opened.locator("section:has(#curves0) tbody a").first
    target = link.get_attribute("href").removeprefix("#run-")
    link.focus()
    opened.keyboard.press("Enter")
    opened.wait_for_function(f"document.querySelector('#run-{target} details').open")
    assert opened.locator(f"#run-{target} .command code").inner_text() == command_of(Run(store, target))


@pytest.mark.long
def test_a_run_is_picked_for_the_layers(visit):
    opened = visit()
    opened.locator("#layers0 select").select_option(label="layerwise k=3, seed 0")


@pytest.mark.parametrize("width", [360, 1200])
@pytest.mark.long
def test_the_page_does_not_scroll_sideways(visit, width):
    assert visit(width).evaluate("document.documentElement.scrollWidth") <= width


def test_colours_stand_out_from_the_background_and_from_each_other():
    """WCAG: 3 to 1 for what is drawn; a method keeps its own, and the dashes tell apart those of one colour."""

    def luminance(code):
        parts = [int(code[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    shades = [colour(name) for name in options("optimizer")]
    assert len({*shades}) == len(shades)
    for shade in shades:
        assert 1.05 / (luminance(shade) + 0.05) >= 3, shade


@pytest.mark.long
def test_on_paper_nothing_is_cut_off(visit, tmp_path):
    opened = visit()
    opened.pdf(path=tmp_path / "report.pdf", format="A4")
    assert (tmp_path / "report.pdf").read_bytes().startswith(b"%PDF")
    assert (tmp_path / "report.pdf").stat().st_size > 20_000


@pytest.mark.long
def test_the_numbers_of_a_chart_are_a_table_when_they_are_asked_for(visit):
    opened = visit()
    assert opened.locator("[data-chart=speed0] td").count() == 0
    opened.locator("[data-chart=speed0] summary").focus()
    opened.keyboard.press("Enter")
    opened.wait_for_selector("[data-chart=speed0] td")
    heads = opened.locator("[data-chart=speed0] table").first.locator("th").all_inner_texts()
    assert {"setting", "seed", "score_last", "images_per_second"} <= {*heads}
    said = opened.locator("#speed0 [aria-label]").first.get_attribute("aria-label")
    assert said.startswith("Score against images per second")


@pytest.mark.long
def test_in_the_dark_the_words_are_bright_and_the_charts_keep_their_white(visit):
    opened = visit(color_scheme="dark")
    shades = [
        opened.evaluate(f"getComputedStyle(document.querySelector('{where}')).{what}").removeprefix("rgb(").removesuffix(")")
        for where, what in (("body", "color"), ("body", "backgroundColor"), ("#curves0", "backgroundColor"))
    ]
    words, page_, chart = (sum(map(int, shade.split(", "))) / 3 for shade in shades)
    assert words > 200 > 60 > page_
    assert chart == 255
