"""Downloads: what they are of, how big and from where is said first. Imports no library that reads data.

A server that does not answer is asked once: no library of theirs tries it again and again, nor waits for it without an end.
"""

from __future__ import annotations

import os
import socket
import threading
import urllib.error
import urllib.request
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

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


def hub() -> str:
    """Where the hub is."""
    return os.environ.get("HF_ENDPOINT", "https://huggingface.co")


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
