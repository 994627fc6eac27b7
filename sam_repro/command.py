"""How every command of ours ends: what the user can put right in one sentence.

The exit status is 1 then, 3 where a training diverged, and 128 + n after signal n: 130 after Ctrl-C, 143 after SIGTERM.
"""

from __future__ import annotations

import errno
import os
import shutil
import signal
import sys
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

from . import world
from .plain import plain
from .schema import UserError, check_path, suggest


class Stopped(KeyboardInterrupt):
    """A signal has ended what was at work; the message, if there is one, says where it stands."""

    def __init__(self, number: int, message: str = "") -> None:
        super().__init__(message)
        self.number = number


@contextmanager
def command(name: str, resumes: str = "", usage: str = "") -> Iterator[None]:
    """The whole of a command line; where it is interrupted, ``resumes`` is said, or what the interruption itself says of it.

    ``usage`` is what ``--help`` prints.
    """
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        if usage and {"-h", "--help"} & {*sys.argv[1:]}:
            print(f"usage: {usage}", flush=True)
            sys.exit()
        for word in sys.argv[1:]:
            key, equals, value = word.partition("=")
            if equals:
                check_path(key, value)
        yield
        sys.stdout.flush()
    except BrokenPipeError:  # the reader has seen enough, as head has
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + signal.SIGPIPE)
    except KeyboardInterrupt as error:
        if isinstance(error, Stopped):
            _leave(name, str(error), resumes, 128 + error.number)
        _leave(name, "", str(error) or resumes, 128 + signal.SIGINT)
    except Exception as error:
        said = sentence(error)
        if said is None:
            raise
        leave(name, said, error)


@contextmanager
def undivided() -> Iterator[None]:
    """Ctrl-C and SIGTERM wait until this is over: torch's writer of files takes an interruption for an error of its own."""
    if threading.current_thread() is not threading.main_thread():  # no signals come here
        yield
        return
    late: list[int] = []
    before = {one: signal.signal(one, lambda number, _: late.append(number)) for one in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)
    if late:
        signal.raise_signal(late[0])


def misused(words: Sequence[str], commands: Iterable[str], usage: str) -> UserError:
    """What is wrong with the words after a module's name, which are none of its commands, or too many or too few for one."""
    unknown = [word for word in words[:1] if word not in (known := list(commands))]
    return UserError((f"There is no command {unknown[0]!r}.{suggest(unknown[0], known)}\n" if unknown else "") + f"usage: {usage}")


def leave(name: str, said: str, error: Exception) -> NoReturn:
    """End the process with a sentence and the exit status of the error."""
    _leave(name, said, "", error.exit_status if isinstance(error, UserError) else 1)


def _leave(name: str, reason: str, resumes: str, status: int) -> NoReturn:
    """End the process with the reason, or without one as stopped; of several processes one speaks."""
    state = "" if reason else "stopped"
    if world.count() > 1:
        from .ranks import last_word

        found = last_word(reason)
        if found is None:
            sys.exit(status)
        reason, gone = found
        state, status = (gone, 1) if gone and not reason else (state, status)
    said = reason or f"{state}{'; ' * bool(resumes)}{resumes}."
    print(f"{'' if reason else chr(10)}{name}: {plain(said)}", file=sys.stderr)
    sys.exit(status)


def sentence(error: Exception) -> str | None:
    """An error in the user's words, or None where it is ours."""
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    if isinstance(error, UserError):
        return str(error)
    of_hydra = isinstance(error, ValueError) and str(error).startswith("Config group override")
    if of_hydra or isinstance(error, (HydraException, OmegaConfBaseException, RecursionError)):
        from .complaints import explain

        return explain(error, [arg for arg in sys.argv[1:] if not arg.startswith("-")])
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return _full(error)
    if isinstance(error, OSError):
        return f"{error.strerror or error}: {error.filename or 'no file'}."
    if isinstance(error, ValueError) and "more than 1 value per channel" in str(error):
        return "BatchNorm has one value per channel, in a batch, the last of an epoch or a micro-batch: change batch_size or m."
    if type(error).__name__ == "OutOfMemoryError":
        return "The device's memory is full: lower batch_size, or try precision=bf16."
    return None


def _full(error: OSError) -> str:
    """Which file found no room, and how much there is."""
    path = Path(str(error.filename or ".")).absolute()
    there = next((folder for folder in path.parents if folder.is_dir()), Path("/"))
    free = shutil.disk_usage(there).free / 2**20
    of = f" for {path}" if error.filename else ""
    return f"There is no room on the disk{of}: {free:,.0f} MiB are free under {there}. Make room, and run the same command again."


def _interrupt(number: int, _: object) -> None:
    raise Stopped(number)
