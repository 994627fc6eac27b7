"""The presets of the papers' benchmarks: what they say, and that every one of them trains."""

import os
import re
from pathlib import Path

import pytest
import torch

from sam_repro.__main__ import launch
from sam_repro.config import compose
from sam_repro.schema import CONF, UserError, kind, options

REAL = Path(os.environ.get("SAM_REPRO_DATA", "nowhere"))
EXPERIMENTS = options("experiment")
# Trained in every run of the tests, as far as their data is at hand; the others are marked slow.
SAMPLE = {"kdd24/cifar10", "msam/glue_mrpc", "looksam/vit_s32"}
FOLDERS = {"cifar10": "cifar-10-batches-py", "cifar100": "cifar-100-python", "flowers102": "flowers-102"}
# Nothing is fetched: the models that the papers take pretrained begin at random, and RoBERTa is a small one.
OFFLINE = {"vit_b16": ["model.pretrained=false"], "roberta_base": ["model=roberta_tiny"]}
QQP = ["dataset.folder=QQP_subset", "dataset.train=train_part.tsv", "dataset.dev=dev_part.tsv"]


@pytest.mark.parametrize("experiment", [pytest.param(e, marks=() if e in SAMPLE else pytest.mark.long) for e in EXPERIMENTS])
def test_every_experiment_composes_with_every_method(experiment):
    for method in options("optimizer"):
        whole = ["accumulate=1"] if method == "msam" else []  # its micro-batches are parts already
        config = compose([f"experiment={experiment}", f"optimizer={method}", *whole])
        assert config["optimizer"]["name"] == method
        assert "???" not in str(config)


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_is_headed_by_its_command_and_gives_sources(experiment):
    text = (CONF / "experiment" / f"{experiment}.yaml").read_text()
    package, command, *rest = text.splitlines()
    assert package == "# @package _global_"  # Hydra wants it first
    assert re.fullmatch(rf"# python -m sam_repro experiment={experiment} optimizer=\w+", command)
    compose(command.split()[4:])
    assert "Table" in text or "section" in text
    assert len(rest) < 25


def numbers(experiment, method, *more):
    config = compose([f"experiment={experiment}", f"optimizer={method}", *more])
    inside = {key: value for part in ("dataset", "model", "schedule") for key, value in config[part].items() if key != "name"}
    return {**inside, **config, "base": config["base"]["name"], "schedule": config["schedule"]["name"]}


@pytest.mark.parametrize(
    ("experiment", "method", "expected"),
    [
        ("kdd24/cifar10", "layerwise", {"epochs": 150, "batch_size": 128, "lr": 0.1, "k": 4, "r": 0.1, "alpha": 0.8}),
        ("kdd24/cifar100", "looksam", {"epochs": 200, "k": 2}),
        ("kdd24/cifar100", "layerwise", {"k": 4}),
        ("kdd24/flowers102", "generalized_sam", {"epochs": 100, "batch_size": 40, "alpha": 0.7}),
        ("kdd24/flowers102", "layerwise", {"k": 2}),
        ("kdd24/vit_cifar100", "layerwise", {"epochs": 10, "lr": 0.001, "k": 1}),
        ("vsam/cifar10_resnet18", "vsam", {"epochs": 200, "batch_size": 128, "rho": 0.05, "alpha": 0.1, "gamma": 0.7, "N": 50, "M": 5}),
        ("vsam/cifar100_wrn28_10", "vsam", {"rho": 0.1, "alpha": 0.13, "gamma": 0.9}),
        ("vsam/cifar100_pyramidnet110", "esam", {"rho": 0.2, "weight_decay": 0.0005, "beta": 0.5, "gamma": 0.5}),
        ("looksam/vit_s16", "looksam", {"epochs": 300, "batch_size": 4096, "lr": 0.003, "rho": 0.1, "weight_decay": 0.3, "clip": 1.0}),
        ("looksam/vit_b16_64k", "looklayersam", {"batch_size": 65536, "lr": 0.02, "rho": 1.0, "alpha": 0.7, "weight_decay": 0.2}),
        ("looksam/vit_b16_8k", "sam", {"batch_size": 8192, "lr": 0.017, "rho": 0.18, "weight_decay": 0.1}),
        ("msam/cifar100_wrn28_10", "msam", {"epochs": 200, "batch_size": 512, "lr": 0.75, "rho": 0.2, "m": 32, "label_smoothing": 0.1}),
        ("msam/cifar10_vit_b16", "msam", {"epochs": 20, "lr": 0.001, "weight_decay": 0.3, "clip": 1.0, "rho": 0.3, "m": 32}),
        ("msam/imagenet_resnet50", "msam", {"epochs": 90, "batch_size": 2048, "lr": 0.8, "rho": 0.05, "m": 4}),
        ("msam/glue_cola", "msam", {"epochs": 60, "batch_size": 32, "lr": 1e-5, "weight_decay": 0.01, "rho": 0.01, "m": 8}),
        ("msam/glue_sst2", "sam", {"epochs": 20, "lr": 5e-6, "rho": 0.05}),
        ("msam/glue_mrpc", "msam", {"epochs": 60, "lr": 1e-5, "rho": 0.01, "m": 8, "base": "adamw", "warmup_share": 0.06}),
        ("msam/glue_qqp", "msam", {"epochs": 15, "lr": 2e-5, "rho": 0.05, "m": 8, "metrics": "accuracy f1"}),
        ("msam/cifar10_resnet50", "msam", {"lr": 0.5, "base": "sgd", "momentum": 0.9, "warmup_share": 0.05, "schedule": "onecycle"}),
        ("msam/cifar100_resnet50", "sam", {"lr": 0.5, "weight_decay": 0.0005, "rho": 0.2, "batch_size": 512}),
        ("msam/cifar100_vit_b16", "msam", {"base": "adamw", "warmup_share": 0.05, "label_smoothing": 0.0, "batch_size": 512}),
        ("msam/imagenet_resnet50", "sam", {"warmup_share": 0.177, "weight_decay": 0.0001, "stem": "imagenet", "label_smoothing": 0.1}),
        ("msam/imagenet_wrn50_2", "msam", {"epochs": 100, "batch_size": 2048, "lr": 0.5, "rho": 0.05, "m": 8, "warmup_share": 0.01}),
        ("msam/imagenet_vit_s32", "msam", {"epochs": 300, "batch_size": 4096, "lr": 0.003, "weight_decay": 0.3, "clip": 1.0, "m": 8}),
        ("vsam/cifar100_resnet18", "vsam", {"alpha": 0.13, "gamma": 0.7, "rho": 0.05, "schedule": "cosine", "cutout": 16}),
        ("vsam/cifar10_wrn28_10", "sam", {"rho": 0.1, "lr": 0.05, "weight_decay": 0.001}),
        ("vsam/cifar10_pyramidnet110", "vsam", {"rho": 0.2, "gamma": 0.9, "alpha": 0.1}),
        ("vsam/lsq_resnet18", "vsam", {"bits": 4, "alpha": 0.1}),
        ("vsam/lsq_mobilenet", "sam", {"bits": 4, "rho": 0.05}),
        ("looksam/vit_b16", "sam", {"rho": 0.18, "base": "adamw", "schedule": "cosine"}),
        ("looksam/vit_b32", "sam", {"rho": 0.15}),
        ("looksam/vit_s32", "looksam", {"rho": 0.05}),
        ("looksam/vit_b16_4k", "layersam", {"batch_size": 4096, "lr": 0.01, "rho": 1.0, "base": "lamb", "schedule": "linear", "clip": 1.0}),
        ("looksam/vit_b16_16k", "looklayersam", {"batch_size": 16384, "lr": 0.018, "weight_decay": 0.1}),
        ("looksam/vit_b16_32k", "looklayersam", {"batch_size": 32768, "lr": 0.018, "weight_decay": 0.1}),
    ],
)
def test_the_numbers_are_the_papers(experiment, method, expected):
    found = numbers(experiment, method)
    assert {key: found[key] for key in expected} == expected


@pytest.mark.parametrize(
    ("experiment", "steps", "batches"),
    [
        ("looksam/vit_b32", 10000, 313),
        ("looksam/vit_b16_4k", 10000, 313),
        ("looksam/vit_b16_8k", 10000, 157),
        ("looksam/vit_b16_16k", 7000, 79),
        ("looksam/vit_b16_32k", 6000, 40),
        ("looksam/vit_b16_64k", 3500, 20),
    ],
)
def test_the_warm_up_has_the_steps_of_the_table(experiment, steps, batches):
    """LookSAM, Tables 8 and 9; an epoch is ceil(1,281,167 / batch size) steps."""
    config = compose([f"experiment={experiment}"])
    assert -(-1_281_167 // config["batch_size"]) == batches
    assert round(config["schedule"]["warmup"] * batches) == steps


def test_what_counts_epochs_or_steps_follows_the_scale():
    paper, small = (numbers("vsam/cifar10_resnet18", "vsam", f"scale={scale}") for scale in ("paper", "small"))
    assert (paper["start"], small["start"]) == (1955, 196)  # all epochs, a tenth of the data
    assert small["optimizer"]["when"]["start"] == 196
    assert numbers("vsam/cifar10_resnet18", "vsam", "scale=small", "start=7")["start"] == 7
    assert numbers("vsam/cifar10_resnet18", "saf", "scale=small")["start"] == 5
    assert numbers("looksam/vit_b32", "sam", "scale=smoke")["warmup"] == pytest.approx(0.31949)
    assert numbers("looksam/vit_b32", "sam", "scale=smoke")["batch_size"] == 64


def test_a_model_that_cannot_read_the_data_is_refused():
    with pytest.raises(UserError, match="model=resnet20 cannot read dataset=glue_cola, which holds text: choose a model of roberta_base"):
        compose(["dataset=glue_cola"])
    with pytest.raises(UserError, match="model=roberta_tiny cannot read dataset=digits, which holds images"):
        compose(["model=roberta_tiny"])


@pytest.fixture(scope="session")
def imagenet(tmp_path_factory):
    """A tree of the form of ImageNet: noise, in two classes."""
    from PIL import Image

    root = tmp_path_factory.mktemp("data")
    for part in ("train", "val"):
        for name in ("n01440764", "n01443537"):
            folder = root / "imagenet" / part / name
            folder.mkdir(parents=True)
            for index in range(16):
                Image.fromarray(torch.randint(256, (64, 48, 3), dtype=torch.uint8).numpy()).save(folder / f"{index}.JPEG")
    return root


OFTEN = SAMPLE - {"msam/glue_mrpc"}


@pytest.mark.parametrize(
    "experiment",
    [pytest.param(e, marks=() if e in OFTEN else pytest.mark.long if e in SAMPLE else pytest.mark.slow) for e in EXPERIMENTS],
)
def test_every_experiment_trains(experiment, imagenet, tmp_path, monkeypatch):
    """``make smoke``: a step an epoch, of 8 samples of the real data, evaluated, written down."""
    command = (CONF / "experiment" / f"{experiment}.yaml").read_text().splitlines()[1].split()[4:]
    config = compose(command)
    dataset, model = config["dataset"]["name"], config["model"]["name"]
    monkeypatch.chdir(tmp_path)
    root = imagenet if dataset == "imagenet" else REAL
    folder = FOLDERS.get(dataset, "glue" if kind("dataset", dataset) == "text" else "imagenet")
    if not (root / folder).is_dir():
        pytest.skip(f"set SAM_REPRO_DATA to a folder with {folder}")
    if "glue" in dataset:
        pytest.importorskip("transformers", reason="transformers is not installed (extra 'nlp')")
    if "vit" in model:
        pytest.importorskip("timm", reason="timm is not installed (extra 'timm')")
    offline = OFFLINE.get(model, []) + (QQP if dataset == "glue_qqp" else [])
    offline = offline + (["batch_size=8"] if config["drop_last"] else [])
    overrides = [*command, "scale=smoke", "max_samples=8", f"data_dir={root}", "workers=2", "device=cpu", *offline]
    launch(compose(overrides), overrides)
    (summary,) = tmp_path.glob("runs/*/summary.json")
    assert '"scale": "smoke"' in summary.read_text()
