"""Models whose parameters are sharded (FSDP2) on two processes (gloo): what one process gets with the whole model."""

from collections import OrderedDict

import pytest
import torch
import torch.nn.functional as F
from spawned import spawned
from torch import nn
from torch.distributed.fsdp import fully_shard

from sam_repro.chain import Chain
from sam_repro.optim import create
from sam_repro.schema import UserError, options

pytestmark = pytest.mark.long

KNOBS = {
    "vsam": {"start": 2, "N": 4, "M": 2}, "vsam_a": {"start": 2, "N": 4, "M": 2}, "saf": {"start": 0, "delay": 1}, "msam": {"m": 2},
    "late": {"percent": 50.0}, "late_layerwise": {"k": 2, "percent": 50.0},
    "layerwise": {"k": 2}, "looksam": {"k": 2}, "looklayersam": {"k": 2},
    "budget": {"budget": 0.5, "costs": [1.0] * 4},  # a sharded model runs as a whole, and each cut costs as much
}  # fmt: skip
WHOLE = ("zsharp", "ssam_f", "ssam_d", "random_sam")  # they see all weights of a tensor
CASES = {name: (name, KNOBS.get(name, {})) for name in options("optimizer") if name not in ("mesa", *WHOLE)}
CASES |= {"normalized": ("layerwise", {"k": 2, "normalize": True}), "whole": ("layersam", {"trust": "whole"})}
STEPS, BATCH = 6, 8


class Block(nn.Module):
    """A transformer's, with two heads."""

    def __init__(self, width):
        super().__init__()
        self.first, self.qkv, self.out = nn.LayerNorm(width), nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.second, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x):
        q, k, v = (part.unflatten(-1, (2, -1)).transpose(1, 2) for part in self.qkv(self.first(x)).chunk(3, -1))
        x = x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.second(x))))


class Head(nn.Linear):
    def forward(self, x):
        return super().forward(x.mean(1))


def network(shards=True):
    """Of 5 classes; its last bias is one that two processes cannot halve."""
    torch.manual_seed(0)
    model = Chain(OrderedDict(embed=nn.Linear(6, 8), one=Block(8), two=Block(8), head=Head(8, 5))).double()
    if shards:
        for stage in model:
            fully_shard(stage)
        fully_shard(model)
    return model


def criterion(outputs, targets):
    """With class weights."""
    return F.cross_entropy(outputs, targets, reduction="none"), 1.0 + targets


def trained(name, knobs, pick, shards=True, criterion=criterion, resume=False):
    """The weights after some steps on the samples that ``pick`` takes of each batch."""
    torch.manual_seed(1)
    inputs, targets = torch.randn(STEPS, BATCH, 3, 6).double(), torch.randint(0, 5, (STEPS, BATCH))
    model = network(shards)
    planned = {"total_steps": STEPS, "steps_per_epoch": STEPS // 2, "dataset_size": STEPS // 2 * BATCH}
    method = create(name, model, **planned, **knobs)
    base = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for step in range(STEPS):
        if resume:
            state, method = method.state_dict(), create(name, model, **planned, **knobs)
            method.load_state_dict(state)
        places = pick(torch.arange(BATCH))
        method.backward(inputs[step, places], targets[step, places], criterion, indices=places + step % (STEPS // 2) * BATCH)
        base.step()
        base.zero_grad()
    return {name: p.full_tensor() if shards else p for name, p in model.state_dict().items()}


def of_one(rank, folder):
    even, uneven = (lambda whole: whole.chunk(2)[rank]), (lambda whole: whole.split([5, 3])[rank])
    found = {case: trained(name, knobs, even) for case, (name, knobs) in CASES.items()}
    found["uneven"] = trained("sam", {}, uneven)
    found["resumed"] = trained("looksam", KNOBS["looksam"], even, resume=True)
    model = network()
    for name, knobs in (("mesa", {"steps_per_epoch": 1}), ("sam", {"scope": "replica"}), *((name, {}) for name in WHOLE)):
        try:
            create(name, model, **knobs)
        except UserError as error:
            found[name + " refused"] = str(error)
    return found


@pytest.fixture(scope="module")
def sharded(tmp_path_factory):
    """What each of two processes has."""
    return spawned(of_one, tmp_path_factory.mktemp("sharded"))


def apart(a, b):
    return max((a[name] - b[name]).abs().max().item() for name in a)


@pytest.mark.parametrize("case", [*CASES, "uneven", "resumed"])
def test_a_sharded_model_gets_the_gradient_of_the_whole_one(sharded, case):
    """mSAM's micro-batches are those of all processes together; ESAM's, and AsyncSAM's few samples, are each process's own."""
    name, knobs = CASES.get(case, {"uneven": ("sam", {}), "resumed": CASES["looksam"]}.get(case))
    order = torch.tensor([0, 1, 4, 5, 2, 3, 6, 7]) if name == "msam" else torch.arange(BATCH)
    alone = trained(name, knobs, lambda whole: whole[order], shards=False)
    assert apart(sharded[0][case], sharded[1][case]) == 0
    assert (apart(sharded[0][case], alone) < 1e-12) == (name not in ("esam", "async_sam"))


def test_methods_differ_from_sgd(sharded):
    for case in CASES:
        assert (apart(sharded[0][case], sharded[0]["sgd"]) > 1e-6) == (case != "sgd"), case


def test_what_shards_do_not_allow_is_refused(sharded):
    assert sharded[0]["mesa refused"].startswith("The mean teacher is a copy of the model, and a sharded one (FSDP2) has none")
    assert all(sharded[0][f"{name} refused"].startswith("where=") for name in WHOLE)
    assert sharded[0]["sam refused"].startswith("scope=replica: of a sharded model (FSDP2) no process has a gradient of its own")
