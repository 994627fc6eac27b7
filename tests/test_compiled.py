"""``compile=stages``: the numbers of the stages uncompiled, and no compilation for a cut that is new."""

from collections import OrderedDict

import pytest
import torch
from helpers import as_module, small_chain
from torch import nn

from sam_repro.chain import Chain
from sam_repro.config import compose, identity
from sam_repro.measure.contestants import LastLayers
from sam_repro.optim import create
from sam_repro.train import compiled
from sam_repro.train.job import Job
from sam_repro.train.loop import EpochRecord, train_epoch

CUTS = 20


@pytest.fixture
def graphs(monkeypatch):
    """What was compiled, which runs as it is written; that a stage gives up on compiling is an error."""
    import torch._dynamo

    made = []
    monkeypatch.setattr(compiled, "BACKEND", lambda graph, _: made.append(graph) or graph)
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
        yield made
    torch._dynamo.reset()


def ascend(model, k):
    method = create("layerwise", model, k=k)
    method.where.__class__ = LastLayers
    method.backward(torch.randn(8, 4), torch.randint(4, (8,)), nn.CrossEntropyLoss(reduction="none"))


@pytest.mark.long
def test_twenty_cuts_compile_each_stage_a_few_times_and_then_no_more(graphs):
    stages = OrderedDict((f"s{i}", nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Tanh())) for i in range(CUTS + 1))
    model = Chain(stages)
    names = model.state_dict().keys()
    compiled.compile_stages(model)
    for k in range(1, CUTS + 1):
        ascend(model, k)
    assert len(graphs) <= 3 * len(stages), "with statistics that move, with and without a graph before; and without"
    before = len(graphs)
    for k in range(1, CUTS + 1):
        ascend(model, k)
    assert len(graphs) == before
    assert model.state_dict().keys() == names


def test_one_stage_stays_compiled_in_every_mode_and_with_every_size_of_a_batch(graphs):
    model = as_module(small_chain())
    compiled.compile_stages(model)
    for train in (True, False):
        model.train(train)
        for gradient in (True, False):
            with torch.set_grad_enabled(gradient):
                for size in (12, 7, 5, 3):
                    before = len(graphs)
                    for _ in range(2):
                        model(torch.randn(size, 2, 5, 5, dtype=torch.float64))
                    assert len(graphs) == before + 1, "each once"


def trained(*words, epochs=1):
    job = Job(compose(["device=cpu", "train_fraction=0.15", "epochs=2", "schedule=constant", *words]))
    for _ in range(epochs):
        record = EpochRecord(job)
        train_epoch(job, record)
    return job, record.close()[0]


@pytest.mark.parametrize("backend", [pytest.param("aot_eager", marks=pytest.mark.long), pytest.param("inductor", marks=pytest.mark.slow)])
@pytest.mark.parametrize("words", [["optimizer=sgd"], ["optimizer=layerwise", "k=3"]], ids=" ".join)
def test_the_numbers_are_those_of_the_stages_uncompiled(monkeypatch, words, backend):
    monkeypatch.setattr(compiled, "BACKEND", backend)
    (plain, expected), (_, found) = trained(*words), trained(*words, "compile=stages")
    assert found["train_loss"] == pytest.approx(expected["train_loss"], rel=1e-5)
    assert found["grad_norm"] == pytest.approx(expected["grad_norm"], rel=1e-4)
    assert (found["forward_units"], found["sampling_number"]) == (expected["forward_units"], expected["sampling_number"])
    assert plain.config["compile"] == "none"


def test_it_is_in_the_identity():
    assert identity(compose(["device=cpu", "compile=stages"])) != identity(compose(["device=cpu"]))
