"""Trainings that end within an epoch, and checkpoints that do not survive: nothing is lost, and what goes on has the same bits."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
import torch
from test_runs import ROOT, SMALL, assert_same, run_here

from sam_repro import checkpoints
from sam_repro.command import Stopped, sentence
from sam_repro.config import compose, identity
from sam_repro.data import Sampling, load
from sam_repro.data.mixed import Mixed
from sam_repro.files import write
from sam_repro.schema import Diverged, UserError
from sam_repro.store import Run, all_runs
from sam_repro.train import job as job_module
from sam_repro.train import keeper as keeper_module
from sam_repro.train.keeper import Keeper

METHODS = {
    "layerwise": ["optimizer=layerwise", "k=2", "norms_every=2"],
    "looksam": ["optimizer=looksam"],
    "saf": ["optimizer=saf", "start=1"],
    "sgd, averaged": ["optimizer=sgd", "ema=0.9", "mixup=0.4"],
    "vsam": ["optimizer=vsam"],
    "aesam": ["optimizer=aesam", "lag=1"],
    "dropout": ["optimizer=sam", "model=wrn16_2", "model.dropout=0.3"],
}


def stop_after(monkeypatch, steps):
    """A signal that comes in the step with this number."""
    original, seen = Keeper.after_step, []

    def counted(keeper, record):
        seen.append(1)
        if len(seen) == steps:
            keeper.asked = signal.SIGUSR1
        original(keeper, record)

    monkeypatch.setattr(Keeper, "after_step", counted)


@pytest.mark.parametrize("method", METHODS)
def test_a_training_goes_on_from_any_step_with_the_same_bits(tmp_path, monkeypatch, method):
    straight = run_here(tmp_path / "a", *METHODS[method])
    for steps in (1, 4, 6):  # within the first epoch, at its end, within the second
        with monkeypatch.context() as patch:
            stop_after(patch, steps)
            with pytest.raises(Stopped, match="stopped by SIGUSR1 in epoch"):
                run_here(tmp_path / str(steps), *METHODS[method])
        stopped = Run(tmp_path / str(steps), straight.id)
        assert stopped.state == "stopped"
        run_here(tmp_path / str(steps), *METHODS[method])
        assert_same(straight, stopped)
        if "norms_every=2" in METHODS[method]:
            assert (stopped.path / "steps.csv").read_text() == (straight.path / "steps.csv").read_text()


def test_a_signal_while_an_epoch_is_scored_ends_the_training_after_it(tmp_path, monkeypatch):
    monkeypatch.setattr(Keeper, "after_step", lambda keeper, record: setattr(keeper, "asked", signal.SIGTERM))
    with pytest.raises(Stopped, match="stopped by SIGTERM after epoch 1, and saved there") as caught:
        run_here(tmp_path)
    assert caught.value.number == signal.SIGTERM
    assert run_here(tmp_path / "c", "epochs=1").state == "done"  # no epoch is left to stop before


def test_a_second_interrupt_does_not_wait():
    keeper = Keeper(SimpleNamespace(config={"save_every": 0.0}), None)
    before = signal.getsignal(signal.SIGTERM)
    with keeper.listening():
        signal.raise_signal(signal.SIGUSR2)
        signal.raise_signal(signal.SIGHUP)
        assert keeper.asked == signal.SIGHUP
        with pytest.raises(Stopped) as caught:
            signal.raise_signal(signal.SIGTERM)
        assert caught.value.number == signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) == before


def test_what_was_started_to_ignore_a_signal_ignores_it():
    keeper = Keeper(SimpleNamespace(config={"save_every": 0.0}), None)
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with keeper.listening():
            os.kill(os.getpid(), signal.SIGHUP)
        assert keeper.asked is None
    finally:
        signal.signal(signal.SIGHUP, before)


def test_save_every_saves_within_an_epoch_after_so_many_minutes(tmp_path, monkeypatch):
    clock = iter(range(0, 10_000, 50))  # seconds
    monkeypatch.setattr(keeper_module, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    saved, original = [], job_module.Job.save

    def noted(job, path, kept=None, **more):
        saved.append((job.epoch, (kept or {}).get("record", {}).get("steps")))
        original(job, path, kept, **more)

    monkeypatch.setattr(job_module.Job, "save", noted)
    run_here(tmp_path, "save_every=2", "epochs=1", "batch_size=16")
    within = [steps for epoch, steps in saved if epoch == 0]
    assert len(within) > 2
    assert within == sorted(within)
    assert saved[-1] == (1, None)
    with pytest.raises(UserError, match="save_every= is for one process"):
        compose(["save_every=5", "processes=2"])


@pytest.mark.parametrize("name", ["digits", "mixed", "cached", "text"])
def test_the_rest_of_an_epoch_is_the_same_whoever_has_the_beginning(name):
    sampling = Sampling(16, 3)
    if name == "text":
        from sam_repro.data.text import TextBatches, Texts

        lengths = [[1] * (2 + i % 7) for i in range(100)]
        batches = TextBatches(Texts.of(lengths, [0] * 100), sampling, 0)
    else:
        parts = load({"name": "digits", "crop": 1}, "", max_samples=100)
        batches = parts.dataset.batches(parts.train, sampling)
        if name == "cached":
            from sam_repro.data.cached import VectorBatches

            batches = VectorBatches(parts.train, sampling)
        if name == "mixed":
            batches = Mixed(batches, sampling, 10, mixup=0.3, cutmix=0.3, layout=torch.channels_last)
    whole, rest = list(batches.epoch(2)), list(batches.epoch(2, 3))
    assert len(whole) == 7
    assert len(rest) == 4
    for one, other in zip(whole[3:], rest, strict=True):
        inputs = zip(one.inputs, other.inputs, strict=True)
        assert all(torch.equal(a, b) for a, b in inputs)
        assert torch.equal(one.targets, other.targets)
        assert torch.equal(one.indices, other.indices)
    assert list(batches.epoch(2, 7)) == []


@pytest.mark.long
@pytest.mark.parametrize("how", keeper_module.SIGNALS, ids=lambda number: number.name)
def test_every_signal_ends_the_step_and_saves(tmp_path, how):
    words = [*SMALL, "epochs=400", "train_fraction=0.05", "optimizer=sgd", f"runs_dir={tmp_path}"]
    run = Run(tmp_path, identity(compose(words)))
    with subprocess.Popen(
        [sys.executable, "-m", "sam_repro", *words], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    ) as process:
        deadline = time.monotonic() + 300
        while len(run.metrics()) < 2 and time.monotonic() < deadline:
            time.sleep(0.02)
        process.send_signal(how)
        _, said = process.communicate()
    assert process.returncode == 128 + how
    assert f"stopped by {how.name} " in said.decode()
    assert run.state == run.status["state"] == "stopped"


# -- checkpoints -------------------------------------------------------------------------------------------------------


def stopped_run(folder, *words):
    """After two epochs of three, with a checkpoint of each."""
    with pytest.MonkeyPatch.context() as patch:
        stop_after(patch, 9)
        with pytest.raises(Stopped):
            run_here(folder, "epochs=3", *words)
    return Run(folder, identity(compose([*SMALL, "epochs=3", *words])))


@pytest.mark.parametrize("damage", ["flip", "cut", "gone"])
def test_from_a_damaged_checkpoint_it_goes_on_from_the_one_before(tmp_path, capsys, damage):
    straight = run_here(tmp_path / "a", "epochs=3")
    run = stopped_run(tmp_path / "b")
    assert sorted(path.name for path in run.checkpoint.parent.iterdir()) == ["checksums.json", "last.pt", "previous.pt"]
    content = bytearray(run.checkpoint.read_bytes())
    if damage == "flip":
        content[len(content) // 2] ^= 1
        run.checkpoint.write_bytes(content)
    elif damage == "cut":
        run.checkpoint.write_bytes(content[:-100])
    else:
        run.checkpoint.unlink()
    capsys.readouterr()
    run_here(tmp_path / "b", "epochs=3")
    said = capsys.readouterr().out.replace("\n", " ")
    assert "it goes on from the checkpoint before that, of epoch 2" in said
    assert_same(straight, run)
    assert not run.previous.exists()


@pytest.mark.parametrize("place", [0.02, 0.3, 0.6, 0.98])
def test_a_flipped_bit_in_the_weights_that_a_run_ended_with_is_noticed(tmp_path, place):
    from sam_repro.evaluate import evaluate_run

    run = run_here(tmp_path, "epochs=1")
    content = bytearray(run.checkpoint.read_bytes())
    content[int(place * len(content))] ^= 4
    run.checkpoint.write_bytes(content)
    with pytest.raises(UserError, match="is damaged"):
        evaluate_run(run.id, str(tmp_path), device="cpu")


def test_whenever_the_process_dies_what_lies_there_has_a_checksum(tmp_path, monkeypatch):
    path = tmp_path / "last.pt"

    def put(content):
        with checkpoints.writing(path, previous=True) as file:
            file.write(content)

    put(b"one")
    put(b"two")
    original = os.replace
    for death in ("checksums", "last"):

        def dies(source, target, death=death):
            if death in str(target):
                raise InterruptedError
            original(source, target)

        with monkeypatch.context() as patch:
            patch.setattr(type(path), "replace", lambda self, target, dies=dies: dies(self, target))
            with pytest.raises(InterruptedError):
                put(b"three")
        checkpoints.check(path)
        assert path.read_bytes() == b"two"
        checkpoints.check(path.with_name(checkpoints.PREVIOUS))
        put(b"two")
    put(b"four")
    checkpoints.check(path)
    checkpoints.check(path.with_name(checkpoints.PREVIOUS))
    assert path.with_name(checkpoints.PREVIOUS).read_bytes() == b"two"
    path.write_bytes(b"two")  # a former content under the name of the new one
    with pytest.raises(UserError, match="is damaged"):
        put(b"five")
        path.write_bytes(b"two")
        checkpoints.check(path)


def test_a_process_that_dies_again_and_again_before_the_file_has_its_place_loses_nothing(tmp_path, monkeypatch):
    path = tmp_path / "last.pt"

    def put(content):
        with checkpoints.writing(path, previous=True) as file:
            file.write(content)

    replace = type(path).replace

    def dies(self, target):
        if target == path:
            raise InterruptedError
        replace(self, target)

    put(b"one")
    put(b"two")
    with monkeypatch.context() as patch:
        patch.setattr(type(path), "replace", dies)
        for _ in range(4):
            with pytest.raises(InterruptedError):
                put(b"three")
    for each in (path, path.with_name(checkpoints.PREVIOUS)):
        checkpoints.check(each)
        assert each.read_bytes() == b"two"


def test_a_full_disk_within_a_checkpoint_is_said_with_its_file(tmp_path, monkeypatch):
    """torch's writer makes an error of its own of it."""
    import errno

    def full(file, content):
        file.error = OSError(errno.ENOSPC, "No space left on device")
        raise file.error

    monkeypatch.setattr(checkpoints.Hashed, "write", full)
    with pytest.raises(OSError, match="No space left on device") as caught, checkpoints.writing(tmp_path / "last.pt") as file:
        torch.save(torch.ones(9), file)
    assert sentence(caught.value).startswith(f"There is no room on the disk for {tmp_path}/last.pt: ")


@pytest.mark.parametrize("name", ["config.yaml", "metrics.jsonl", "layers.csv", "summary.json"])
def test_a_flipped_bit_in_a_number_of_a_run_is_noticed(tmp_path, name):
    run = run_here(tmp_path, "epochs=1")
    path = run.path / name
    content = path.read_bytes()
    place = max(index for index, byte in enumerate(content) if byte in b"12345678")
    path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
    with pytest.raises(UserError, match=f"{name} is missing or damaged"):
        run.check()


@pytest.mark.parametrize("name", ["status.json", "metrics.jsonl", "layers.csv"])
def test_a_file_that_is_gone_is_noticed_and_one_that_was_forgotten_is_not_missed(tmp_path, name):
    run = run_here(tmp_path, "epochs=1")
    (run.path / name).unlink()
    (listed,) = all_runs(tmp_path)
    with pytest.raises(UserError, match=f"{name} is missing or damaged"):
        listed.summary, listed.metrics(), listed.layers(), listed.state
    again = run_here(tmp_path, "epochs=1", "rerun=true")
    assert (again.state, len(again.metrics())) == ("done", 1)
    again.forget()
    assert (again.metrics(), again.layers(), again.summary) == ([], [], {})


# -- the store at work -------------------------------------------------------------------------------------------------


def at_step(monkeypatch, what):
    original, seen = Keeper.after_step, []

    def after(keeper, record):
        if not seen:
            seen.append(1)
            what(keeper.run)
        original(keeper, record)

    monkeypatch.setattr(Keeper, "after_step", after)


def test_a_directory_that_is_removed_while_the_run_is_at_work_is_no_run_that_is_done(tmp_path, monkeypatch):
    import shutil

    at_step(monkeypatch, lambda run: shutil.rmtree(run.path))
    with pytest.raises(UserError, match="was removed while the run was at work"):
        run_here(tmp_path)
    assert not list(tmp_path.glob("*/summary.json"))


def test_a_lock_that_is_removed_lets_nobody_in_and_ends_the_first(tmp_path, monkeypatch):
    def steal(run):
        (run.path / ".lock").unlink()
        write(run.path / "status.json", json.dumps({**run.status, "pid": os.getppid()}))  # as another process sees it
        with pytest.raises(UserError, match=r"is running \(process \d+\), though its lock was removed"):
            run_here(tmp_path)

    at_step(monkeypatch, steal)
    with pytest.raises(UserError, match="lock was removed while the run was at work"):
        run_here(tmp_path)


@pytest.mark.parametrize("damage", ["not a line", "cut"])
def test_steps_that_are_lost_are_noticed(tmp_path, damage):
    run = stopped_run(tmp_path, "norms_every=1")
    path = run.path / "steps.csv"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:3], "3,1,nonsense", *lines[4:]] if damage == "not a line" else lines[:-2]) + "\n")
    with pytest.raises(UserError, match=r"steps\.csv is missing or damaged: rerun=true"):
        run_here(tmp_path, "epochs=3", "norms_every=1")


@pytest.mark.parametrize("name", ["metrics.jsonl", "layers.csv"])
def test_an_empty_file_is_damaged(tmp_path, name):
    run = run_here(tmp_path, "epochs=1")
    (run.path / name).write_text("")
    with pytest.raises(UserError, match=f"{name} is missing or damaged"):
        run.metrics()
        run.layers()


def test_a_full_disk_is_said_with_the_file_and_the_room(tmp_path):
    import errno

    error = OSError(errno.ENOSPC, "No space left on device", str(tmp_path / "x" / "last.pt"))
    assert sentence(error).startswith(f"There is no room on the disk for {tmp_path}/x/last.pt: ")
    assert f"MiB are free under {tmp_path}. Make room" in sentence(error)


# -- divergence within an epoch ----------------------------------------------------------------------------------------


def test_a_training_that_diverges_is_noticed_within_check_every_steps(tmp_path, monkeypatch):
    original, calls = job_module.Job.backward, []

    def spoiled(job, samples):
        calls.append(samples.indices.tolist())
        report = original(job, samples)
        if len(calls) >= 7:
            report.loss.fill_(math.nan)
        return report

    monkeypatch.setattr(job_module.Job, "backward", spoiled)
    with pytest.raises(Diverged):
        run_here(tmp_path, "batch_size=8", "check_every=5", "epochs=1", "optimizer=sgd")
    run = Run(tmp_path, identity(compose([*SMALL, "batch_size=8", "epochs=1", "optimizer=sgd"])))
    status = run.status
    assert len(calls) in (10, 11)
    assert (status["state"], status["epoch"], status["step"], status["not_finite"]) == ("diverged", 1, 7, ["loss"])
    assert status["batch"] == calls[6]
    before = status["step_before"]
    assert 0 < before["loss"] < 10
    assert before["grad_norm"] == pytest.approx(math.hypot(*before["layers"].values()), rel=1e-5)
