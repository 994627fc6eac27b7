"""How far tables are, a line each."""

import pytest
from own_tables import ROOT, declare, put

from sam_repro import claims
from sam_repro.schema import UserError
from sam_repro.tables import dispatch


def test_several_tables_have_a_line_each_and_one_together(tmp_path, capsys):
    folder = tmp_path / "experiments"
    declare(folder, "run: dataset=digits epochs=1\nrows: {x: {run: optimizer=sgd}}", "own/a")
    declare(folder, "run: dataset=digits epochs=1\nrows: {x: {run: optimizer=sgd}, y: {run: optimizer=sam}}", "own/b")
    put(tmp_path / "runs", "optimizer=sgd")
    words = ["device=cpu", "seeds=0,1", f"experiments={folder}", f"runs_dir={tmp_path / 'runs'}", f"results_dir={tmp_path / 'results'}"]
    dispatch(["show", *words])
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert lines == [
        "own/a 2 runs: 1 done, 1 not begun; about 0:02 on this cpu",
        "own/b 4 runs: 1 done, 3 not begun; about 0:06 on this cpu",
        "together 4 runs: 1 done, 3 not begun; about 0:06 on this cpu",
    ]
    dispatch(["show", "own/a", *words])
    assert "1 of 2 runs are done, 1 are missing" in capsys.readouterr().out


@pytest.mark.parametrize("place", [ROOT / "results", ROOT / "results" / "mine", ROOT / "sam_repro"], ids=str)
def test_tables_and_claims_of_ones_own_are_not_written_among_the_projects(tmp_path, place):
    folder = declare(tmp_path / "experiments", "run: dataset=digits epochs=1\nrows: {x: {run: optimizer=sgd}}", "own/a")
    with pytest.raises(UserError, match="say where its files go"):
        dispatch(["report", "own/a", f"experiments={folder}", f"results_dir={place}"])
    with pytest.raises(UserError, match="say where its files go"):
        claims.dispatch(["report", "file=mine.yaml", f"results_dir={place}"])
