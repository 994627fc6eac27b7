"""Images beyond the plain crop: sizes, random parts, files, frozen stages kept."""

import multiprocessing
import os
from pathlib import Path

import pytest
import torch
from torch import nn

from sam_repro import data
from sam_repro.chain import Chain
from sam_repro.config import compose
from sam_repro.data.cached import cached
from sam_repro.data.images import Augment, ImageDataset, random_parts
from sam_repro.data.split import Sampling, Tensors
from sam_repro.schema import UserError

REAL = Path(os.environ.get("SAM_REPRO_DATA", "nowhere"))
needs_flowers = pytest.mark.skipif(not (REAL / "flowers-102").is_dir(), reason="set SAM_REPRO_DATA to a folder with flowers-102/")


def grey(n=6, **augment):
    split = Tensors(torch.randint(256, (n, 1, 8, 8), dtype=torch.uint8), torch.arange(n))
    return ImageDataset(split, split, n, (10.0,), (2.0,), Augment(**augment))


def test_images_are_enlarged_after_the_crop_and_normalised_as_asked():
    dataset = grey(crop=1, size=16, normalise="half")
    assert dataset.shape == {"in_channels": 1, "image_size": 16}
    batch = next(iter(dataset.batches(dataset.train, Sampling(4, 0)).epoch(0))).inputs
    assert batch.shape == (4, 1, 16, 16)
    assert batch.is_contiguous(memory_format=torch.channels_last)
    assert batch.min() >= -1
    assert batch.max() <= 1
    seen = torch.cat([s.inputs for s in dataset.in_order(dataset.test, 4)])
    expected = nn.functional.interpolate(dataset.test.inputs.float(), (16, 16), mode="bilinear") / 127.5 - 1
    assert torch.allclose(seen, expected, atol=1e-5)


def test_random_parts_lie_in_the_image_with_the_area_and_shape_of_inception():
    """An image whose two channels are its own coordinates tells which part was drawn."""
    n, size = 2000, 64
    line = torch.arange(size, dtype=torch.float32)
    image = torch.stack([line.expand(size, size), line[:, None].expand(size, size)])
    generator = torch.Generator().manual_seed(0)
    parts = random_parts(image.expand(n, 2, size, size), 16, True, lambda: torch.rand(n, generator=generator))
    assert parts.shape == (n, 2, 16, 16)
    assert parts.min() >= 0
    assert parts.max() <= size - 1
    width = (parts[:, 0, 0, -1] - parts[:, 0, 0, 0]) * 16 / 15 / size  # centres of pixels to edges
    height = (parts[:, 1, -1, 0] - parts[:, 1, 0, 0]) * 16 / 15 / size
    assert 0.47 < (width < 0).float().mean() < 0.53, "mirrored every second time"
    assert (height > 0).all()
    area, ratio = width.abs() * height, width.abs() / height
    inner = (width.abs() < 0.9) & (height < 0.9)  # the larger ones touch the border, where reflection bends the measure
    assert area[inner].min() > 0.07
    assert ratio[inner].min() > 0.74
    assert ratio[inner].max() < 1.35
    assert abs(area.mean() - 0.52) < 0.03


def test_the_inception_augmentation_follows_from_seed_and_epoch():
    dataset = grey(n=8, inception=True, flip=True)
    first, again = (list(dataset.batches(dataset.train, Sampling(4, 3)).epoch(1)) for _ in range(2))
    assert all(torch.equal(a.inputs, b.inputs) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0].inputs, next(iter(dataset.batches(dataset.train, Sampling(4, 3)).epoch(2))).inputs)


def test_the_most_samples():
    parts = data.load({"name": "digits"}, "", max_samples=50)
    assert (len(parts.train), len(parts.score)) == (50, 50)
    assert len(data.load({"name": "digits"}, "", max_samples=400).score) == 360


# -- files ---------------------------------------------------------------------------------------------------------------


@pytest.fixture
def tree(tmp_path):
    """A miniature ImageNet: three classes of noise around a colour."""
    from PIL import Image

    generator = torch.Generator().manual_seed(0)
    for part, count in (("train", 5), ("val", 2)):
        for label, name in enumerate(("n01", "n02", "n03")):
            folder = tmp_path / "imagenet" / part / name
            folder.mkdir(parents=True)
            for index in range(count):
                pixels = torch.randint(60, (40 + 5 * index, 50, 3), generator=generator, dtype=torch.uint8)
                pixels[..., label] += 180
                Image.fromarray(pixels.numpy()).save(folder / f"{index}.JPEG")
    return tmp_path


def imagenet(**changes):
    return {**compose(["dataset=imagenet", "model=vit_s32"])["dataset"], "size": 32, **changes}


def test_a_folder_of_images(tree, monkeypatch):
    monkeypatch.setattr("sam_repro.data.files.PIECE", 3)  # batches travel in pieces
    parts = data.to(data.load(imagenet(), str(tree)), torch.device("cpu"), workers=0)
    assert (len(parts.train), len(parts.score), parts.dataset.classes) == (15, 6, 3)
    batches = parts.dataset.batches(parts.train, Sampling(4, 0))
    epoch = list(batches.epoch(0))
    assert [len(b.targets) for b in epoch] == [4, 4, 4, 3]
    assert torch.cat([b.indices for b in epoch]).sort().values.equal(torch.arange(15))
    for batch in epoch:
        assert batch.inputs.shape[1:] == (3, 32, 32)
        assert torch.equal(batch.inputs.mean((2, 3)).argmax(1), batch.targets), "image and label stay together"
    scored = list(parts.dataset.in_order(parts.score, 4))
    assert torch.cat([b.targets for b in scored]).tolist() == [0, 0, 1, 1, 2, 2]


def test_what_an_epoch_shows_does_not_depend_on_the_number_of_workers(tree):
    parts = data.load(imagenet(), str(tree))
    alone, helped = (data.to(parts, torch.device("cpu"), workers).dataset.batches(parts.train, Sampling(4, 7)) for workers in (0, 2))
    before = torch.get_rng_state()
    first = list(alone.epoch(3))
    assert torch.equal(torch.get_rng_state(), before)
    for number in (3, 4):
        assert all(torch.equal(a.inputs, b.inputs) for a, b in zip(alone.epoch(number), helped.epoch(number), strict=True))
    assert not torch.equal(first[0].inputs, next(iter(alone.epoch(4))).inputs)


def test_worker_processes_stay_from_one_epoch_and_one_score_to_the_next(tree):
    before = {*multiprocessing.active_children()}
    parts = data.to(data.load(imagenet(), str(tree)), torch.device("cpu"), workers=2)
    batches, seen = parts.dataset.batches(parts.train, Sampling(4, 7)), []
    for number in range(2):
        next(iter(batches.epoch(number)))  # one that was left early
        assert len(list(batches.epoch(number))) == 4
        assert len(list(parts.dataset.in_order(parts.score, 4))) == 2
        seen.append({*multiprocessing.active_children()} - before)
    assert seen[0] == seen[1]
    assert len(seen[0]) == 2 + 2, "of the training and of the score"
    first, second = batches.epoch(0), batches.epoch(1)
    next(first), next(second)
    with pytest.raises(RuntimeError, match="finish one before the next"):
        next(first)


def test_damaged_trees_are_named(tree):
    path = tree / "imagenet" / "val" / "n02" / "0.JPEG"
    path.write_bytes(path.read_bytes()[:100])
    parts = data.load(imagenet(), str(tree))
    for workers in (0, 2):
        dataset = data.to(parts, torch.device("cpu"), workers).dataset
        with pytest.raises(UserError, match=r"n02/0.JPEG cannot be read as an image") as caught:
            list(dataset.in_order(parts.score, 4))
        assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match=r"imagenet/train is not there: put ImageNet as"):
        data.load(imagenet(), str(tree / "elsewhere"))
    (tree / "imagenet" / "val" / "n09").mkdir()
    with pytest.raises(UserError, match="has the class 'n09', which the training set has not"):
        data.load(imagenet(), str(tree))


@needs_flowers
@pytest.mark.long
def test_flowers_and_their_two_splits():
    settings = {**compose(["dataset=flowers102"])["dataset"], "size": 16}
    ours = data.load(settings, str(REAL)).dataset
    assert (len(ours.train), len(ours.test), ours.classes) == (6149, 2040, 102)
    assert ours.test.targets.bincount().tolist() == [20] * 102
    official = data.load({**settings, "split": "official"}, str(REAL)).dataset
    assert torch.equal(official.test.inputs, ours.train.inputs)
    assert ours.shape == {"in_channels": 3, "image_size": 16}


def test_without_the_flowers_and_a_network_the_user_is_told_where_to_put_them(tmp_path, monkeypatch):
    import torchvision

    def no_network(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr(torchvision.datasets, "Flowers102", no_network)
    with pytest.raises(UserError, match=rf"Flowers102 is not complete under data_dir={tmp_path} .*does not answer"):
        data.load(compose(["dataset=flowers102"])["dataset"], str(tmp_path))


# -- frozen stages kept --------------------------------------------------------------------------------------------------


def test_what_frozen_stages_compute_is_kept():
    dataset = grey(n=10)
    parts = data.Parts(dataset.train, dataset.test, dataset)
    model = Chain(nn.Sequential(nn.Flatten(), nn.Linear(64, 3)).requires_grad_(False), nn.Linear(3, 2))
    kept, tail = cached(parts, model, 4, torch.autocast("cpu", enabled=False))
    assert len(tail) == 1
    images = {int(i): x for b in dataset.batches(dataset.train, Sampling(4, 5)).epoch(2) for i, x in zip(b.indices, b.inputs, strict=True)}
    for batch in kept.dataset.batches(kept.train, Sampling(4, 5)).epoch(2):
        assert torch.allclose(tail(batch.inputs), model(torch.stack([images[int(i)] for i in batch.indices])), atol=1e-5)
    order = [b.indices.tolist() for b in dataset.batches(dataset.train, Sampling(4, 5)).epoch(2)]
    assert order == [b.indices.tolist() for b in kept.dataset.batches(kept.train, Sampling(4, 5)).epoch(2)]
    moving = grey(n=10, flip=True)
    for p, m, says in (
        (parts, Chain(nn.Linear(3, 2)), "none is frozen"),
        (data.Parts(moving.train, moving.test, moving), model, "flip=false"),
    ):
        with pytest.raises(UserError, match=says):
            cached(p, m, 4, torch.autocast("cpu", enabled=False))
