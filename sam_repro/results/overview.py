"""How far tables are: a line each, and one for all of them together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from ..console import clock
from ..device import device_type
from ..store import OVER
from .declare import Table
from .frames import Frames
from .measurements import missing
from .select import Request
from .work import Task, tasks, time_left

STATES = ("done", "diverged", "failed", "stopped", "running", "new")
WORDS = {"new": "not begun"}


def overview(tables: Sequence[Table], request: Request, frames: Frames) -> Iterator[str]:
    """The states of each table's runs, and of all together, where a run that several tables show counts once."""
    found = {table.name: tasks([table], request, frames) for table in tables}
    everything = list({task.run.id: task for several in found.values() for task in several}.values())
    width = max(map(len, found))
    for name, several in found.items():
        yield f"{name:<{width}}  {line(several, everything, request) if several else 'a recipe, which has no runs'}"
    yield f"{'together':<{width}}  {line(everything, everything, request)}"


def line(several: Sequence[Task], known: Sequence[Task], request: Request) -> str:
    """``48 runs: 40 done, 8 not begun; about 1:20:00 on this cpu``; what is known tells the time."""
    counts = Counter(task.run.state for task in several)
    states = ", ".join(f"{counts[state]} {WORDS.get(state, state)}" for state in STATES if counts[state])
    todo = [task for task in several if task.run.state not in OVER]
    measures = len(missing(task for task in several if task.run.state == "done"))
    parts = [f"{len(several)} run{'s' * (len(several) != 1)}: {states}", *_time(todo, known, request)]
    return "; ".join([*parts, *([f"{measures} to be measured"] if measures else [])])


def _time(todo: Sequence[Task], known: Sequence[Task], request: Request) -> list[str]:
    if not todo:
        return []
    seconds, unknown = time_left(todo, known)
    where = f"on this {device_type(request.device)}"
    if unknown == len(todo):
        return [f"nothing like them was timed {where}"]
    return [f"about {clock(seconds)} {where}" + (f" without {unknown} of them, as nothing like those was timed" if unknown else "")]
