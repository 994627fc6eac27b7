"""Files that are replaced whole, never left half written, and the checksums of those beside them."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO


def write(path: Path, content: str | bytes) -> None:
    """Replace the file whole."""
    with replacing(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file to write to, which takes the place of ``path`` when this ends; if it ends by an error, all stays as it was."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    try:
        with part.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except BaseException as error:
        part.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno is not None and error.filename is None:
            error.filename = str(path)  # a write does not say where
        raise


def checksums(path: Path) -> dict[str, list[str]]:
    """What ``path`` has noted, by the name of the file beside it: the SHA-256 of each content that it may have.

    Of a file that it does not name, as of all where it is missing or not whole, nothing is known.
    """
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) and all(isinstance(one, list) for one in content.values()) else {}
