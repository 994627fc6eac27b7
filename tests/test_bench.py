"""The bench: who takes part, what the limit is, what rivals do, what is written. No test depends on the clock."""

import re
import sys
from types import SimpleNamespace

import pytest
import torch
from helpers import batch, criterion, small_chain

from sam_repro.measure import bench, rivals
from sam_repro.measure.bench_page import COLUMNS, Result, Taken, page, result
from sam_repro.measure.bookkeeping import Bookkeeping, bookkeeping
from sam_repro.measure.contestants import LR, MOMENTUM, entries
from sam_repro.measure.footprint import Footprint
from sam_repro.optim import create
from sam_repro.schema import UserError, options
from sam_repro.train.job import Job

CPU = torch.device("cpu")


def steps(*kinds):
    """Of (seconds, passes), beside steps of SGD that take one second."""
    return [Taken(seconds, 1.0, passes, passes) for seconds, passes in kinds]


def test_the_limit_is_one_over_the_passes():
    sam = result("sam", steps(*[(2.5, 2)] * 3))
    assert (sam.limit, sam.speed, sam.of_limit, sam.milliseconds) == (0.5, 0.4, 0.8, 2500)
    esam = result("esam", [Taken(1.0, 1.0, 2.5, 1.5)])
    assert esam.limit == pytest.approx(3 / 5.5)


def test_a_cycle_counts_whole_and_a_disturbed_step_does_not():
    cycle = [(2.0, 2), *[(1.0, 1)] * 4]
    looksam = result("looksam", steps(*cycle * 4))
    assert looksam.limit == pytest.approx(1 / 1.2)
    assert looksam.of_limit == pytest.approx(1)  # the median of all steps would say that an ascent is free
    assert result("looksam", steps(*cycle * 3, (2.0, 2), (9.0, 1), *[(1.0, 1)] * 3)).speed == pytest.approx(looksam.speed)


def test_everyone_takes_a_step_in_every_round_and_sgd_before_every_fourth():
    order = []

    def one(label, seconds):
        def step(**_):
            order.append(label)
            return next(seconds), SimpleNamespace(forward_units=1.0, backward_units=1.0)

        return SimpleNamespace(label=label, step=step)

    plain = one("plain", iter(range(1, 100)))
    taken = bench.timed(plain, [one(f"{i}", iter([7.0] * 3)) for i in range(6)], {}, 3, lambda _: None)
    rounds = [order[start : start + 8] for start in (0, 8, 16)]
    assert all(sorted(some) == ["0", "1", "2", "3", "4", "5", "plain", "plain"] for some in rounds)
    assert all(some[0] == some[5] == "plain" for some in rounds)
    assert len({tuple(some) for some in rounds}) == 3  # nobody always follows the same
    for index, its in enumerate(taken):
        passed = [order[: place + 1].count("plain") for place, label in enumerate(order) if label == f"{index}"]
        assert [step.beside for step in its] == passed


def test_every_method_takes_part():
    found = list(entries(options("optimizer"), "resnet20"))
    assert {entry.method for entry in found} == {*options("optimizer")}
    assert {"msam (m=8)", "msam (m=32)", "layerwise, last 1 of 11 stages (k=1)"} <= {entry.label for entry in found}
    assert {entry.method for entry in found if not entry.steady} >= {"looksam", "sam_n", "vsam", "aesam"}
    assert {same for same, _ in rivals.SAME_WORK.values()} <= {entry.label for entry in found}


# -- rivals ----------------------------------------------------------------------------------------------------------------


def rival(name):
    if name not in (found := rivals.rivals()):
        pytest.skip("pytorch-optimizer is not installed (extra 'dev')")
    return found[name][1]


NAMES = ["SAM by hand", *(f"pytorch-optimizer's {name}" for name in rivals.SAME_WORK)]


@pytest.mark.parametrize("name", NAMES)
def test_rivals_make_the_passes_that_they_are_said_to_make(name):
    net, counts = small_chain(), {"forward": 0, "backward": 0}
    net.register_forward_hook(lambda *_: counts.update(forward=counts["forward"] + 1))
    net[-1][-1].bias.register_hook(lambda _: counts.update(backward=counts["backward"] + 1))
    one, (x, y) = rivals.Rival(name, "sam", rival(name)(net)), batch()
    units = [one.step(x, y, indices=None)[1] for _ in range(6)]
    assert counts == {"forward": sum(u.forward_units for u in units), "backward": sum(u.backward_units for u in units)}


# Theirs sums the norm in float32. WSAM's own part of its update has no momentum: the coupled form is the same for one step.
SAME = [
    ("SAM by hand", "sam", {"rho": 0.05}, 4, 1e-12),
    ("pytorch-optimizer's SAM", "sam", {"rho": 0.05}, 4, 1e-7),
    ("pytorch-optimizer's WSAM", "wsam", {"rho": 0.05, "gamma": 0.9}, 1, 1e-6),
]


@pytest.mark.parametrize(("name", "method", "knobs", "steps", "tolerance"), SAME)
def test_rivals_make_the_update_of_the_method_beside_them(name, method, knobs, steps, tolerance):
    theirs, ours = small_chain(), small_chain()
    take, gradient, base = rival(name)(theirs), create(method, ours, **knobs), torch.optim.SGD(ours.parameters(), LR, MOMENTUM)
    for step in range(steps):
        x, y = batch(seed=step)
        take(x, y)
        gradient.backward(x, y, criterion)
        base.step()
        base.zero_grad()
    pairs = list(zip(theirs.parameters(), ours.parameters(), small_chain().parameters(), strict=True))
    assert max((a - b).abs().max() for a, b, _ in pairs) < tolerance
    assert max((b - before).abs().max() for _, b, before in pairs) > 1e-3


# -- memory and launches ---------------------------------------------------------------------------------------------------


def test_the_peak_is_of_what_is_alive_at_once():
    before = torch.ones(4096)
    with Footprint(CPU) as seen:
        a = torch.ones(1024)
        a = a + 1  # two at once
        a = a * 2
        before.add_(1)  # was there
        a.view(2, 512)  # shares its storage
        kept = a.requires_grad_().exp() + 1  # its graph holds the exponential
        more = torch.ones(1024)
    assert seen.peak == 4 * 4096
    del kept, more
    with Footprint(CPU) as seen:
        (before + 1).sum()
        torch.ones(10)
    assert seen.peak == 4 * 4096 + 4


def test_launches_are_operations():
    a, b = [torch.ones(3), torch.ones(4)], [torch.ones(3), torch.ones(4)]
    with Footprint(CPU) as seen:
        torch._foreach_add(a, b)
        a[0].view(3, 1).detach()
        torch.empty(3)
        a[0].add_(b[0]).mul_(2)
    assert seen.launches == 3
    numbers = [torch.ones(()), torch.ones(())]
    with Footprint(CPU) as seen:
        torch._foreach_mul(a, numbers)
    assert seen.launches == 2  # not alike: one by one


# -- the page --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def results():
    return bench.bench("resnet20", 4, CPU, 5, ["sam", "sam_n"])


def test_a_bench_measures_what_the_methods_do(results):
    found = {row.label: row for row in results}
    assert next(iter(found)) == "sgd"
    assert [round(found[name].limit, 6) for name in ("sgd", "sam", "sam_n", "SAM by hand")] == [1, 0.5, 0.833333, 0.5]
    assert found["SAM by hand"].same_work == "sam"
    assert "pytorch-optimizer's WSAM" not in found  # does nobody's work here
    assert all(row.speed > 0 and row.launches > 100 for row in results)
    weights = 4 * sum(p.numel() for p in bench.network("resnet20", CPU).parameters())
    assert found["sam"].peak > found["sgd"].peak > 3 * weights  # gradients and momentum too


def test_the_page_says_all_of_it(results, tmp_path, monkeypatch, capsys):
    asked = []
    monkeypatch.setattr(bench, "bench", lambda *args: asked.append(args) or results)
    monkeypatch.setattr(sys, "argv", ["bench", "steps=5", "batch_size=512", "methods=sam,sam_n", f"results_dir={tmp_path}", "device=cpu"])
    bench.main()
    assert asked == [("resnet20", 512, CPU, 5, ["sam", "sam_n"])]
    text = (tmp_path / "bench" / "resnet20_cpu.md").read_text()
    assert text in capsys.readouterr().out
    tables = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]
    assert tables[0] == ["method", *COLUMNS]
    assert [row[0] for row in tables[2:5]] == ["sgd", "sam", "sam_n"]
    assert tables[5] == ["others", *COLUMNS, "same work as", "ours is faster by"]
    assert f"torch {torch.__version__.partition('+')[0]}" in text
    assert "batch_size=512" in text
    assert re.search(r"Records take \d+\.\d\d% of an epoch .* a checkpoint \d+\.\d\d%", text)


def test_without_pytorch_optimizer_its_lines_are_left_out(monkeypatch):
    monkeypatch.setattr(rivals, "version", lambda: None)
    monkeypatch.setattr("sam_repro.measure.bench_page.version", lambda: None)
    assert not [label for label in rivals.rivals() if label.startswith("pytorch-optimizer")]
    rows = [Result("sam", 0.5, 0.5, 10, 2, 2), Result("SAM by hand", 0.4, 0.5, 12.5, 2, 2, same_work="sam")]
    text = page(bench.parsed([]), "", CPU, rows, (0.001, 0.01))
    assert "+25.0%" in text
    assert "pip install pytorch-optimizer" in text


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("step=5", "Did you mean 'steps'"),
        ("steps=some", "steps is a whole number"),
        ("batch_size=0", "batch_size is a whole number"),
        ("steps=12", "steps is a multiple of 5"),
        ("methods=sam,looksamm", "Did you mean 'looksam'"),
    ],
)
def test_wrong_words_are_answered_in_one_sentence(word, says):
    with pytest.raises(UserError, match=says):
        bench.parsed([word])


def test_a_model_of_texts_is_refused():
    with pytest.raises(UserError, match="takes no images"):
        bench.bench("roberta_tiny", 4, CPU, 5, ["sam"])


# -- records and checkpoints -----------------------------------------------------------------------------------------------


def test_shares_are_those_of_an_epoch():
    assert Bookkeeping(0.001, 0.2, 0.5).shares(300, 0.03) == (0.5 / 10, 0.5 / 10)


def test_the_trainers_own_bookkeeping_is_timed(monkeypatch):
    seen = []
    monkeypatch.setattr(Job, "save", lambda job, path: seen.append((job.epoch, path.name)))
    found = bookkeeping("resnet20", 512, CPU)
    assert seen == [(1, "last.pt"), (2, "last.pt")]
    assert found.step > 0
    assert found.epoch > 0
