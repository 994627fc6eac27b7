"""The quick composition is Hydra's, to the last key, for all that the project declares; what it leaves to Hydra, it leaves whole."""

import hydra
import pytest
from omegaconf import OmegaConf

from sam_repro.compose import plainly
from sam_repro.results.claims.declare import load_all
from sam_repro.results.claims.evidence import cell_of
from sam_repro.results.declare import names, select
from sam_repro.results.select import Request, words_of
from sam_repro.schema import CONF, METHOD_PARTS, options

PLAIN = [
    [],
    ["lr=1e-3", "seed=7", "logger=[wandb,tensorboard]", "wandb.group='a b'", "data_dir=/some/place", "optimizer.bn=both"],
    ["optimizer=layerwise", "k=all", "optimizer/when=variation", "optimizer.when.alpha=0.1"],
    ["experiment=kdd24/cifar10_author", "model=wrn16_2", "schedule=cosine", "methods.layerwise.k=2"],
    ["scale=smoke", "epochs=3"],
    ["model=timm", "model.arch=resnet18", "lr=${weight_decay}"],
]
LEFT = [
    ["epocs=3"], ["optimizer=smo"], ["optimizer=sam", "optimizer/teacher=bank"], ["+new=1"], ["~lr"], ["seed=1,2"], ["lr=choice(1,2)"],
    ["hydra.job.name=x"], ["optimizer=[sam,sgd]"], ["a=b=c="], ["experiment=null"], ["lr.x=1"], ["optimizer=digits/../sam.yaml"],
]  # fmt: skip


@pytest.fixture
def by_hydra():
    with hydra.initialize_config_dir(str(CONF), job_name="sam_repro", version_base="1.3"):
        yield lambda words: OmegaConf.to_yaml(hydra.compose("config", list(words)))


def declared():
    """The overrides of every cell and of every claim's runs, at each scale that is shown."""
    cells = [cell for table in select(names()) for cell in table.cells if cell.words]
    for part in (part for claims in load_all() for claim in claims.claims for part in claim.parts):
        cells += [cell_of(part, benchmark, run) for benchmark in part.on for run in part.runs]
    return sorted({words_of(cell, scale, Request()) for cell in cells for scale in ("paper", "small")})


def test_plain_words(by_hydra):
    for words in PLAIN:
        assert (composed := plainly(words)) is not None, words
        assert OmegaConf.to_yaml(composed) == by_hydra(words)


@pytest.mark.parametrize("words", LEFT, ids=" ".join)
def test_the_rest_is_left_to_hydra(words):
    assert plainly(words) is None


MANY = [pytest.param(group, marks=pytest.mark.long) for group in ("experiment", "optimizer")]


@pytest.mark.parametrize("group", [*MANY, "dataset", "model", "base", "schedule", "scale"])
def test_every_option(by_hydra, group):
    for option in options(group):
        words = [f"{group}={option}"]
        assert OmegaConf.to_yaml(plainly(words)) == by_hydra(words), words


def test_every_part_of_a_method(by_hydra):
    for part in METHOD_PARTS:
        for option in options(f"optimizer/{part}"):
            words = [f"optimizer={'saf' if part == 'teacher' else 'vsam'}", f"optimizer/{part}={option}"]
            assert OmegaConf.to_yaml(plainly(words)) == by_hydra(words), words


@pytest.mark.long
def test_all_that_is_declared(by_hydra):
    everything = declared()
    assert len(everything) > 300
    for words in everything:
        assert OmegaConf.to_yaml(plainly(words)) == by_hydra(words), words
