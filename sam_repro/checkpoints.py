"""A checkpoint on disk: written whole, with its checksum beside it, and the one before it kept. Knows no torch.

    checkpoint/last.pt  previous.pt  best.pt  checksums.json

A file is sound if its SHA-256 is one of those that ``checksums.json`` has for its name; of files of the time before, which it does
not name, nothing is known, and they pass. The checksum is written before the file takes its place: whenever the process dies,
what lies there has one.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from .schema import UserError
from .store import replacing, write

PREVIOUS = "previous.pt"
CHECKSUMS = "checksums.json"
PIECE = 1 << 22  # bytes that are read at a time


class Hashed:
    """A file that is written to, and the checksum of what was written."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.digest = file, hashlib.sha256()

    def write(self, content: bytes) -> int:
        """As a file's."""
        self.digest.update(content)
        return self.file.write(content)

    def flush(self) -> None:
        """As a file's."""
        self.file.flush()


@contextlib.contextmanager
def writing(path: Path, previous: bool = False) -> Iterator[Hashed]:
    """A file to write to, which takes the place of ``path`` when this ends; ``previous`` keeps the one that was there."""
    with replacing(path) as file:
        hashed = Hashed(file)
        yield hashed
        known = _known(path.parent)
        of_last = known.get(path.name, [])[-1:]
        kept = previous and path.exists()
        if kept:
            known[PREVIOUS] = [*known.get(PREVIOUS, [])[-1:], *of_last]
        known[path.name] = [*of_last, hashed.digest.hexdigest()]
        write(path.parent / CHECKSUMS, json.dumps(known, indent=2) + "\n")
        if kept:
            _keep(path, path.with_name(PREVIOUS))


def rename(path: Path, new: Path) -> None:
    """Give the checkpoint another name, as whose it is sound from then on."""
    known = _known(path.parent)
    known[new.name] = [*known.get(new.name, []), *known.get(path.name, [])]
    write(path.parent / CHECKSUMS, json.dumps(known, indent=2) + "\n")
    path.replace(new)


def check(path: Path) -> None:
    """UserError where the file is not what was written."""
    expected = _known(path.parent).get(path.name)
    if not expected:
        return
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(PIECE):
            digest.update(piece)
    if digest.hexdigest() not in expected:
        raise UserError(f"{path} is damaged (its checksum is another): rerun=true starts the run anew.")


@contextlib.contextmanager
def readable(path: Path) -> Iterator[None]:
    """What is done with the content meanwhile; UserError where the file is not what was written, or not what is expected in it."""
    check(path)
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:  # torch's reader and every part's state have their own
        if (isinstance(error, (UserError, OSError)) and str(path) in str(error)) or type(error).__name__ == "OutOfMemoryError":
            raise
        said = " ".join(str(error).split())[:120].removesuffix(".")
        kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
        raise UserError(f"{path} cannot be read ({kind}{said}): rerun=true starts the run anew.") from error


def _keep(path: Path, as_: Path) -> None:
    """A second name for the file, so that it is there when ``path`` becomes another; where there are no links, the file itself."""
    with contextlib.suppress(FileNotFoundError):
        as_.unlink()
    try:
        os.link(path, as_)
    except OSError:
        path.replace(as_)


def _known(folder: Path) -> dict[str, list[str]]:
    try:
        content = json.loads((folder / CHECKSUMS).read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
