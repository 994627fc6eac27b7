"""Runs that are over, kept without their weights, and those of others taken in."""

import pytest
from test_runs import run_here

from sam_repro import runs
from sam_repro.config import identity
from sam_repro.files import write
from sam_repro.schema import UserError
from sam_repro.store import CHECKSUMS, Run


def test_runs_are_archived_and_imported_elsewhere(tmp_path, capsys):
    store, archive = tmp_path / "runs", tmp_path / "results"
    run = run_here(store, "score_every=2")
    where = {"runs_dir": str(store), "results_dir": str(archive)}
    runs.run(["archive", "--done"], where)
    kept = Run(archive / "runs", run.id)
    kept.check()
    assert not kept.checkpoint.exists()
    assert "runs_dir" not in kept.config
    runs.run(["import", str(archive / "runs")], {"runs_dir": str(tmp_path / "theirs")})
    taken = Run(tmp_path / "theirs", run.id)
    assert (taken.state, taken.summary, taken.metrics()) == ("done", run.summary, run.metrics())
    assert identity(taken.config) == run.id
    assert taken.config.keys() == run.config.keys()
    runs.run(["import", str(archive / "runs")], {"runs_dir": str(tmp_path / "theirs")})
    assert capsys.readouterr().out.splitlines()[-2:] == [f"imported {run.id}", f"{run.id} is here already"]


def test_what_is_imported_is_checked(tmp_path):
    run = run_here(tmp_path / "runs")
    for names, says in (
        (["archive", run.id[:4]], "only what is over is archived"),
        (["import", str(tmp_path / "nothing")], "There is no run that is over"),
        (["import", str(tmp_path / "runs")], "is of a configuration whose id is"),
    ):
        if names[0] == "archive":
            write(run.path / "status.json", run.path.joinpath("status.json").read_text().replace('"done"', '"stopped"'))
        else:
            write(run.path / "status.json", run.path.joinpath("status.json").read_text().replace('"stopped"', '"done"'))
            write(run.path / "config.yaml", run.path.joinpath("config.yaml").read_text().replace("lr: 0.1", "lr: 0.2"))
            (run.path / CHECKSUMS).unlink(missing_ok=True)  # with which it would be damaged
        with pytest.raises(UserError, match=says):
            runs.run(names, {"runs_dir": str(tmp_path / ("theirs" if names[0] == "import" else "runs"))})
    assert not (tmp_path / "theirs").exists()
    with pytest.raises(UserError, match="Did you mean 'runs_dir'"):
        runs.run(["list"], {"run_dir": "x"})
