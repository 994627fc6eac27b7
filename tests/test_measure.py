"""Measuring: against exact Hessians, other libraries, closed forms and brute force; and the commands on a finished run."""

import copy
import json
import math
from types import SimpleNamespace

import pytest
import scipy.sparse.linalg
import torch
import torch.nn.functional as F
from helpers import METHODS, as_module, batch, criterion, small_chain
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from sam_repro.__main__ import launch
from sam_repro.chain import layers, stage_flops
from sam_repro.config import compose, identity
from sam_repro.measure import __main__ as measure
from sam_repro.measure.compare import compare, compare_methods
from sam_repro.measure.cost import Costs
from sam_repro.measure.lanczos import hutchinson, largest_eigenvalues
from sam_repro.measure.landscape import landscape, orthonormal
from sam_repro.measure.norms import layer_norms
from sam_repro.measure.objective import PRECISIONS, Objective
from sam_repro.measure.sharpness import curvature, eigenvalues, sam_sharpness, trace
from sam_repro.models import create
from sam_repro.optim import create as method
from sam_repro.schema import UserError
from sam_repro.store import Run
from sam_repro.train.steps import COLUMNS


def trained(model):
    """The model after a pass, so that BatchNorm's statistics are not those of the start."""
    model(batch()[0])
    return model


def parts(x, y, *sizes):
    """The samples in batches of the sizes."""
    return list(zip(x.split(list(sizes)), y.split(list(sizes)), strict=True))


def exact_hessian(model, x, y):
    """By autograd over the flat vector of all parameters, in evaluation mode."""
    model = copy.deepcopy(model).eval()
    names, shapes = zip(*((name, p.shape) for name, p in model.named_parameters()), strict=True)

    def loss(flat):
        pieces = flat.split([shape.numel() for shape in shapes])
        weights = {name: piece.view(shape) for name, piece, shape in zip(names, pieces, shapes, strict=True)}
        return criterion(torch.func.functional_call(model, weights, (x,)), y).mean()

    return torch.autograd.functional.hessian(loss, flat(model.parameters()).detach())


def flat(tensors):
    return torch.cat([t.reshape(-1) for t in tensors])


class Quadratic(nn.Module):
    """w^T H w / 2 + b^T w for every sample; the weights in two tensors."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(5)
        self.hessian = torch.randn(6, 6, generator=generator, dtype=torch.float64)
        self.hessian = self.hessian + self.hessian.T
        self.slope = torch.randn(6, generator=generator, dtype=torch.float64)
        self.a = nn.Parameter(torch.randn(2, generator=generator, dtype=torch.float64))
        self.b = nn.Parameter(torch.randn(2, 2, generator=generator, dtype=torch.float64))

    def forward(self, x):
        w = flat((self.a, self.b))
        return (w @ self.hessian @ w / 2 + self.slope @ w).expand(len(x))

    def gradient(self):
        return (self.hessian @ flat((self.a, self.b)) + self.slope).detach()


def per_sample(outputs, targets):
    return outputs


# -- the Hessian -----------------------------------------------------------------------------------------------------------


def test_eigenvalues_and_trace_are_those_of_the_exact_hessian():
    model, (x, y) = trained(small_chain()), batch()
    hessian = exact_hessian(model, x, y)
    objective = Objective(model, criterion, parts(x, y, 5, 5, 2))
    found = eigenvalues(objective, 4, tolerance=1e-9)
    assert found.converged
    assert found.values == pytest.approx(torch.linalg.eigvalsh(hessian).flip(0)[:4].tolist(), rel=1e-9)
    loose = eigenvalues(objective, 1, tolerance=1e-2)
    assert loose.iterations < found.iterations
    assert loose.values[0] == pytest.approx(found.values[0], rel=1e-2)
    estimate = trace(objective, 100)
    assert abs(estimate.value - hessian.trace().item()) < 4 * estimate.error < hessian.trace().item()


def test_eigenvalues_are_those_of_curvlinops():
    curvlinops = pytest.importorskip("curvlinops", reason="curvlinops-for-pytorch is not installed")
    model, (x, y) = trained(small_chain()).eval(), batch()
    data = parts(x, y, 5, 5, 2)
    operator = curvlinops.HessianLinearOperator(model, nn.CrossEntropyLoss(), list(model.parameters()), data)
    theirs = scipy.sparse.linalg.eigsh(operator.to_scipy(), k=2, which="LA", return_eigenvectors=False)
    found = eigenvalues(Objective(model, criterion, data), 2, tolerance=1e-9)
    assert found.values == pytest.approx(sorted(theirs, reverse=True), rel=1e-8)


def test_lanczos_finds_the_largest_and_not_the_most_negative():
    diagonal = torch.linspace(-100, 7, 200, dtype=torch.float64)
    diagonal[-3:] = torch.tensor([9.0, 11.0, 20.0])
    start = torch.randn(200, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = largest_eigenvalues(lambda v: diagonal * v, start, 3, tolerance=1e-6)
    assert found.converged
    assert found.iterations < 100
    assert found.values == pytest.approx([20.0, 11.0, 9.0], rel=1e-9)
    cut = largest_eigenvalues(lambda v: diagonal * v, start, 3, tolerance=1e-6, iterations=5)
    assert (cut.iterations, cut.converged) == (5, False)


def test_lanczos_goes_on_where_a_subspace_is_exhausted():
    start = torch.randn(5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert largest_eigenvalues(lambda v: 3 * v, start, 2).values == pytest.approx([3.0, 3.0])
    assert largest_eigenvalues(torch.zeros_like, start, 5).values == pytest.approx([0.0] * 5)


def test_hutchinson_is_exact_on_a_diagonal():
    diagonal = torch.linspace(-1, 3, 50, dtype=torch.float64)
    found = hutchinson(lambda v: diagonal * v, diagonal, 3, torch.Generator().manual_seed(0))
    assert (found.value, found.error, found.probes) == (pytest.approx(50.0), pytest.approx(0.0, abs=1e-9), 3)


def test_attention_is_differentiated_twice():
    torch.manual_seed(0)
    model = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dtype=torch.float64)
    x = torch.randn(3, 4, 8, dtype=torch.float64)
    objective = Objective(model, lambda outputs, targets: (outputs * targets).sum((1, 2)).square(), [(x, x)])
    v = [torch.randn_like(p) for p in model.parameters()]
    step = 1e-5
    with torch.no_grad():
        torch._foreach_add_(objective.parameters, v, alpha=step)
        above = objective.gradient()
        torch._foreach_add_(objective.parameters, v, alpha=-2 * step)
        below = objective.gradient()
        torch._foreach_add_(objective.parameters, v, alpha=step)
    difference = (flat(above) - flat(below)) / (2 * step)
    assert torch.allclose(flat(objective.hessian_times(v)), difference, rtol=1e-5, atol=1e-7)


def test_a_shorter_last_batch_counts_by_its_size():
    model, (x, y) = trained(small_chain()), batch()
    v = [torch.randn_like(p) for p in model.parameters()]
    one, two = (Objective(model, criterion, parts(x, y, *sizes)) for sizes in ((12,), (9, 3)))
    assert two.value().item() == pytest.approx(one.value().item(), rel=1e-12)
    assert torch.allclose(flat(two.gradient()), flat(one.gradient()), rtol=1e-10, atol=1e-14)
    assert torch.allclose(flat(two.hessian_times(v)), flat(one.hessian_times(v)), rtol=1e-10, atol=1e-14)
    assert math.hypot(*layer_norms(two).values()) == pytest.approx(flat(one.gradient()).norm().item())


@pytest.mark.parametrize("fails", [False, True])
def test_the_model_is_left_as_it_was_found(fails):
    model, (x, y) = trained(small_chain(dropout=0.5)), batch()
    model.block1.eval()
    for p in model.stem.parameters():
        p.grad = torch.ones_like(p)

    def loss(outputs, targets):
        torch.rand(1)  # a loss, or a model, may draw
        if fails:
            raise RuntimeError("no")
        return criterion(outputs, targets)

    def everything():
        modes = [module.training for module in model.modules()]
        grads = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
        precisions = [backend.fp32_precision for backend in PRECISIONS]
        return [*copy.deepcopy(model).state_dict().values(), torch.get_rng_state()], modes, grads, precisions

    before = everything()
    objective = Objective(model, loss, parts(x, y, 9, 3))
    for work in (
        lambda: eigenvalues(objective), lambda: trace(objective, 2), lambda: sam_sharpness(objective),
        lambda: landscape(model, loss, parts(x, y, 9, 3), "block2.0", points=3), lambda: Costs(model, x),
    ):  # fmt: skip
        if fails:
            with pytest.raises(RuntimeError, match="no"):
                work()
                raise RuntimeError("no")  # the costs ask for no loss
        else:
            work()
    after = everything()
    assert all(torch.equal(a, b) for a, b in zip(before[0], after[0], strict=True))
    assert before[1] == after[1]
    assert before[3] == after[3]
    assert all((a is None) == (b is None) and (a is None or torch.equal(a, b)) for a, b in zip(before[2], after[2], strict=True))


def test_what_cannot_be_measured_is_said():
    objective = Objective(small_chain(), criterion, parts(*batch(), 12))
    with pytest.raises(UserError, match="top=1000 does not fit"):
        eigenvalues(objective, 1000)
    with pytest.raises(ValueError, match="one number per sample"):
        Objective(small_chain(), nn.CrossEntropyLoss(), parts(*batch(), 12)).value()
    with pytest.raises(UserError, match="no samples"):
        Objective(small_chain(), criterion, []).value()


# -- along the gradient ------------------------------------------------------------------------------------------------------


def test_sam_sharpness_on_a_quadratic():
    model, x = Quadratic(), torch.zeros(4, 1)
    g = model.gradient()
    rise = sam_sharpness(Objective(model, per_sample, [(x, x)]), rho=0.3)
    eps = 0.3 * g / g.norm()
    assert rise.grad_norm == pytest.approx(g.norm().item())
    assert rise.sharpness == pytest.approx((g @ eps + eps @ model.hessian @ eps / 2).item())


def test_the_free_curvature_is_exact_on_a_quadratic():
    model, x = Quadratic(), torch.zeros(4, 1)
    g = model.gradient()
    unit = g / g.norm()
    expected = unit @ model.hessian @ unit
    g_s = g + model.hessian @ (0.3 * unit)
    assert curvature([0.3 * unit], [g_s - g]).item() == pytest.approx(expected.item())
    assert ((0.3 * unit @ g_s - 0.3 * g.norm()) / 0.3**2).item() == pytest.approx(expected.item())  # as SAM's two gradients give it
    sam = method("sam", model, rho=0.3)
    sam.watch = True
    seen = sam.backward(x, x, per_sample).watched
    assert seen.plain_norm.item() == pytest.approx(g.norm().item())
    assert seen.psf_norm.item() == pytest.approx((0.3 * model.hessian @ unit).norm().item())
    assert seen.curvature.item() == pytest.approx(expected.item())


@pytest.mark.parametrize(("name", "knobs"), METHODS)
def test_watching_changes_no_number(name, knobs):
    def weights(watch):
        model, (x, y) = small_chain(), batch()
        gradient = method(name, model, total_steps=6, steps_per_epoch=2, dataset_size=12, **knobs)
        gradient.watch = watch
        for _ in range(6):
            report = gradient.backward(x, y, criterion, indices=torch.arange(12))
            assert watch or report.watched is None
            with torch.no_grad():
                torch._foreach_add_(list(model.parameters()), [p.grad for p in model.parameters()], alpha=-0.1)
            model.zero_grad()
        return flat(model.state_dict().values())

    assert torch.equal(weights(watch=False), weights(watch=True))


# -- landscapes --------------------------------------------------------------------------------------------------------------


def test_a_landscape_is_that_of_appendix_a2():
    model, (x, y) = trained(small_chain()), batch()
    found = landscape(model, criterion, parts(x, y, 9, 3), "block2.0")
    assert found.x == found.y == list(range(-20, 20))
    assert found.loss[20][20] == pytest.approx(Objective(model, criterion, [(x, y)]).value().item(), rel=1e-12)
    layer = next(layer for layer in layers(model) if layer.name == "block2.0")
    first, second = orthonormal(layer.parameters, 2, seed=0)
    assert flat(first).norm().item() == pytest.approx(1)
    assert flat(second).norm().item() == pytest.approx(1)
    assert (flat(first) @ flat(second)).item() == pytest.approx(0, abs=1e-12)
    with torch.no_grad():  # alpha 5, beta -7, by hand
        for p, a, b in zip(layer.parameters, first, second, strict=True):
            p += 5 * a - 7 * b
        expected = criterion(model.eval()(x), y).mean().item()
    assert found.loss[-7 + 20][5 + 20] == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(("layer", "stages"), [("block2.0", 2), ("head.2", 1), ("all", 4)])
def test_what_comes_before_the_layer_is_computed_once(layer, stages):
    model, data = trained(small_chain()), parts(*batch(), 12)
    ran = []
    for stage in model:
        stage.register_forward_hook(lambda *_: ran.append(1))
    found = landscape(model, criterion, data, layer, points=3)
    assert len(ran) == (4 - stages) + 9 * stages
    name = layer if layer == "all" else f"net.{layer}"
    other = landscape(as_module(model), criterion, data, name, points=3)
    assert torch.allclose(torch.tensor(found.loss), torch.tensor(other.loss), rtol=1e-12)
    line = landscape(model, criterion, data, layer, points=3, dimensions=1)
    assert line.y == [0.0]
    assert line.loss[0] == pytest.approx(found.loss[1])  # the first direction is the same


# -- cost --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "knobs"), [("resnet20", {}), ("resnet20", {"shortcut": "B"}), ("mobilenet", {})])
def test_the_costs_of_the_layers_are_those_of_the_model(name, knobs):
    model, x = create(name, **knobs), torch.randn(2, 3, 32, 32)
    costs = Costs(model, x)
    assert costs.forward == sum(cost.forward for cost in costs.layers) == sum(stage_flops(model, x[:1]))
    with FlopCounterMode(display=False) as counter:
        F.cross_entropy(model(x), torch.zeros(2, dtype=torch.long)).backward()
    if name == "resnet20":  # torch counts grouped convolutions wrongly
        assert costs.sgd == counter.get_total_flops() / 2
    # Every layer passes an error on and has a gradient, each of the size of its forward pass; the first passes none on.
    assert costs.backward == 2 * costs.forward - costs.layers[0].forward


@pytest.mark.parametrize("chosen", [["head.linear"], ["block7.conv1", "block9.conv2"], ["stem.conv", "head.linear"]])
def test_equation_8_is_what_autograd_does(chosen):
    model, x = create("resnet20"), torch.randn(1, 3, 32, 32)
    parameters = [p for layer in layers(model) if layer.name in chosen for p in layer.parameters]
    loss = F.cross_entropy(model.eval()(x), torch.zeros(1, dtype=torch.long))
    with FlopCounterMode(display=False) as counter:
        torch.autograd.grad(loss, parameters)
    assert Costs(model, x).ascent(chosen) == counter.get_total_flops()


def test_a_step_costs_what_the_counter_says():
    x, y = torch.randn(1, 3, 32, 32), torch.zeros(1, dtype=torch.long)
    for name, knobs in (("sgd", {}), ("sam", {}), ("layerwise", {"k": 3}), ("aesam", {"total_steps": 2}), ("mesa", {"steps_per_epoch": 1})):
        model = create("resnet20")
        gradient = method(name, model, **knobs)
        gradient.backward(x, y, criterion)  # finds out FLOPs, which would be counted too
        with FlopCounterMode(display=False) as counter:
            report = gradient.backward(x, y, criterion)
        assert Costs(model, x).step(gradient, report) == pytest.approx(counter.get_total_flops()), name


def test_looksam_costs_what_equation_9_says():
    model, (x, y) = small_chain(), batch()
    costs, gradient = Costs(model, x), method("looksam", model, k=4)
    steps = [costs.step(gradient, gradient.backward(x, y, criterion)) for _ in range(4)]
    assert sum(steps) / 4 == pytest.approx(costs.sgd + costs.forward / 4 + costs.looksam(4))


@pytest.mark.parametrize(("rate", "mean", "ascents"), [(None, 1.75, 0.75), (0.25, 1.25, 0.25)])
def test_a_mean_step_is_that_of_the_whole_runs_sampling_rate(rate, mean, ascents):
    """Timed were 8 steps, 6 with an ascent, which took twice SGD's: the run had its ascents in a quarter of its steps."""

    def contestant(label, pattern):
        steps = iter([True, True, *pattern])  # two to warm up
        report = lambda ascended: SimpleNamespace(ascended=ascended, layers=["a"] * ascended, forward_units=1.0 + ascended)  # noqa: E731
        took = lambda ascended: (2.0 if ascended else 1.0, report(ascended))  # noqa: E731
        return SimpleNamespace(label=label, gradient=None, step=lambda: took(next(steps)))

    costs = SimpleNamespace(sgd=3.0, step=lambda _, report: 6.0 if report.ascended else 3.0)
    plain, own = contestant("sgd", [False] * 8), contestant("vsam", [True, True, True, False] * 2)
    sgd, vsam = compare([plain, own], costs, [{}] * 10, sampling_rate=rate)
    assert sgd == ("sgd", 1.0, 1.0, 1000.0, 0.0, 1.0)
    assert vsam == ("vsam", mean, mean, 1000 * mean, ascents, 1 + ascents)


@pytest.mark.slow
def test_prediction_and_clock_agree_roughly():
    _, rows = compare_methods("resnet20", 32, torch.device("cpu"), 10)
    assert [row.method for row in rows][:2] == ["sgd", "sam"]
    assert all(row.measured == pytest.approx(row.predicted, rel=0.3) for row in rows)


# -- the commands ------------------------------------------------------------------------------------------------------------


def train(runs_dir, *overrides):
    overrides = ["device=cpu", "train_fraction=0.1", "epochs=2", f"runs_dir={runs_dir}", *overrides]
    config = compose(overrides)
    launch(config, overrides)
    return Run(runs_dir, identity(config))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Two epochs of three steps each on the digits."""
    return train(tmp_path_factory.mktemp("runs"), "optimizer=sam", "norms_every=1")


def say(finished, command, *words):
    measure.run([command, f"run={finished.id}", f"runs_dir={finished.path.parent}", "device=cpu", *words])


def test_every_nth_step_is_written_down(finished, tmp_path):
    rows = finished.steps()
    names = list(finished.summary["perturbations"])
    assert list(rows[0]) == [c for c in COLUMNS if c != "sampling_rate"] + [f"grad_norm.{name}" for name in names]
    assert [(row["step"], row["epoch"]) for row in rows] == [(0, 1), (1, 1), (2, 1), (3, 2), (4, 2), (5, 2)]
    for metrics in finished.metrics():
        epoch = [row for row in rows if row["epoch"] == metrics["epoch"]]
        assert sum(row["grad_norm"] for row in epoch) / 3 == pytest.approx(metrics["grad_norm"], rel=1e-5)
    assert all(row["grad_norm"] == pytest.approx(math.hypot(*(row[f"grad_norm.{name}"] for name in names)), rel=1e-5) for row in rows)
    assert all(row["plain_norm"] > 0 and row["psf_norm"] > 0 for row in rows)
    silent = train(tmp_path, "optimizer=sam")
    assert silent.id == finished.id
    assert [row["train_loss"] for row in silent.metrics()] == [row["train_loss"] for row in finished.metrics()]
    assert not (silent.path / "steps.csv").exists()


def test_a_stopped_run_keeps_the_steps_of_its_finished_epochs(finished, tmp_path, monkeypatch):
    from sam_repro.train.job import Job

    def stop(job, path, kept):
        if job.epoch == 2:
            raise KeyboardInterrupt
        saved(job, path, kept)

    saved = Job.save
    monkeypatch.setattr(Job, "save", stop)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, "optimizer=vsam", "N=4", "M=2", "norms_every=2")
    monkeypatch.undo()
    run = train(tmp_path, "optimizer=vsam", "N=4", "M=2", "norms_every=2")
    rows = run.steps()
    assert [row["step"] for row in rows] == [0, 2, 4]
    assert all(0 < row["sampling_rate"] <= 1 for row in rows)


def test_sharpness_of_a_run(finished, capsys):
    say(finished, "sharpness", "samples=64", "trace=true", "probes=3", "top=2", "tolerance=1e-2", "batch_size=40")
    found = json.loads((finished.path / "sharpness.json").read_text())
    assert (found["run_id"], found["split"], found["samples"], found["of"]) == (finished.id, "train", 64, 144)
    assert found["lambda_max"] == found["eigenvalues"][0] > found["eigenvalues"][1]
    assert found["converged"]
    assert "64 of the 144 training samples" in capsys.readouterr().out
    # The loss of the very samples, without augmentation, computed apart.
    from sam_repro.train.job import Job

    job = Job(finished.config | {"device": "cpu"})
    job.resume(finished.checkpoint)
    everything = next(iter(job.in_order(job.parts.train, 144)))
    order = torch.randperm(144, generator=torch.Generator().manual_seed(0))[:64]
    with torch.no_grad():
        loss = job.criterion(job.model.eval()(everything.inputs[order]), everything.targets[order]).mean().item()
    assert found["loss"] == pytest.approx(loss, rel=1e-5)


def test_landscapes_of_a_run(finished, capsys):
    pytest.importorskip("matplotlib")
    say(finished, "landscape", "layer=head.linear", "samples=32", "points=6")
    folder = finished.path / "landscape"
    found = json.loads((folder / "head.linear.json").read_text())
    assert (found["layer"], found["x"], found["y"], found["samples"], found["split"]) == (
        "head.linear", [-3, -2, -1, 0, 1, 2], [-3, -2, -1, 0, 1, 2], 32, "train",
    )  # fmt: skip
    assert found["center"] == found["loss"][3][3]
    say(finished, "landscape", "layer=all", "dimensions=1", "samples=all", "points=3", "distance=0.5")
    assert json.loads((folder / "all-1d.json").read_text())["x"] == [-0.5, 0.0, 0.5]
    assert sorted(path.name for path in folder.iterdir()) == [
        "all-1d.json", "all-1d.png", "all-1d.svg", "head.linear-contour.png", "head.linear-contour.svg",
        "head.linear-surface.png", "head.linear-surface.svg", "head.linear.json",
    ]  # fmt: skip
    assert "32 of the 144" in capsys.readouterr().out


def test_norms_and_cost_of_a_run(finished, capsys):
    pytest.importorskip("matplotlib")
    say(finished, "norms")
    found = json.loads((finished.path / "norms" / "norms.json").read_text())
    assert math.hypot(*found["layers"].values()) == pytest.approx(found["grad_norm"])
    assert {path.stem for path in (finished.path / "norms").glob("*.png")} == {"layers", "model", "psf"}
    say(finished, "cost", "steps=3")
    found = json.loads((finished.path / "cost.json").read_text())
    assert [row["method"] for row in found["methods"]] == ["sgd", "sam"]
    assert [row["predicted"] for row in found["methods"]] == [1.0, pytest.approx(2.0)]
    assert len(found["layers"]) == 20
    assert "predicted" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["landscap", "run={id}"], "There is no command 'landscap'. Did you mean 'landscape'?"),
        (["sharpness", "run={id}", "sample=3"], "sharpness has no key 'sample'. Did you mean 'samples'?"),
        (["sharpness"], "sharpness needs a run, run=ID: 'python -m sam_repro.runs list'."),
        (["sharpness", "run=nothing"], "There is no run 'nothing' in"),
        (["sharpness", "run={id}", "samples=some"], "samples is a whole number or all, not 'some'."),
        (["sharpness", "run={id}", "samples=145"], "samples=145 is more than the 144 training samples of run {id}."),
        (["sharpness", "run={id}", "top=101"], "top=101 does not fit: at most as many eigenvalues are found as there are iterations"),
        (["landscape", "run={id}", "layer=head.liner"], "There is no layer 'head.liner'. Did you mean 'head.linear'?"),
        (["landscape", "run={id}"], "landscape needs a layer, layer=NAME. There is: all, block1.conv1"),
        (["landscape", "run={id}", "layer=all", "dimensions=3"], "dimensions=3 is out of range: dimensions is 1 to 2."),
        (["cost", "model=resnet2"], "There is no model 'resnet2'. Did you mean 'resnet20'?"),
        (["cost", "run={id}", "batch_size=4"], "batch_size= goes with model=: a run has its own."),
        ([], "usage: python -m sam_repro.measure COMMAND run=ID"),
    ],
)
def test_wrong_words_are_answered_in_one_sentence(finished, words, sentence):
    words = [word.format(id=finished.id) for word in words]
    store = [f"runs_dir={finished.path.parent}"] if words else []
    with pytest.raises(UserError) as error:
        measure.run([*words, *store])
    assert str(error.value).startswith(sentence.format(id=finished.id))


def test_a_run_that_is_not_done_is_refused(finished, tmp_path):
    import shutil

    folder = tmp_path / finished.id
    shutil.copytree(finished.path, folder)
    (folder / "summary.json").unlink()
    with pytest.raises(UserError, match=f"Run {finished.id} is stopped, not done: '.*' brings it to its end"):
        measure.run(["sharpness", f"run={finished.id}", f"runs_dir={tmp_path}"])
