"""What a training needs and this machine has not: told, and fetched, before the run begins. Imports no library that reads data.

A server that does not answer is asked once: no library of theirs tries it again and again, nor waits for it without an end.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from filelock import FileLock

from .console import console

PATIENCE = 5.0  # seconds that a server has to answer, and then for each piece of a file
CIFAR = "https://www.cs.toronto.edu"


class Source(NamedTuple):
    """Where a data set comes from."""

    called: str
    folder: str  # under data_dir
    megabytes: int  # to download
    server: str


SOURCES = {
    "cifar10": Source("CIFAR-10", "cifar-10-batches-py", 170, CIFAR),
    "cifar100": Source("CIFAR-100", "cifar-100-python", 169, CIFAR),
    "svhn": Source("SVHN", "svhn", 246, "http://ufldl.stanford.edu"),
    "fashion_mnist": Source("Fashion-MNIST", "FashionMNIST/raw", 31, "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com"),
    "flowers102": Source("Flowers102", "flowers-102/jpg", 345, "https://www.robots.ox.ac.uk"),
}


def provide(config: dict[str, Any]) -> None:
    """Fetch the data of a configuration where they are to be had; UserError, in seconds, where they are not here and cannot be."""
    dataset, data_dir = config["dataset"], config["data_dir"]
    source = SOURCES.get(dataset["name"])
    if source and not (Path(data_dir) / source.folder).is_dir():
        from .data import load

        with _alone(data_dir):
            load(dataset, data_dir)
    elif dataset["name"] == "imagenet":
        from .data.imagenet import check_folders

        check_folders(data_dir)
    if from_hub(config) and not reachable(hub()):
        stay_offline()
        _rehearse(config)


def from_hub(config: dict[str, Any]) -> list[str]:
    """What a training reads from the hub, or from what is kept of it on this machine."""
    dataset, model, root = config["dataset"], config["model"], Path(config["data_dir"])
    texts = "task" in dataset
    return [
        *(["the texts"] if texts and not (root / "glue" / dataset["folder"]).is_dir() else []),
        *(["the tokenizer"] if texts and not ((root / "roberta_bpe").is_dir() or Path(dataset["tokenizer"]).is_dir()) else []),
        *(["the weights"] if _weights_from_hub(model) else []),
    ]


def _weights_from_hub(model: dict[str, Any]) -> bool:
    wanted = model.get("pretrained")
    if isinstance(wanted, str):  # RoBERTa's: a folder, or a name on the hub
        return bool(wanted) and not Path(wanted).is_dir()
    return bool(wanted) and not model.get("weights")


def _rehearse(config: dict[str, Any]) -> None:
    """Read what comes of the hub once, from what was kept; UserError where it was not."""
    from . import data, models

    parts = data.load(config["dataset"], config["data_dir"])
    if _weights_from_hub(config["model"]):
        models.create(**config["model"], num_classes=parts.dataset.classes, **parts.dataset.shape)


def stay_offline() -> None:
    """The libraries of the hub take what they have kept, and ask nobody."""
    os.environ["HF_HUB_OFFLINE"] = os.environ["HF_DATASETS_OFFLINE"] = "1"


def hub() -> str:
    """Where the hub is."""
    return os.environ.get("HF_ENDPOINT", "https://huggingface.co")


@contextlib.contextmanager
def _alone(data_dir: str) -> Iterator[None]:
    """Of several processes one fetches, and the others find what it has fetched."""
    Path(data_dir).mkdir(parents=True, exist_ok=True)
    with FileLock(Path(data_dir) / ".fetch.lock"):
        yield


def fetched(name: str, data_dir: str, missing: bool, read: Callable[[], Any]) -> Any:
    """What ``read`` returns, which downloads what is missing: that is said first. UserError where the server does not answer."""
    source = SOURCES[name]
    if missing:
        if not reachable(source.server):
            raise OSError(f"{source.server} does not answer")
        place = Path(data_dir).absolute() / source.folder
        console.print(f"{source.called} is not here: it is downloaded from {source.server}, {source.megabytes} MB, to {place}.")
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(PATIENCE * 4)
    try:
        return read()
    finally:
        socket.setdefaulttimeout(before)


@cache
def reachable(server: str) -> bool:
    """Whether a server answers, whatever it says; it is asked once, and has some seconds, also to be found by its name."""
    answers: list[bool] = []
    asking = threading.Thread(target=lambda: answers.append(_answers(server)), daemon=True)
    asking.start()
    asking.join(PATIENCE + 1)
    return bool(answers) and answers[0]


def _answers(server: str) -> bool:
    try:
        with urllib.request.urlopen(urllib.request.Request(server, method="HEAD"), timeout=PATIENCE):
            return True
    except urllib.error.HTTPError:  # an answer
        return True
    except (OSError, ValueError):
        return False
