"""``python -m sam_repro.measure.bench``: every method's step beside SGD's, its pass-count limit, and others' methods beside ours.

    [model=resnet20] [batch_size=128] [steps=20] [device=auto] [methods=sam,msam] [results_dir=results]

All take their steps in one process, on the same batch, each on a fresh copy of the model: in every round one step each, in an
order drawn anew, and before every fourth a step of plain SGD, which the four are compared with. A method's cost is the mean ratio
of its steps to the SGD steps beside them: for each kind of step (those that make the same passes) the median over the rounds,
weighted by how often the kind came, over whole cycles of every method. Speed is 1 over the cost. The limit is the speed that the
passes allow, 3 / (f + 2b) for f passes forward and b backward a step on average over the same steps; SGD's are 1 and 1.

Memory and launches are those of other steps, which are not timed. Printed, and written to ``results/bench/<model>_<device>.md``.
"""

from __future__ import annotations

import random
import shlex
import sys
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from ..command import command
from ..console import console
from ..files import write
from ..schema import UserError, options, suggest
from . import rivals
from .bench_page import Result, Taken, page, result
from .contestants import contestant, entries, network, random_batch
from .footprint import Footprint
from .progress import bar

CYCLE = 5  # steps, of the methods that have one
GROUP = 4  # contestants that share an SGD step
DEFAULTS = {"model": "resnet20", "batch_size": "128", "steps": "20", "device": "auto", "methods": "all", "results_dir": "results"}


class Stepping(Protocol):
    """A contestant or a rival."""

    label: str

    def step(self, inputs: Tensor, targets: Tensor, *, indices: Tensor) -> tuple[float, Any]:
        """Seconds of one step, and its report."""


class Entrant(NamedTuple):
    """Who is to take part: made only when its turn comes, so that its memory can be told from the others'."""

    make: Callable[[], Stepping]
    steady: bool  # all steps make the same passes
    same_work: str = ""  # of a rival: the label of the contestant that does the same work


def entrants(model: str, batch_size: int, device: torch.device, steps: int, methods: Sequence[str]) -> list[Entrant]:
    """SGD, the methods in their variants, and the rivals that do the work of any of them."""
    total = {"total_steps": steps + CYCLE + 1, "steps_per_epoch": 1, "dataset_size": batch_size}
    ours = list(entries(dict.fromkeys(("sgd", *methods)), model))
    found = [Entrant(partial(contestant, e.label, model, e.method, device, **total, **e.knobs), e.steady) for e in ours]
    for label, (same_work, make) in rivals.rivals().items():
        if same_work in [entry.label for entry in ours]:
            found.append(Entrant(partial(_rival, label, model, device, same_work, make), True, same_work))
    return found


def _rival(label: str, model: str, device: torch.device, same_work: str, make: Callable[[Any], rivals.Take]) -> Stepping:
    return rivals.Rival(label, same_work, make(network(model, device)))


def warmed_up(entrant: Entrant, batch: dict[str, Tensor], device: torch.device) -> tuple[Stepping, int, float]:
    """One who has made its first steps, which allocate and find out FLOPs; its peak of memory, and its launches a step."""
    with Footprint(device) as seen:
        one = entrant.make()
        one.step(**batch)
        seen.launches = 0
        steps = 1 if entrant.steady else CYCLE
        for _ in range(steps):
            one.step(**batch)
    return one, seen.peak, seen.launches / steps


def timed(
    plain: Stepping, contestants: Sequence[Stepping], batch: dict[str, Tensor], steps: int, tick: Callable[[int], None]
) -> list[list[Taken]]:
    """The steps of every contestant in ``steps`` rounds, each with the last one of ``plain`` before it."""
    draw = random.Random(0)
    taken: list[list[Taken]] = [[] for _ in contestants]
    for done in range(steps):
        for place, index in enumerate(draw.sample(range(len(contestants)), len(contestants))):
            if place % GROUP == 0:
                beside, _ = plain.step(**batch)
            seconds, report = contestants[index].step(**batch)
            taken[index].append(Taken(seconds, beside, report.forward_units, report.backward_units))
        tick(done + 1)
    return taken


def bench(model: str, batch_size: int, device: torch.device, steps: int, methods: Sequence[str]) -> list[Result]:
    """A result for each method and rival, SGD's first."""
    batch = random_batch(batch_size, device)
    found = entrants(model, batch_size, device, steps, methods)
    with bar() as shown:
        tick = shown.work("memory and launches", len(found))
        ready = []
        for place, entrant in enumerate(found):
            ready.append(warmed_up(entrant, batch, device))
            tick(place + 1)
        plain, _, _ = warmed_up(found[0], batch, device)
        taken = timed(plain, [one for one, _, _ in ready], batch, steps, shown.work("rounds", steps))
    return [
        result(one.label, its)._replace(peak=peak, launches=launches, same_work=entrant.same_work)
        for entrant, (one, peak, launches), its in zip(found, ready, taken, strict=True)
    ]


def parsed(words: Iterable[str]) -> dict[str, str]:
    """The settings that the words make; UserError where they do not fit."""
    settings = dict(DEFAULTS)
    for word in words:
        key, _, value = word.partition("=")
        if key not in settings:
            raise UserError(f"There is no key {key!r}.{suggest(key, settings)}")
        if key in ("batch_size", "steps") and not (value.isdecimal() and int(value)):
            raise UserError(f"{word!r}: {key} is a whole number, as in {key}={settings[key]}.")
        settings[key] = value
    if int(settings["steps"]) % CYCLE:
        raise UserError(f"steps={settings['steps']} leaves a cycle unfinished: steps is a multiple of {CYCLE}.")
    for name in _methods(settings):
        if name not in options("optimizer"):
            raise UserError(f"There is no method {name!r}.{suggest(name, options('optimizer'))}")
    return settings


def _methods(settings: dict[str, str]) -> list[str]:
    return options("optimizer") if settings["methods"] == "all" else settings["methods"].split(",")


def main() -> None:
    """The command line."""
    with command("sam_repro.measure.bench", "nothing was written", str(__doc__).rpartition("\n\nMemory")[0].replace("``", "")):
        settings = parsed(sys.argv[1:])
        from ..device import resolve_device
        from .bookkeeping import IMAGES, bookkeeping

        device = torch.device(resolve_device(settings)["device"])
        model, size, steps = settings["model"], int(settings["batch_size"]), int(settings["steps"])
        results = bench(model, size, device, steps, _methods(settings))
        shares = bookkeeping(model, size, device).shares(-(-IMAGES // size), results[0].milliseconds / 1000)
        text = page(settings, shlex.join(sys.argv[1:]), device, results, shares)
        path = Path(settings["results_dir"]) / "bench" / f"{model}_{device.type}.md"
        write(path, text)
        console.print(f"{text}\nfile {path}")


if __name__ == "__main__":
    main()
