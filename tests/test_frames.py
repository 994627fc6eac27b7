"""The run store as frames: what is in them, what the cache notices, what is damaged."""

import json
import os

import pandas as pd
import pytest
from own_tables import ROOT, put, time_steps

from sam_repro import runs as command
from sam_repro.results import frames, load
from sam_repro.results.frames import COLUMNS, LONG
from sam_repro.schema import UserError
from sam_repro.store import CHECKSUMS, Run


@pytest.fixture
def store(tmp_path):
    for seed in (0, 1):
        put(tmp_path / "runs", "optimizer=sgd", score=60 + seed, seed=seed)
    sam = put(tmp_path / "runs", "optimizer=layerwise", "k=2", ascents=25)
    time_steps(sam, 1.5, 1.2)
    (sam.path / "sharpness.json").write_text(json.dumps({"lambda_max": 7.5, "samples": 50, "of": 50}))
    (sam.path / "steps.csv").write_text("step,plain_norm,psf_norm\n0,2.0,0.1\n2,1.0,\n")
    return tmp_path / "runs"


def test_a_row_a_run_with_what_the_documentation_says(store):
    runs = load(store).runs
    assert runs.index.name == "run"
    own = [name for name in runs if not name.startswith("config.")]
    assert own == [name for name in COLUMNS if name != "run"]
    page = (ROOT / "docs" / "results.md").read_text()
    assert all(f"`{name}`" in page for name in [*COLUMNS, *LONG])
    sam = runs[runs.optimizer == "layerwise"].iloc[0]
    assert (sam.score_last, sam.sampling_rate, sam.lambda_max, sam.step_cost) == (50.0, 50.0, 7.5, pytest.approx(1.5))
    assert (sam["config.optimizer.where.k"], sam.forward_per_step, sam.perturbations) == (2, pytest.approx(1.2), 4)
    assert runs.groupby("optimizer").score_last.mean().to_dict() == {"sgd": 60.5, "layerwise": 50.0}


def test_the_long_frames_have_every_row_of_the_runs(store):
    found = load(store)
    assert found.epochs.groupby("run").epoch.apply(list).to_dict() == {key: [1, 2] for key in found.runs.index}
    run = Run(store, found.runs.index[0])
    ours = found.layers[found.layers.run == run.id]
    assert ours[["epoch", "layer", "grad_norm", "perturbations"]].to_dict("records") == run.layers()
    assert list(ours.depth) == [0, 1, 0, 1]
    assert list(found.steps.psf_norm.fillna(0)) == [0.1, 0]
    cost = found.measurements.set_index("name").value
    assert (cost["layerwise.measured"], cost["lambda_max"]) == (1.5, 7.5)


@pytest.mark.parametrize("many", [1, 10_000], ids=["cached", "read"])
def test_what_has_changed_is_noticed_and_nothing_else_is_read(store, monkeypatch, tmp_path, many):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(frames, "MANY", many)
    first = load(store)
    kept = {name: getattr(first, name) for name in ("runs", *LONG)}
    changed, gone, other = first.runs.index
    for name in ("summary.json", "metrics.jsonl"):
        path = store / changed / name
        path.write_text(path.read_text().replace('"train_loss": 0.5', '"train_loss": 0.25'))
        os.utime(path, ns=(0, 0))
    (store / changed / CHECKSUMS).unlink()  # it was not changed by hand
    Run(store, gone).remove()
    new = put(store, "optimizer=sam", score=70)
    if many == 1:
        readable, read = {changed, new.id}, frames._row
        monkeypatch.setattr(frames, "_row", lambda run: read(run) if run.id in readable else pytest.fail("it is read again"))
    second = load(store)
    losses = {changed: 0.25, other: 0.5, new.id: 0.5}
    assert second.runs.train_loss.to_dict() == losses
    assert second.epochs.groupby("run", observed=True).train_loss.mean().to_dict() == losses
    assert len(second.layers) == 3 * 4
    assert second.runs.loc[other].dropna().to_dict() == kept["runs"].loc[other].dropna().to_dict()
    assert (tmp_path / "cache").exists() == (many == 1)


def test_a_cache_that_cannot_be_read_or_written_is_no_matter(store, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(frames, "MANY", 1)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    whole = load(store).runs
    for path in (tmp_path / "cache").rglob("*.parquet"):
        path.write_bytes(b"PAR1 and no more")
    pd.testing.assert_frame_equal(load(store).runs, whole)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    pd.testing.assert_frame_equal(load(store).runs, whole)
    assert "cannot be written" in capsys.readouterr().out


def test_what_is_damaged_is_a_row_that_says_so(store, capsys):
    ids = load(store).runs.index
    (store / ids[0] / "summary.json").write_text("{")
    (store / ids[1] / "layers.csv").write_text("epoch,layer\n1,stem\n")
    found = load(store)
    assert list(found.runs.state) == ["damaged", "done", "done"]
    assert f"{ids[0]}/summary.json" in found.runs.error[ids[0]]
    assert set(found.layers.run) == {ids[0], ids[2]}
    assert f"{ids[1]}/layers.csv is damaged" in capsys.readouterr().out


@pytest.mark.parametrize("content", ['{"a": 1}', '{"lambda_max": 1, "samples": 2}'])
def test_what_is_json_but_no_measurement_spoils_one_row_alone(store, content):
    run = Run(store, load(store).runs.index[1])
    (run.path / "sharpness.json").write_text(content)
    runs = load(store).runs
    assert list(runs.state.drop(run.id)) == ["done", "done"]
    assert (runs.state[run.id], str(run.path) in runs.error[run.id]) == ("damaged", True)


def test_a_run_that_was_killed_is_not_running(store):
    run = put(store, "optimizer=sam")
    (run.path / "status.json").write_text(json.dumps({**run.status, "state": "running"}))
    assert load(store).runs.state[run.id] == "stopped"


def test_another_store_stands_behind(store, tmp_path):
    first = put(tmp_path / "other", "optimizer=sgd", score=99).id
    lone = put(tmp_path / "other", "optimizer=sam", score=98)
    runs = load(store, tmp_path / "other").runs
    assert (runs.score_last[first], runs.score_last[lone.id]) == (60.0, 98.0)
    with pytest.raises(UserError, match="There is no folder"):
        load(tmp_path / "none")


@pytest.mark.parametrize("kind", ["parquet", "csv"])
def test_runs_are_exported(store, tmp_path, capsys, kind):
    put(store, "optimizer=layerwise", "k=all")
    out = tmp_path / "tables" / f"runs.{kind}"
    command.run(["export"], {"runs_dir": str(store), "out": str(out)})
    table = pd.read_parquet(out) if kind == "parquet" else pd.read_csv(out, index_col="run")
    assert sorted(table.score_last) == [50.0, 50.0, 60.0, 61.0]
    assert set(table["config.optimizer.where.k"].dropna().astype(str).str.removesuffix(".0")) == {"2", "all"}
    with pytest.raises(UserError, match=r"out=runs.xlsx ends in .parquet or .csv"):
        command.run(["export"], {"runs_dir": str(store), "out": "runs.xlsx"})


def test_no_runs_are_empty_frames(tmp_path):
    found = load(tmp_path)
    assert [len(getattr(found, name)) for name in ("runs", *LONG)] == [0] * 5
    assert list(found.layers) == ["run", "epoch", "layer", "depth", "grad_norm", "perturbations"]
