"""One training by several processes (gloo, CPU), through the trainer: what one process gets, every process gets."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from spawned import spawned
from torch import nn

from sam_repro import models
from sam_repro.chain import Chain
from sam_repro.config import compose, identity
from sam_repro.schema import UserError, options
from sam_repro.store import Run, Watched

FEW = ["device=cpu", "max_samples=65", "batch_size=12", "epochs=2", "lr=0.05", "schedule=constant"]  # the last batch has 5: uneven parts
EVENTFUL = {
    "vsam": ["start=2", "N=4", "M=2"], "vsam_a": ["start=2", "N=4", "M=2"], "saf": ["start=0", "delay=1"], "mesa": ["start=0"],
    "layerwise": ["k=2"], "late_layerwise": ["k=2"],
    "msam": ["m=2"], "momentum_sam": ["rho=0.1"], "sam_on": ["sync_bn=true"], "asam_on": ["sync_bn=true", "rho=0.5"],
    "budget": ["budget=0.6"],
}  # fmt: skip
BY_PART = ("msam", "esam", "async_sam")  # each process splits, or chooses from, its own part
CASES = {name: [f"optimizer={name}", *EVENTFUL.get(name, [])] for name in options("optimizer")}
CASES |= {"batchnorm": ["optimizer=layerwise", "k=2", "sync_bn=true"], "replica": ["optimizer=sam", "optimizer.scope=replica"]}
CASES |= {"author": ["optimizer=layerwise", "k=2", "accumulate=2", "drop_last=true"]}
CASES |= {"steps": ["optimizer=sam", "norms_every=1"], "whole msam": ["optimizer=msam", "m=2", "drop_last=true"]}


class Double(nn.Module):
    def forward(self, x):
        return x.double()


class Tiny(Chain):
    """Four layers in float64, whatever the images are."""

    def __init__(self, norm, dropout=0.0):
        torch.manual_seed(3)
        norms = [nn.BatchNorm2d(width) if norm else nn.Identity() for width in (4, 6, 6)]
        stages = OrderedDict(stem=nn.Sequential(Double(), nn.Conv2d(1, 4, 3), norms[0], nn.Tanh()))
        stages["one"] = nn.Sequential(nn.Conv2d(4, 6, 3), norms[1], nn.Tanh(), nn.Dropout(dropout))
        stages["two"] = nn.Sequential(nn.Conv2d(6, 6, 3), norms[2], nn.Tanh())
        stages["head"] = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 10))
        super().__init__(stages)
        self.double()


def trained(folder, case, words, epochs=2, **network):
    """The run's last state in the trainer: weights, and what its files say."""
    from sam_repro.train.loop import train
    from sam_repro.world import count, rank

    original, models.create = models.create, lambda **_: Tiny(**network)
    try:
        config = {**compose([*FEW, *words, f"epochs={epochs}"]), "processes": count()}
        run = (Run if rank() == 0 else Watched)(folder, case)
        with run.held(config, "test"):
            train(config, run)
    finally:
        models.create = original
    state = torch.load(run.checkpoint, weights_only=True)
    return {"model": state["model"], "metrics": run.metrics(), "layers": run.layers(), "steps": run.steps()}


def all_cases(folder):
    found = {case: trained(folder, case, words, norm=case in ("batchnorm", "sam_on", "asam_on")) for case, words in CASES.items()}
    found["straight"] = trained(folder, "straight", ["optimizer=sam"], norm=True, dropout=0.3)
    trained(folder, "resumed", ["optimizer=sam"], epochs=1, norm=True, dropout=0.3)
    found["resumed"] = trained(folder, "resumed", ["optimizer=sam"], norm=True, dropout=0.3)
    return found


def one_of(rank, folder):
    return all_cases(folder / "runs")


@pytest.fixture(scope="module", params=[2, 3])
def several(request, tmp_path_factory):
    """What each of 2, then of 3 processes has."""
    return spawned(one_of, tmp_path_factory.mktemp("several"), count=request.param, joined=False)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    return all_cases(tmp_path_factory.mktemp("alone"))


def apart(a, b):
    return max((a[name] - b[name]).abs().max().item() for name in a)


@pytest.mark.long
@pytest.mark.parametrize("case", CASES)
def test_several_processes_are_one(several, alone, case):
    """In float64: without BatchNorm, or with the statistics of all. Whatever chooses among samples does so in each part."""
    mine, theirs = several[0][case], alone[case]
    if case in (*BY_PART, "replica", "whole msam"):
        assert apart(mine["model"], theirs["model"]) > 1e-9
        return
    assert apart(mine["model"], theirs["model"]) < 1e-9
    for row, other in zip(mine["metrics"], theirs["metrics"], strict=True):
        assert row["score"] == other["score"]
        assert row["train_score"] == other["train_score"]
        assert row["train_loss"] == pytest.approx(other["train_loss"], rel=1e-5)
        assert [row[key] for key in ("steps", "sampling_number")] == [other[key] for key in ("steps", "sampling_number")]
        assert row["forward_units"] == pytest.approx(other["forward_units"], rel=0.02)
    for row, other in zip(mine["layers"], theirs["layers"], strict=True):
        assert [*row.values()][2:] == pytest.approx([*other.values()][2:], rel=1e-4)
        assert row["layer"] == other["layer"]
    for row, other in zip(mine["steps"], theirs["steps"], strict=True):
        assert row == pytest.approx(other, rel=1e-4, nan_ok=True)


@pytest.mark.long
def test_a_resumed_training_goes_on_as_if_it_had_not_stopped(several):
    """Bit by bit on two processes; DistributedDataParallel sums those of more in another order after its first step."""
    gap = max(apart(one["straight"]["model"], one["resumed"]["model"]) for one in several)
    assert gap == 0 if len(several) == 2 else gap < 1e-12


@pytest.mark.long
def test_processes_multiply_the_micro_batches_of_msam(several, tmp_path):
    one = trained(tmp_path, "m", ["optimizer=msam", f"m={2 * len(several)}", "drop_last=true"], norm=False)
    assert apart(one["model"], several[0]["whole msam"]["model"]) < 1e-9


def test_the_number_is_part_of_a_run_where_it_changes_what_it_is():
    def run_id(*words):
        return identity(compose(["device=cpu", *words]))

    assert len({run_id(f"processes={n}") for n in (1, 2, 3)}) == 3, "BatchNorm by the part of each"
    assert run_id("processes=2", "sync_bn=true") == run_id("processes=3", "sync_bn=true") == run_id()
    text = ["dataset=glue_cola", "model=roberta_tiny"]
    assert run_id(*text, "processes=2", "optimizer=sam") == run_id(*text, "optimizer=sam")
    for by_part in (["optimizer=msam", "m=2"], ["optimizer=esam"], ["optimizer=sam", "optimizer.scope=replica"]):
        assert run_id(*text, "processes=2", *by_part) != run_id(*text, *by_part)


def test_batches_that_some_would_have_nothing_of_are_refused(monkeypatch):
    from sam_repro.train.job import Job

    monkeypatch.setenv("WORLD_SIZE", "6")
    with pytest.raises(UserError, match="A batch of 5 samples is none for 6 processes"):
        Job(compose(FEW))


def test_an_interruption_waits_for_the_checkpoint(tmp_path, monkeypatch):
    from sam_repro.train.job import Job

    job, path, save = Job(compose(FEW)), tmp_path / "last.pt", torch.save
    monkeypatch.setattr(torch, "save", lambda state, file: (os.kill(os.getpid(), signal.SIGINT), save(state, file)))
    with pytest.raises(KeyboardInterrupt):
        job.save(path)
    assert torch.load(path, weights_only=True)["epoch"] == 0


def test_a_machine_with_several_gpus_is_told_how_to_use_all(monkeypatch, capsys):
    from sam_repro import __main__ as app

    monkeypatch.setattr(app, "gpus", lambda: 4)
    for device, count, said in (("cuda", 1, 1), ("cuda:0", 4, 0), ("cpu", 1, 0)):
        monkeypatch.setenv("WORLD_SIZE", str(count))
        app._say_what_is_unused({"device": device})
        found = capsys.readouterr().out
        assert found == "This takes one GPU of 4: processes=4 takes all of them, each with a part of every batch.\n" * said


TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


def command(*words, start=()):
    words = ["device=cpu", "max_samples=64", "batch_size=16", "model=resnet20", *words]
    return subprocess.Popen(
        [sys.executable, *start, "-m", "sam_repro", *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        start_new_session=True,
    )  # fmt: skip


@pytest.mark.long
def test_the_command_starts_them_and_one_of_them_speaks(tmp_path):
    for says in ("starts", "is done already"):
        process = command("processes=2", "epochs=1", f"runs_dir={tmp_path}")
        said, _ = process.communicate(timeout=300)
        assert process.returncode == 0, said
        assert said.count(f"{says}: /" if says == "starts" else says) == 1
    (summary,) = tmp_path.glob("*/summary.json")
    assert json.loads(summary.read_text())["processes"] == 2


def alive(runs_dir):
    """The processes that train into a folder: their numbers by their ranks, that of the launcher by an empty word."""
    found = {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            words, environment = ((path / name).read_text().split("\0") for name in ("cmdline", "environ"))
        except OSError:
            continue
        if f"runs_dir={runs_dir}" in words:
            found[next((word for word in environment if word.startswith("RANK=")), "")] = int(path.name)
    return found


def ended(process):
    """Exit status and words; whoever is left behind would hold the pipe."""
    said, _ = process.communicate(timeout=120)
    return process.returncode, said


def outcome(runs_dir):
    (path,) = runs_dir.glob("*/checkpoint/last.pt")
    rows = [json.loads(line) for line in (path.parents[1] / "metrics.jsonl").read_text().splitlines()]
    return torch.load(path, weights_only=True)["model"], [(row["train_loss"], row["score"], row["grad_norm"]) for row in rows]


MANY = ["epochs=12", "optimizer=layerwise"]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("uninterrupted")
    assert ended(command(*MANY, "processes=2", f"runs_dir={folder}"))[0] == 0
    return outcome(folder)


@pytest.mark.long
def test_recorded_steps_are_of_one_process(tmp_path):
    code, said = ended(command("processes=2", "graphs=true", f"runs_dir={tmp_path}"))
    (line,) = [line for line in said.splitlines() if line.startswith("sam_repro:")]
    assert line == "sam_repro: graphs=true does not go with this method: several processes take part in a step."
    assert (code, "Traceback" in said) == (1, False)


@pytest.mark.long
@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds the processes in /proc")
@pytest.mark.parametrize(
    ("who", "how", "word", "status"),
    [
        ("RANK=1", ["processes=2"], "Process 1 (of 0 to 1) is gone", 1),
        ("RANK=0", ["processes=2"], "Process 0 (of 0 to 1) is gone", 1),
        ("RANK=1", [], "Process 1 (of 0 to 1) is gone", 1),
        ("", ["processes=2"], "stopped", 130),
    ],
)  # fmt: skip
def test_one_that_dies_ends_the_training_in_a_sentence_and_it_resumes(tmp_path, uninterrupted, who, how, word, status):
    words, start = [*MANY, *how, f"runs_dir={tmp_path}"], () if how else TORCHRUN
    process = command(*words, start=start)
    while not list(tmp_path.glob("*/metrics.jsonl")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    os.kill(alive(tmp_path)[who], signal.SIGKILL if who else signal.SIGTERM)
    code, said = ended(process)
    assert code == status, said
    (run,) = (Run(tmp_path, path.parent.name) for path in tmp_path.glob("*/status.json"))
    epoch = torch.load(run.checkpoint, weights_only=True)["epoch"] if run.checkpoint.exists() else 0
    assert epoch < 12, "it was to be killed before its end"
    resumes = f"(without rerun=true) resumes after epoch {epoch}" if epoch else "starts the run anew"
    assert [line for line in said.splitlines() if line.startswith("sam_repro:")] == [f"sam_repro: {word}; the same command {resumes}."], (
        said
    )
    assert ("Traceback" in said) == (not how), "torchrun's own is below our sentence"
    assert run.state == "stopped"
    assert alive(tmp_path) == {}

    assert ended(command(*words, start=start))[0] == 0
    weights, rows = outcome(tmp_path)
    assert rows == uninterrupted[1]
    assert apart(weights, uninterrupted[0]) == 0


@pytest.mark.long
def test_one_that_waits_for_another_answers_a_signal_all_the_same(tmp_path):
    script, ready = tmp_path / "script.py", [tmp_path / "0", tmp_path / "1"]
    script.write_text(
        f"""
import time, torch
from pathlib import Path
from torch import distributed
from sam_repro import world
from sam_repro.command import command
from sam_repro.train.processes import together
with command("here"), together("cpu", Path("none")):
    distributed.barrier()
    Path({str(tmp_path)!r}, str(world.rank())).touch()
    time.sleep(60) if world.rank() == 0 else distributed.all_reduce(torch.ones(1))
"""
    )
    words = [sys.executable, *TORCHRUN, str(script)]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    while not all(path.exists() for path in ready):
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    time.sleep(1)  # for the second to come to wait
    process.send_signal(signal.SIGTERM)
    said = ended(process)[1]
    (line,) = [line for line in said.splitlines() if line.startswith("here:")]
    assert line == "here: stopped; the same command starts the run anew."
