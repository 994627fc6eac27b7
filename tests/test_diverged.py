"""Runs that diverge: found out before they count as done, recorded, and shown as that everywhere, never as a number."""

import json
import math
import os
import subprocess
import sys

import pytest
import torch
from own_tables import ROOT, declare, lines_of, put, sheet_of

from sam_repro import runs
from sam_repro.__main__ import launch
from sam_repro.config import compose, identity
from sam_repro.evaluate import evaluate_run
from sam_repro.measure.finished import find_finished
from sam_repro.results.declare import load
from sam_repro.results.frames import Frames
from sam_repro.results.readme import index
from sam_repro.results.render import as_latex, as_markdown
from sam_repro.results.report import page_of, report
from sam_repro.results.select import Request
from sam_repro.results.work import tasks
from sam_repro.schema import Diverged
from sam_repro.store import Run, all_runs
from sam_repro.train import loop

SMALL = ["device=cpu", "train_fraction=0.05", "epochs=3", "seed=3", "optimizer=sgd"]


def run_here(folder, *overrides) -> Run:
    overrides = [*SMALL, f"runs_dir={folder}", *overrides]
    config = compose(overrides)
    launch(config, overrides)
    return Run(folder, identity(config))


def spoil(monkeypatch, what, epoch=2):
    """Make something not finite when an epoch has been trained."""
    original = loop.train_epoch

    def spoiled(job, record, *more):
        original(job, record, *more)
        if job.epoch != epoch:
            return
        with torch.no_grad():
            {
                "loss": lambda: record.loss.fill_(math.nan),
                "gradient norm": lambda: record.norm.fill_(math.inf),
                "weights": lambda: job.parameters[-1].view(-1)[0].fill_(math.inf),
                "buffers": lambda: next(b for b in job.model.buffers() if b.is_floating_point())[0].fill_(math.nan),
                "score": lambda: [p.fill_(3e38) for p in job.parameters],  # finite, but what it gives is not
            }[what]()

    monkeypatch.setattr(loop, "train_epoch", spoiled)


def diverge(monkeypatch, folder, *overrides, what="weights", epoch=2) -> Run:
    with monkeypatch.context() as patch:
        spoil(patch, what, epoch)
        with pytest.raises(Diverged):
            run_here(folder, *overrides)
    config = compose([*SMALL, *overrides])
    return Run(folder, identity(config))


@pytest.mark.parametrize("what", ["loss", "gradient norm", "weights", "buffers", "score"])
def test_whatever_is_not_finite_ends_the_run_with_the_epochs_before_it(tmp_path, monkeypatch, what):
    run = diverge(monkeypatch, tmp_path, what=what)
    status, rows = run.status, run.metrics()
    assert (run.state, status["state"], status["epoch"], status["not_finite"]) == ("diverged", "diverged", 2, [what])
    assert [row["epoch"] for row in rows] == [1]
    assert status["last_finite"] == {key: rows[0][key] for key in ("train_loss", "grad_norm", "weight_norm")}
    assert {row["epoch"] for row in run.layers()} == {1}
    kept = torch.load(run.checkpoint, weights_only=True)
    assert kept["epoch"] == 1
    assert all(t.isfinite().all() for t in kept["model"].values())
    weights = [t for name, t in kept["model"].items() if name.endswith(("weight", "bias"))]
    assert status["last_finite"]["weight_norm"] == pytest.approx(math.hypot(*(t.norm().item() for t in weights)), rel=1e-5)
    assert not run.summary
    assert what in status["error"]


def test_the_last_step_counts_whose_loss_nobody_computes(tmp_path):
    """One step: its loss is that before it."""
    with pytest.raises(Diverged):
        run_here(tmp_path, "lr=1e30", "weight_decay=0", "epochs=1", "batch_size=72", "schedule=constant")
    (run,) = all_runs(tmp_path)
    assert (run.state, run.status["epoch"], run.status["last_finite"]) == ("diverged", 1, {})
    assert run.status["not_finite"] == ["score"]


def command(*words, cwd):
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run([sys.executable, "-m", *words], cwd=cwd, capture_output=True, text=True, env=env)


@pytest.mark.long
def test_the_same_command_says_so_and_does_not_try_again(tmp_path):
    words = ["sam_repro", *SMALL, "lr=1e9", "weight_decay=0", f"runs_dir={tmp_path}"]
    first = command(*words, cwd=tmp_path)
    assert (first.returncode, len(first.stderr.splitlines())) == (3, 1), first.stderr
    (run,) = all_runs(tmp_path)
    before = run.status
    again = command(*words, cwd=tmp_path)
    assert (again.returncode, again.stdout) == (3, "")
    assert again.stderr == f"sam_repro: {run.verdict}\n"
    assert f"Run {run.id} diverged in epoch {before['epoch']}, {before['ended']} (not finite: " in run.verdict
    assert run.verdict.endswith("rerun=true runs it again.")
    assert run.status == before


def test_a_rerun_can_end_well(tmp_path, monkeypatch):
    run = diverge(monkeypatch, tmp_path)
    assert run_here(tmp_path, "rerun=true").state == "done"
    assert not {"error", "epoch", "not_finite", "last_finite"} & run.status.keys()
    assert len(run.metrics()) == 3


def test_it_is_listed_and_shown_and_has_no_score(tmp_path, monkeypatch, capsys):
    run = diverge(monkeypatch, tmp_path)
    capsys.readouterr()
    runs.run(["list"], {"runs_dir": str(tmp_path)})
    listed = capsys.readouterr().out
    assert f"{run.id}  diverged" in listed
    assert f"{run.id} diverged: The training diverged in epoch 2: not finite any more: weights." in listed
    assert runs.row_of(run, run.config).keys() & {"test", "best test", "val", "samples/s"} == set()
    runs.run(["show", run.id], {"runs_dir": str(tmp_path)})
    shown = capsys.readouterr().out
    last = run.status["last_finite"]
    assert f"last     train_loss {last['train_loss']:.4g}, grad_norm {last['grad_norm']:.4g}, weight_norm" in shown
    assert "of epoch 1\n" in shown


def test_its_weights_are_neither_evaluated_nor_measured(tmp_path, monkeypatch):
    run = diverge(monkeypatch, tmp_path)
    for refused in (lambda: evaluate_run(run.id, runs_dir=str(tmp_path)), lambda: find_finished(run.id, str(tmp_path))):
        with pytest.raises(Diverged) as error:
            refused()
        assert str(error.value) == run.verdict


@pytest.mark.long
def test_a_sweep_says_so_and_exits_with_its_status(tmp_path):
    words = ["sam_repro", "-m", *SMALL, "epochs=1", f"runs_dir={tmp_path}"]
    sweep = command(*words, "lr=0.01,1e9", "weight_decay=0", cwd=tmp_path)
    assert sweep.returncode == 3
    assert "1 of 2 jobs diverged; rerun=true runs them again." in sweep.stderr
    table = sweep.stdout.partition("run         state")[2].splitlines()
    assert [line.split()[1] for line in table[1:3]] == ["done", "diverged"]


def test_its_trackers_are_closed_as_diverged(tmp_path, monkeypatch):
    pytest.importorskip("tensorboard")
    from sam_repro.tracking.tensorboard import TensorBoard

    closed = []
    monkeypatch.setattr(TensorBoard, "close", lambda self, state, final: closed.append((state, final)))
    run = diverge(monkeypatch, tmp_path, "logger=[tensorboard]")
    assert closed == [("diverged", {})]
    assert json.loads((run.path / "tensorboard" / "sent.json").read_text()) == {"epoch": 1, "state": "diverged"}
    other = diverge(monkeypatch, tmp_path, "seed=4")
    for _ in range(2):  # shown afterwards, once
        with pytest.raises(Diverged):
            run_here(tmp_path, "seed=4", "logger=[tensorboard]")
    assert closed == [("diverged", {})] * 2
    assert json.loads((other.path / "tensorboard" / "sent.json").read_text())["state"] == "diverged"


def test_wandb_knows_its_exit_code():
    assert pytest.importorskip("sam_repro.tracking.wandb").EXIT["diverged"] == 1


def put_diverged(runs_dir, *overrides, seed=0) -> Run:
    """As the trainer leaves it, in its first epoch."""
    config = compose(["dataset=digits", "epochs=1", *overrides]) | {"seed": seed, "device": "cpu"}
    run = Run(runs_dir, identity(config))
    with pytest.raises(Diverged), run.held({**config, "rerun": False}, "python -m sam_repro data_dir=/elsewhere"):
        raise Diverged("It diverged.", 1, ["loss"])
    return run


def test_a_table_shows_it_beside_the_mean_of_the_others(tmp_path, methods):
    for seed, score in enumerate((60, 63)):
        put(tmp_path / "runs", "optimizer=sgd", "scale=small", score=score, seed=seed)
    third = put_diverged(tmp_path / "runs", "optimizer=sgd", "scale=small", seed=2)
    lost = [put_diverged(tmp_path / "runs", "optimizer=sam", "scale=small", seed=seed) for seed in range(3)]
    asked = Request(runs_dir=str(tmp_path / "runs"), results_dir=str(tmp_path / "results"))
    made = report(methods, asked, asked.frames)
    lines = lines_of(made)
    sgd, sam = lines["SGD", "Acc.", "accuracy"], lines["SAM", "Acc.", "accuracy"]
    assert (sgd["mean"], sgd["n"], sgd["run_ids"].split(";")[2:]) == ("61.5", "2", [third.id])
    assert (sam["mean"], sam["std"], sam["n"], sam["scale"], sam["device"]) == ("", "", "", "small", "cpu")
    assert sam["run_ids"] == ";".join(run.id for run in lost)
    page, tex = as_markdown(made, pictures=False), as_latex(made, pictures=False)
    assert "**61.50 ± 2.12** (2)<br>diverged (1 of 3)<br>best 62.50<br>paper 91.96 ± 0.3" in page
    assert "| diverged (3 of 3)<br>paper 92.64 ± 0.4 |" in page
    assert f"no number and are in no mean: SGD, seed 2, in epoch 1 (`{third.id}`); SAM, seed 0" in page
    assert "2 runs, seeds 0, 1, last training loss" in page
    assert "run own/t scale=small device=cpu`" in page  # with all seeds of the table
    assert "diverged (1 of 3)" in tex
    readme = index(tmp_path / "results", tmp_path / "experiments")
    assert "| SGD | **61.50 ± 2.12** (2)<br>diverged (1 of 3); paper 91.96 ± 0.3 |" in readme
    assert "| SAM | diverged (3 of 3); paper 92.64 ± 0.4 |" in readme
    assert "6 of 12: scale small on cpu" in index(tmp_path / "results", tmp_path / "experiments")
    shown = page_of(made)
    assert "2 diverged (1 of 3)" in shown
    assert "2 done, 4 diverged" in shown
    assert "diverged, 0 of 1 epochs: It diverged." in shown

    files = {path: path.read_bytes() for path in (tmp_path / "results").rglob("*") if path.is_file()}
    kept = sorted(path.name for path in files if path.parent.name == third.id)
    assert kept == ["config.yaml", "layers.csv", "metrics.jsonl", "status.json"]
    elsewhere = Request(runs_dir=str(tmp_path / "empty"), results_dir=str(tmp_path / "results"))
    report(methods, elsewhere, elsewhere.frames)  # the archive alone gives the same
    assert {path: path.read_bytes() for path in (tmp_path / "results").rglob("*") if path.is_file()} == files


def test_a_diverged_run_is_no_reason_to_show_another_scale(tmp_path, methods):
    put_diverged(tmp_path / "runs", "optimizer=sgd")
    assert lines_of(sheet_of(tmp_path, methods))["SGD", "Acc.", "accuracy"]["scale"] == "paper"
    put(tmp_path / "runs", "optimizer=sam", "scale=small")
    made = sheet_of(tmp_path, methods)
    assert lines_of(made)["SAM", "Acc.", "accuracy"]["scale"] == "small"
    assert lines_of(made)["SGD", "Acc.", "accuracy"]["run_ids"] == ""
    assert not [note for note in made.notes if "0 of scale" in note]


def test_what_was_made_anew_takes_the_place_of_the_other_in_the_archive(tmp_path):
    table = load(declare(tmp_path / "experiments", "rows: {a: {run: optimizer=sgd}}"), "own/t")
    asked = Request(device="cpu", seeds=(0,), runs_dir=str(tmp_path / "runs"), results_dir=str(tmp_path / "results"))

    def told():
        return lines_of(report(table, asked, asked.frames))["a", "c", "accuracy"]["mean"]

    def state(frames=None):
        return tasks([table], asked, frames or asked.frames)[0].run.state

    run = put(tmp_path / "runs", "optimizer=sgd", score=61)
    assert told() == "61"
    put_diverged(tmp_path / "runs", "optimizer=sgd")
    (run.path / "summary.json").unlink()
    assert (told(), state()) == ("", "diverged")
    assert (state(Frames("none", f"{asked.results_dir}/runs")), asked.frames.ended(run.id).path.parent) == ("diverged", tmp_path / "runs")
    assert not (tmp_path / "results" / "runs" / run.id / "summary.json").exists()
    (run.path / "status.json").write_text(json.dumps({**run.status, "state": "stopped"}))
    assert (told(), state()) == ("", "stopped")  # it is being made anew: the archive's does not stand for it
    put(tmp_path / "runs", "optimizer=sgd", score=62)
    assert (told(), state()) == ("62", "done")


def test_a_buffer_that_is_infinite_from_the_start_is_no_sign(tmp_path, monkeypatch):
    class Masked(torch.nn.Sequential):
        def __init__(self):
            super().__init__(torch.nn.Flatten(), torch.nn.Linear(64, 10))
            self.register_buffer("mask", torch.tensor([0.0, -math.inf]))

    monkeypatch.setattr(loop.Job.__init__.__globals__["models"], "create", lambda **_: Masked())
    assert run_here(tmp_path / "runs").state == "done"
