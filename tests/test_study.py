"""A list of runs, one after the other: stopped at any time, the same command goes on."""

import pytest
from own_tables import put

from sam_repro import study
from sam_repro.results.declare import EXPERIMENTS
from sam_repro.results.select import Request
from sam_repro.schema import UserError
from sam_repro.store import Run


@pytest.fixture(autouse=True)
def as_fast_as_the_others(monkeypatch):
    """The process of the tests goes on after a study, which gives way to everybody."""
    monkeypatch.setattr(study.os, "nice", lambda _: None)


OWN = """
with: device=cpu train_fraction=0.1
measure: [norms samples=32]
blocks:
  few:
    with: epochs=1
    seeds: [0, 1]
    runs: [optimizer=sgd, optimizer=sam rho=0.1]
  more:
    seeds: [0]
    measure: []
    runs: [optimizer=sgd epochs=1, optimizer=layerwise epochs=2]
"""


def asked(tmp_path):
    return Request(runs_dir=str(tmp_path / "runs"), results_dir=str(tmp_path / "results"))


def write(tmp_path, text):
    path = tmp_path / "study.yaml"
    path.write_text(text)
    return path


def test_the_first_seed_of_all_comes_before_the_second_and_a_run_of_two_blocks_once(tmp_path):
    tasks = study.tasks(write(tmp_path, OWN), asked(tmp_path))
    assert [(task.label, task.seed) for task in tasks] == [
        ("optimizer=sgd epochs=1", 0), ("epochs=1 optimizer=sam rho=0.1", 0), ("epochs=1 optimizer=sgd", 1),
        ("epochs=1 optimizer=sam rho=0.1", 1), ("optimizer=layerwise epochs=2", 0),
    ]  # fmt: skip
    assert [bool(task.measures) for task in tasks] == [False, True, True, True, False]


@pytest.mark.long
def test_each_run_is_trained_measured_and_archived_and_not_again(tmp_path, capsys, monkeypatch):
    request = asked(tmp_path)
    path = write(tmp_path, OWN.replace("[0, 1]", "[0]").replace("[optimizer=sgd epochs=1, optimizer=layerwise epochs=2]", "[]"))
    study.run(study.tasks(path, request), request)
    tasks = study.tasks(path, request)
    for task in tasks:
        kept = Run(tmp_path / "results" / "runs", task.run.id)
        kept.check()
        assert kept.measurement("norms")["samples"] == 32
        assert not kept.checkpoint.exists()
    study.show(tasks)
    assert "2 of 2 runs are over. 'study run' goes on with them" in capsys.readouterr().out
    monkeypatch.setattr(study, "Work", None)  # nothing is to be trained any more
    study.run(tasks, request)


def test_scores_of_the_test_set_and_of_what_was_held_out_have_columns_of_their_own(tmp_path, capsys):
    put(tmp_path / "runs", "device=cpu", "train_fraction=0.1", "optimizer=sgd", "epochs=1", score=90)
    held_out = OWN.replace("[optimizer=sgd epochs=1, optimizer=layerwise epochs=2]", "[optimizer=sgd val_fraction=0.1]")
    path = write(tmp_path, held_out)
    put(tmp_path / "runs", "device=cpu", "train_fraction=0.1", "optimizer=sgd", "val_fraction=0.1", "epochs=20", score=80)
    study.show(study.tasks(path, asked(tmp_path)))
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == ["run", "state", "epochs", "test", "val", "seed", "with"]
    text = "\n".join(" ".join(line) for line in lines)
    assert "90.00 0 epochs=1 optimizer=sgd" in text
    assert "80.00 0 optimizer=sgd val_fraction=0.1" in text


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("blocks: {a: {runs: [k=4], seeds: [0], run: 3}}", "block 'a' has no key 'run'.*Did you mean 'runs'"),
        ("blocks: {a: {runs: [optimizer=sgd k=4], seeds: [0]}}", "optimizer=sgd has no knob 'k'"),
        ("blocks: {a: {runs: [optimizer=sam], seeds: [0], measure: [sharp]}}", "There is no command 'sharp'"),
        ("blocks: [", "study.yaml"),
        ("runs: []", "study.yaml is not as docs/tables.md describes it"),
    ],
)
def test_a_file_that_does_not_fit_is_named(tmp_path, text, says):
    with pytest.raises(UserError, match=says) as error:
        study.tasks(write(tmp_path, text), asked(tmp_path))
    assert "study.yaml" in str(error.value)


def test_the_projects_own_study_composes():
    assert len(study.tasks(EXPERIMENTS / "study.yaml", Request(runs_dir="nowhere", results_dir="nowhere"))) > 40


def test_one_that_cannot_run_is_told_before_the_first_begins(tmp_path, monkeypatch):
    monkeypatch.setattr(study, "Work", None)
    request = asked(tmp_path)
    path = write(tmp_path, OWN.replace("optimizer=layerwise epochs=2", "optimizer=layerwise k=99"))
    with pytest.raises(UserError, match=r"No run was started, for this one does not fit: .*optimizer=layerwise k=99.*\nk=99 does not fit"):
        study.run(study.tasks(path, request), request)


def test_data_that_cannot_be_had_are_told_before_the_first_begins(tmp_path, monkeypatch):
    def provide(config):
        raise UserError(f"no {config['dataset']['name']}")

    monkeypatch.setattr(study, "Work", None)
    monkeypatch.setattr("sam_repro.provide.provide", provide)
    request = asked(tmp_path)
    with pytest.raises(UserError, match=r"No run was started, for this one has no data: .*\nno digits"):
        study.run(study.tasks(write(tmp_path, OWN), request), request)
