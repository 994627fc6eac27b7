"""Commands in children of this process, and the moments at which something happens to them.

A moment is a file of the runs that is opened, renamed, linked or removed, a larger piece of a checkpoint that is about to be written
or half written, an fsync, or a step of the training. They are counted, so that a fault comes at the same point every time.
"""

from __future__ import annotations

import contextlib
import importlib
import mmap
import os
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from sam_repro.checkpoints import Hashed
from sam_repro.train.job import Job

TRACEBACK = 70  # exit status of a command that ends in one
PIECE = 1 << 14  # bytes; a checkpoint has many small ones
FILES = ("open", "os.rename", "os.link", "os.remove", "os.mkdir", "os.rmdir")


@dataclass(frozen=True)
class Ended:
    """How a command came to its end."""

    status: int  # as a shell has it: 128 + n where signal n ended it
    out: str
    said: str  # on the standard error

    @property
    def lines(self) -> list[str]:
        """What was said, but for empty lines."""
        return [line for line in self.said.splitlines() if line.strip()]

    def fault(self, *statuses: int) -> str:
        """Why this is no right end: a traceback, a status other than these, or an error that is not one sentence; else empty."""
        if "Traceback" in self.said or "Traceback" in self.out or self.status == TRACEBACK:
            return f"traceback: {self.lines[-1] if self.lines else ''}"
        if self.status not in statuses:
            return f"exit status {self.status}: {' '.join(self.lines[-2:])[:300]}"
        if self.status in (1, 3) and not (len(self.lines) == 1 and self.lines[0].startswith("sam_repro")):
            return f"no sentence, or several: {self.said[:300]!r}"
        return ""


class Child:
    """A command at work."""

    def __init__(self, module: str, words: list[str], before: Callable[[], object] | None = None, **environment: str) -> None:
        self.files = [tempfile.TemporaryFile() for _ in range(2)]  # noqa: SIM115
        sys.stdout.flush()
        self.pid = os.fork()
        if not self.pid:
            os.environ |= environment
            _be(module, words, before, [file.fileno() for file in self.files])

    def end(self) -> Ended:
        """Wait for it."""
        _, status = os.waitpid(self.pid, 0)
        code = os.waitstatus_to_exitcode(status)
        texts = []
        for file in self.files:
            file.seek(0)
            texts.append(file.read().decode(errors="replace"))
            file.close()
        return Ended(code if code >= 0 else 128 - code, *texts)


def _be(module: str, words: list[str], before: Callable[[], object] | None, outputs: list[int]) -> None:
    """The command, in the child, which ends here."""
    status = 0
    try:
        for target, output in enumerate(outputs, start=1):
            os.dup2(output, target)
        sys.argv = [module, *words]
        if before is not None:
            before()
        importlib.import_module(module).main()
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else int(error.code is not None)
        if isinstance(error.code, str):
            print(error.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
        status = TRACEBACK
    finally:
        with contextlib.suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


def command(module: str, *words: str, before: Callable[[], object] | None = None) -> Ended:
    """Run it to its end."""
    return Child(module, list(words), before).end()


@dataclass
class Moments:
    """Counts the moments of a command, and at one of them does something to it; given as ``before``."""

    runs_dir: Path
    at: int = 0  # from 1; 0: never
    act: Callable[[], object] = lambda: None
    _shared: mmap.mmap = field(default_factory=lambda: mmap.mmap(-1, 8))  # what the child counts is seen here

    @property
    def count(self) -> int:
        """How many there have been."""
        return int.from_bytes(self._shared[:4], "little")

    @property
    def steps(self) -> int:
        """Steps of the training among them."""
        return int.from_bytes(self._shared[4:], "little")

    def __call__(self) -> None:
        """Begin to count, in the child."""
        sys.addaudithook(self._audit)
        write, fsync, step = Hashed.write, os.fsync, Job.step

        def in_halves(file: Hashed, content: bytes) -> int:
            if len(content) < PIECE:
                return write(file, content)
            self.one()
            half = len(content) // 2
            written = write(file, content[:half])
            self.one()
            return written + write(file, content[half:])

        def stepped(job: Job) -> object:
            done = step(job)
            self._shared[4:] = (self.steps + 1).to_bytes(4, "little")
            self.one()
            return done

        Hashed.write, Job.step = in_halves, stepped  # type: ignore[method-assign, assignment]
        os.fsync = lambda file: (self.one(), fsync(file))[1]

    def one(self) -> None:
        """This is one."""
        count = self.count + 1
        self._shared[:4] = count.to_bytes(4, "little")
        if count == self.at:
            self.act()

    def _audit(self, event: str, arguments: tuple[object, ...]) -> None:
        if event in FILES and str(arguments[0]).startswith(str(self.runs_dir)):
            self.one()


def kill(number: int = signal.SIGKILL) -> Callable[[], object]:
    """What sends this process a signal."""
    return lambda: os.kill(os.getpid(), number)
