import io
import os
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from sam_repro import data
from sam_repro.data.cifar import ArrayUnpickler
from sam_repro.data.digits import TEST, read, stratified
from sam_repro.data.images import Augment, ImageDataset
from sam_repro.data.split import Sampling, Tensors
from sam_repro.schema import UserError

OFFICIAL = Path(os.environ.get("SAM_REPRO_DATA", ""))
needs_cifar10 = pytest.mark.skipif(
    not os.environ.get("SAM_REPRO_DATA") or not (OFFICIAL / "cifar-10-batches-py").is_dir(),
    reason="set SAM_REPRO_DATA to a folder with the official cifar-10-batches-py",
)
needs_cifar100 = pytest.mark.skipif(
    not os.environ.get("SAM_REPRO_DATA") or not (OFFICIAL / "cifar-100-python").is_dir(),
    reason="set SAM_REPRO_DATA to a folder with the official cifar-100-python",
)


def numbered(n=40, size=6):
    """Images whose every pixel tells image, channel, row and column apart."""
    pixels = torch.arange(n * 2 * size * size).remainder(251).to(torch.uint8).view(n, 2, size, size)
    split = Tensors(pixels, torch.arange(n))
    return split, ImageDataset(split, split, n, (100.0, 50.0), (60.0, 30.0))


def batches(split, dataset, seed=0, size=16, **augment):
    return replace(dataset, augment=Augment(**augment)).batches(split, Sampling(size, seed))


def test_digits():
    parts = data.load({"name": "digits"}, "nowhere")
    assert parts.train.inputs.shape == (1437, 1, 8, 8)
    assert len(parts.score) == 360
    assert parts.score.targets.bincount().min() >= 34  # stratified
    normalised = parts.dataset.normalised(torch.device("cpu"))(parts.train.inputs)
    assert abs(normalised.mean()) < 1e-4
    assert abs(normalised.std() - 1) < 1e-3


def test_digits_are_read_and_split_as_scikit_learn_does():
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    images, labels = load_digits(return_X_y=True)
    table = read()
    assert (table[:, :-1] == images).all()
    assert (table[:, -1] == labels).all()
    for test in (TEST, 100, 501):  # what is left after rounding down differs
        theirs = train_test_split(np.arange(len(labels)), test_size=test, random_state=0, stratify=labels)
        ours = stratified(labels, test)
        assert [part.tolist() for part in ours] == [part.tolist() for part in theirs]
    train, _ = stratified(labels, TEST)
    pixels = data.load({"name": "digits"}, "").train.inputs
    assert pixels.view(-1, 64).tolist() == np.round(images[train] * (255 / 16)).tolist()


def test_an_epoch_has_every_sample_once_and_follows_from_seed_and_number():
    split, dataset = numbered()
    made = batches(split, dataset, crop=2, flip=True, cutout=3)
    assert len(made) == 3
    first, second = list(made.epoch(0)), list(made.epoch(1))
    assert [len(batch.targets) for batch in first] == [16, 16, 8]  # the last one is kept
    assert torch.cat([batch.indices for batch in first]).sort().values.equal(torch.arange(40))
    assert not torch.equal(first[0].indices, second[0].indices)
    again = list(batches(split, dataset, crop=2, flip=True, cutout=3).epoch(1))
    assert all(torch.equal(a.inputs, b.inputs) for a, b in zip(second, again, strict=True))
    assert not torch.equal(next(iter(batches(split, dataset, seed=1).epoch(0))).indices, first[0].indices)


@pytest.mark.parametrize("flip", [False, True])
def test_every_sample_has_its_own_crop_and_flip(flip):
    split, dataset = numbered(n=400)
    batch = next(iter(batches(split, dataset, size=400, crop=2, flip=flip).epoch(0)))
    padded = F.pad(split.inputs, (2, 2, 2, 2))
    normalise = dataset.normalised(torch.device("cpu"))
    seen = set()
    for index, image in zip(batch.indices.tolist(), batch.inputs, strict=True):
        candidates = {}
        for dy in range(5):
            for dx in range(5):
                crop = normalise(padded[index : index + 1, :, dy : dy + 6, dx : dx + 6])[0]
                candidates[dy, dx, False], candidates[dy, dx, True] = crop, crop.flip(-1)
        matches = [key for key, value in candidates.items() if torch.equal(value, image)]
        assert matches, "the image is no crop of its source"
        seen.add(matches[0])
    assert len(seen) == (50 if flip else 25)


def test_cutout_hides_a_square_that_may_stick_out_in_some_of_the_images():
    split, dataset = numbered(n=600, size=12)
    plain = next(iter(batches(split, dataset, size=600).epoch(0))).inputs
    cut = next(iter(batches(split, dataset, size=600, cutout=4, cutout_p=0.5).epoch(0))).inputs
    assert cut.is_contiguous(memory_format=torch.channels_last)
    plain = plain[torch.argsort(next(iter(batches(split, dataset, size=600).epoch(0))).indices)]
    cut = cut[torch.argsort(next(iter(batches(split, dataset, size=600, cutout=4).epoch(0))).indices)]
    hidden = ((plain != cut) | (cut == 0)).all(1)
    areas = hidden.flatten(1).sum(1)
    assert 0.4 < (areas > 0).float().mean() < 0.6
    assert areas.max() == 16
    assert ((areas > 0) & (areas < 16)).any()
    assert torch.equal(plain[areas == 0], cut[areas == 0])


def test_evaluation_sees_the_images_as_they_are():
    split, dataset = numbered()
    seen = torch.cat([batch.inputs for batch in dataset.in_order(split, 7)])
    assert torch.allclose(seen[:, 0] * 60 + 100, split.inputs[:, 0].float(), atol=1e-4)


def test_fractions_cut_one_fixed_shuffle():
    whole = data.load({"name": "digits"}, "")
    part = data.load({"name": "digits"}, "", train_fraction=0.5, val_fraction=0.1)
    assert (len(part.train), len(part.score)) == (646, 72)
    again = data.load({"name": "digits"}, "", train_fraction=0.5, val_fraction=0.1)
    assert torch.equal(part.score.inputs, again.score.inputs)
    rows = {tuple(image.flatten().tolist()) for image in whole.train.inputs}
    held_out = {tuple(image.flatten().tolist()) for image in part.score.inputs}
    assert held_out <= rows
    assert not held_out & {tuple(image.flatten().tolist()) for image in part.train.inputs}
    with pytest.raises(UserError, match="leaves one part empty"):
        data.load({"name": "digits"}, "", train_fraction=0.002, val_fraction=0.1)


# -- CIFAR -------------------------------------------------------------------------------------------------------------


class Malicious:
    def __reduce__(self):
        return (os.system, ("echo pwned > pwned.txt",))


def test_no_pickle_runs_code(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = io.BytesIO(pickle.dumps({b"data": Malicious()}, protocol=2))
    with pytest.raises(UserError, match="not the official one"):
        ArrayUnpickler(file, encoding="bytes").load()
    assert not Path("pwned.txt").exists()


def test_a_foreign_file_is_refused_before_it_is_read(tmp_path):
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for name in [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]:
        (folder / name).write_bytes(pickle.dumps({b"data": [1], b"labels": [0]}))
    with pytest.raises(UserError, match=r"data_batch_1 is not the official file"):
        data.load({"name": "cifar10"}, str(tmp_path))
    (folder / "data_batch_1").unlink()
    with pytest.raises(UserError, match="cannot be read"):
        data.load({"name": "cifar10"}, str(tmp_path))


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_without_files_and_network_the_user_is_told_where_to_put_them(name, tmp_path, monkeypatch):
    import torchvision

    def no_network(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr(torchvision.datasets, name.upper(), no_network)
    with pytest.raises(UserError, match=rf"could not be downloaded \(.* does not answer\).*{tmp_path}"):
        data.load({"name": name}, str(tmp_path))


@needs_cifar10
def test_the_official_cifar10():
    parts = data.load({"name": "cifar10"}, str(OFFICIAL))
    assert parts.train.inputs.shape == (50_000, 3, 32, 32)
    assert parts.train.targets.bincount().tolist() == [5000] * 10
    assert parts.score.targets.bincount().tolist() == [1000] * 10
    mean = parts.train.inputs.float().mean((0, 2, 3))
    assert torch.allclose(mean, torch.tensor(parts.dataset.mean), atol=0.1)
    import torchvision

    theirs = torchvision.datasets.CIFAR10(str(OFFICIAL))
    assert torch.equal(torch.from_numpy(theirs.data).permute(0, 3, 1, 2), parts.train.inputs)
    assert theirs.targets == parts.train.targets.tolist()


@needs_cifar100
def test_the_official_cifar100():
    parts = data.load({"name": "cifar100"}, str(OFFICIAL))
    assert parts.dataset.classes == 100
    assert parts.train.targets.bincount().tolist() == [500] * 100
    import torchvision

    theirs = torchvision.datasets.CIFAR100(str(OFFICIAL), train=False)
    assert torch.equal(torch.from_numpy(theirs.data).permute(0, 3, 1, 2), parts.score.inputs)
    assert theirs.targets == parts.score.targets.tolist()


@needs_cifar10
def test_a_damaged_official_file_is_refused(tmp_path):
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for source in (OFFICIAL / "cifar-10-batches-py").iterdir():
        (folder / source.name).symlink_to(source)
    content = bytearray((folder / "test_batch").read_bytes())
    content[5000] ^= 1
    (folder / "test_batch").unlink()
    (folder / "test_batch").write_bytes(content)
    with pytest.raises(UserError, match="test_batch is not the official file"):
        data.load({"name": "cifar10"}, str(tmp_path))


def test_every_pixel_can_have_a_mean_of_its_own():
    """Before the image is moved: what is padded is zero after it."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (40, 3, 6, 6), generator=generator, dtype=torch.uint8)
    images[:, 0, 0, 0] = 7  # a pixel that never changes
    split = Tensors(images, torch.zeros(40, dtype=torch.int64))
    dataset = ImageDataset(split, split, 2, (1.0,) * 3, (1.0,) * 3, Augment(normalise="pixel", crop=2))
    shown = torch.cat([samples.inputs for samples in dataset.in_order(split, 16)])
    assert torch.allclose(shown.mean(0), torch.zeros(3, 6, 6), atol=1e-5)
    deviation = shown.std(0, correction=0)
    assert deviation[0, 0, 0] == 0
    assert torch.allclose(deviation.flatten()[1:], torch.ones(107), atol=1e-4)
    for samples in dataset.batches(split, Sampling(8, 0)).epoch(0):
        for image, index in zip(samples.inputs, samples.indices, strict=True):
            padded = F.pad(shown[index], (2, 2, 2, 2))
            crops = [padded[:, y : y + 6, x : x + 6] for y in range(5) for x in range(5)]
            assert any(torch.equal(image, crop) for crop in crops)
    with pytest.raises(UserError, match=r"set dataset\.inception=false and dataset\.size=0"):
        replace(dataset, augment=Augment(normalise="pixel", size=12)).batches(split, Sampling(8, 0))
