"""``python -m sam_repro.search show | run | report``: which answers to the four questions go together, by successive halving.

The search is ``experiments/search.yaml``, or another file of that form. Stopped at any time, the same command goes on: what comes next
follows from the runs that there are.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from . import study
from .command import command
from .console import clock, console
from .results.search.halving import Search, Stage, cost, load, ranked, score, stages
from .results.select import Request
from .results.work import time_left
from .schema import UserError
from .store import OVER

USAGE = (
    "python -m sam_repro.search show | run | report   "
    "[file=experiments/search.yaml runs_dir=runs results_dir=results data_dir=... plugins=...]"
)


def main() -> None:
    """The command line."""
    with command("sam_repro.search", "the same command goes on", USAGE):
        word, path, request = study.asked("search.yaml", ("show", "run", "report"), USAGE)
        with study.reading(path, "docs/search.md"):
            search = load(path, request)
        if word == "report":
            report(search, path, request)
        else:
            (show if word == "show" else run)(search, request)


def show(search: Search, request: Request) -> None:
    """What is searched, what is left out, and how the runs stand that are known by now."""
    for line in left_out(search):
        console.print(line)
    known = stages(search, request)
    for stage in known:
        _show(stage)
    for number, (count, epochs) in list(enumerate(search.rungs, 1))[len(known) :]:
        console.print(f"rung {number}: the best {count} for {epochs} epochs, chosen when rung {number - 1} is over")
    if not known[-1].final:
        console.print(f"final: the front of the last rung at seeds {', '.join(map(str, search.seeds))}, and {len(search.beside)} beside it")
    todo = [task for stage in known for task in stage.tasks]
    seconds, unknown = time_left([task for task in todo if task.run.state not in OVER], todo)
    if not unknown:
        console.print(f"What is left of the {known[-1].title} takes about {clock(seconds)}.")


def left_out(search: Search) -> list[str]:
    """How many combinations there are, and how many are left out for which reason."""
    grid, count = search.grid, search.rungs[0][0]
    reasons = {**grid.excluded, **Counter(grid.refused.values())}
    drawn = f", of which {count} are drawn by lot" if count < len(grid.combinations) else ""
    return [f"{len(grid.combinations)} combinations{drawn}", *(f"{number} left out: {why}" for why, number in reasons.items())]


def _show(stage: Stage) -> None:
    states = Counter(task.run.state for task in stage.tasks)
    console.print(
        f"{stage.title}: {len(stage.entries)} x {stage.epochs} epochs: {', '.join(f'{n} {state}' for state, n in states.items())}"
    )
    scored = [] if stage.final else ranked(stage)
    for entry in scored:
        console.print(f"  {entry.done[0].id}  {score(entry):6.2f}  {cost(entry.done[0].summary):5.2f} of SGD's cost  {entry.label}")
    for task in stage.tasks:
        if stage.final or task.run.state != "done":
            console.print(f"  {task.run.id}  {task.run.state:<8} seed {task.seed}  {task.label}")


def run(search: Search, request: Request) -> None:
    """Rung after rung, and then the final runs: train, measure, archive what is missing of each."""
    known: list[Stage] = []
    while len(found := stages(search, request)) > len(known):
        study.run([task for stage in found[len(known) :] for task in stage.tasks], request)
        known = found
    if not known[-1].over:  # and none of its runs failed
        raise UserError(f"Another command is at work on runs of the {known[-1].title}: when it is done, the same command goes on.")


def report(search: Search, path: Path, request: Request) -> None:
    """Write ``search.md`` and ``search.csv``, and the figure where there is something to draw."""
    from .results.search.page import write_all

    for written in write_all(search, stages(search, request), left_out(search), path, request):
        console.print(str(written))


if __name__ == "__main__":
    main()
