"""``make torture``: every kind of fault, and the table of what came of it."""

from __future__ import annotations

import os

os.environ |= {"OMP_NUM_THREADS": "1", "COLUMNS": "200"}  # children of a process with threads would wait for them

import sys
import tempfile
import time
from pathlib import Path
from random import Random

from sam_repro.console import Console

from . import damage, kills, places, straight, writers

KINDS: dict[str, tuple[straight.Kind, int, int]] = {  # tries of the short hunt, which has 0 of what takes long, and of the whole
    "kill -9 at any moment, saves among them": (kills.killed, 2, 40),
    "one of two processes killed": (kills.killed_ranks, 0, 8),
    "a signal at any moment": (kills.signalled, 2, 24),
    "a bit flipped in a file": (damage.flipped, 4, 100),
    "a file cut, emptied or removed": (damage.cut, 2, 40),
    "a full disk": (places.full, 1, 16),
    "a directory that may not be written": (places.read_only, 0, 4),
    "a directory that vanishes": (places.vanished, 1, 12),
    "two writers of one run": (writers.two, 1, 12),
    "a sweep, jobs failing and the sweep killed": (writers.sweep, 12, 200),
}


def main(words: list[str]) -> int:
    """Run the kinds; the exit status."""
    settings = dict(word.split("=", 1) for word in words if "=" in word)
    seed, short, started = settings.get("seed", "0"), "short" in words, time.monotonic()
    rows, losses = [], []
    with tempfile.TemporaryDirectory(prefix="torture-") as place:
        straight.PLACE[:] = [Path(place) / "straight"]
        for name, (kind, few, many) in KINDS.items():
            tries = few if short else many
            if not tries or settings.get("only", "") not in name:
                continue
            folder = Path(place) / str(len(rows))
            folder.mkdir()
            found = list(kind(Random(f"{seed} {name}"), tries, folder))
            rows.append((name, len(found), sum(not lost for lost in found), sum(map(bool, found))))
            losses += [f"{name}: {lost}" for lost in found if lost]
            print(f"  {time.monotonic() - started:4.0f} s  {name}: {rows[-1][2]} of {len(found)}", file=sys.stderr, flush=True)
    show(rows, losses)
    return int(bool(losses))


def show(rows: list[tuple[str, int, int, int]], losses: list[str]) -> None:
    """The table, and what was lost."""
    width = max(len(name) for name, *_ in rows)
    total = ("together", *(sum(row[column] for row in rows) for column in (1, 2, 3)))
    print(f"{'fault':{width}}  tries  survived  lost")
    for name, tries, survived, lost in [*rows, total]:
        print(f"{name:{width}}  {tries:5}  {survived:8}  {lost:4}")
    for lost_one in losses:
        Console(markup=False, highlight=False, soft_wrap=True).print(f"lost: {lost_one}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
