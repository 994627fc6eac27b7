"""Text of elsewhere, as of a run directory that somebody sent, that does nothing where it is shown."""

from __future__ import annotations

import re

# What moves a terminal's cursor, turns the direction of the text, or has no form on disk; lines and tabs stay.
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
TAG = re.compile(r"<(?=[A-Za-z/!?])(?!br>)")


def plain(text: str) -> str:
    r"""The text with every control character as Python writes it: ``\x1b[2J`` in letters."""
    return CONTROL.sub(lambda found: ascii(found[0])[1:-1], text)


def harmless(page: str) -> str:
    """A page of Markdown, or a table of values, without HTML but for the ``<br>`` that cells are written with."""
    return TAG.sub("&lt;", plain(page))


def say(text: object) -> None:
    """Print it, plain."""
    print(plain(str(text)))
