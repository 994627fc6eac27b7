"""Whole runs: the store, stopping and resuming, sweeps, and the commands around them."""

import json
import os
import signal
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import pytest
import torch
import yaml

from sam_repro import evaluate, runs
from sam_repro.__main__ import launch
from sam_repro.checkpoints import CHECKSUMS
from sam_repro.config import compose, identity
from sam_repro.files import write
from sam_repro.schema import UserError
from sam_repro.store import Run, all_runs, find
from sam_repro.train.job import Job

SMALL = ["device=cpu", "train_fraction=0.15", "epochs=2", "seed=3"]
SUMMARY = (
    "run_id dataset model optimizer seed epochs steps metric score_last score_best train_loss images_per_second "
    "sampling_number forward_units backward_units perturbations grad_norm seconds device versions scale"
).split()
METRICS = "epoch train_loss train_score score lr images_per_second sampling_number grad_norm seconds".split()


def run_here(tmp_path, *overrides) -> Run:
    """A run in this process."""
    overrides = [*SMALL, f"runs_dir={tmp_path}", *overrides]
    config = compose(overrides)
    launch(config, overrides)
    return Run(tmp_path, identity(config))


def command(*words, cwd, **env):
    return subprocess.run(
        [sys.executable, "-m", *words], cwd=cwd, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT), **env}
    )


CLOCK = ("seconds", "images_per_second")
ROOT = Path(__file__).resolve().parents[1]


def test_a_run_leaves_what_was_promised(tmp_path, capsys):
    run = run_here(tmp_path, "k=3")
    assert run.state == "done"
    assert sorted(path.name for path in run.path.iterdir() if not path.name.startswith(".")) == [
        "checkpoint", "config.yaml", "layers.csv", "metrics.jsonl", "status.json", "summary.json",
    ]  # fmt: skip
    summary = run.summary
    assert set(SUMMARY) <= set(summary)
    assert (summary["run_id"], summary["dataset"], summary["model"], summary["optimizer"]) == (run.id, "digits", "resnet20", "layerwise")
    assert (summary["steps"], summary["sampling_number"], summary["epochs"], summary["scale"]) == (8, 8, 2, "paper")
    assert 0 <= summary["score_last"] <= summary["score_best"] <= 100
    assert next(iter(summary["perturbations"])) == "stem.conv"
    assert sum(summary["perturbations"].values()) == 3 * 8
    assert 8 < summary["forward_units"] == summary["backward_units"] <= 16

    rows = run.metrics()
    assert [row["epoch"] for row in rows] == [1, 2]
    assert all(set(METRICS) <= set(row) for row in rows)
    assert sum(row["sampling_number"] for row in rows) == 8
    assert summary["train_loss"] == rows[-1]["train_loss"]
    assert summary["grad_norm"] == rows[-1]["grad_norm"] > 0
    assert summary["score_best"] == max(row["score"] for row in rows)
    assert summary["images_per_second"] == pytest.approx(2 * 216 / sum(row["seconds"] for row in rows))

    layers = run.layers()
    assert (run.path / "layers.csv").read_text().splitlines()[0] == "epoch,layer,grad_norm,perturbations"
    assert len(layers) == 2 * 20
    assert {row["layer"] for row in layers} == set(summary["perturbations"])
    assert yaml.safe_load((run.path / "config.yaml").read_text())["optimizer"]["where"]["k"] == 3
    status = run.status
    assert {"state", "started", "ended", "host", "commit", "versions", "command"} <= set(status)
    out = capsys.readouterr().out
    for word in ("epoch   2/2", "samples/s", "sampling number", "last", "best", "█", "head.linear", str(run.path)):
        assert word in out


def test_the_whole_model_norm_is_that_of_the_last_pass(tmp_path):
    """Epoch mean of the norm over all layers: at least the norm of the layers' means, which layers.csv has."""
    run = run_here(tmp_path, "optimizer=sgd", "epochs=1")
    layers = sum(row["grad_norm"] ** 2 for row in run.layers()) ** 0.5
    assert 0.8 * run.metrics()[0]["grad_norm"] < layers <= run.metrics()[0]["grad_norm"] + 1e-6


def test_a_finished_run_is_reported_and_not_run_again(tmp_path, capsys):
    run = run_here(tmp_path, "optimizer=sgd", "epochs=1")
    before = (run.path / "metrics.jsonl").stat().st_mtime_ns
    run_here(tmp_path, "optimizer=sgd", "epochs=1")
    assert "is done already; rerun=true" in capsys.readouterr().out
    assert (run.path / "metrics.jsonl").stat().st_mtime_ns == before
    again = run_here(tmp_path, "optimizer=sgd", "epochs=1", "rerun=true")
    assert again.id == run.id
    assert (run.path / "metrics.jsonl").stat().st_mtime_ns > before


def test_not_every_epoch_need_be_scored(tmp_path, capsys):
    every, some = run_here(tmp_path, "epochs=5"), run_here(tmp_path, "epochs=5", "score_every=2")
    assert [row["score"] is not None for row in some.metrics()] == [False, True, False, True, True]
    assert [row["score"] for row in some.metrics() if row["score"]] == [every.metrics()[epoch]["score"] for epoch in (1, 3, 4)]
    assert [row["train_loss"] for row in some.metrics()] == [row["train_loss"] for row in every.metrics()]
    assert (some.summary["scored_epochs"], every.summary["scored_epochs"]) == (3, 5)
    assert some.summary["score_best"] == max(row["score"] for row in some.metrics() if row["score"])
    some.check()
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("epoch   ")]
    assert "test" not in said[5]
    assert "test" in said[6]


def test_looksams_rows_have_the_sizes_of_what_it_reuses(tmp_path):
    rows = run_here(tmp_path, "optimizer=looksam", "k=2").metrics()
    assert all(0 < row["g_v_norm"] < row["g_s_norm"] for row in rows)


def test_a_checkpoint_of_the_first_format_resumes(tmp_path):
    """What was in it then is enough: a key that is new must not be needed."""
    first = {"epoch", "model", "base", "schedule", "gradient", "random", "random_cuda"}
    parts = {"step": {}, "when": {}, "where": {"chosen", "generator"}, "between": {}}
    straight = run_here(tmp_path / "a")
    stopped = run_here(tmp_path / "b", "epochs=2")
    state = torch.load(stopped.checkpoint, weights_only=True)
    assert state.keys() >= first
    old = {key: value for key, value in state.items() if key in first}
    old["gradient"] = {
        key: {k: v for k, v in old["gradient"][key].items() if k in of} if of else old["gradient"][key] for key, of in parts.items()
    }
    torch.save(old, stopped.checkpoint)
    (stopped.checkpoint.parent / CHECKSUMS).unlink()
    job = Job(stopped.config)
    job.resume(stopped.checkpoint)
    assert job.epoch == 2
    assert_equal(job.model.state_dict(), torch.load(straight.checkpoint, weights_only=True)["model"])


WITH_DROPOUT = ["model=wrn16_2", "model.dropout=0.3"]


@pytest.mark.parametrize(
    "overrides",
    [
        ["optimizer=sgd", *WITH_DROPOUT],
        ["optimizer=layerwise", "criterion=random", "base=adamw", "lr=0.01", *WITH_DROPOUT],
        ["optimizer=vsam", "model=mobilenet", "model.bits=4", "max_samples=100"],
        ["optimizer=sam", "precision=fp16", "model.dropout=0.3", "model=wrn16_2", "max_samples=100"],
        ["optimizer=sam", "base=lamb", "decayed=weights", "schedule=linear", "schedule.warmup=1", "dataset.inception=true"],
    ],
)
def test_a_stopped_run_resumes_bit_identical(tmp_path, monkeypatch, overrides):
    """With dropout, so that the generator's state matters too; under fp16 the first scale is too large, so that the scaler's does."""
    overrides = [*overrides, "epochs=3", "dataset.cutout=3"]
    straight = run_here(tmp_path / "a", *overrides)

    from sam_repro.train import loop

    evaluations = []
    original = loop.evaluate

    def stopping(*args):
        evaluations.append(1)
        if len(evaluations) == 2:
            raise KeyboardInterrupt
        return original(*args)

    monkeypatch.setattr(loop, "evaluate", stopping)
    with pytest.raises(KeyboardInterrupt):
        run_here(tmp_path / "b", *overrides)
    stopped = Run(tmp_path / "b", straight.id)
    assert stopped.state == "stopped"
    assert len(stopped.metrics()) == 1
    run_here(tmp_path / "b", *overrides)
    assert_same(straight, stopped)


def assert_same(one: Run, other: Run) -> None:
    """Weights, momentum, method state and generators bit for bit; rows but for the clock."""
    first, second = (torch.load(run.checkpoint, weights_only=True) for run in (one, other))
    assert_equal(first, second)
    for a, b in zip(one.metrics(), other.metrics(), strict=True):
        assert {k: v for k, v in a.items() if k not in CLOCK} == {k: v for k, v in b.items() if k not in CLOCK}
    assert one.layers() == other.layers()
    assert other.state == "done"


def assert_equal(a, b):
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_equal(a[key], b[key])
    elif isinstance(a, torch.Tensor):
        assert torch.equal(a, b)
    elif isinstance(a, list):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_equal(x, y)
    else:
        assert a == b


@pytest.mark.long
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_process_resumes_bit_identical(tmp_path, how):
    overrides = [*SMALL, "k=2", "epochs=30", "train_fraction=0.1"]
    run = Run(tmp_path / "killed", identity(compose(overrides)))
    words = [sys.executable, "-m", "sam_repro", *overrides, f"runs_dir={tmp_path / 'killed'}"]
    with subprocess.Popen(words, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 120
        while len(run.metrics()) < 3 and time.monotonic() < deadline:
            time.sleep(0.02)
        assert run.state == "running"
        with pytest.raises(UserError, match="is running"):
            run.remove()
        process.send_signal(how)
    assert process.returncode == (-signal.SIGKILL if how == signal.SIGKILL else 128 + how)
    assert run.state == "stopped"
    assert run.status["state"] == ("running" if how == signal.SIGKILL else "stopped")  # nobody was left to write it
    assert 3 <= len(run.metrics()) < 30
    resumed = command("sam_repro", *overrides, f"runs_dir={tmp_path / 'killed'}", cwd=ROOT)
    assert resumed.returncode == 0, resumed.stderr
    assert "resumes" in resumed.stdout
    straight = command("sam_repro", *overrides, f"runs_dir={tmp_path / 'straight'}", cwd=ROOT)
    assert straight.returncode == 0, straight.stderr
    assert_same(Run(tmp_path / "straight", run.id), run)


def test_a_method_that_does_not_fit_leaves_no_run(tmp_path):
    overrides = [*SMALL, f"runs_dir={tmp_path / 'runs'}", "k=21"]
    with pytest.raises(UserError, match="the model has 20 layers"):
        launch(compose(overrides), overrides)
    assert not (tmp_path / "runs").exists()


def test_a_failure_is_one_sentence_and_the_status_has_it(tmp_path):
    folder = tmp_path / "data" / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    (folder / "data_batch_1").write_bytes(b"not CIFAR")
    overrides = [*SMALL, f"runs_dir={tmp_path}", "dataset=cifar10", f"data_dir={tmp_path / 'data'}"]
    config = compose(overrides)
    with pytest.raises(UserError, match="is not the official file"):
        launch(config, overrides)
    run = Run(tmp_path, identity(config))
    assert run.state == run.status["state"] == "failed"
    assert "is not the official file" in run.status["error"]
    assert "\n" not in run.status["error"]


def test_an_error_of_ours_keeps_its_traceback_and_what_was_computed(tmp_path, monkeypatch):
    from sam_repro.train import loop

    original, calls = loop.train_epoch, []

    def failing(*args):
        calls.append(1)
        if len(calls) == 2:
            raise ZeroDivisionError("ours")
        return original(*args)

    monkeypatch.setattr(loop, "train_epoch", failing)
    with pytest.raises(ZeroDivisionError):
        run_here(tmp_path, "optimizer=sgd")
    (run,) = all_runs(tmp_path)
    assert (run.state, run.status["error"], len(run.metrics())) == ("failed", "ours", 1)
    assert "ZeroDivisionError" in (run.path / "traceback.txt").read_text()
    monkeypatch.undo()
    assert run_here(tmp_path, "optimizer=sgd").state == "done"
    assert len(run.metrics()) == 2
    assert "error" not in run.status
    assert not (run.path / "traceback.txt").exists()


def test_a_summary_says_what_was_in_force(tmp_path):
    summary = run_here(tmp_path, "optimizer=sgd", "epochs=1", "deterministic=true", "tf32=true").summary
    said = {key: summary[key] for key in ("tf32", "cudnn_benchmark", "deterministic", "channels_last", "peak_memory")}
    assert said == {"tf32": None, "cudnn_benchmark": None, "deterministic": True, "channels_last": True, "peak_memory": None}
    assert "skipped_steps" not in summary
    half = run_here(tmp_path, "optimizer=sgd", "epochs=1", "precision=fp16", "max_samples=60").summary
    assert half["skipped_steps"] >= 0


def test_a_gpu_that_is_not_there(tmp_path):
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(UserError, match="device=cuda:3 was asked for, but PyTorch sees no GPUs"):
        run_here(tmp_path, "device=cuda:3")


def test_apples_gpu_is_refused_where_there_is_none_and_untested_where_there_is(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(UserError, match="device=mps was asked for, but PyTorch sees no GPU of Apple's: use device=cpu"):
        run_here(tmp_path, "device=mps")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr("sam_repro.train.loop.train", lambda *_: {})
    monkeypatch.setattr("sam_repro.tracking.console.show_summary", lambda *_: None)
    run_here(tmp_path, "device=mps")
    assert capsys.readouterr().out.count("device=mps is untested") == 1


def test_validation_leaves_the_test_set_alone(tmp_path, capsys):
    run = run_here(tmp_path, "val_fraction=0.2", "epochs=1")
    assert (run.summary["split"], run.summary["train_samples"]) == ("val", 173)
    assert "val accuracy" in capsys.readouterr().out
    score = evaluate.evaluate_run(run.id[:6], runs_dir=str(tmp_path))
    assert 0 <= score <= 100
    assert "on 360 samples" in capsys.readouterr().out


def test_evaluate_gives_the_last_score_and_refuses_an_unfinished_run(tmp_path):
    run = run_here(tmp_path, "epochs=1")
    assert evaluate.evaluate_run(run.id, runs_dir=str(tmp_path), device="cpu") == run.summary["score_last"]
    write(run.path / "status.json", json.dumps({**run.status, "state": "failed"}))
    with pytest.raises(UserError, match="is failed, not done"):
        evaluate.evaluate_run(run.id, runs_dir=str(tmp_path))


LOCKED = """
import subprocess, sys
if sys.argv[2] == "without":
    sys.modules["fcntl"] = None
from sam_repro.store import Run
run = Run(sys.argv[1], "one")
with run._locked():
    print(run.is_held())
    try:
        run.remove()
    except ValueError as error:
        print(error)
print(run.is_held())
with run._locked():
    if sys.argv[2] != "without":
        sys.exit(subprocess.run([sys.executable, "-c", "import os; os.kill(os.getppid(), 9)"]).returncode)
"""


@pytest.mark.parametrize("fcntl", ["with", "without"])
def test_one_process_holds_a_run_with_and_without_fcntl(tmp_path, fcntl):
    """And where it is killed nobody does."""
    said = subprocess.run([sys.executable, "-u", "-c", LOCKED, str(tmp_path), fcntl], cwd=ROOT, capture_output=True, text=True)
    assert said.returncode == (-signal.SIGKILL if fcntl == "with" else 0), said.stderr
    assert not Run(tmp_path, "one").is_held()
    assert said.stdout.splitlines() == ["True", "Run one is running (process None); let it end.", "False"]


def test_runs_can_be_listed_shown_and_removed(tmp_path, capsys):
    run = run_here(tmp_path, "epochs=1")
    runs.run(["list"], {"runs_dir": str(tmp_path)})
    assert run.id in capsys.readouterr().out
    runs.run(["show", run.id[:5]], {"runs_dir": str(tmp_path)})
    shown = capsys.readouterr().out
    assert "python -m sam_repro device=cpu" in shown
    assert "last" in shown
    with pytest.raises(UserError, match="no run 'zz'"):
        runs.run(["show", "zz"], {"runs_dir": str(tmp_path)})
    with pytest.raises(UserError, match="usage"):
        runs.run([], {"runs_dir": str(tmp_path)})
    with pytest.raises(UserError, match="Did you mean 'runs_dir'"):
        runs.run(["list"], {"runs_dir": str(tmp_path), "run_dir": "x"})
    with pytest.raises(UserError, match=f"{run.id[:4]} is the beginning of {run.id}: 'rm' wants the whole id"):
        runs.run(["rm", run.id[:4]], {"runs_dir": str(tmp_path)})
    runs.run(["rm", str(run.path)], {"runs_dir": str(tmp_path)})
    assert not run.path.exists()
    with pytest.raises(UserError):
        find(tmp_path, run.id)


def test_a_damaged_checkpoint_is_named(tmp_path):
    run = run_here(tmp_path, "epochs=1")
    run.checkpoint.write_bytes(b"half a file")
    write(run.path / "status.json", json.dumps({**run.status, "state": "stopped"}))
    with pytest.raises(UserError, match=r"is damaged.*rerun=true"):
        run_here(tmp_path, "epochs=1")
    (run.checkpoint.parent / CHECKSUMS).unlink()  # as before there were any
    with pytest.raises(UserError, match=r"cannot be read.*rerun=true"):
        run_here(tmp_path, "epochs=1")


def test_rerun_keeps_what_there_is_until_the_run_can_begin(tmp_path):
    run = run_here(tmp_path, "epochs=1", "dataset=digits")
    weights = run.checkpoint.read_bytes()
    from sam_repro.data import READERS

    def gone(_, **__):
        raise UserError("the data are gone")

    original = READERS["digits"]
    READERS["digits"] = gone
    try:
        with pytest.raises(UserError, match="gone"):
            run_here(tmp_path, "epochs=1", "rerun=true")
    finally:
        READERS["digits"] = original
    assert run.checkpoint.read_bytes() == weights
    assert len(run.metrics()) == 1
    assert run_here(tmp_path, "epochs=1").state == "done"


def test_a_damaged_directory_is_named_and_hurts_no_other_run(tmp_path, capsys):
    run, whole = run_here(tmp_path, "epochs=1"), run_here(tmp_path, "epochs=1", "optimizer=sgd")
    (run.path / "metrics.jsonl").unlink()
    (run.path / "summary.json").unlink()  # it is derived: the run is resumed to make it again
    with pytest.raises(UserError, match=r"metrics\.jsonl is missing or damaged"):
        run_here(tmp_path, "epochs=1")
    (run.path / "status.json").write_text("{half")
    with pytest.raises(UserError, match=r"missing or damaged.*rerun=true"):
        run_here(tmp_path, "epochs=1")
    assert run_here(tmp_path, "epochs=1", "rerun=true").state == "done"
    (run.path / "status.json").write_text("{half")
    capsys.readouterr()
    runs.run(["list"], {"runs_dir": str(tmp_path)})
    out = capsys.readouterr().out
    assert whole.id in out
    assert f"{run.id}  damaged" in out
    (whole.path / "summary.json").unlink()
    assert whole.state == "stopped"
    assert run_here(tmp_path, "epochs=1", "optimizer=sgd").summary["steps"] == 4


def test_a_dry_run_writes_nothing(tmp_path, capsys):
    run = run_here(tmp_path, "dry_run=true")
    assert not run.path.exists()
    out = capsys.readouterr().out
    for word in ("269,434 parameters in 20 layers", "MiB", "where=layers", "2 epochs x 4 steps", "Nothing was run"):
        assert word in out


def test_a_dry_run_times_the_steps_of_a_training(tmp_path, monkeypatch):
    modes, backward = [], Job.backward
    monkeypatch.setattr(Job, "backward", lambda job, samples: modes.append(job.model.training) or backward(job, samples))
    run_here(tmp_path, "dry_run=true")
    assert modes
    assert all(modes)


def test_a_checkpoint_that_cannot_be_written_leaves_the_one_before(tmp_path, monkeypatch):
    run = run_here(tmp_path, "epochs=1")
    job, before = Job(run.config), run.checkpoint.read_bytes()

    def full(_, file):
        file.write(b"half of it")
        raise OSError("No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="No space"):
        job.save(run.checkpoint)
    assert run.checkpoint.read_bytes() == before
    assert [path.name for path in run.checkpoint.parent.iterdir() if path.name != CHECKSUMS] == ["last.pt"]


def test_a_checkpoint_is_written_without_a_copy_of_it_in_memory(tmp_path):
    job = Job(compose(SMALL))
    job.save(tmp_path / "once.pt")  # what is imported for it
    tracemalloc.start()
    job.save(tmp_path / "checkpoint.pt")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < (tmp_path / "checkpoint.pt").stat().st_size / 2


# -- sweeps ------------------------------------------------------------------------------------------------------------


def test_a_sweep_skips_what_is_done_goes_past_a_failure_and_ends_with_a_table(tmp_path):
    words = ["-m", *SMALL, "epochs=1", "optimizer=layerwise", "k=2", "val_fraction=0.0,0.001,0.2", f"runs_dir={tmp_path}"]
    run_here(tmp_path, "epochs=1", "k=2")
    sweep = command("sam_repro", *words, cwd=tmp_path)
    assert sweep.returncode == 1
    assert sweep.stdout.startswith("3 jobs\n  1 done already\n  2 to run\n")
    assert sweep.stdout.count("test accuracy") == 0  # of what was done before there is the line in the table
    table = sweep.stdout.partition("run         state")[2].splitlines()
    assert [line.split()[1] for line in table[1:4]] == ["done", "failed", "done"]
    assert "1 of 3 jobs did not finish" in sweep.stderr
    failed = next(run for run in all_runs(tmp_path) if run.state == "failed")
    assert "leaves one part empty" in failed.status["error"]
    assert "Traceback" not in sweep.stderr


@pytest.mark.long
def test_a_sweep_takes_keys_of_the_options_it_sweeps_over(tmp_path):
    words = ["-m", "model=wrn16_2,wrn28_10", "model.dropout=0.3", "optimizer=sam", "rho=0.1", "dry_run=true", f"runs_dir={tmp_path}"]
    sweep = command("sam_repro", *words, "batch_size=2", "train_fraction=0.01", cwd=tmp_path)
    assert sweep.returncode == 0, sweep.stderr
    assert "wrn16_2: 691,386 parameters" in sweep.stdout
    assert "wrn28_10" in sweep.stdout


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["optimizer=layerwise,sgd", "k=2"], "optimizer=sgd k=2"),
        (["optimizer=sgd,sam", "rho=0.1"], "optimizer=sgd rho=0.1"),
        (["optimizer=sgd,sammy"], "optimizer=sammy"),
    ],
)
def test_a_sweep_with_a_combination_that_does_not_fit_starts_no_job(tmp_path, words, named):
    sweep = command("sam_repro", "-m", *words, f"runs_dir={tmp_path}", cwd=tmp_path)
    assert sweep.returncode == 1
    assert "no job was started" in sweep.stderr
    assert named in sweep.stderr
    assert all_runs(tmp_path) == []


@pytest.mark.long
@pytest.mark.skipif(not os.environ.get("SAM_REPRO_DATA"), reason="set SAM_REPRO_DATA to a folder with the official CIFAR-10")
def test_a_run_on_a_part_of_the_real_cifar10(tmp_path):
    run = run_here(tmp_path, "dataset=cifar10", "train_fraction=0.01", "batch_size=125", "epochs=1")
    assert run.summary["steps"] == 4
    assert run.summary["train_samples"] == 500


def test_a_terminal_shows_a_bar_with_the_numbers_of_the_moment(tmp_path):
    """In a pseudo-terminal, where ``script`` is at hand."""
    import shutil

    if shutil.which("script") is None:
        pytest.skip("the command 'script', which gives a pseudo-terminal, is not installed")
    inner = f"{sys.executable} -m sam_repro {' '.join(SMALL)} epochs=6 train_fraction=1 runs_dir={tmp_path}"
    env = {**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm", "COLUMNS": "140"}
    shown = subprocess.run(
        ["script", "-qec", inner, "/dev/null"], cwd=tmp_path, capture_output=True, text=True, env=env, stdin=subprocess.DEVNULL
    )
    assert shown.returncode == 0, shown.stdout[-2000:]
    assert "━" in shown.stdout
    assert "samples/s" in shown.stdout
    assert "loss" in shown.stdout.partition("epoch   1/6")[0], "a step's loss before the first epoch's line"
