"""What is missing is told before a run begins, after one question to its server."""

import os
import urllib.error
import urllib.request

import pytest

from sam_repro import fetch, provide
from sam_repro.__main__ import launch
from sam_repro.config import compose
from sam_repro.schema import UserError
from sam_repro.store import all_runs
from sam_repro.sweep import Sweep
from sam_repro.tables import dispatch


@pytest.fixture
def asked(monkeypatch):
    """The questions to servers, none of which answers."""
    questions = []

    def nobody(request, *_, **__):
        questions.append(request.full_url)
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr(urllib.request, "urlopen", nobody)
    fetch.reachable.cache_clear()
    yield questions
    fetch.reachable.cache_clear()


def config(tmp_path, *words):
    return compose([*words, f"data_dir={tmp_path / 'data'}", f"runs_dir={tmp_path / 'runs'}", "device=cpu"])


@pytest.mark.parametrize("name", fetch.SOURCES)
def test_data_that_cannot_be_had_leave_no_run_and_are_asked_for_once(tmp_path, asked, capsys, name):
    for _ in range(2):  # the second job of a sweep
        with pytest.raises(UserError, match="does not answer"):
            launch(config(tmp_path, f"dataset={name}"), [])
    assert asked == [fetch.SOURCES[name].server]
    assert all_runs(tmp_path / "runs") == []
    assert "starts" not in capsys.readouterr().out


def test_a_table_whose_data_cannot_be_had_starts_no_run(tmp_path, asked):
    places = [f"data_dir={tmp_path / 'data'}", f"runs_dir={tmp_path / 'runs'}", f"results_dir={tmp_path / 'results'}"]
    with pytest.raises(UserError, match="No run was started, for this one has no data"):
        dispatch(["run", "kdd24/figure6", "seeds=0", "device=cpu", *places])
    assert (len(asked), all_runs(tmp_path / "runs")) == (1, [])


def test_a_sweep_whose_data_cannot_be_had_starts_no_job(tmp_path, asked):
    sweep = Sweep()
    sweep.jobs = [([f"seed={seed}"], config(tmp_path, "dataset=cifar10", f"seed={seed}")) for seed in range(2)]
    with pytest.raises(SystemExit, match=r"no job was started, for this one has no data: seed=0\n.*could not be downloaded"):
        sweep._provide()
    assert len(asked) == 1
    sweep.jobs = [(words, {**job, "dry_run": True}) for words, job in sweep.jobs]
    sweep._provide()


def test_imagenet_is_missed_before_a_run_begins(tmp_path, asked):
    with pytest.raises(UserError, match="is not there: put ImageNet"):
        launch(config(tmp_path, "dataset=imagenet", "model=resnet50"), [])
    assert (asked, all_runs(tmp_path / "runs")) == ([], [])


def test_without_the_hub_its_libraries_are_not_left_to_try_again(tmp_path, asked, monkeypatch):
    for key in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
        monkeypatch.setenv(key, "")
    tried = []
    monkeypatch.setattr("sam_repro.data.load", lambda *_: tried.append(os.environ["HF_HUB_OFFLINE"]) or _missing())
    with pytest.raises(UserError, match="nor to be had"):
        launch(config(tmp_path, "dataset=glue_cola", "model=roberta_tiny"), [])
    assert (asked, tried, all_runs(tmp_path / "runs")) == ([fetch.hub()], ["1"], [])


def _missing():
    raise UserError("neither here nor to be had")


def test_a_download_says_what_how_big_and_where(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(fetch, "reachable", lambda _: True)
    assert fetch.fetched("cifar10", str(tmp_path), True, lambda: "read") == "read"
    said = capsys.readouterr().out
    assert f"CIFAR-10 is not here: it is downloaded from {fetch.CIFAR}, 170 MB, to {tmp_path / 'cifar-10-batches-py'}." in said


def test_what_comes_from_the_hub_is_known(tmp_path):
    (tmp_path / "data" / "glue" / "CoLA").mkdir(parents=True)
    assert provide.from_hub(config(tmp_path, "dataset=glue_cola", "model=roberta_base")) == ["the tokenizer", "the weights"]
    assert (
        provide.from_hub(config(tmp_path, f"model.pretrained={tmp_path}", "dataset=glue_mrpc", "model=roberta_base"))[-1] == "the tokenizer"
    )
    assert provide.from_hub(config(tmp_path, "model=resnet20")) == []
