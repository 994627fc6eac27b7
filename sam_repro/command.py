"""How every command of ours ends: what the user can put right in one sentence.

The exit status is 1 then, 3 where a training diverged, and 130 after Ctrl-C and SIGTERM.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

from .schema import UserError


@contextmanager
def command(name: str, stopped: str = "stopped.") -> Iterator[None]:
    """The whole of a command line; ``stopped`` is said where it is interrupted."""
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        yield
    except KeyboardInterrupt:
        print(f"\n{name}: {stopped}", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        said = sentence(error)
        if said is None:
            raise
        leave(name, said, error)


def leave(name: str, said: str, error: Exception) -> NoReturn:
    """End the process with a sentence and the exit status of the error."""
    print(f"{name}: {said}", file=sys.stderr)
    sys.exit(error.exit_status if isinstance(error, UserError) else 1)


def sentence(error: Exception) -> str | None:
    """An error in the user's words, or None where it is ours."""
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, (HydraException, OmegaConfBaseException)):
        from .config import explain

        return explain(error, [arg for arg in sys.argv[1:] if not arg.startswith("-")])
    if isinstance(error, OSError):
        return f"{error.strerror or error}: {error.filename or 'no file'}."
    if isinstance(error, ValueError) and "more than 1 value per channel" in str(error):
        return "BatchNorm has one value per channel, in a batch, the last of an epoch or a micro-batch: change batch_size or m."
    if type(error).__name__ == "OutOfMemoryError":
        return "The device's memory is full: lower batch_size, or try precision=bf16."
    return None


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt
