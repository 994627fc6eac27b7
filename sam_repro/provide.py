"""What a training needs and this machine has not: told, and fetched, before the run begins."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock

from .fetch import SOURCES, hub, reachable
from .schema import UserError


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


def provide_all(configs: Iterable[tuple[Sequence[str], dict[str, Any]]]) -> None:
    """The same of many, each data set once; UserError, with the words of the first whose data cannot be had."""
    seen: dict[str, tuple[Sequence[str], dict[str, Any]]] = {}
    for words, config in configs:
        seen.setdefault(json.dumps([config[key] for key in ("dataset", "model", "data_dir")], sort_keys=True), (words, config))
    for words, config in seen.values():
        try:
            provide(config)
        except UserError as error:
            raise UserError(f"for this one has no data: {' '.join(words)}\n{error}") from error


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


@contextlib.contextmanager
def _alone(data_dir: str) -> Iterator[None]:
    """Of several processes one fetches, and the others find what it has fetched."""
    Path(data_dir).mkdir(parents=True, exist_ok=True)
    with FileLock(Path(data_dir) / ".fetch.lock"):
        yield
