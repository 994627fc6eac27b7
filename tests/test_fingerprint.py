"""The fingerprint of the data: taken from files alone, recorded with a run, and compared before the run is skipped or resumed."""

import json
import os
import subprocess
import sys

import pytest
import yaml
from own_tables import put

from sam_repro import fingerprint as module
from sam_repro import runs
from sam_repro.__main__ import launch
from sam_repro.config import compose, identity
from sam_repro.data import READERS
from sam_repro.data.digits import digits
from sam_repro.files import write
from sam_repro.fingerprint import FILES, describe, fingerprint
from sam_repro.results.archive import archive
from sam_repro.schema import UserError, options, read
from sam_repro.store import CHECKSUMS, Run
from sam_repro.train import loop

SMALL = ["device=cpu", "train_fraction=0.05", "epochs=2", "seed=3", "optimizer=sgd"]


@pytest.fixture(autouse=True)
def place(monkeypatch, tmp_path):
    """A cache of the test's own."""
    monkeypatch.setattr(module, "CACHE", tmp_path / "cache" / "fingerprints.json")


@pytest.fixture
def laid(monkeypatch, tmp_path):
    """The digits under the name of a data set in files, and such files."""
    monkeypatch.setitem(READERS, "cifar10", digits)
    return lay(tmp_path / "data", b"one")


def lay(folder, content):
    (folder / "cifar-10-batches-py").mkdir(parents=True)
    for index in range(1, 6):
        (folder / "cifar-10-batches-py" / f"data_batch_{index}").write_bytes(content)
    (folder / "cifar-10-batches-py" / "test_batch").write_bytes(content)
    return folder


def run_here(folder, *overrides) -> Run:
    overrides = [*SMALL, f"runs_dir={folder}", *overrides]
    config = compose(overrides)
    launch(config, overrides)
    return Run(folder, identity(config))


def test_every_data_set_has_its_files_named():
    named = {*FILES, "digits", *(name for name in options("dataset") if "task" in read(f"dataset/{name}"))}
    assert set(options("dataset")) == named


def test_it_tells_other_files_and_reads_no_more_than_their_beginnings(tmp_path):
    dataset = {"name": "cifar10"}
    whole = fingerprint(dataset, str(lay(tmp_path / "a", b"x" * 5000)))
    assert (whole["name"], whole["files"], whole["bytes"], len(whole["sha1"])) == ("cifar10", 6, 30_000, 40)
    assert fingerprint(dataset, str(lay(tmp_path / "b", b"x" * 5000))) == whole  # wherever it lies
    assert fingerprint(dataset, str(lay(tmp_path / "c", b"y" + b"x" * 4999)))["sha1"] != whole["sha1"]
    assert fingerprint(dataset, str(lay(tmp_path / "d", b"x" * 5001)))["bytes"] == 30_006
    (tmp_path / "a" / "cifar-10-batches-py" / "readme.html").write_text("no part of it")
    assert fingerprint(dataset, str(tmp_path / "a")) == whole
    assert fingerprint(dataset, str(tmp_path / "nowhere")) is None
    assert describe(whole) == f"cifar10: 6 files, 30,000 bytes, {whole['sha1'][:10]}"


def test_a_task_of_glue_is_known_where_its_files_lie_and_unknown_from_the_hub(tmp_path):
    dataset = compose(["dataset=glue_cola", "model=roberta_tiny"])["dataset"]
    assert fingerprint(dataset, str(tmp_path)) is None
    (tmp_path / "glue" / "CoLA").mkdir(parents=True)
    for part in ("train.tsv", "dev.tsv", "test.tsv"):
        (tmp_path / "glue" / "CoLA" / part).write_text("a\t1\n")
    assert fingerprint(dataset, str(tmp_path))["files"] == 2


def test_very_many_files_are_counted_once(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "MANY", 4)
    folder = tmp_path / "imagenet" / "train" / "cat"
    for part in ("train/cat", "train/dog", "val/cat"):
        (tmp_path / "imagenet" / part).mkdir(parents=True)
    for name in "abc":
        (folder / f"{name}.jpeg").write_text(name)
    (tmp_path / "imagenet" / "val" / "cat" / "d.jpeg").write_text("d")
    first = fingerprint({"name": "imagenet"}, str(tmp_path))
    assert (first["files"], first["bytes"]) == (4, 4)
    kept = json.loads(module.CACHE.read_text())
    (entry,) = kept.values()
    entry["bytes"] = 5
    write(module.CACHE, json.dumps(kept))
    assert fingerprint({"name": "imagenet"}, str(tmp_path))["bytes"] == 5  # from the cache
    (folder / "e.jpeg").write_text("e")
    os.utime(folder, ns=(1, 1))  # however coarse the clock of the file system is
    assert fingerprint({"name": "imagenet"}, str(tmp_path))["bytes"] == 5  # of five files, counted
    module.CACHE.write_text("{half")
    assert fingerprint({"name": "imagenet"}, str(tmp_path))["files"] == 5
    monkeypatch.setattr(module, "CACHE", tmp_path / "imagenet" / "train" / "cat" / "a.jpeg" / "cannot.json")
    assert fingerprint({"name": "imagenet"}, str(tmp_path))["files"] == 5


def test_it_imports_no_torch():
    code = "import sys; from sam_repro.fingerprint import fingerprint; fingerprint({'name': 'digits'}, '.'); print('torch' in sys.modules)"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout == "False\n"


def test_a_run_has_it_beside_its_id_and_the_archive_keeps_it(tmp_path, capsys):
    run = run_here(tmp_path / "runs", "epochs=1")
    data = run.status["data"]
    assert data == fingerprint({"name": "digits"}, "anywhere")
    assert (data["name"], data["files"]) == ("digits", 1)
    assert "data" not in yaml.safe_load((run.path / "config.yaml").read_text())
    archive(run, tmp_path / "archive")
    assert Run(tmp_path / "archive", run.id).status["data"] == data
    capsys.readouterr()
    runs.run(["show", run.id], {"runs_dir": str(tmp_path / "runs")})
    assert f"data     {describe(data)}\n" in capsys.readouterr().out


def test_a_finished_run_is_not_skipped_with_other_data_at_hand(tmp_path, laid, capsys):
    words = ["dataset=cifar10", "epochs=1"]
    run = run_here(tmp_path / "runs", *words, f"data_dir={laid}")
    known = run.status["data"]
    other = lay(tmp_path / "other", b"other")
    with pytest.raises(UserError) as error:
        run_here(tmp_path / "runs", *words, f"data_dir={other}")
    found = fingerprint({"name": "cifar10"}, str(other))
    for said in (run.id, describe(known), describe(found), f"data_dir={other}", "rerun=true"):
        assert said in str(error.value)
    assert (run.state, run.status["data"]) == ("done", known)
    capsys.readouterr()
    run_here(tmp_path / "runs", *words, f"data_dir={tmp_path / 'none'}")
    said = capsys.readouterr().out
    assert "is done already" in said
    assert f"Its data, {describe(known)}, are not at hand (data_dir={tmp_path / 'none'}): nothing was compared." in said
    run_here(tmp_path / "runs", *words, f"data_dir={laid}")
    assert "not at hand" not in capsys.readouterr().out
    run_here(tmp_path / "runs", *words, f"data_dir={other}", "rerun=true")
    assert run.status["data"] == found


def test_a_stopped_run_is_not_resumed_with_other_data_at_hand(tmp_path, laid, monkeypatch):
    original = loop.evaluate

    def stop(*args):
        raise KeyboardInterrupt

    def stop_later(*args):
        monkeypatch.setattr(loop, "evaluate", stop)
        return original(*args)

    monkeypatch.setattr(loop, "evaluate", stop_later)
    with pytest.raises(KeyboardInterrupt):
        run_here(tmp_path / "runs", "dataset=cifar10", f"data_dir={laid}")
    monkeypatch.setattr(loop, "evaluate", original)
    run = Run(tmp_path / "runs", identity(compose([*SMALL, "dataset=cifar10"])))
    other = lay(tmp_path / "other", b"other")
    before = run.status
    with pytest.raises(UserError, match=r"was trained on cifar10: 6 files, 18 bytes, .*at hand .*is cifar10: 6 files, 30 bytes"):
        run_here(tmp_path / "runs", "dataset=cifar10", f"data_dir={other}")
    assert (run.state, run.status, len(run.metrics())) == ("stopped", before, 1)
    assert run_here(tmp_path / "runs", "dataset=cifar10", f"data_dir={laid}").state == "done"
    assert len(run.metrics()) == 2


@pytest.mark.parametrize("recorded", [{}, {"data": None}])
def test_what_is_unknown_is_accepted(tmp_path, capsys, recorded):
    """Runs that were recorded before there were fingerprints, and those of data that no file of ours holds."""
    run = put(tmp_path, "optimizer=sgd")
    write(run.path / "status.json", json.dumps({**run.status, **recorded}))
    words = ["dataset=digits", "epochs=1", "optimizer=sgd", "device=cpu", f"runs_dir={tmp_path}"]
    summary = run.summary | {"note": ""}
    write(run.path / "summary.json", json.dumps(summary))
    (run.path / CHECKSUMS).unlink()
    launch(compose(words), words)
    said = capsys.readouterr().out
    assert f"Run {run.id} is done already" in said
    assert "not at hand" not in said
