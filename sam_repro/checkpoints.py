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

from .files import checksums, replacing, write
from .schema import UserError

PREVIOUS = "previous.pt"
CHECKSUMS = "checksums.json"
PIECE = 1 << 22  # bytes that are read at a time


class Hashed:
    """A file that is written to, and the checksum of what was written."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.digest = file, hashlib.sha256()
        self.error: OSError | None = None  # why nothing could be written

    def write(self, content: bytes) -> int:
        """As a file's."""
        self.digest.update(content)
        try:
            return self.file.write(content)
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        """As a file's."""
        self.file.flush()


@contextlib.contextmanager
def writing(path: Path, previous: bool = False) -> Iterator[Hashed]:
    """A file to write to, which takes the place of ``path`` when this ends; ``previous`` keeps the one that was there."""
    with replacing(path) as file:
        hashed = Hashed(file)
        try:
            yield hashed
        except RuntimeError as error:  # torch's writer makes one of a full disk, which says nothing of it
            raise hashed.error or error from None
        before = _known(path.parent)
        of_last, digest = before.get(path.name, []), hashed.digest.hexdigest()
        kept = previous and path.exists()
        during = {PREVIOUS: [*before.get(PREVIOUS, []), *of_last]} if kept else {}
        _note(path.parent, {**before, **during, path.name: [*of_last, digest]})
        if kept:
            _keep(path, path.with_name(PREVIOUS))
    # Not before the file has its place: a process that dies again and again until then leaves the checksums of all that may lie there.
    _note(path.parent, {**before, **({PREVIOUS: of_last} if kept else {}), path.name: [digest]})


def rename(path: Path, new: Path) -> None:
    """Give the checkpoint another name, as whose it is sound from then on."""
    known = _known(path.parent)
    known[new.name] = [*known.get(new.name, []), *known.get(path.name, [])]
    _note(path.parent, known)
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


def _note(folder: Path, known: dict[str, list[str]]) -> None:
    write(folder / CHECKSUMS, json.dumps(known, indent=2) + "\n")


def _known(folder: Path) -> dict[str, list[str]]:
    return checksums(folder / CHECKSUMS)
