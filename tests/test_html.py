"""The report to look at: its numbers against the runs', and the page in a browser."""

import json
import re
import shutil
import statistics
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml

from sam_repro.__main__ import launch
from sam_repro.config import compose, identity
from sam_repro.schema import UserError
from sam_repro.tables import html as page
from sam_repro.tables.compare import benchmarks, differences
from sam_repro.tables.values import COLUMNS, Line
from sam_repro.tracking.describe import command_of
from sam_repro.train import loop
from sam_repro.train.store import Run, all_runs, write

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


def numbers_of(text):
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.S)[1])


def test_runs_are_compared_only_within_a_benchmark(store):
    known = benchmarks(all_runs(store))
    assert [(benchmark.name, benchmark.scale) for benchmark in known] == [
        ("digits · resnet20", "paper, 0.1 of the training set"),
        ("digits · resnet20", "paper, 0.05 of the training set"),
    ]
    settings = [(setting.label, len(setting.runs)) for setting in known[0].settings]
    assert settings[0] == ("sgd", 2)
    assert sorted(settings[1:]) == [("layerwise k=1", 1), ("layerwise k=3", 1), ("sam", 1)]


def test_what_sets_two_settings_apart_is_named_as_the_user_knows_it():
    one = {"k": 1, "optimizer": {"where": {"k": 1}, "mix": 0.8}, "lr": 0.1}
    other = {"k": 2, "optimizer": {"where": {"k": 2}, "mix": 0.8}, "lr": 0.2}
    assert differences(one, [one, other]) == ["k=1", "lr=0.1"]
    assert differences(one, [one]) == []


def test_the_front_is_what_no_setting_beats_in_both(store):
    [benchmark, _] = benchmarks(all_runs(store))
    points = {s.label: (s.mean("images_per_second"), s.mean("score_last")) for s in benchmark.settings if s.done}
    undominated = {
        name for name, (speed, score) in points.items()
        if not any(other != name and (a >= speed and b >= score) for other, (a, b) in points.items())
    }  # fmt: skip
    assert {setting.label for setting in benchmark.front} == undominated


def test_the_table_holds_the_mean_and_the_deviation_of_the_finished_runs(store):
    runs = all_runs(store)
    rows = Table(page.html(runs, "All")).rows
    sgd = [run.summary for run in runs if run.config["optimizer"]["name"] == "sgd" and run.config["train_fraction"] == 0.1]
    scores = [summary["score_last"] for summary in sgd]
    row = next(row for row in rows if row[0] == "sgd")
    assert row[1] == f"{statistics.mean(scores):.2f} ± {statistics.stdev(scores):.2f}"
    assert row[4:9] == ["0.0", "1.00", "1.00", "2", "2"]
    assert next(row for row in rows if row[0] == "sam")[1:9] == ["", "", "", "", "", "", "0", "1 of 2 (failed)"]
    assert next(row for row in rows if row[0] == "layerwise k=3")[4] == "100.0"


def test_the_charts_draw_what_the_runs_recorded(store):
    runs = {run.id: run for run in all_runs(store)}
    data = numbers_of(page.html(list(runs.values()), "All"))
    assert [len(benchmark["runs"]) for benchmark in data] == [5, 1]
    for drawn in (drawn for benchmark in data for drawn in benchmark["runs"]):
        rows, layers = runs[drawn["id"]].metrics(), runs[drawn["id"]].layers()
        assert drawn["epoch"] == [row["epoch"] for row in rows]
        assert drawn["score"] == pytest.approx([row["score"] for row in rows], rel=1e-4)
        assert ("y" in drawn) == (runs[drawn["id"]].state == "done")
        matrix = drawn["layers"]
        for row in layers:
            i, j = matrix["names"].index(row["layer"]), matrix["epochs"].index(row["epoch"])
            assert matrix["grad_norm"][i][j] == pytest.approx(row["grad_norm"], rel=1e-4)
            assert matrix["perturbations"][i][j] == row["perturbations"]


def lines(store):
    run = next(run for run in all_runs(store) if run.state == "done")
    where = ("CIFAR-10", "resnet20", "sgd", "91.96", "0.3")
    filled = Line("CIFAR-10 <b>", "SGD", "accuracy", *where, 90.0, None, 1, "small", "cpu", (run.id,))
    return [filled, Line("CIFAR-10 <b>", "SAM", "accuracy", *where, None, None, 0, "", "", ())]


def test_a_declared_table_shows_the_papers_values_beside_ours_and_empty_cells_empty(store):
    rows = Table(page.html(all_runs(store), "T", lines(store))).rows
    assert rows[1][:9] == ["CIFAR-10 <b>", "SGD", "accuracy", "91.96 ± 0.3", "90.00", "1", "-1.96", "small", "cpu"]
    assert rows[2] == ["CIFAR-10 <b>", "SAM", "accuracy", "91.96 ± 0.3", "", "", "", "", "", ""]


def test_the_page_says_how_far_it_can_be_trusted_and_needs_nothing_else(store):
    runs = all_runs(store)
    text = page.html(runs, NASTY, lines(store), [NASTY])
    for said in ("5 done, 1 failed", "cpu fp32", runs[0].summary["hardware"], str(runs[0].status["commit"]), "Reduced runs"):
        assert said in text
    assert "<img" not in text
    assert not re.search(r"""(src|href)\s*=\s*["'](?!#)|url\(|@import|fetch\(""", text)
    for run in runs:
        assert text.count(f'id="run-{run.id}"') == 1
        assert f"#run-{run.id}" in text
        assert page.escape(command_of(run)) in text
    assert yaml.safe_load(re.search(r"<pre>(dataset:.*?)</pre>", text, re.S)[1])["model"]["name"] == "resnet20"


def test_the_command_writes_the_page(store, tmp_path, capsys):
    out = tmp_path / "report.html"
    page.make([run.id[:5] for run in all_runs(store)[:2]], runs_dir=str(store), out=str(out), title="Two")
    assert out.read_text().count("<article") == 2
    words = tmp_path / "table10.csv"  # a recipe's cells are words
    words.write_text(f"{','.join(COLUMNS)}\nViT-B-16,Params,parameters,,,,87M,,86.6M,,,,,\n")
    page.make([], runs_dir=str(store), out=str(out), table=str(words))
    assert "<td>87M</td><td>86.6M</td>" in out.read_text()
    words.write_text(words.read_text().replace(",86.6M,,", ",86.6M,,two"))
    for table, said in ((words, "render it anew"), (tmp_path / "none.csv", "cannot be read")):
        with pytest.raises(UserError, match=said):
            page.make([], runs_dir=str(store), out=str(out), table=str(table))
    with pytest.raises(UserError, match="There are no runs in"):
        page.make([], runs_dir=str(tmp_path))


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
    runs = all_runs(store)
    write(out, page.html(runs, NASTY, lines(store), [NASTY]))

    def open_at(width=1200, **more):
        opened = browser.new_context(viewport={"width": width, "height": 800}, **more).new_page()
        opened.on("pageerror", lambda error: trouble.append(str(error)))
        opened.on("console", lambda message: trouble.append(message.text))
        opened.on("request", lambda request: trouble.append(request.url) if request.url != out.as_uri() else None)
        opened.goto(out.as_uri())
        opened.wait_for_selector("[data-chart=curves] svg a")
        return opened

    yield open_at
    assert trouble == []


def test_nothing_runs_that_a_run_has_written(visit):
    assert visit().title() == NASTY


def test_a_table_is_sorted_by_its_heads_with_empty_cells_last(visit):
    opened = visit()

    def column():
        return opened.eval_on_selector_all(
            "[data-benchmark='0'] tbody td:nth-child(2)", "cells => cells.map(cell => cell.dataset.value ?? '')"
        )

    button = opened.locator("[data-benchmark='0'] thead button", has_text="Score")
    for reverse, said in ((False, "ascending"), (True, "descending")):
        button.focus()
        opened.keyboard.press("Enter")
        values = column()
        assert values[-1] == ""
        assert [float(value) for value in values[:-1]] == sorted((float(value) for value in values[:-1]), reverse=reverse)
        assert opened.locator("[data-benchmark='0'] th[aria-sort]").get_attribute("aria-sort") == said


def test_a_method_is_switched_off_in_all_curves(visit):
    opened = visit()
    curves = opened.locator("[data-benchmark='0'] [data-chart=curves] figure")
    before = [curves.nth(i).locator("a").count() for i in range(4)]
    opened.locator("[data-benchmark='0'] label", has_text="sgd").locator("input").focus()
    opened.keyboard.press("Space")
    assert before == [5, 5, 5, 5]
    assert [curves.nth(i).locator("a").count() for i in range(4)] == [3, 3, 3, 3]
    assert opened.locator("[data-benchmark='0'] [data-chart=speed] a").count() == 2


def test_a_point_leads_to_its_run_by_keyboard(visit, store):
    opened = visit()
    point = opened.locator("[data-benchmark='0'] [data-chart=speed] a").first
    target = point.get_attribute("href").removeprefix("#run-")
    point.focus()
    opened.keyboard.press("Enter")
    opened.wait_for_function("document.activeElement.tagName === 'ARTICLE'")
    assert opened.evaluate("document.activeElement.id") == f"run-{target}"
    assert opened.locator(f"#run-{target} details").get_attribute("open") is not None
    assert opened.locator(f"#run-{target} .command code").inner_text() == command_of(Run(store, target))


def test_the_heatmap_is_read_by_arrow_keys(visit, store):
    opened = visit()
    part = opened.locator("[data-benchmark='0'] [data-chart=heatmap]")
    part.get_by_label("Run", exact=True).select_option(label="layerwise k=3, seed 0")
    part.get_by_label("Measure").select_option("perturbations")
    run = next(run for run in all_runs(store) if run.config.get("k") == 3)
    assert part.locator("svg > rect:not(.cursor)").count() == len(run.layers()) + 40  # the cells and the colour bar
    part.locator("svg").focus()
    for _ in range(len(run.summary["perturbations"])):
        opened.keyboard.press("ArrowDown")
    opened.keyboard.press("ArrowRight")
    last = run.layers()[-1]
    assert part.locator(".readout").inner_text() == f"head.linear, epoch 2: {last['perturbations']}"


@pytest.mark.parametrize("width", [360, 1200])
def test_the_page_does_not_scroll_sideways_and_text_stays_legible(visit, width):
    opened = visit(width)
    assert opened.evaluate("document.documentElement.scrollWidth") <= width
    sizes = "texts => texts.map(text => parseFloat(getComputedStyle(text).fontSize) * text.getScreenCTM().a)"
    assert min(opened.eval_on_selector_all("svg text", sizes)) >= 9


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_and_lines_stand_out_from_the_background(visit, scheme):
    """WCAG: 4.5 to 1 for text, 3 to 1 for what is drawn."""
    opened = visit(color_scheme=scheme)
    names = ["text", "soft", "link", *(f"c{i}" for i in range(8))]
    found = opened.evaluate(
        "names => names.map(name => getComputedStyle(document.documentElement).getPropertyValue('--' + name).trim())", ["back", *names]
    )

    def luminance(code):
        digits = code.lstrip("#") if len(code) == 7 else "".join(2 * digit for digit in code.lstrip("#"))
        parts = [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    back, *others = map(luminance, found)
    for name, other in zip(names, others, strict=True):
        ratio = (max(back, other) + 0.05) / (min(back, other) + 0.05)
        assert ratio >= (3 if name.startswith("c") else 4.5), name


def test_on_paper_nothing_is_cut_off(visit, tmp_path):
    opened = visit()
    opened.pdf(path=tmp_path / "report.pdf", format="A4")
    assert (tmp_path / "report.pdf").stat().st_size > 20_000
    opened.set_viewport_size({"width": 720, "height": 1000})
    opened.emulate_media(media="print")
    wide = "parts => parts.filter(part => part.scrollWidth > part.clientWidth + 1).length"
    assert opened.eval_on_selector_all(".scroll, pre, figure", wide) == 0
    assert Path(tmp_path / "report.pdf").read_bytes().startswith(b"%PDF")
