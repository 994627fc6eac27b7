"""What cannot run, and what nobody can mean, is refused in a sentence, before anything starts."""

import subprocess
import sys

import pytest
from own_tables import METHODS, declare

from sam_repro import tables
from sam_repro.config import compose
from sam_repro.results.declare import load
from sam_repro.results.select import Request
from sam_repro.schema import UserError, options
from sam_repro.trial import Trial


def refused(*words: str) -> str:
    with pytest.raises(UserError) as error:
        Trial().check(compose(words))
    return str(error.value)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("k=21", "k=21 does not fit: the model has 20 layers, k is 0 to 20, or all."),
        ("model=vit_s16 model.freeze=true dataset=cifar10 k=4", "k=4 does not fit: the model has 1 layers"),
        ("optimizer=vsam N=4", "M=5 slices do not fit N=4 norms: M is 1 to N."),
        ("optimizer=msam m=4 optimizer/when=gradient_norm", "does not go with samples=micro"),
        ("optimizer=aesam graphs=true", "graphs=true does not go with this method"),
        ("optimizer=mesa model=resnet18 model.bits=4", "set model.bits=0."),
        ("model=vit_s16", "needs images of a multiple of 16 pixels, not 8: set dataset.size."),
        ("model=roberta_tiny dataset=glue_sst2 model.heads=3", "model.heads=3 does not divide model.width=128."),
    ],
)
def test_a_method_that_does_not_fit_its_model_is_told_without_data(words, says):
    if "vit" in words:
        pytest.importorskip("timm")
    if "roberta" in words:
        pytest.importorskip("transformers")
    assert says in refused(*words.split())


def test_what_fits_passes_and_is_built_once(monkeypatch):
    from sam_repro import models

    made, create = [], models.create
    monkeypatch.setattr(models, "create", lambda **values: made.append(values["name"]) or create(**values))
    trial = Trial()
    for method in options("optimizer"):
        for seed in range(2):
            trial.check(compose([f"optimizer={method}", f"seed={seed}"]))
    assert made == ["resnet20"]


def test_no_weights_are_fetched_or_read(monkeypatch):
    timm = pytest.importorskip("timm")
    monkeypatch.setattr(
        timm, "create_model", lambda name, pretrained, create=timm.create_model, **more: create(name, **more) if not pretrained else 1 / 0
    )
    Trial().check(compose(["model=vit_s16", "model.pretrained=true", "dataset=cifar10"]))


def test_a_sweep_with_such_a_job_starts_none(tmp_path):
    words = ["-m", "k=2,21", "max_samples=32", "batch_size=16", "epochs=1"]
    ended = subprocess.run([sys.executable, "-m", "sam_repro", *words], cwd=tmp_path, capture_output=True, text=True)
    assert (ended.returncode, ended.stdout) == (1, "")
    first, second = ended.stderr.splitlines()
    assert first.startswith("sam_repro: no job was started, for this one does not fit: k=21 ")
    assert second == "k=21 does not fit: the model has 20 layers, k is 0 to 20, or all."
    assert not list(tmp_path.glob("runs/*/config.yaml"))


def test_a_table_with_such_a_run_starts_none(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "Work", None)
    table = load(declare(tmp_path, METHODS.replace("k=2", "k=99")), "own/t")
    with pytest.raises(UserError) as error:
        tables.run([table], Request(scale="smoke", runs_dir=str(tmp_path / "runs")), 1)
    first, second = str(error.value).splitlines()
    assert first.startswith("No run was started, for this one does not fit: dataset=digits epochs=1 optimizer=layerwise k=99")
    assert second.startswith("k=99 does not fit: the model has 20 layers")
