"""From a declared claim to its verdict: which runs of the store it takes, what they came to, and what is missing.

All claims of a paper show a benchmark at one scale, one device type and one precision: of the scales the paper's comes first, then the
setting with the most runs. A claim takes the seeds 0 to n-1 that it declares and no others, so that nobody chooses among them.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product
from pathlib import Path

import pandas as pd

from ...schema import UserError
from ...store import OVER
from ..declare import Cell, Printed, distinct
from ..frames import Frames
from ..select import DEVICES, SCALES, Request, Setting, configuration, has_precision, precisions, run_id
from . import judge
from .declare import Claim, Claims, Part, module
from .judge import NOT_RUN, UNDECIDED, Estimate, Ruling

SCORES = {"score_last", "score_best", "f1"}  # of a finite test set: that seeds agree may be chance

Ids = dict[int, str]  # of the runs that are over, by seed
Key = tuple[str, str, str]  # of a method in a benchmark: that, its overrides, those of what stands in for it


@dataclass(frozen=True)
class Found:
    """What a part comes to on one benchmark."""

    part: Part
    benchmark: str
    ours: Ruling
    papers: Ruling
    why: str = ""  # it is undecided or not run, where that is not the interval's doing
    setting: Setting | None = None
    run_ids: tuple[str, ...] = ()
    note: str = ""  # what stands in at a reduced scale


def without_runs(found: Iterable[Found]) -> int:
    """How many of them have no runs at all."""
    return sum(one.ours.verdict == NOT_RUN for one in found)


@dataclass(frozen=True)
class Verdict:
    """What a claim comes to."""

    claim: Claim
    ours: Ruling
    papers: Ruling
    found: tuple[Found, ...]
    decisive: Found
    holm: str = ""

    @property
    def run_ids(self) -> list[str]:
        """Of all its runs, each once."""
        return list(dict.fromkeys(one for found in self.found for one in found.run_ids))

    @property
    def lacking(self) -> int:
        """How many of ``found`` have no runs at all."""
        return without_runs(self.found)

    @property
    def partly(self) -> bool:
        """Whether it is undecided for want of runs of a part."""
        return self.ours.verdict == UNDECIDED and self.lacking > 0

    @property
    def scales(self) -> list[str]:
        """Of its runs."""
        return list(dict.fromkeys(found.setting.scale for found in self.found if found.setting))


def stored(request: Request, claim: str) -> Path:
    """Where the result of a claim's checks lies."""
    return Path(request.results_dir) / "measured" / "claims" / f"{claim}.json"


def cell_of(part: Part, benchmark: str, run: str) -> Cell:
    """The runs of one side, as a table has them."""
    base = (benchmark,) if "=" not in benchmark else ()
    words = distinct((*(f"experiment={name}" for name in base), *(benchmark.split() if not base else ()), *run.split()))
    return Cell(f"{benchmark}, {run}", "", "", Printed(), words, words[:1], substitutes=part.substitutes[benchmark])


def _key(part: Part, benchmark: str, run: str) -> Key:
    return benchmark, run, str({scale: one.words for scale, one in part.substitutes[benchmark].items()})


def _gap(part: Part, run: str, complete: set[int], states: dict[int, str]) -> str:
    """What is missing of the seeds of one side, in words."""
    lacking = [seed for seed in range(part.seeds) if seed not in complete]
    kinds = {"diverged": ("diverged", "diverged"), "done": (f"has no {part.of}", f"have no {part.of}"), "": ("is missing", "are missing")}
    said = []
    for state, (one, several) in kinds.items():
        seeds = [str(seed) for seed in lacking if states.get(seed, "") == state]
        said += [f"seeds {', '.join(seeds)} {several}" if len(seeds) > 1 else f"seed {seeds[0]} {one}"] if seeds else []
    return f"{run}: {', '.join(said)}" if said else ""


class Evidence:
    """The runs of a paper's claims, found in the store and behind it in the archive."""

    def __init__(self, claims: Claims, request: Request, frames: Frames) -> None:
        self.claims, self.request, self.frames = claims, request, frames
        self._metrics: dict[str, pd.Series] = {}
        self._seeds: dict[Key, int] = {}  # of every method that a claim runs in a benchmark
        self._cells: dict[Key, Cell] = {}
        for part in (part for claim in claims.claims for part in claim.parts):
            for benchmark, run in product(part.on, part.runs):
                key = _key(part, benchmark, run)
                self._seeds[key] = max(self._seeds.get(key, 0), part.seeds)
                self._cells[key] = cell_of(part, benchmark, run)

    @cached_property
    def verdicts(self) -> list[Verdict]:
        """Of all claims, in the order of the file."""
        found = [self.verdict(claim) for claim in self.claims.claims]
        return [replace(one, holm=holm) for one, holm in zip(found, judge.holm([one.ours for one in found]), strict=True)]

    def verdict(self, claim: Claim) -> Verdict:
        """Of one claim, without Holm's correction."""
        everything, ours, papers, decisive = [], [], [], []
        for part in claim.parts:
            taken: dict[tuple[str, ...], str] = {}
            found = [self._found(claim, part, benchmark, taken) for benchmark in part.on]
            one, which = judge.combine([each.ours for each in found], part.any)
            everything += found
            ours.append(one)
            decisive.append(found[which])
            papers.append(judge.combine([each.papers for each in found], part.any)[0])
        one, which = judge.combine(ours, claim.any)
        return Verdict(claim, one, judge.combine(papers, claim.any)[0], tuple(everything), decisive[which])

    def _found(self, claim: Claim, part: Part, benchmark: str, taken: dict[tuple[str, ...], str]) -> Found:
        ratio = part.effect == "ratio"
        paper = judge.printed(part.paper.get(benchmark, ()), part.weights if benchmark in part.paper else (), part.paper_n, ratio)
        papers = judge.rule(paper, part.region, ratio) if paper else Ruling(NOT_RUN)
        papers = replace(papers, verdict=NOT_RUN) if math.isnan(papers.low) else papers  # no deviation is printed
        if part.effect == "check":
            return Found(part, benchmark, *self._checked(claim, part, papers))
        setting = self.settings.get(benchmark)
        sides = {run: self._sides[_key(part, benchmark, run)].get(setting, {}) if setting else {} for run in part.runs}
        sides = {run: {seed: one for seed, one in ids.items() if seed < part.seeds} for run, ids in sides.items()}
        ids = tuple(dict.fromkeys(one for side in sides.values() for one in side.values()))
        states = {run: {seed: self.frames.runs.state[one] for seed, one in side.items()} for run, side in sides.items()}
        values = {run: self._values(part, part.of, side) for run, side in sides.items()}
        by = {run: self._values(part, part.rank_with, side) for run, side in sides.items()} if part.rank_with else values
        complete = {run: {*values[run]} & {*by[run]} for run in part.runs}
        gaps = [gap for run in part.runs if (gap := _gap(part, run, complete[run], states[run]))]
        instead = part.substitutes[benchmark].get(setting.scale) if setting and ids else None
        note = instead.note if instead else ""
        found = Found(part, benchmark, Ruling(NOT_RUN), papers, "; ".join(gaps), setting if ids else None, ids, note)
        if lacking := [run for run in part.runs if not complete[run]]:
            lost = all("diverged" in states[run].values() for run in lacking)
            return replace(found, ours=Ruling(UNDECIDED), why="; ".join(gaps)) if lost else found
        if len({*map(tuple, map(dict.values, sides.values()))}) < len(sides):
            return replace(found, why="what is compared is one and the same run here")
        if ids in taken:
            return replace(found, why=f"these are the runs of {taken[ids]}", setting=None, run_ids=())
        taken[ids] = benchmark
        ours = judge.rule(self._estimate(part, benchmark, values, by), part.region, ratio)
        if gaps:  # whoever leaves seeds out could choose them
            ours = replace(ours, verdict=UNDECIDED, p=1.0, q=1.0)
        why = "; ".join(gaps) or ("the runs have no deviation to judge by" if math.isnan(ours.low) else "")
        return replace(found, ours=ours, why=why)

    def _estimate(self, part: Part, benchmark: str, values: judge.Values, by: judge.Values) -> Estimate:
        counted = part.of not in SCORES
        if part.effect == "rank":
            return judge.taus(values, by)
        if part.effect == "value":
            (alone,) = (list(of.values()) for of in values.values())
            return judge.mean(alone, exact=counted and len(alone) > 1)
        over = dict(zip(part.runs, part.over, strict=True)) if part.over else None
        weights = dict(zip(part.runs, part.weights, strict=True))
        return judge.contrast({**values, **self._others(part, benchmark, values)}, weights, counted, over)

    def _others(self, part: Part, benchmark: str, values: judge.Values) -> judge.Values:
        """The metric of the other methods that the paper's claims run in the benchmark: they share the residual variance."""
        setting, found = self.settings[benchmark], {}
        seen = {one for run in values for one in self._sides[_key(part, benchmark, run)][setting].values()}
        for key, settings in self._sides.items():
            ids = settings.get(setting, {})
            if key[0] == benchmark and not seen & {*ids.values()}:  # else it is one of them in other words
                seen |= {*ids.values()}
                found[str(key)] = self._values(part, part.of, {seed: one for seed, one in ids.items() if seed < part.seeds})
        return {key: of for key, of in found.items() if of}

    def _values(self, part: Part, metric: str, ids: Ids) -> dict[int, float]:
        """The metric by seed, of the runs that are done and have it; its logarithm for a ratio."""
        if not ids or not metric:
            return {}
        if metric not in self._metrics:
            own = module(self.claims.paper, "METRICS").get(metric)
            column = own(self.frames) if own else self.frames.runs.get(metric, pd.Series(dtype=float))
            self._metrics[metric] = pd.to_numeric(column[self.frames.runs.state.reindex(column.index) == "done"]).astype(float)
        found = {seed: float(self._metrics[metric].get(one, math.nan)) for seed, one in sorted(ids.items())}
        if part.effect == "ratio":
            found = {seed: math.log(value) if value > 0 else math.nan for seed, value in found.items()}
        return {seed: value for seed, value in found.items() if math.isfinite(value)}

    def _checked(self, claim: Claim, part: Part, papers: Ruling) -> tuple[Ruling, Ruling, str]:
        path = stored(self.request, claim.id)
        try:
            replicates = json.loads(path.read_text())["checks"].get(part.check) if path.exists() else None
            if replicates:
                return judge.rule(judge.mean([float(one) for one in replicates], exact=True), part.region), papers, ""
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{path} is damaged: 'python -m sam_repro.claims run {claim.id}' makes it anew.") from error
        return Ruling(NOT_RUN), papers, f"python -m sam_repro.claims run {claim.id} computes it"

    @cached_property
    def settings(self) -> dict[str, Setting]:
        """The setting that each benchmark is judged at."""
        counts: dict[str, Counter[Setting]] = {}
        for (benchmark, *_), settings in self._sides.items():
            for setting, ids in settings.items():
                done = sum(self.frames.runs.state[one] == "done" for one in ids.values())
                counts.setdefault(benchmark, Counter())[setting] += done

        return {benchmark: min(count, key=lambda one, count=count: one.rank(count[one])) for benchmark, count in counts.items()}  # type: ignore[misc]

    @cached_property
    def _sides(self) -> dict[Key, dict[Setting, Ids]]:
        """The runs of every method that are over, by setting and seed."""
        return {key: dict(self._runs(self._cells[key], seeds)) for key, seeds in self._seeds.items()}

    def _runs(self, cell: Cell, seeds: int) -> Iterator[tuple[Setting, Ids]]:
        runs = self.frames.runs
        over = runs[runs.state.isin(OVER)]
        named = {word.partition("=")[2] for word in cell.words if word.startswith("optimizer=")}
        for scale in [self.request.scale] if self.request.scale else SCALES:
            if not named <= {*over.optimizer[over["scale"] == scale]}:  # composing a configuration takes a tenth of a second
                continue
            config = configuration(cell, scale, self.request)
            own = has_precision(cell, scale) or any(word.startswith("precision=") for word in cell.words)
            for device in [self.request.device.partition(":")[0]] if self.request.device not in ("", "auto") else DEVICES:
                for precision in [self.request.precision] if self.request.precision else precisions():
                    if (scale, device, config["precision"] if own else precision) in self.frames.settings:
                        ids = {seed: run_id(config, seed, device, "" if own else precision) for seed in range(seeds)}
                        if found := {seed: one for seed, one in ids.items() if one in over.index}:
                            yield Setting(scale, device, precision), found
