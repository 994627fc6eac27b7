"""Options that every method composes with: label noise, mixing, averages, early stopping, beginning with a run's weights."""

import copy
import hashlib
import struct
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from sam_repro import data
from sam_repro.__main__ import launch
from sam_repro.config import compose, identity
from sam_repro.data.noise import with_noise
from sam_repro.data.split import Tensors
from sam_repro.evaluate import evaluate_run
from sam_repro.models import create
from sam_repro.schema import UserError
from sam_repro.store import Run
from sam_repro.train.averaged import Averaged
from sam_repro.train.initial import begin_from
from sam_repro.train.job import Job
from sam_repro.train.loop import is_over, train_epoch
from sam_repro.train.record import EpochRecord

SMALL = ["device=cpu", "max_samples=48", "batch_size=16", "lr=0.05"]
OPTIONS = {
    "label_noise": ["label_noise=0.25"],
    "mixup": ["mixup=0.4"],
    "mixup and cutmix": ["mixup=0.4", "cutmix=1"],
    "ema": ["ema=0.9"],
    "swa": ["swa=0.3"],
    "early_stopping": ["early_stopping=2", "val_fraction=0.2"],
    "adam": ["base=adam"],
}


def ran(tmp_path, *words, epochs=3):
    words = [*SMALL, f"epochs={epochs}", f"runs_dir={tmp_path}", *words]
    config = compose(words)
    launch(config, words)
    return Run(tmp_path, identity(config))


def test_an_option_that_is_not_set_leaves_the_id_alone():
    neutral = ["label_noise=0", "mixup=0", "cutmix=0", "ema=0", "swa=0", "early_stopping=0", "init_from=''"]
    assert identity(compose(["device=cpu", *neutral])) == "b1b7bc81e7"
    assert len({identity(compose(["device=cpu", *words])) for words in OPTIONS.values()}) == len(OPTIONS)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["label_noise=1.5"], "label_noise is 0 to 1"),
        (["ema=1"], "ema is 0 to 0.999999"),
        (["swa=1"], "swa is 0 to 0.999"),
        (["ema=0.9", "swa=0.5"], "two ways to average"),
        (["early_stopping=3"], "val_fraction=0.1 holds out a tenth"),
        (["early_stopping=-1"], "early_stopping is 0 to"),
        (["mixup=0.2", "optimizer=saf"], "does not go with SAF"),
        (["cutmix=1", "dataset=glue_cola", "model=roberta_tiny"], "cutmix=1.0 mixes images"),
        (["init_from=0123456789"], "There is no run '0123456789'"),
    ],
)
def test_nonsense_is_refused(tmp_path, words, says):
    with pytest.raises(UserError, match=says):
        compose([*words, f"runs_dir={tmp_path}"])


def test_label_noise_moves_its_share_of_the_labels_to_other_classes():
    labels = torch.arange(1000) % 10
    split = Tensors(torch.zeros(1000, 1), labels)
    noisy = with_noise(split, 0.2, 10, seed=0).targets
    assert (noisy != labels).sum() == 200
    assert torch.equal(noisy, with_noise(split, 0.2, 10, seed=0).targets)
    assert not torch.equal(noisy, with_noise(split, 0.2, 10, seed=1).targets)
    wrong = torch.zeros(10, 10)
    for seed in range(20):
        moved = with_noise(split, 0.9, 10, seed=seed).targets
        wrong += torch.bincount(10 * labels + moved, minlength=100).view(10, 10)
    assert wrong.diag().sum() == 20 * 100
    assert (wrong - 200).abs().max() < 60  # about four deviations
    assert torch.equal(split.targets, labels)
    assert with_noise(split, 0.0, 10, seed=0) is split
    parts = data.load({"name": "digits"}, "", label_noise=0.5, seed=3, val_fraction=0.2)
    clean = data.load({"name": "digits"}, "", val_fraction=0.2)
    assert (parts.train.targets != clean.train.targets).sum() == round(0.5 * len(clean.train))
    assert torch.equal(parts.score.targets, clean.score.targets)


@pytest.mark.parametrize("words", [["mixup=0.4"], ["cutmix=1"], ["mixup=0.4", "cutmix=1"]], ids=" ".join)
def test_mixed_samples_and_their_labels_are_of_the_same_shares(words):
    plain, mixed = (Job(compose([*SMALL, *more])) for more in ([], words))
    shares = set()
    for before, after, again in zip(plain.batches.epoch(2), mixed.batches.epoch(2), mixed.batches.epoch(2), strict=True):
        assert torch.equal(after.inputs, again.inputs)
        assert after.targets.shape == (len(before.targets), 10)
        assert torch.allclose(after.targets.sum(1), torch.ones(len(before.targets)))
        first, second = before.inputs, before.inputs.roll(1, 0)
        others = F.one_hot(before.targets.roll(1, 0), 10)
        share = ((after.targets - others)[0].abs().sum() / (F.one_hot(before.targets, 10) - others)[0].abs().sum()).item()
        shares.add(share)
        if "cutmix" in words[-1] and not torch.allclose(after.inputs, share * first + (1 - share) * second, atol=1e-5):
            assert ((after.inputs == first) | (after.inputs == second)).all()
        else:
            assert torch.allclose(after.inputs, share * first + (1 - share) * second, atol=1e-5)
        assert torch.equal(after.labels, after.targets.argmax(1))
    assert len(shares) == 3
    assert mixed.batches.nbytes == plain.batches.nbytes


def test_ema_is_what_one_computes_by_hand():
    job = Job(compose([*SMALL, "optimizer=sam", "ema=0.8"]))
    job.model.train()
    expected = None
    for samples in job.batches.epoch(0):
        job.backward(samples)
        job.step()
        now = {name: value.clone() for name, value in job.model.state_dict().items()}
        if expected is not None:
            now = {n: v if v.dtype == torch.int64 else 0.8 * expected[n] + 0.2 * v for n, v in now.items()}
        expected = now
    found = job.averaged.model.state_dict()
    for name, value in expected.items():
        assert torch.allclose(found[name], value, atol=1e-6), name
    assert job.to_score() is job.averaged.model


def test_swa_is_the_mean_over_the_last_epochs_with_statistics_of_its_own():
    job = Job(compose([*SMALL, "optimizer=sgd", "swa=0.5", "epochs=4", "schedule=constant"]))
    ends = []
    for epoch in range(4):
        train_epoch(job, EpochRecord(job))
        assert (job.to_score() is job.model) == (epoch < 2)
        ends.append([p.detach().clone() for p in job.model.parameters()])
    for mean, *each in zip(job.averaged.model.parameters(), *ends[2:], strict=True):
        assert torch.allclose(mean, torch.stack(each).mean(0), atol=1e-6)
    by_hand = copy.deepcopy(job.averaged.model)
    for module in by_hand.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.reset_running_stats()
            module.momentum = None
    by_hand.train()
    with torch.no_grad():
        for samples in job.batches.epoch(job.epoch):
            by_hand(samples.inputs)
    for name, value in by_hand.state_dict().items():
        assert torch.allclose(job.averaged.model.state_dict()[name].float(), value.float(), atol=1e-5), name


def test_averages_take_any_type_of_tensor():
    model = torch.nn.Linear(2, 2).double()
    model.register_buffer("count", torch.tensor(0))
    averaged = Averaged(model, ema=0.5, swa=0.0)
    for value in (1.0, 3.0):
        torch.nn.init.constant_(model.weight, value)
        model.count += 1
        averaged.after_step(model)
    assert averaged.model.weight.unique().item() == 2.0
    assert averaged.model.count == 2


def test_early_stopping_ends_with_the_weights_of_the_best_epoch(tmp_path):
    run = ran(tmp_path, "early_stopping=2", "val_fraction=0.3", "optimizer=sgd", epochs=40)
    scores = [row["score"] for row in run.metrics()]
    best = int(np.argmax(scores)) + 1
    assert len(scores) == best + 2 < 40
    assert (run.summary["epochs"], run.summary["best_epoch"]) == (len(scores), best)
    run.check()
    assert torch.load(run.checkpoint)["epoch"] == best
    assert not run.best.exists()


@pytest.mark.parametrize(("scores", "over"), [([], False), ([5.0], False), ([5.0, None, None], False), ([5.0, None, None, 5.0], True)])
def test_early_stopping_waits_for_the_next_score(scores, over):
    job = SimpleNamespace(config={"early_stopping": 2, "epochs": 9}, epoch=len(scores))
    assert is_over(job, [{"epoch": epoch, "score": score} for epoch, score in enumerate(scores, start=1)]) == over


@pytest.mark.parametrize("option", ["ema=0.9", "swa=0.3"])
def test_what_is_evaluated_afterwards_is_what_was_scored(tmp_path, option):
    run = ran(tmp_path, option, "optimizer=sgd")
    assert evaluate_run(run.id, str(tmp_path), device="cpu") == pytest.approx(run.summary["score_last"])
    state = torch.load(run.checkpoint)
    assert not torch.equal(state["model"]["stem.conv.weight"], state["averaged"]["model"]["stem.conv.weight"])


def test_a_run_begins_with_the_weights_of_another(tmp_path):
    first = ran(tmp_path, "optimizer=sgd", "ema=0.9", epochs=1)
    weights = torch.load(first.checkpoint)["averaged"]["model"]
    words = [*SMALL, f"runs_dir={tmp_path}", "optimizer=sam", f"init_from={first.id[:6]}"]
    config = compose(words)
    assert config["init_from"] == first.id
    for name, value in Job(config).model.state_dict().items():
        assert torch.equal(value, weights[name]), name
    with pytest.raises(UserError, match=r"do not fit this model: .*block1"):
        Job(compose([*words, "model=wrn16_2"]))
    before = {path.name for path in tmp_path.iterdir()}
    with pytest.raises(UserError, match=r"do not fit this model: .*block1"):
        launch(compose([*words, "model=wrn16_2"]), words)
    assert {path.name for path in tmp_path.iterdir()} == before  # it is told before there is a directory
    head = create("resnet20", 7, in_channels=1)
    before = head.state_dict()["head.linear.weight"].clone()
    said = begin_from(head, first.id, str(tmp_path), torch.device("cpu"))
    assert torch.equal(head.state_dict()["head.linear.weight"], before)
    assert torch.equal(head.state_dict()["stem.conv.weight"], weights["stem.conv.weight"])
    assert said.endswith("but for head.linear.weight, head.linear.bias")


def test_a_run_that_is_not_done_is_none_to_begin_with(tmp_path):
    run = ran(tmp_path, "optimizer=sgd", epochs=1)
    (run.path / "summary.json").unlink()
    with pytest.raises(UserError, match="that run is stopped, not done"):
        compose([f"runs_dir={tmp_path}", f"init_from={run.id}"])


METHODS = ["optimizer=sgd", "optimizer=sam", "optimizer=looksam", "optimizer=msam m=2"]


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("method", ["optimizer=layerwise k=2", *(pytest.param(name, marks=pytest.mark.long) for name in METHODS)])
def test_every_option_goes_with_every_method_and_resumes_to_the_same_bits(tmp_path, option, method):
    words = [*SMALL, *OPTIONS[option], *method.split(), "epochs=3", f"runs_dir={tmp_path}"]
    whole, resumed = Job(compose(words)), Job(compose(words))
    whole.model.train()

    def go(job, epochs):
        for _ in range(epochs):
            job.model.train()
            for samples in job.batches.epoch(job.epoch):
                job.backward(samples)
                job.step()
            job.epoch += 1
            if job.averaged:
                job.averaged.after_epoch(job.model, job.epoch / 3)
            job.to_score()

    go(whole, 3)
    go(resumed, 2)
    resumed.save(tmp_path / "state.pt")
    other = Job(compose(words))
    other.resume(tmp_path / "state.pt")
    go(other, 1)
    for (name, value), again in zip(whole.to_score().state_dict().items(), other.to_score().state_dict().values(), strict=True):
        assert torch.equal(value, again), name


# -- data sets and models ----------------------------------------------------------------------------------------------


def test_svhn_and_fashion_mnist_are_read_from_the_official_files(tmp_path, monkeypatch):
    """Files of their form, for the files themselves are not here."""
    import torchvision
    from scipy.io import savemat

    monkeypatch.setattr(torchvision.datasets.SVHN, "split_list", copy.deepcopy(torchvision.datasets.SVHN.split_list))
    random = np.random.RandomState(0)
    images = {part: random.randint(0, 256, (32, 32, 3, count), dtype=np.uint8) for part, count in (("train", 30), ("test", 20))}
    (tmp_path / "svhn").mkdir()
    for part, pixels in images.items():
        path = tmp_path / "svhn" / f"{part}_32x32.mat"
        savemat(path, {"X": pixels, "y": (np.arange(pixels.shape[3]) % 10 + 1)[:, None]})
        torchvision.datasets.SVHN.split_list[part][2] = hashlib.md5(path.read_bytes()).hexdigest()
    parts = data.load(compose(["dataset=svhn"])["dataset"], str(tmp_path))
    assert parts.train.inputs.shape == (30, 3, 32, 32)
    assert torch.equal(parts.train.inputs[3], torch.from_numpy(images["train"][:, :, :, 3]).permute(2, 0, 1))
    assert parts.score.targets[:10].tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9, 0]  # the files call 0 by the name of 10

    raw = tmp_path / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    grey = {}
    for part, count in (("train", 40), ("t10k", 20)):
        grey[part] = random.randint(0, 256, (count, 28, 28), dtype=np.uint8)
        (raw / f"{part}-images-idx3-ubyte").write_bytes(struct.pack(">IIII", 2051, count, 28, 28) + grey[part].tobytes())
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">II", 2049, count) + bytes(i % 10 for i in range(count)))
    parts = data.load(compose(["dataset=fashion_mnist"])["dataset"], str(tmp_path))
    assert torch.equal(parts.train.inputs[:, 0], torch.from_numpy(grey["train"]))
    assert parts.dataset.shape == {"in_channels": 1, "image_size": 28}
    job = Job(compose(["dataset=fashion_mnist", f"data_dir={tmp_path}", "device=cpu", "batch_size=8"]))
    assert next(iter(job.batches.epoch(0))).inputs.shape == (8, 1, 28, 28)


@pytest.mark.parametrize("name", ["svhn", "fashion_mnist"])
def test_a_data_set_that_cannot_be_fetched_is_named(tmp_path, monkeypatch, name):
    import torchvision

    def fails(*args, **kwargs):
        raise RuntimeError("no network\nat all")

    monkeypatch.setattr("sam_repro.fetch.reachable", lambda _: True)
    monkeypatch.setattr(torchvision.datasets, {"svhn": "SVHN", "fashion_mnist": "FashionMNIST"}[name], fails)
    with pytest.raises(UserError, match=r"could not be downloaded \(no network\): put the official files there"):
        data.load(compose([f"dataset={name}"])["dataset"], str(tmp_path))
