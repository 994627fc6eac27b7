"""What a run was trained on, told from the files: taken in milliseconds, without reading the data.

It stands in a run's ``status.json`` under ``data``, beside the run's id and not in it: the same data may lie anywhere, but under
other data the same configuration is not the same run. Knows no torch.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from .files import write
from .schema import UserError, read
from .store import Row, Run

# Of every data set, what is read of it, under data_dir.
FILES = {
    "cifar10": ("cifar-10-batches-py/data_batch_*", "cifar-10-batches-py/test_batch"),
    "cifar100": ("cifar-100-python/train", "cifar-100-python/test"),
    "flowers102": ("flowers-102/imagelabels.mat", "flowers-102/setid.mat", "flowers-102/jpg/*.jpg"),
    "svhn": ("svhn/*_32x32.mat",),
    "fashion_mnist": ("FashionMNIST/raw/*-ubyte",),
    "imagenet": ("imagenet/train/*/*", "imagenet/val/*/*"),
}
SAMPLES, SIZE = 8, 4096  # files whose beginnings are read, evenly spaced among all, and how many bytes of each
MANY = 1000  # files, from which on their number and size are remembered
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or f"{os.environ.get('HOME', '')}/.cache") / "sam-repro" / "fingerprints.json"


def fingerprint(dataset: Row, data_dir: str) -> Row | None:
    """Of the data set of a configuration: its name, the number of its files, their bytes, and the SHA-1 of a fixed sample of them.

    None where nothing of it lies under ``data_dir``: it would be downloaded, or read from the hub.
    """
    name = dataset["name"]
    root, patterns = Path(data_dir), FILES.get(name, ())
    if not patterns:
        patterns = tuple(read(f"dataset/{name}").get("files", ()))  # of a plug-in's
    if name == "digits":  # comes with scikit-learn
        found = find_spec("sklearn")
        root, patterns = Path(found.origin or "").parent if found else root, ("datasets/data/digits.csv.gz",)
    elif "task" in dataset:
        patterns = tuple(f"glue/{dataset['folder']}/{part}" for part in (dataset["train"], dataset["dev"]))
    if not patterns:
        return None
    try:
        listed = _listed(root, patterns)
        digest = hashlib.sha1()
        for sample in listed["samples"]:
            with (root / sample).open("rb") as file:
                digest.update(os.fsencode(sample) + file.read(SIZE))
    except OSError:
        return None
    return {"name": name, "files": listed["files"], "bytes": listed["bytes"], "sha1": digest.hexdigest()} if listed["files"] else None


def _listed(root: Path, patterns: tuple[str, ...]) -> dict[str, Any]:
    """How many files there are, their bytes, and which of them are the sample; of very many as remembered while no folder has changed."""
    folders = sorted({folder for pattern in patterns for folder in root.glob(str(Path(pattern).parent)) if folder.is_dir()})
    seen = hashlib.sha1(json.dumps([patterns, *((str(folder), folder.stat().st_mtime_ns) for folder in folders)]).encode()).hexdigest()
    place, known = str(root.resolve() / patterns[0]), _remembered()
    if (kept := known.get(place)) and kept.get("seen") == seen:
        return kept
    paths = sorted(path for pattern in patterns for path in root.glob(pattern) if not _hidden(path.relative_to(root)) and path.is_file())
    chosen = sorted({round(i * (len(paths) - 1) / (SAMPLES - 1)) for i in range(SAMPLES)}) if paths else []
    samples = [paths[index].relative_to(root).as_posix() for index in chosen]
    found = {"seen": seen, "files": len(paths), "bytes": sum(path.stat().st_size for path in paths), "samples": samples}
    if len(paths) >= MANY:
        with contextlib.suppress(OSError):  # it is taken anew next time
            write(CACHE, json.dumps({**known, place: found}) + "\n")
    return found


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _remembered() -> dict[str, Any]:
    try:
        content = json.loads(CACHE.read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def check_data(run: Run, config: Row) -> Row | None:
    """The fingerprint of the data at hand; UserError where the run was trained on other data. What is unknown is accepted."""
    found = fingerprint(config["dataset"], config["data_dir"])
    if said := other_data(run, found, config["data_dir"]):
        raise UserError(said)
    return found


def other_data(run: Run, found: Row | None, data_dir: str) -> str:
    """That the data at hand are not those of the run, in a sentence; empty where they are, or where either is unknown."""
    known = run.status.get("data")
    if not known or not found or known == found:
        return ""
    return (
        f"Run {run.id} was trained on {describe(known)}; at hand (data_dir={data_dir}) is {describe(found)}: "
        "set data_dir= to where the former lies, or rerun=true to train anew on the latter."
    )


def describe(data: Row) -> str:
    """``cifar10: 6 files, 186,258,624 bytes, 1a2b3c4d5e``."""
    return f"{data['name']}: {data['files']:,} file{'s' * (data['files'] != 1)}, {data['bytes']:,} bytes, {data['sha1'][:10]}"
