"""What ``python -m sam_repro.claims`` does, once its words are known to be right."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path

from ...console import console
from ...files import write
from ...places import places
from ...plain import harmless
from ...provenance import now, provenance
from ...schema import UserError, suggest
from ...store import OVER
from ..declare import Table
from ..measurements import measure, missing
from ..select import Request
from ..work import Work, check_all, provide_all, tasks
from . import report as render
from .declare import Claim, Claims, load, load_all, module
from .evidence import Evidence, cell_of, stored
from .judge import VERDICTS


def declared(file: str) -> list[Claims]:
    """The claims of a user's file; of the papers where none is given."""
    return [load(Path(file))] if file else load_all()


def judged(claims: Claims, request: Request) -> Evidence:
    """The claims of a paper beside the runs that there are."""
    return Evidence(claims, request, request.frames)


def judged_of(papers: list[Claims], name: str, request: Request) -> tuple[Evidence, Claim]:
    """A claim, and its paper's beside the runs; UserError where there is none of that name."""
    claim = claim_of(papers, name)
    return judged(next(one for one in papers if claim in one.claims), request), claim


def show_list(papers: list[Evidence]) -> None:
    """All claims, a line each."""
    for one in (one for paper in papers for one in paper.verdicts):
        after = f" (Holm: {one.holm})" if one.holm != one.ours.verdict else ""
        effect = f"  {render.interval(one.ours)}" if not math.isnan(one.ours.effect) else ""
        console.print(
            f"{one.claim.id}  {render.qualified(one.ours, one.found)}{after}{effect}  {one.claim.says}", markup=False, highlight=False
        )


def show(paper: Evidence, claim: Claim) -> None:
    """All that is known of a claim."""
    one = next(one for one in paper.verdicts if one.claim == claim)
    after = f" ({one.holm} after Holm's correction over the paper's claims)" if one.holm != one.ours.verdict else ""
    lines = [
        f"{one.claim.id}  {one.claim.where}",
        one.claim.says,
        *filter(None, [one.claim.note]),
        f"{render.qualified(one.ours, one.found)}{after}",
    ]
    for found in one.found:
        part, ours = found.part, found.ours
        lines.append(f"\n{' / '.join(filter(None, [found.benchmark, part.label]))}, holds {part.region.text}")
        seeds = f", n = {ours.n}, needed {ours.needed or 'unknown'}" if ours.n else ""
        lines.append(f"  {ours.verdict}  {render.interval(ours)}{seeds}" + (f"  {render.where(found)}" if found.setting else ""))
        lines += [f"  {said}" for said in (found.why, found.note) if said]
        if render.interval(found.papers):
            lines.append(f"  the paper's own numbers: {render.interval(found.papers)}, {render.papers_word(found.papers)}")
        for one_id in found.run_ids:
            row = paper.frames.runs.loc[one_id]
            lines.append(f"  {one_id}  {row.state:<8} seed {row.seed}  {row.optimizer}")
    console.print("\n".join(lines), markup=False, highlight=False)


def run(claims: list[Claim], request: Request, jobs: int) -> None:
    """Train and measure what is missing, compute the checks; UserError where something did not finish."""
    for claim in claims:
        if names := [part.check for part in claim.parts if part.check]:
            compute(claim, names, request)
    everything = tasks([table for claim in claims for table in tables(claim)], request, request.frames)
    todo = [task for task in everything if task.run.state not in (*OVER, "running")]
    if everything:
        console.print(f"{sum(task.run.state == 'done' for task in everything)} of {len(everything)} runs are done, {len(todo)} to do.")
    check_all(todo)
    provide_all(todo)
    failed = Work(todo, everything, request, places(request.device, jobs)).go() if todo else []
    unmeasured = measure(missing(task for task in everything if task.run.state == "done"), request)
    if failed or unmeasured:
        raise UserError(f"{len(failed)} runs did not finish, {len(unmeasured)} measurements failed; the same command tries again.")


def tables(claim: Claim) -> Iterator[Table]:
    """The runs of a claim as tables have them, one for each part."""
    for part in (part for part in claim.parts if part.runs):
        cells = [replace(cell_of(part, benchmark, run), measures=part.measures) for benchmark, run in product(part.on, part.runs)]
        yield Table(claim.id, claim.says, "", claim.where, "table", "", part.seeds, tuple(cells), {}, "", "", ())


def compute(claim: Claim, names: list[str], request: Request) -> None:
    """Compute a claim's checks and keep what they gave."""
    import torch

    from ...train.loop import hardware

    found = {}
    for name in names:
        console.print(f"{claim.id}: {name}", markup=False)
        found[name] = [float(number) for number in module(claim.paper, "CHECKS")[name]()]
        if not found[name] or not all(map(math.isfinite, found[name])):
            raise UserError(f"The check {name!r} of {claim.id} gave {found[name]}: it is a list of numbers.")
    made = provenance()
    kept = {
        "claim": claim.id, "checks": found, "date": now(), "commit": made["commit"], "hardware": hardware(torch.device("cpu")),
        "versions": made["versions"],
    }  # fmt: skip
    path = stored(request, claim.id)
    write(path, json.dumps(kept, indent=2) + "\n")
    console.print(f"  {', '.join(f'{name}: {len(of)} numbers' for name, of in found.items())} in {path}", markup=False)


def report(papers: list[Claims], request: Request, path: Path) -> None:
    """Write the page and the table, and keep the runs that they show beside them."""
    from ..archive import archive

    evidence = [judged(one, request) for one in papers]
    rendered = [(one.claims, one.verdicts) for one in evidence]
    write(path.with_suffix(".csv"), harmless(render.as_csv(rendered)))
    write(path.with_suffix(".md"), harmless(render.as_markdown(rendered)))
    kept = Path(request.results_dir) / "runs"
    for paper in evidence:
        for one in dict.fromkeys(one for verdict in paper.verdicts for one in verdict.run_ids):
            if paper.frames.found[one].path.parent != kept:
                archive(paper.frames.found[one], kept)
    counts = {word: sum(one.ours.verdict == word for paper in evidence for one in paper.verdicts) for word in VERDICTS}
    console.print(f"{path.with_suffix('.md')}: {', '.join(f'{count} {word}' for word, count in counts.items())}")


def claim_of(papers: list[Claims], name: str) -> Claim:
    """The claim of this name; UserError where there is none."""
    known = {claim.id: claim for paper in papers for claim in paper.claims}
    if name not in known:
        raise UserError(f"There is no claim {name!r}.{suggest(name, known)}")
    return known[name]
