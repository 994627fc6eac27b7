"""A search of the family: which combinations there are, which come next, what ranks them, and what is told of it when."""

import json
import random
from itertools import pairwise

import pandas as pd
import pytest
from own_tables import put, time_steps

from sam_repro import search, study
from sam_repro.results.declare import EXPERIMENTS
from sam_repro.results.search import halving
from sam_repro.results.search.halving import load, stages
from sam_repro.results.select import Request
from sam_repro.schema import UserError
from sam_repro.store import Run

OWN = """
with: dataset=digits device=cpu train_fraction=0.1 val_fraction=0.2
seed: 0
grid:
  when: [always, every n=2, gradient_norm]
  where: [model rho=0.1, layers k=2 r=0.1]
  between: [gradient, orthogonal alpha=0.1 precision=bf16 optimizer.mix=0.8]
  samples: [batch, micro m=4]
excluded:
  - {when: always, between: orthogonal, why: nothing is reused}
rungs:
  - {combinations: 5, epochs: 1}
  - {combinations: 3, epochs: 2}
  - {combinations: 2, epochs: 3}
final: {seeds: [1, 2], beside: [optimizer=sgd, optimizer=sgd epochs=4]}
"""


def asked(tmp_path):
    return Request(runs_dir=str(tmp_path / "runs"), results_dir=str(tmp_path / "results"))


def declared(tmp_path, text=OWN):
    path = tmp_path / "search.yaml"
    path.write_text(text)
    return path


@pytest.fixture
def own(tmp_path):
    request = asked(tmp_path)
    return load(declared(tmp_path), request), request


def number(task):
    """A score that a method has by lot, the same at every rung; a seed adds a little."""
    return 50 + random.Random(" ".join(word for word in task.words if word.startswith("optimizer"))).random() + task.seed / 10


@pytest.fixture
def trained(monkeypatch):
    """In place of training: the runs' numbers are put where a training leaves them. What is asked for, in order."""
    begun, state = [], {"stop_after": 10**9}

    class Fake:
        def __init__(self, todo, known, request, environments):
            (self.task,), self.request = todo, request

        def go(self):
            if len(begun) >= state["stop_after"]:
                raise KeyboardInterrupt
            begun.append(self.task)
            run = put(
                self.request.runs_dir, *self.task.words, score=number(self.task), passes=1 + number(self.task) % 1, seed=self.task.seed
            )
            assert run.id == self.task.run.id
            return []

    monkeypatch.setattr(study, "Work", Fake)
    monkeypatch.setattr(study.os, "nice", lambda _: 0)
    return begun, state


def test_every_answer_goes_with_every_other_but_for_what_has_a_reason(own):
    grid = own[0].grid
    assert grid.excluded == {"nothing is reused": 4}
    assert len(grid.combinations) + 4 + len(grid.refused) == 3 * 2 * 2 * 2
    assert {str(one).partition(" × ")[0] for one in grid.refused} == {"gradient_norm"}
    assert all("micro" in str(one) and "does not go with samples=micro" in why for one, why in grid.refused.items())


def test_a_new_answer_leaves_the_others_in_their_order(own, tmp_path):
    more = load(declared(tmp_path, OWN.replace("layers k=2 r=0.1", "layers k=2 r=0.1, layers k=1 r=0.1")), own[1])
    assert [one for one in more.grid.combinations if "k=1" not in str(one)] == list(own[0].grid.combinations)
    assert [one.place for one in more.grid.combinations] == sorted(one.place for one in more.grid.combinations)


def test_an_option_has_its_own_numbers_and_not_those_of_sam(tmp_path):
    words = load(declared(tmp_path, OWN.replace("layers k=2 r=0.1", "adaptive")), asked(tmp_path)).grid.combinations
    config = next(halving.composed(one.words) for one in words if "adaptive" in str(one))
    assert config["optimizer"]["where"]["rho"] == 0.5  # sam's is 0.05


def test_an_answer_may_need_another_precision_or_mix(own):
    configs = {str(one): halving.composed((*own[0].common, *one.words)) for one in own[0].grid.combinations}
    for label, config in configs.items():
        assert (config["precision"], config["optimizer"]["mix"]) == (("bf16", 0.8) if "orthogonal" in label else ("fp32", 1.0))


@pytest.mark.parametrize(
    ("before", "after", "says"),
    [
        ("every n=2", "evry n=2", "when has no option 'evry'. Did you mean 'every'"),
        ("every n=2", "every m=2", "when: every has no number 'm'"),
        ("every n=2", "every n=0", "when: every n=0 goes with nothing: .*n=0"),
        ("every n=2", "always", "grid: when is a list of answers, each once"),
        ("k=2 r", "k=99 r", "where: layers k=99 r=0.1 goes with nothing: k=99 does not fit"),
        ("between: orthogonal", "between: decayed_psf", "leaves out no combination"),
        ("why: nothing is reused", "why: ''", "names options of two questions at least, and why"),
        (" val_fraction=0.2", "", "ranks by a held-out part of the training set: add val_fraction=0.1"),
        ("{combinations: 3, epochs: 2}", "{combinations: 6, epochs: 2}", "no more combinations than the one before"),
        ("{combinations: 3, epochs: 2}", "{combinations: 3, epochs: 1}", "and more epochs"),
        ("epochs: 2}", "epoch: 2}", "there is no key 'epoch'. Did you mean 'epochs'"),
        ("seeds: [1, 2]", "seeds: [0, 2]", "that the search has not seen, and so not 0"),
        ("seed: 0", "sed: 0", "there is no key 'sed'. Did you mean 'seed'"),
        ("rungs:", "rungs: 3\nx:", "search.yaml"),
    ],
)
def test_a_file_that_does_not_fit_is_one_sentence(tmp_path, monkeypatch, capsys, before, after, says):
    path = declared(tmp_path, OWN.replace(before, after, 1))
    monkeypatch.setattr("sys.argv", ["search", "show", f"file={path}"])
    with pytest.raises(SystemExit):
        search.main()
    said = capsys.readouterr().err
    assert pd.Series([said]).str.contains(says, regex=True).all(), said
    assert "search.yaml" in said
    assert said.count("\n") == 1


def test_each_rung_has_the_best_of_the_one_before_and_the_test_set_comes_last(own, trained):
    plan, request = own
    assert [stage.title for stage in stages(plan, request)] == ["rung 1"]
    search.run(plan, request)
    found = stages(plan, request)
    assert [(stage.title, len(stage.entries), stage.epochs) for stage in found[:3]] == [
        ("rung 1", 5, 1),
        ("rung 2", 3, 2),
        ("rung 3", 2, 3),
    ]
    for before, after in pairwise(found[:3]):
        scores = {entry.label: number(entry.tasks[0]) for entry in before.entries}
        assert [entry.label for entry in after.entries] == sorted(scores, key=scores.get, reverse=True)[: len(after.entries)]
    assert all(task.config["val_fraction"] == 0.2 and task.seed == 0 for stage in found[:3] for task in stage.tasks)
    final = found[3]
    assert [(task.config["val_fraction"], task.seed) for task in final.tasks] == [(0.0, seed) for seed in (1, 2) for _ in final.entries]
    assert {entry.label for entry in final.entries if entry.combination} == {entry.label for entry in halving.front(found[2])}
    assert [entry.tasks[0].config["epochs"] for entry in final.entries][-2:] == [3, 4]
    order = [task.run.id for task in trained[0]]
    assert order == list(dict.fromkeys(task.run.id for stage in found for task in stage.tasks))


@pytest.mark.parametrize("stops", [[3], [1, 2, 5, 6, 9, 11]])
def test_stopped_anywhere_it_goes_on_and_makes_no_run_twice(own, trained, stops):
    begun, state = trained
    for state["stop_after"] in stops:
        with pytest.raises(KeyboardInterrupt):
            search.run(*own)
    state["stop_after"] = 10**9
    search.run(*own)
    ids = [task.run.id for task in begun]
    assert len(ids) == len({*ids}) == sum(len(stage.tasks) for stage in stages(*own))


def rung(own, **outcome):
    """The first rung, whose runs are there; those that ``outcome`` names by place have changes in their summaries."""
    for place, task in enumerate(stages(*own)[0].tasks):
        run = put(own[1].runs_dir, *task.words, score=50.0 + place, passes=1.0 + place, seed=0)
        (run.path / "summary.json").write_text(json.dumps(run.summary | outcome.get(f"of_{place}", {})))
        (run.path / ".checksums.json").unlink()
    return stages(*own)


def test_the_last_score_on_the_held_out_part_alone_ranks(own):
    first = rung(own, of_0={"score_best": 99.0, "train_loss": 0.0})[0]
    assert [entry.label for entry in halving.ranked(first)] == [entry.label for entry in first.entries][::-1]


def test_a_run_that_the_test_set_scored_cannot_rank(own):
    with pytest.raises(UserError, match="has no score on a held-out part"):
        rung(own, of_1={"split": "test"})


def test_of_two_alike_the_cheaper_one_goes_on(own):
    alike = {f"of_{place}": {"score_last": 50.0} for place in range(5)}
    found = rung(own, **alike)
    assert [entry.label for entry in found[1].entries] == [entry.label for entry in found[0].entries][:3]
    assert [entry.label for entry in halving.front(found[0])] == [found[0].entries[0].label]


def test_what_diverged_does_not_go_on(own):
    run = rung(own)[0].entries[4].tasks[0].run
    (run.path / "summary.json").unlink()
    status = run.status | {"state": "diverged", "error": "Run diverged.", "epoch": 2}
    (run.path / "status.json").write_text(json.dumps(status))
    found = stages(*own)
    assert [entry.label for entry in found[1].entries] == [found[0].entries[place].label for place in (3, 2, 1)]


def test_the_front_is_what_nothing_beats(own):
    lots = random.Random(3)
    for _ in range(200):
        points = [(lots.randrange(6), lots.randrange(6)) for _ in range(lots.randrange(1, 12))]
        brute = {
            (score, cost)
            for score, cost in points
            if not any((s >= score and c < cost) or (s > score and c <= cost) for s, c in points)
        }  # fmt: skip
        kept = [points[place] for place in halving.pareto(points)]
        assert len(kept) == len({*kept})
        assert {*kept} == brute
        assert kept == sorted(kept, key=lambda one: one[1])


def test_test_scores_are_told_when_all_are_there(own, trained, tmp_path, capsys):
    plan, request = own
    path = tmp_path / "search.yaml"
    search.report(plan, path, request)
    page = tmp_path / "results" / "search.md"
    assert "No run of the search is over yet." in page.read_text()
    assert pd.read_csv(page.with_suffix(".csv")).empty
    trained[1]["stop_after"] = 5 + 3 + 2 + 2
    with pytest.raises(KeyboardInterrupt):
        search.run(plan, request)
    search.show(plan, request)
    assert "What is left of the final takes about" in capsys.readouterr().out
    search.report(plan, path, request)
    final = stages(plan, request)[3]
    scored = [task for task in final.tasks if task.run.state == "done"]
    assert len(scored) == 2
    assert f"2 of {len(final.tasks)} runs are over; the test scores are shown when all are." in page.read_text()
    search.show(plan, request)
    said = page.read_text() + page.with_suffix(".csv").read_text() + capsys.readouterr().out
    assert not any(f"{number(task):.2f}" in said for task in scored)
    trained[1]["stop_after"] = 10**9
    search.run(plan, request)
    search.report(plan, path, request)
    rows = pd.read_csv(page.with_suffix(".csv"))
    assert (rows[rows.stage != "final"].split == "val").all()
    assert (rows[rows.stage == "final"].split == "test").all()


def test_every_row_has_its_runs_and_the_best_is_named_as_that(own, trained, tmp_path):
    plan, request = own
    search.run(plan, request)
    found = stages(plan, request)
    time_steps(found[3].tasks[0].run, 1.7, found[3].tasks[0].run.summary["forward_units"] / 50)
    search.report(plan, tmp_path / "search.yaml", request)
    rows, page = pd.read_csv(tmp_path / "results" / "search.csv", dtype={"seeds": str}), (tmp_path / "results" / "search.md").read_text()
    assert len(rows) == 5 + 3 + 2 + len(found[3].entries)
    for row, entry in zip(rows[rows.stage == "final"].itertuples(), found[3].entries, strict=True):
        assert row.run_ids.split(";") == [task.run.id for task in entry.tasks]
        assert (row.n, row.seeds, row.scale, row.device) == (2, "1;2", "paper", "cpu bf16" if "orthogonal" in row.combination else "cpu")
        assert row.mean == pytest.approx(sum(map(number, entry.tasks)) / 2, rel=1e-5)
        assert row.time == pytest.approx(row.cost * row.epochs, rel=1e-5)
    for one in ";".join(rows.run_ids).split(";"):
        assert one in page
        Run(tmp_path / "results" / "runs", one).check()
    final = [entry for entry in found[3].entries if entry.combination]
    best = max(final, key=lambda entry: sum(map(number, entry.tasks)))
    assert f"Best of {len(final)} by the test score, {best.label}: " in page
    assert f"The best by the held-out part, {halving.ranked(found[2])[0].label}: " in page
    assert "1.700" in page
    assert all((tmp_path / "results" / f"search.{kind}").stat().st_size > 5000 for kind in ("png", "svg"))
    archived = Request(runs_dir=str(tmp_path / "none"), results_dir=request.results_dir)
    search.report(plan, tmp_path / "search.yaml", archived)
    assert (tmp_path / "results" / "search.md").read_text() == page


@pytest.mark.long
def test_the_projects_own_search_fills_its_first_rung(tmp_path):
    plan = load(EXPERIMENTS / "search.yaml", asked(tmp_path))
    assert len(stages(plan, asked(tmp_path))[0].entries) == 60
    assert sum(count * epochs for count, epochs in plan.rungs) == 2400


@pytest.mark.long
def test_real_runs_are_searched(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(study.os, "nice", lambda _: 0)
    text = OWN.replace("combinations: 5", "combinations: 2").replace(
        "  - {combinations: 3, epochs: 2}\n  - {combinations: 2, epochs: 3}\n", ""
    )
    text = text.replace("[1, 2], beside: [optimizer=sgd, optimizer=sgd epochs=4]", "[1], beside: []")
    request = asked(tmp_path)
    plan = load(declared(tmp_path, text), request)
    search.run(plan, request)
    search.show(plan, request)
    first, final = stages(plan, request)
    assert [task.run.summary["split"] for task in (*first.tasks, *final.tasks)] == ["val"] * 2 + ["test"] * len(final.tasks)
    assert "final: " in capsys.readouterr().out
    monkeypatch.setattr(study, "Work", None)  # nothing is to be trained any more
    search.run(plan, request)
