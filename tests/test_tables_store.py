"""The runs behind the tables: looked up, kept in the archive, measured, and made by the commands."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
from own_tables import ROOT, declare, lines_of, put, sheet_of, time_steps

from sam_repro.__main__ import launch
from sam_repro.config import compose, identity
from sam_repro.results.declare import load
from sam_repro.results.frames import Frames
from sam_repro.results.measurements import missing
from sam_repro.results.report import report
from sam_repro.results.select import Request
from sam_repro.results.work import Work, tasks
from sam_repro.schema import UserError
from sam_repro.store import Run
from sam_repro.tables import dispatch


def test_what_speeds_are_relative_to_is_measured_too(tmp_path):
    content = """references: {SGD: optimizer=sgd, SAM: optimizer=sam}
measure: [cost steps=5]
rows: {a: {run: optimizer=vsam}}"""
    for name, relative in (("own/ratio", "ratio_to: SAM"), ("own/extra", "ratio_to: SGD\nextra_of: SAM")):
        table, request = load(declare(tmp_path, f"{relative}\n{content}", name), name), Request(device="cpu", seeds=(0,))
        wanted = missing(tasks([table], request, Frames("none", "none")))
        assert [one.task.config["optimizer"]["name"] for one in wanted] == ["vsam", "sam"]


def test_a_measurement_of_less_does_not_stand_for_the_one_declared(tmp_path):
    columns = "columns: {l: {metric: lambda_max, measure: [sharpness]}, s: {metric: images_per_second, measure: [cost steps=5]}}"
    table = load(declare(tmp_path / "experiments", f"{columns}\nrows: {{a: {{run: optimizer=sam}}}}"), "own/t")
    run, shelf = put(tmp_path / "runs", "optimizer=sam"), Frames(tmp_path / "runs")
    wanted = tasks([table], Request(device="cpu", seeds=(0,)), shelf)
    for samples, steps, left in ((40, 3, ["sharpness", "cost"]), (50, 3, ["cost"]), (50, 5, [])):
        (run.path / "sharpness.json").write_text(json.dumps({"lambda_max": 7.5, "samples": samples, "of": 50}))
        time_steps(run, 2.0, 1.2, steps)
        assert [one.words[0] for one in missing(wanted)] == left
        assert lines_of(sheet_of(tmp_path, table))["a", "l", "lambda_max"]["mean"] == ("7.5" if samples == 50 else "")


def test_finished_runs_at_another_setting_are_pointed_to(tmp_path, methods, capsys):
    for method in ("sgd", "sam"):
        put(tmp_path / "runs", f"optimizer={method}", "scale=small", "precision=bf16")
    words = ["show", "own/t", "device=cpu", "seeds=0", f"experiments={tmp_path / 'experiments'}", f"runs_dir={tmp_path / 'runs'}"]
    pointer = "2 of the same are finished at another setting: add scale=small device=cpu precision=bf16 to see them.\n"
    dispatch(words)
    assert pointer in capsys.readouterr().out
    dispatch([*words, "scale=small", "precision=bf16"])
    assert pointer not in capsys.readouterr().out


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
    report(methods, request, request.frames)
    kept = tmp_path / "results" / "runs" / run.id
    whole = {path: path.read_bytes() for path in kept.rglob("*") if path.is_file()}
    (run.path / name).parent.mkdir(exist_ok=True)
    (run.path / name).write_text(content)
    sheet = report(methods, request, request.frames)
    assert lines_of(sheet)["SGD", "Acc.", "accuracy"]["mean"] == "61"
    assert {path: path.read_bytes() for path in kept.rglob("*") if path.is_file()} == whole
    said = capsys.readouterr().out.replace("\n", " ")
    assert f"{run.id}/{name} is" in said
    assert "Until then" in said
    shutil.rmtree(kept)
    with pytest.raises(UserError, match=rf"{run.id}/{name} is"):
        report(methods, request, request.frames)


def test_what_the_store_lost_stays_in_the_archive_until_the_run_is_trained_anew(tmp_path, methods, capsys):
    run = put(tmp_path / "runs", "optimizer=sam", score=61)
    time_steps(run, 2.0, 1.2)
    request = Request(runs_dir=str(tmp_path / "runs"), results_dir=str(tmp_path / "results"))
    kept = tmp_path / "results" / "runs" / run.id
    for score, there in ((61, True), (62, False)):
        report(methods, request, request.frames)
        (run.path / "cost.json").unlink(missing_ok=True)
        put(tmp_path / "runs", "optimizer=sam", score=score)
        report(methods, request, request.frames)
        assert (kept / "cost.json").exists() == there
    shutil.rmtree(tmp_path / "runs")
    (kept / "summary.json").write_text("{")
    with pytest.raises(UserError, match=rf"restore it, or remove {kept}, and 'tables run' makes the run anew"):
        report(methods, request, request.frames)


def test_the_archive_renders_the_same_without_the_store(tmp_path, methods):
    run = put(tmp_path / "runs", "optimizer=layerwise", "k=4", score=61)
    (run.path / "landscape").mkdir()
    grid = {"layer": "head", "x": [0, 1], "y": [0], "loss": [[1, 2]], "samples": 50, "of": 50}
    (run.path / "landscape" / "head.json").write_text(json.dumps(grid))
    request = Request(runs_dir=str(tmp_path / "runs"), results_dir=str(tmp_path / "results"))
    report(methods, request, request.frames)
    kept = tmp_path / "results" / "runs" / run.id
    files = sorted(path.relative_to(kept).as_posix() for path in kept.rglob("*") if path.is_file())
    assert files == ["config.yaml", "landscape/head.json", "layers.csv", "metrics.jsonl", "status.json", "summary.json"]
    assert not [word for path in kept.iterdir() if path.is_file() for word in ("dir", "host", "pid") if word in path.read_text()]
    before = {path: path.read_bytes() for path in (tmp_path / "results").rglob("*") if path.is_file()}
    elsewhere = Request(runs_dir=str(tmp_path / "empty"), results_dir=str(tmp_path / "results"))
    report(methods, elsewhere, elsewhere.frames)
    assert {path: path.read_bytes() for path in (tmp_path / "results").rglob("*") if path.is_file()} == before
    archived = Run(tmp_path / "results" / "runs", run.id)
    assert identity(archived.config | {"device": "cpu"}) == run.id


def command(*words, cwd, **more):
    return subprocess.Popen(
        [sys.executable, "-m", "sam_repro.tables", *words], cwd=cwd, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT)}, **more,
    )  # fmt: skip


TINY = """run: dataset=digits train_fraction=0.05 epochs=1
columns: {Acc.: {metric: accuracy}, Norm: {metric: grad_norm}}
rows:
  SGD: {run: optimizer=sgd}
  SAM: {run: optimizer=sam}
  fails: {run: optimizer=layerwise val_fraction=0.001}
  diverges: {run: optimizer=sgd lr=1e9 weight_decay=0}
"""


@pytest.mark.long
def test_run_does_what_is_missing_and_survives_a_failure(tmp_path):
    """Two processes at a time: one run is new, one fails, one diverges, and one, made by the ordinary command, is not made again."""
    folder = declare(tmp_path / "experiments", TINY)
    overrides = ["dataset=digits", "train_fraction=0.05", "epochs=1", "optimizer=sgd", "device=cpu", f"runs_dir={tmp_path / 'runs'}"]
    launch(compose(overrides), overrides)
    process = command("run", "own/t", "device=cpu", f"experiments={folder}", "seeds=0", "jobs=2", cwd=tmp_path)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 1, err
    assert "1 of 4 runs are done, 0 at work elsewhere, 3 to do." in out
    assert out.count("done in") == 1
    assert out.count("failed after") == 1
    assert "leaves one part empty" in out
    assert out.count("diverged after") == 1
    assert "1 of 3 runs did not finish" in err
    table = load(folder, "own/t")
    request = Request(device="cpu", seeds=(0,), runs_dir=str(tmp_path / "runs"), results_dir=str(tmp_path / "results"))
    everything = tasks([table], request, request.frames)
    assert [task.run.state for task in everything] == ["done", "done", "failed", "diverged"]
    again, _ = command("run", "own/t", "device=cpu", f"experiments={folder}", "seeds=0", cwd=tmp_path).communicate(timeout=120)
    assert "2 of 4 runs are done, 1 diverged, 0 at work elsewhere, 1 to do." in again
    assert "diverged after" not in again
    assert (
        f"{everything[3].run.id} diverged in epoch 1  (diverges, Acc., seed 0), and is not tried again by itself, but by: python" in again
    )
    lines = lines_of(report(table, request, request.frames))
    assert [lines[row, "Acc.", "accuracy"]["run_ids"] for row in table.rows] == [
        everything[0].run.id,
        everything[1].run.id,
        "",
        everything[3].run.id,
    ]
    assert [lines[row, "Acc.", "accuracy"]["n"] for row in table.rows] == ["1", "1", "", ""]
    assert lines["SAM", "Norm", "grad_norm"]["mean"] == f"{everything[1].run.summary['grad_norm']:.6f}".rstrip("0")


@pytest.mark.long
def test_a_launcher_of_hydras_does_the_runs_which_are_measured_afterwards(tmp_path):
    """One that diverges stops no other. SGD's own step needs no timing; runs of the archive have no weights to measure."""
    content = "run: dataset=digits train_fraction=0.05 epochs=1\nmeasure: [cost steps=1, landscape layer=head.linear points=2]\n"
    content += "rows: {c: {run: optimizer=sgd lr=1e9 weight_decay=0}, a: {run: optimizer=sgd}, b: {run: optimizer=sam}}"
    folder = declare(tmp_path / "experiments", content)
    words = ["own/t", "device=cpu", f"experiments={folder}", "seeds=0"]
    with pytest.raises(UserError, match=r"hydra/launcher has no option 'no_such'\. There is: basic, joblib"):
        dispatch(["run", *words, "hydra/launcher=no_such", f"runs_dir={tmp_path / 'runs'}"])
    for wrong in (["show", *words], ["run", *words, "jobs=2"]):
        with pytest.raises(UserError, match="goes with 'run', and not with jobs="):
            dispatch([*wrong, "hydra/launcher=basic"])
    process = command("run", *words, "hydra/launcher=basic", cwd=tmp_path)
    out, err = process.communicate(timeout=500)
    assert process.returncode == 0, err
    assert "0 of 3 runs are done, 0 at work elsewhere, 3 to do." in out
    assert "diverged in epoch 1  (c, c, seed 0)" in out
    done = {json.loads(path.read_text())["optimizer"]: path.parent for path in (tmp_path / "runs").glob("*/summary.json")}
    found = {
        method: sorted(path.name for path in place.rglob("*.json") if not path.name.endswith("checksums.json"))
        for method, place in done.items()
    }
    always = ["head.linear.json", "status.json", "summary.json"]
    assert found == {"sgd": always, "sam": ["cost.json", *always]}
    again, _ = command("run", *words, cwd=tmp_path).communicate(timeout=300)
    assert again.splitlines()[0] == "2 of 3 runs are done, 1 diverged, 0 at work elsewhere, 0 to do."
    assert "cost" not in again

    request = Request(device="cpu", seeds=(0,), runs_dir=str(tmp_path / "runs"), results_dir=str(tmp_path / "results"))
    report(load(folder, "own/t"), request, request.frames)
    (tmp_path / "results" / "runs" / done["sam"].name / "cost.json").unlink()
    shown, err = command("show", *words, "runs_dir=empty", cwd=tmp_path).communicate(timeout=300)
    assert "to be measured: cost steps=1" in shown, err
    assert "still to be measured: 1." in shown  # the cost of SAM; nothing of what diverges
    archived, _ = command("run", *words, "runs_dir=empty", cwd=tmp_path).communicate(timeout=300)
    assert f"{done['sam'].name} has no weights, which this makes anew: python -m sam_repro dataset=digits" in archived


@pytest.mark.long
def test_a_table_of_several_processes_a_run_starts_them(tmp_path):
    """At the scale that says so; one such run at a time has all GPUs."""
    content = "run: dataset=digits train_fraction=0.05 epochs=1\nscales: {paper: {run: processes=2, note: two GPUs}}\n"
    content += "rows: {a: {run: optimizer=sgd}}"
    words = ["own/t", f"experiments={declare(tmp_path / 'experiments', content)}", "device=cpu", "seeds=0"]
    with pytest.raises(UserError, match="jobs=2: these runs have 2 processes each, and all GPUs, so one goes on at a time"):
        dispatch(["run", *words, "jobs=2", f"runs_dir={tmp_path / 'runs'}"])
    process = command("run", *words, cwd=tmp_path)
    out, err = process.communicate(timeout=200)
    assert process.returncode == 0, out + err
    (run,) = [Run(tmp_path / "runs", path.parent.name) for path in (tmp_path / "runs").glob("*/summary.json")]
    assert run.summary["processes"] == 2
    table, request = load(tmp_path / "experiments", "own/t"), Request(device="cpu", seeds=(0,))
    ids = [tasks([table], replace(request, scale=scale), Frames("none", "none"))[0].run.id for scale in ("paper", "small")]
    assert ids[0] == run.id
    assert ids[1] == identity({**compose([*"dataset=digits train_fraction=0.05 epochs=1 scale=small optimizer=sgd".split(), "device=cpu"])})


def test_a_run_that_another_command_began_at_the_same_moment_is_no_failure(tmp_path, methods, monkeypatch, capsys):
    request = Request(device="cpu", seeds=(0,), runs_dir=str(tmp_path))
    todo = tasks([methods], request, Frames(tmp_path))[:1]
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
        (["run"], "usage: python -m sam_repro.tables list"),
    ]:
        with pytest.raises(UserError) as error:
            dispatch([*words, f"results_dir={tmp_path}"])
        assert said in str(error.value)
    loaded = (
        "import sys; from sam_repro.tables import dispatch; dispatch(['show', 'kdd24/table1', 'device=cpu']); print('torch' in sys.modules)"
    )
    answer = subprocess.run([sys.executable, "-c", loaded], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert answer.stdout.splitlines()[-1] == "False"
    assert "0 of 48 runs are done, 48 are missing; how long they take is known once one like them has trained." in answer.stdout
    assert "dry_run=true\n" in answer.stdout
