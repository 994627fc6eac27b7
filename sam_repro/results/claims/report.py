"""``results/claims.md`` and ``results/claims.csv``: every claim with its verdict, from runs alone. The same runs give the same bytes."""

from __future__ import annotations

import csv
import io
import math
from collections import Counter
from collections.abc import Sequence

from ...schema import read
from .declare import Claims
from .evidence import Found, Verdict, without_runs
from .judge import NOT_RUN, UNDECIDED, VERDICTS, Ruling

COLUMNS = (
    "paper", "claim", "where", "verdict", "effect", "low", "high", "n", "n_needed", "paper_effect", "paper_verdict", "scale", "run_ids",
    "holm", "parts_not_run",
)  # fmt: skip
NOT_STATED = "not stated"
PARTS = {0.5: "half", 0.25: "a quarter", 0.2: "a fifth", 0.1: "a tenth", 0.05: "a twentieth", 0.01: "a hundredth"}
HOW = """A claim is one number, the effect, and the region in which the paper's sentence holds. **Supported**: the effect's 95 % interval
lies inside the region; **contradicted**: wholly outside; **undecided**: neither, or a seed that the claim declares is missing or
diverged; **not run**: there are no runs of one of its sides. Methods are paired by seed, and all methods of the paper's claims in
a benchmark give the residual variance. Of several benchmarks or parts each must hold, and one that is contradicted refutes the
claim; where the others have runs, and a part has none, it is undecided. A claim's line has the numbers of the part that decides,
and of the paper's own numbers those of the part that decides there, which may be another; the lines below have each. *n*: seeds a
method. *Holm*: the verdict after Holm's correction over all judged claims of the paper. *n needed*: seeds a method with which the
interval decides, four times of five, at the effect and the deviation seen. The paper's own numbers are judged by the same rule,
its ± taken as sample standard deviations. A verdict at a reduced scale is about that scale. Computed from runs by
`python -m sam_repro.claims report`; docs/claims.md says more."""


def as_csv(judged: Sequence[tuple[Claims, Sequence[Verdict]]]) -> str:
    """A line a claim."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for claims, verdicts in judged:
        for one in verdicts:
            ours, papers = one.ours, one.papers
            writer.writerow([
                claims.paper, one.claim.id, one.claim.where, ours.verdict, *(number(x) for x in (ours.effect, ours.low, ours.high)),
                ours.n or "", ours.needed or "", number(papers.effect), papers_word(papers), ";".join(one.scales),
                ";".join(one.run_ids), one.holm, one.lacking or "",
            ])  # fmt: skip
    return text.getvalue()


def as_markdown(judged: Sequence[tuple[Claims, Sequence[Verdict]]]) -> str:
    """The page."""
    rows = [_row(["", *VERDICTS, "all"]), "| --- " * 6 + "|"]
    for claims, verdicts in judged:
        rows.append(_counted(claims.paper, [one.ours.verdict for one in verdicts], sum(one.partly for one in verdicts)))
        rows.append(_counted(f"{claims.paper}, after Holm", [one.holm for one in verdicts]))
        rows.append(_counted(f"{claims.paper}, by its own numbers", [papers_word(one.papers) for one in verdicts]))
    parts = [
        "# Claims, judged",
        "\n".join(rows),
        "*Partly run*: a part of the claim has no runs. In the paper's own numbers *not run* is *not stated*: no number, or no deviation.",
        HOW,
    ]
    for claims, verdicts in judged:
        parts.append("\n\n".join(filter(None, [f"## {claims.paper}", claims.citation, _table(verdicts), _notes(verdicts)])))
    return "\n\n".join(parts) + "\n"


def _counted(label: str, words: Sequence[str], partly: int = 0) -> str:
    count = Counter(NOT_RUN if word == NOT_STATED else word for word in words)
    said = {verdict: str(count[verdict]) for verdict in VERDICTS}
    if partly:
        said[UNDECIDED] += f" ({partly} partly run)"
    return _row([label, *said.values(), str(len(words))])


def _table(verdicts: Sequence[Verdict]) -> str:
    head = ["claim", "says", "verdict", "Holm", "effect [95 %]", "holds", "n", "n needed", "paper's effect", "paper's verdict", "scale"]
    rows = [_row(head), "| --- " * len(head) + "|"]
    for one in verdicts:
        says = f"{one.claim.says} ({one.claim.where})" if one.claim.where else one.claim.says
        rows.append(_line(f"**{one.claim.id}**", says, one, one.found, one.holm, one.decisive.part.region.text))
        for found in one.found if len(one.found) > 1 else ():
            label = " / ".join(filter(None, [found.benchmark, found.part.label if len(one.claim.parts) > 1 else ""]))
            rows.append(_line("", f"· {label}", found, [found], "", found.part.region.text))
    return "\n".join(rows)


def _line(name: str, says: str, one: Verdict | Found, found: Sequence[Found], holm: str, holds: str) -> str:
    ours, papers = one.ours, one.papers
    settings = ", ".join(dict.fromkeys(where(each) for each in found if each.setting))
    numbers = [interval(ours), holds, str(ours.n or ""), str(ours.needed or ""), interval(papers), papers_word(papers)]
    return _row([name, says, qualified(ours, found, "**"), holm, *numbers, settings])


def _notes(verdicts: Sequence[Verdict]) -> str:
    """What a reader must know of a claim, what is missing, and what stands in at a reduced scale."""
    lines = [f"- *{one.claim.id}*: {one.claim.note}" for one in verdicts if one.claim.note]
    said = [(one.claim.id, found) for one in verdicts for found in one.found if found.why]
    lines += [
        f"- *{name}*{found.benchmark and f', {found.benchmark}'}, {found.ours.verdict}: {found.why}."
        for name, found in said
        if found.run_ids or found.ours.verdict != NOT_RUN
    ]
    lines += [f"- {note}." for note in dict.fromkeys(found.note for one in verdicts for found in one.found if found.note)]
    return "\n".join(lines)


def qualified(ours: Ruling, found: Sequence[Found], mark: str = "") -> str:
    """The verdict, the scale that it is of where that is not the paper's, and how many parts have no runs."""
    if ours.verdict == NOT_RUN:
        return ours.verdict
    reduced = dict.fromkeys(in_words(one.setting.scale) for one in found if one.setting and one.setting.scale != "paper")
    lacking = without_runs(found)
    return ", ".join([f"{mark}{ours.verdict}{mark}", *reduced, *([f"{lacking} of {len(found)} parts not run"] if lacking else [])])


def in_words(scale: str) -> str:
    """``at a tenth of the data``."""
    factors = read(f"scale/{scale}")
    said = [f"{PARTS.get(factors[key], f'{100 * factors[key]:g} %')} of the {key}" for key in ("data", "epochs") if factors[key] != 1]
    return f"at {' and '.join(said)}" if said else "in full"


def where(found: Found) -> str:
    """Scale, device and precision of the runs: ``small on cpu bf16``."""
    return f"{found.setting.scale} on {found.setting.where}" if found.setting else ""


def papers_word(papers: Ruling) -> str:
    """The verdict on the paper's own numbers."""
    return NOT_STATED if papers.verdict == NOT_RUN else papers.verdict


def interval(one: Ruling) -> str:
    """``0.85 [0.31, 1.39]``; the number alone where it is exact, or its interval not known."""
    if math.isnan(one.effect):
        return ""
    return short(one.effect) + (f" [{short(one.low)}, {short(one.high)}]" if one.low < one.high else "")


def short(value: float) -> str:
    """Four digits: they are read."""
    return f"{value:.4g}"


def number(value: float) -> str:
    """As the CSV has it: six digits, nothing where there is no number."""
    return "" if math.isnan(value) else f"{value:.6g}"


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"
