"""Sweeps that joblib, submitit, Ray and Optuna start: really run, with a job killed, from one store."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sam_repro import engines
from sam_repro.__main__ import launch
from sam_repro.config import compose, identity
from sam_repro.engines import id_of, several, validation_score, with_engines
from sam_repro.places import a_free_one, shares
from sam_repro.schema import UserError
from sam_repro.store import Run, all_runs

ROOT = Path(__file__).resolve().parents[1]
SMALL = ["device=cpu", "max_samples=32", "batch_size=16", "optimizer=sgd"]
HELD_OUT = ["device=cpu", "max_samples=40", "batch_size=16", "optimizer=sgd", "val_fraction=0.2", "epochs=1"]
LAUNCHERS = {
    "joblib": ("hydra_plugins.hydra_joblib_launcher", ["hydra.launcher.n_jobs=2"], [1, 1, 80]),
    "submitit_local": ("submitit", [], [1, *range(1, 11), 80]),
    "ray": ("ray", ["hydra.launcher.num_cpus=0.5"], [1, 1, 2, 80]),
}


def sweep(*words, cwd):
    return subprocess.Popen(
        [sys.executable, "-m", "sam_repro", "-m", *words, f"runs_dir={cwd / 'runs'}"], cwd=cwd, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip


@pytest.mark.long
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_job_that_is_killed_stops_no_other_and_the_second_call_ends_it(tmp_path, launcher):
    """Two of the jobs are one run: one makes it, the other finds it done, or held."""
    module, own, epochs = LAUNCHERS[launcher]
    pytest.importorskip(module, reason=f"{module} is not installed")
    words = [*SMALL, f"epochs={','.join(map(str, epochs))}", f"hydra/launcher={launcher}", *own]
    long = Run(tmp_path / "runs", identity(compose([*SMALL, "epochs=80"])))
    with sweep(*words, cwd=tmp_path) as process:
        deadline = time.monotonic() + 300  # of a sweep that hangs
        while len(long.metrics()) < 2 and time.monotonic() < deadline:
            time.sleep(0.02)
        os.kill(long.status["pid"], signal.SIGKILL)
        out, err = process.communicate()
    assert process.returncode == 1, err
    assert f"1 of {len(epochs)} jobs did not finish; the same command runs what is missing." in err
    assert "Traceback" not in err
    assert long.state == "stopped"
    assert 2 <= len(long.metrics()) < 80
    runs = all_runs(tmp_path / "runs")
    assert len(runs) == len(set(epochs))
    assert sum(run.state == "done" for run in runs) == len(runs) - 1
    table = out.partition("run         state")[2].splitlines()[1:]
    assert [line.split()[1] for line in table] == ["done"] * (len(epochs) - 1) + ["stopped"]
    before = {run.id: (run.path / "status.json").read_bytes() for run in runs if run != long and run.state == "done"}

    again = sweep(*words, cwd=tmp_path)
    _, err = again.communicate()
    assert again.returncode == 0, err
    assert long.state == "done"
    assert [row["epoch"] for row in long.metrics()] == list(range(1, 81))
    assert {run: (tmp_path / "runs" / run / "status.json").read_bytes() for run in before} == before


@pytest.mark.parametrize("word", ["hydra/launcher=joblib", "hydra/launcher=submitit_slurm", "hydra/launcher=ray", "hydra/sweeper=optuna"])
def test_what_is_not_installed_is_said_in_one_sentence(monkeypatch, word):
    monkeypatch.setattr(engines.importlib.util, "find_spec", lambda name: None)
    extra = word.partition("=")[2].partition("_")[0]
    with pytest.raises(UserError, match=rf'{word} needs [\w.]+: pip install "sam-repro\[{extra}\]"\.'):
        with_engines(["seed=0,1", word])
    assert with_engines(["seed=0,1", "hydra/launcher=basic", "hydra/launcher=of_somebody"])


@pytest.mark.parametrize(
    ("word", "says"), [("hydra/launcher=jobli", "Did you mean 'joblib'?"), ("hydra/sweeper=grid", "There is: basic, optuna.")]
)
def test_an_engine_that_nobody_knows(tmp_path, word, says):
    process = sweep(*SMALL, word, cwd=tmp_path)
    _, err = process.communicate()
    assert process.returncode == 1
    group, _, option = word.partition("=")
    assert err == f"sam_repro: {group} has no option {option!r}. {says}\n"


def test_a_launcher_is_for_sweeps_and_starts_the_processes_of_a_job_itself(monkeypatch):
    monkeypatch.setattr(engines, "_is_there", lambda name: True)
    words = [sys.executable, "-m", "sam_repro", *SMALL, "hydra/launcher=ray"]
    process = subprocess.run(words, capture_output=True, text=True, cwd=ROOT)
    if "needs ray" not in process.stderr:
        assert (process.returncode, process.stderr) == (1, "sam_repro: hydra/launcher=ray starts the jobs of a sweep: add -m.\n")
    assert with_engines(["hydra/launcher=ray"])
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="leave torchrun out"):
        with_engines(["hydra/launcher=ray"])


# -- places ------------------------------------------------------------------------------------------------------------


def test_each_place_has_a_gpu_or_a_share_of_the_cores():
    assert shares(0, [], 8) == [{}]
    assert shares(3, [], 8) == [{"OMP_NUM_THREADS": "2"}] * 3
    assert shares(0, ["2", "3"], 8) == [{"OMP_NUM_THREADS": "4", "CUDA_VISIBLE_DEVICES": gpu} for gpu in "23"]
    assert [one["CUDA_VISIBLE_DEVICES"] for one in shares(3, ["0", "1"], 1)] == ["0", "1", "0"]


def test_a_job_takes_a_place_that_is_free_and_gives_it_back(tmp_path):
    places = [{"CUDA_VISIBLE_DEVICES": str(index)} for index in range(3)]
    with a_free_one(places, tmp_path) as first, a_free_one(places, tmp_path) as second:
        with pytest.raises(ZeroDivisionError), a_free_one(places, tmp_path) as third:
            assert [first, second, third] == places
            raise ZeroDivisionError
        with a_free_one(places, tmp_path) as again:
            assert again == third


def test_a_launcher_of_one_machine_runs_one_job_for_each_gpu(monkeypatch):
    config = compose(["device=cpu"])
    assert len(engines._places(config, 5)) == 5
    monkeypatch.setattr(engines, "gpus", lambda device: ["4", "7"])
    assert [place["CUDA_VISIBLE_DEVICES"] for place in engines._places(config, 5)] == ["4", "7"]
    assert engines._places({**config, "processes": 2}, 5) == [{}]  # which take all GPUs


def test_how_many_jobs_a_launcher_runs_at_a_time():
    assert several("joblib", {"n_jobs": 3}, cores=8) == 3
    assert several("joblib", {"n_jobs": -1}, cores=8) == 8
    assert several("joblib", {"n_jobs": -2}, cores=8) == 7
    assert several("submitit_local", {"cpus_per_task": 3}, cores=8) == 2
    assert several("submitit_local", {"cpus_per_task": 16}, cores=8) == 1
    assert several("submitit_slurm", {}, cores=8) == several("ray", {}, cores=8) == 0


def test_the_machine_that_submits_needs_no_gpu():
    assert id_of(compose([*SMALL, "device=cuda"])) == identity(compose([*SMALL, "device=cuda:1"]))


# -- Optuna ------------------------------------------------------------------------------------------------------------


def test_what_is_tuned_is_the_score_of_the_part_held_out(tmp_path):
    words = [*HELD_OUT, f"runs_dir={tmp_path}"]
    config = compose(words)
    assert validation_score(config) is None
    launch(config, words)
    run = Run(tmp_path, identity(config))
    assert run.summary["split"] == "val"
    assert validation_score(config) == run.summary["score_last"]
    assert validation_score({**config, "val_fraction": 0.0}) is None


@pytest.mark.parametrize("words", [[], ["val_fraction=0.0"], ["val_fraction=choice(0.0,0.2)"]])
def test_optuna_never_sees_the_test_score(tmp_path, words):
    pytest.importorskip("optuna", reason="optuna is not installed")
    process = sweep(*SMALL, "lr=interval(0.01,0.1)", "hydra/sweeper=optuna", *words, cwd=tmp_path)
    _, err = process.communicate()
    assert process.returncode == 1
    assert "val_fraction=0.1 holds out a tenth" in err
    assert all_runs(tmp_path / "runs") == []


@pytest.mark.long
def test_optuna_finds_the_best_and_goes_on_past_what_diverges(tmp_path):
    pytest.importorskip("optuna", reason="optuna is not installed")
    optuna = ["hydra/sweeper=optuna", "hydra/sweeper/sampler=random", "hydra.sweeper.sampler.seed=1", "hydra.sweeper.n_trials=4"]
    process = sweep(*HELD_OUT, *optuna, "lr=choice(0.1,0.01,1e9)", "weight_decay=0", cwd=tmp_path)
    out, err = process.communicate()
    assert process.returncode == 0, err
    runs = all_runs(tmp_path / "runs")
    assert sorted(run.state for run in runs) == ["diverged", "done", "done"]
    best = max((run for run in runs if run.state == "done"), key=lambda run: run.summary["score_last"])
    assert f"best: lr={best.config['lr']}, with {best.summary['score_last']:.2f} on the held-out part" in out
