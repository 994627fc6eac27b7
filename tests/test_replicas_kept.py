"""Two data-parallel processes (gloo, CPU) whose wrapper, model or loop is not the plainest: in float64 they are one process."""

import itertools

import pytest
import torch
from helpers import PLAN, batch, criterion, small_chain
from spawned import spawned
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from sam_repro.optim import create

METHODS = [
    ("sgd", {}), ("sam", {"rho": 0.1}), ("layerwise", {"k": 2, "r": 0.3}), ("looksam", {"rho": 0.1, "k": 2}),
    ("aesam", {"rho": 0.1, "lambda1": 0.5, "lambda2": 1.0, "delta": 0.2}),
]  # fmt: skip
WRAPPERS = [
    {}, {"gradient_as_bucket_view": True}, {"static_graph": True}, {"gradient_as_bucket_view": True, "static_graph": True},
]  # fmt: skip
LOOPS = ["plain", "two calls", "two calls, zeros", "lists"]
MODELS = ["unused", "thawed", "tied", "checkpointed", "codebook"]
STEPS = 4


class Odd(nn.Module):
    """Four linear maps, with what its name says."""

    def __init__(self, kind):
        super().__init__()
        torch.manual_seed(3)
        self.kind = kind
        self.maps = nn.ModuleList(nn.Linear(50 if not i else 6, 6) for i in range(3))
        self.spare, self.head = nn.Linear(6, 6), nn.Linear(6, 3)
        self.register_buffer("mean", torch.zeros(6))
        self.steps = 0
        if kind == "thawed":
            self.maps[1].requires_grad_(False)
        if kind == "tied":
            self.maps[2].weight = self.maps[1].weight
        if kind != "unused":
            self.spare = None
        self.double()

    def forward(self, x):
        x = self.maps[0](x.flatten(1)).tanh()
        if self.kind == "codebook":
            self.mean.lerp_(x.detach().mean(0), 0.5)
        x = checkpoint(self._inner, x, use_reentrant=True) if self.kind == "checkpointed" else self._inner(x)
        return self.head(x)

    def _inner(self, x):
        return self.maps[2](self.maps[1](x).tanh()).tanh()


def made(kind):
    return Odd(kind) if kind in MODELS else small_chain().eval()


def state_of(model):
    return {name: t.clone() for name, t in model.state_dict().items()}


def train(model, bare, method, loop, rows):
    optimizer = torch.optim.SGD(bare.parameters(), 0.1, momentum=0.9)
    for step in range(STEPS):
        if getattr(bare, "kind", "") == "thawed" and step == 2:
            bare.maps[1].requires_grad_(True)
        parts = [tuple(t[rows] for t in batch(12, seed=10 * step + i)) for i in range(1 + (loop != "plain"))]
        if loop == "lists":
            method.backward([x for x, _ in parts], [y for _, y in parts], criterion)
        else:
            for x, y in parts:
                method.backward(x, y, criterion)
        optimizer.step()
        optimizer.zero_grad(set_to_none="zeros" not in loop)
    return state_of(bare)


CASES = [
    *itertools.product(METHODS[:-1], WRAPPERS, LOOPS, ["chain"]),
    *itertools.product(METHODS, [{"find_unused_parameters": True}], ["plain"], ["unused", "thawed", "codebook"]),
    *itertools.product(METHODS, [{"gradient_as_bucket_view": True}], ["two calls"], ["checkpointed", "tied"]),
]


def run(case, rows, *, wrapped):
    (name, knobs), options, loop, kind = case
    bare = made(kind)
    if kind == "thawed":  # the method and the wrapper know what is trained when they are made: all of it
        bare.requires_grad_(True)
    model = DistributedDataParallel(bare, **options) if wrapped else bare
    method = create(name, model, **PLAN, **knobs)
    if kind == "thawed":
        bare.maps[1].requires_grad_(False)
    return train(model, bare, method, loop, rows)


def replica(rank, folder):
    return [run(case, slice(6 * rank, 6 * rank + 6), wrapped=True) for case in CASES]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return spawned(replica, tmp_path_factory.mktemp("replicas"))


def called(case):
    (name, _), options, loop, kind = case
    return "-".join([name, kind, loop, *options])


@pytest.mark.long
@pytest.mark.parametrize("case", range(len(CASES)), ids=lambda i: called(CASES[i]))
def test_two_replicas_are_one_process(trained, case):
    first, second = trained[0][case], trained[1][case]
    alone = run(CASES[case], slice(None), wrapped=False)
    weights = [name for name in alone if name != "mean"]
    assert all(torch.equal(first[name], second[name]) for name in weights)
    assert max((alone[name] - first[name]).abs().max().item() for name in weights) < 1e-12
    assert max((alone[name] - made(CASES[case][3]).state_dict()[name]).abs().max().item() for name in weights) > 1e-3


@pytest.mark.long
def test_replicas_share_the_buffers_that_the_clean_pass_of_the_first_left(trained):
    """The wrapper sends them before the perturbed pass, which puts back what it has sent."""
    for name in ("sam", "layerwise"):
        case = next(i for i, case in enumerate(CASES) if case[0][0] == name and case[3] == "codebook")
        assert torch.equal(trained[0][case]["mean"], trained[1][case]["mean"])
