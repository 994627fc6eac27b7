"""Two data-parallel processes (gloo, CPU): the same weights on both, and those of one process where that is promised."""

import pytest
import torch
from helpers import PLAN, batch, criterion, make, small_chain
from spawned import spawned
from torch.nn.parallel import DistributedDataParallel

from sam_repro.optim import create

# In evaluation mode BatchNorm mixes no samples: then two halves of a batch are the batch.
CASES = [
    ("sgd", {}, "batch"),
    ("sam", {"rho": 0.1}, "batch"),
    ("generalized_sam", {"r": 0.2, "alpha": 0.6}, "batch"),
    ("layerwise", {"k": 2, "r": 0.3, "alpha": 0.6}, "batch"),
    ("layerwise", {"k": 1, "r": 0.3, "criterion": "random"}, "batch"),
    ("budget", {"budget": 0.6, "r": 0.3, "alpha": 0.6}, "batch"),
    ("looksam", {"rho": 0.1, "k": 3}, "batch"),
    ("vsam", {"rho": 0.1, "start": 1, "s1": 10.0, "N": 20}, "batch"),
    ("aesam", {"rho": 0.1, "lambda1": 0.5, "lambda2": 1.0, "delta": 0.2}, "batch"),
    ("late", {"rho": 0.1, "percent": 70.0}, "batch"),
    ("rst", {"rho": 0.1, "p": 0.5, "c": 2.0}, "batch"),
    ("gsam", {"rho": 0.2, "rho_end": 0.05, "alpha": 0.4}, "batch"),
    ("wsam", {"rho": 0.1, "gamma": 0.8}, "batch"),
    ("renormalised_sam", {"rho": 0.1}, "batch"),
    ("gsam", {"rho": 0.2, "rho_end": 0.05, "alpha": 0.4}, "replica"),
    ("late_layerwise", {"k": 2, "r": 0.3, "percent": 70.0}, "batch"),
    ("mesa", {"start": 0}, "batch"),
    ("sam", {"rho": 0.1}, "replica"),
    ("generalized_sam", {"r": 0.2, "alpha": 0.6}, "replica"),
    ("layerwise", {"k": 2, "r": 0.3, "alpha": 0.6}, "replica"),
    ("budget", {"budget": 0.6, "k": 2, "r": 0.3}, "replica"),
    ("looksam", {"rho": 0.1, "k": 3}, "replica"),
    ("vsam", {"rho": 0.1, "start": 1, "s1": 10.0, "N": 20}, "replica"),
    ("aesam", {"rho": 0.1, "lambda1": 0.5, "lambda2": 1.0, "delta": 0.2}, "replica"),
    ("msam", {"rho": 0.1, "m": 3}, "batch"),
    ("esam", {"rho": 0.1, "beta": 0.6, "gamma": 0.5}, "batch"),
    ("async_sam", {"rho": 0.1, "batch": 0.5}, "batch"),
    ("sam_on", {"rho": 0.1}, "batch"),
    ("fsam", {"rho": 0.1}, "batch"),
    ("vasso", {"rho": 0.1, "lam": 0.5}, "batch"),
    ("s2sam", {"rho": 0.1}, "batch"),
    ("momentum_sam", {"rho": 0.1}, "batch"),
    ("ssam_d", {"rho": 0.1}, "batch"),
    ("random_sam", {"std": 0.1}, "batch"),
]
STEPS = 6


def train(model, gradient, rows) -> dict[str, torch.Tensor]:
    bare = getattr(model, "module", model)
    optimizer = torch.optim.SGD(bare.parameters(), 0.1, momentum=0.9)
    for step in range(STEPS):
        x, y = batch(12, seed=step)
        gradient.backward(x[rows], y[rows], criterion, indices=torch.arange(12)[rows])
        optimizer.step()
        optimizer.zero_grad()
    return {name: value.clone() for name, value in bare.state_dict().items()}


def replica(rank, folder):
    found = []
    for name, knobs, scope in CASES:
        model = DistributedDataParallel(small_chain().eval())
        settings = knobs if name == "mesa" else {**knobs, "scope": scope}
        found.append(train(model, make(name, model, settings), slice(6 * rank, 6 * rank + 6)))
    return found


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return spawned(replica, tmp_path_factory.mktemp("replicas"))


@pytest.mark.parametrize("case", range(len(CASES)), ids=lambda i: "-".join((CASES[i][0], CASES[i][2])))
def test_replicas_keep_the_same_weights(trained, case):
    first, second = trained[0][case], trained[1][case]
    assert all(torch.equal(first[name], second[name]) for name in first)


def apart(a, b):
    return max((a[name] - b[name]).abs().max().item() for name in a)


@pytest.mark.parametrize(
    "case", [i for i, (name, _, scope) in enumerate(CASES) if scope == "batch" and name not in ("msam", "esam", "async_sam")]
)
def test_with_one_scope_two_replicas_are_one_process(trained, case):
    name, knobs, _ = CASES[case]
    model = small_chain().eval()
    alone = train(model, make(name, model, knobs), slice(None))
    assert apart(alone, small_chain().state_dict()) > 1e-3
    assert apart(alone, trained[0][case]) < 1e-12


def test_with_a_scope_each_two_replicas_are_msam_of_two(trained):
    for name, knobs in (
        ("sam", {"rho": 0.1}),
        ("generalized_sam", {"r": 0.2, "alpha": 0.6}),
        ("looksam", {"rho": 0.1, "k": 3}),
        ("gsam", {"rho": 0.2, "rho_end": 0.05, "alpha": 0.4}),
    ):
        model = small_chain().eval()
        alone = train(model, create(name, model, **PLAN, **knobs, samples="micro", **{"samples.m": 2}), slice(None))
        case = CASES.index((name, knobs, "replica"))
        assert apart(alone, trained[0][case]) < 1e-12
        assert apart(trained[0][CASES.index((name, knobs, "batch"))], trained[0][case]) > 1e-6
