"""Declared claims: what a paper says, the number that decides it, the region in which the sentence holds. docs/claims.md has the fields."""

from __future__ import annotations

import importlib
import importlib.util
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from ...config import check_overrides
from ...schema import NOT_NEGATIVE, UserError, checked, keys_of, only, options, parse, read, suggest
from ..declare import EXPERIMENTS, SEEDS, Substitute, Words, measures_of
from ..frames import COLUMNS
from .judge import Printed, Region, number

EFFECTS = ("difference", "ratio", "value", "slope", "rank", "check")
PART = {"on", "of", "holds", "seeds", "any", "paper", "paper_n", "scales", "log", "over", "with", "measure", *EFFECTS}
CLAIM = PART | {"where", "says", "note", "parts"}
HEADER = {"citation", "seeds", "scales", "claims"}
WORDS = {
    "state", "error", "dataset", "model", "optimizer", "scale", "device", "precision", "hardware", "metric", "split", "started", "ended",
    "commit", "path", "run",
}  # fmt: skip
MEASURED = {"lambda_max": "sharpness samples=all", "step_cost": "cost"}  # columns that a command of python -m sam_repro.measure fills


@dataclass(frozen=True)
class Part:
    """One effect and its region, on one or several benchmarks."""

    effect: str
    region: Region
    runs: tuple[str, ...] = ()  # overrides of each, besides those of the benchmark
    of: str = ""
    on: tuple[str, ...] = ("",)  # experiments, or overrides; a check is on none
    any: bool = False
    seeds: int = 1
    over: tuple[float, ...] = ()
    rank_with: str = ""
    check: str = ""
    paper: Mapping[str, tuple[Printed | None, ...]] = field(default_factory=dict)  # by benchmark, of each run
    paper_n: int = 0
    substitutes: Mapping[str, Mapping[str, Substitute]] = field(default_factory=dict)  # by benchmark and scale
    measures: tuple[Words, ...] = ()  # of python -m sam_repro.measure, which the metric needs

    @property
    def label(self) -> str:
        """What is compared, in a few words."""
        metric = " with ".join(filter(None, [self.of, self.rank_with]))
        return (
            f"{self.effect} {self.check}" if self.check else f"{self.effect} of {metric}: {', '.join(self.runs).replace('optimizer=', '')}"
        )

    @property
    def weights(self) -> tuple[float, ...]:
        """Of the means of the runs, whose weighted sum is the effect; none of a rank."""
        if self.effect == "slope":
            middle = sum(self.over) / len(self.over)
            return tuple((x - middle) / sum((x - middle) ** 2 for x in self.over) for x in self.over)
        return {"difference": (1.0, -1.0), "ratio": (1.0, -1.0), "value": (1.0,)}.get(self.effect, ())


@dataclass(frozen=True)
class Claim:
    """A sentence, and the parts that decide it: all of them, or any."""

    paper: str
    id: str
    where: str
    says: str
    note: str
    any: bool
    parts: tuple[Part, ...]


@dataclass(frozen=True)
class Claims:
    """All claims of a paper, or of a user's own file."""

    paper: str
    citation: str
    claims: tuple[Claim, ...]


class _Loader(yaml.BaseLoader):
    """Words stay words, ``on`` too; a key that stands twice is an error, and not the last of the two."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        if twice := [key for key in keys if keys.count(key) > 1]:
            raise UserError(f"{twice[0]!r} stands twice.")
        return super().construct_mapping(node, deep)


def load(path: Path, paper: str = "") -> Claims:
    """The claims of a file; UserError that names the file, and the claim, where something does not fit."""
    with _saying(str(path)):
        content = parse(path.read_text(), _Loader) or {}
        only(content, HEADER)
        paper = paper or path.stem
        found = tuple(_claim(paper, name, node, content) for name, node in content["claims"].items())
        return Claims(paper, content.get("citation", ""), found)


@contextmanager
def _saying(place: str) -> Iterator[None]:
    """Errors begin with where they are."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{place} cannot be read: {error.strerror}.") from error
    except KeyError as error:
        raise UserError(f"{place}: {error.args[0]!r} is missing.") from error
    except (UserError, yaml.YAMLError) as error:
        raise UserError(f"{place}: {' '.join(str(error).split())}") from error
    except (TypeError, AttributeError, ValueError) as error:
        raise UserError(f"{place}: a word, a list or a mapping stands where another of them belongs ({error}).") from error


def load_all() -> list[Claims]:
    """Those of the papers."""
    return [load(path, path.parent.name) for path in sorted(EXPERIMENTS.glob("*/claims.yaml"))]


def _claim(paper: str, name: str, node: dict[str, Any], header: dict[str, Any]) -> Claim:
    with _saying(f"claim {name!r}"):
        only(node, CLAIM)
        for key in ("says", "where", "note"):
            if not isinstance(node.get(key, ""), str):
                raise UserError(f"{key} is a sentence, not {node[key]!r}.")
        shared = {key: value for key, value in {**header, **node}.items() if key in PART}
        parts = [{**shared, **dict(part)} for part in _list("parts", node.get("parts", [{}]))]
        for part in parts:
            only(part, PART)
        found = tuple(_part(paper, part) for part in parts)
        return Claim(paper, name, node.get("where", ""), node["says"], node.get("note", ""), _flag(node, "any"), found)


def _part(paper: str, node: dict[str, Any]) -> Part:
    effects = [key for key in EFFECTS if key in node]
    if len(effects) != 1:
        raise UserError(f"there is {' and '.join(effects) or 'no effect'}: give exactly one of {', '.join(EFFECTS)}.")
    effect, region = effects[0], Region.read(node["holds"], effects[0] == "ratio")
    for key, owner in (("over", "slope"), ("log", "slope"), ("with", "rank")):
        if key in node and effect != owner:
            raise UserError(f"{key}: belongs to a {owner}, and this is a {effect}.")
    if effect == "check":
        _one_of("check", node["check"], module(paper, "CHECKS"))
        return Part(effect, region, check=node["check"])
    runs, on = _runs(effect, node[effect]), tuple(_list("on", node["on"]))
    for benchmark in on:
        if "=" not in benchmark:
            _one_of("on", benchmark, options("experiment"))
    for words in (*runs, *(benchmark for benchmark in on if "=" in benchmark)):
        check_overrides(words.split())
        if wrong := {"seed", "scale", "device", "experiment"} & {*keys_of(words.split())}:
            raise UserError(f"{min(wrong)}= in {words!r}: 'on' names the experiment, 'seeds' says how many, the command line the rest.")
    of = [node["of"], *([node["with"]] if effect == "rank" else [])]
    for metric in of:
        _one_of("of", metric, {*_columns(), *module(paper, "METRICS")})
    needs = MEASURED | module(paper, "MEASURES")
    measures = measures_of([{"measure": list(dict.fromkeys(needs[metric] for metric in of if metric in needs))}, node])
    printed = {benchmark: _printed(values, len(runs)) for benchmark, values in node.get("paper", {}).items()}
    for benchmark in printed:
        _one_of("paper", benchmark, on)
    paper_n = _count(node, "paper_n") if "paper_n" in node else 0
    if paper_n < 2 and any(value and value[1] is not None for values in printed.values() for value in values):
        raise UserError("paper_n is missing: of how many runs the paper's ± is, at least 2.")
    over = _over(node, len(runs)) if effect == "slope" else ()
    return Part(
        effect, region, runs, node["of"], on, _flag(node, "any"), _count(node, "seeds"), over, node.get("with", ""), "",
        printed, paper_n, _substitutes(node.get("scales", {}), on), measures,
    )  # fmt: skip


def _runs(effect: str, given: Any) -> tuple[str, ...]:
    runs = [given] if effect == "value" else _list(effect, given)
    few, many = {"value": (1, 1), "difference": (2, 2), "ratio": (2, 2)}.get(effect, (2, 99))
    if not (few <= len(runs) <= many and all(isinstance(run, str) for run in runs) and len({*runs}) == len(runs)):
        raise UserError(f"{effect}: {given!r} is not the overrides of {few}{'' if few == many else ' or more'} different runs.")
    return tuple(runs)


def _over(node: dict[str, Any], runs: int) -> tuple[float, ...]:
    over = [number("over", x) for x in _list("over", node["over"])]
    if len(over) != runs or len({*over}) == 1 or (_flag(node, "log") and min(over) <= 0):
        raise UserError(f"over: {node['over']!r} is not a number for each of {runs} runs, which differ, with log: true above 0.")
    return tuple(map(math.log2, over)) if _flag(node, "log") else tuple(over)


def _substitutes(node: dict[str, Any], on: Sequence[str]) -> dict[str, dict[str, Substitute]]:
    """What stands in at a scale, for all benchmarks (``run`` and ``note``) or for those that are named."""
    found: dict[str, dict[str, Substitute]] = {benchmark: {} for benchmark in on}
    for scale, given in node.items():
        _one_of("scales", scale, options("scale"))
        for benchmark, one in (dict.fromkeys(on, given) if "run" in given else given).items():
            only(one, {"run", "note"})
            if benchmark in found:  # the header's are those of all claims
                found[benchmark][scale] = Substitute(tuple(one["run"].split()), one["note"])
            elif "=" not in benchmark:
                _one_of("scales", benchmark, options("experiment"))
    return found


def _printed(values: Any, runs: int) -> tuple[Printed | None, ...]:
    if len(_list("paper", values)) != runs:
        raise UserError(f"paper: {len(values)} printed values for {runs} runs.")
    parts = [text.partition("±")[::2] for text in values]
    return tuple(None if mean == "~" else (number("paper", mean), number("paper", std) if std else None) for mean, std in parts)


@cache
def module(paper: str, name: str) -> dict[str, Any]:
    """``METRICS``, ``CHECKS`` or ``MEASURES`` of ``sam_repro/results/claims/<paper>.py``; a user's own file has no such module."""
    place = f"{__package__}.{paper}"
    known = (EXPERIMENTS / paper / "claims.yaml").exists() and importlib.util.find_spec(place)
    return dict(getattr(importlib.import_module(place), name, {})) if known else {}


@cache
def _columns() -> frozenset[str]:
    """Columns of the runs that hold numbers, a dataset's further metrics among them."""
    further = (str(read(f"dataset/{name}").get("metrics", "")).split() for name in options("dataset"))
    return frozenset(COLUMNS.keys() - WORDS | {metric for words in further for metric in words[1:]})


def _one_of(key: str, word: Any, known: Iterable[str]) -> None:
    if word not in set(known):
        raise UserError(f"{key}: there is no {word!r}.{suggest(str(word), known)}")


def _list(key: str, value: Any) -> list[Any]:
    if not isinstance(value, list) or not value:
        raise UserError(f"{key} is a list, not {value!r}.")
    return value


def _count(node: dict[str, Any], key: str) -> int:
    return int(checked(key, parse(node[key]), 1, (), (1, SEEDS)))


def _flag(node: dict[str, Any], key: str) -> bool:
    return bool(checked(key, parse(node.get(key, "false")), False, (), NOT_NEGATIVE))
