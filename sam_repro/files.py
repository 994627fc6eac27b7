"""Files that are replaced whole, never left half written, and the checksums of those beside them."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

CHECKSUMS = ".checksums.json"
ABSENT = "absent"  # in place of a checksum: there may be no such file, for it is about to be written for the first time


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


class Checked:
    """Files of a folder, and in ``CHECKSUMS`` beside them what each of them may hold, so that one that is another or gone is noticed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def known(self) -> dict[str, list[str]]:
        """The checksums that a file may have; of files it does not name, nothing is known."""
        return checksums(self.folder / CHECKSUMS)

    def there(self, name: str) -> bool:
        """Whether there is such a file; ValueError where there was one, and nobody has forgotten it."""
        for _ in range(2):  # whoever is at work on the folder may have written it between the two looks, or forgotten it
            found = (self.folder / name).exists()
            if found or ABSENT in self.known().get(name, [ABSENT]):
                return found
        raise ValueError(f"{name} is gone")

    def text(self, name: str) -> str:
        """What a file holds; ValueError where that is not what was written, or no text."""
        noted = self.known().get(name)
        content = (self.folder / name).read_bytes()
        digest = hashlib.sha256(content).hexdigest()
        # Where somebody is at work, the file may have been written in between.
        if noted and digest not in noted and digest not in self.known().get(name, []):
            raise ValueError(f"{name} is not what was written")
        return content.decode()

    def put(self, files: Mapping[str, str]) -> None:
        """Write them, the checksum of each before it takes its place, and that of what it replaces until it has."""
        known = self.known()
        new = {name: [hashlib.sha256(content.encode()).hexdigest()] for name, content in files.items()}
        self._note({**known, **{name: [*known.get(name, [ABSENT]), *digest] for name, digest in new.items()}})
        for name, content in files.items():
            write(self.folder / name, content)
        self._note({**known, **new})

    def forget(self, names: Sequence[str]) -> None:
        """Remove them: they are not missed from then on."""
        known = self.known()
        if any(name in known for name in names):
            self._note({name: noted for name, noted in known.items() if name not in names})
        for name in names:
            (self.folder / name).unlink(missing_ok=True)

    def _note(self, known: Mapping[str, list[str]]) -> None:
        write(self.folder / CHECKSUMS, json.dumps(known, indent=2) + "\n")
