"""Declared tables: what a paper prints, and the overrides of the runs that fill each of its cells. docs/tables.md describes the files."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any

import yaml

from ..measure.__main__ import COMMON, parsed
from ..schema import HERE, UserError, keys_of, only, parse, suggest
from .metrics import metric_of

EXPERIMENTS = next((path for path in (HERE / "experiments", HERE.parent / "experiments") if path.is_dir()), HERE / "experiments")
KINDS = ("table", "figure", "recipe")
HEADER = {
    "title", "citation", "source", "kind", "plot", "seeds", "references", "ratio_to", "extra_of", "columns", "rows", "blocks", "footnotes",
}  # fmt: skip
BENCHMARK = {"experiment", "dataset", "model"}
NODE = {"run", "with", "metric", "measure", "total", "scales"}  # of tables, blocks, rows and columns: the nearer to the cell wins
NUMBER = r"\d+(?:\.\d+)?"
PRINTED = re.compile(rf"(?P<value>-?{NUMBER})(?: ± (?P<std>{NUMBER}))?(?: \((?P<ratio>\d+)%\))?")

SEEDS = 1000  # of a cell at most: each is a run, and is listed

Words = tuple[str, ...]  # overrides, each key once


@dataclass(frozen=True)
class Printed:
    """A cell as the paper prints it; empty strings where it prints nothing."""

    value: str = ""
    std: str = ""
    ratio: str = ""  # percent of the reference, in brackets behind the value

    @classmethod
    def read(cls, text: str) -> Printed:
        """``91.96 ± 0.3``, ``2780 (156%)``, a word, or ``~`` for nothing."""
        match = PRINTED.fullmatch(text)
        return cls(**match.groupdict("")) if match else cls("" if text == "~" else text)


@dataclass(frozen=True)
class Substitute:
    """What a cell runs besides at a scale, as another model than the paper's at a reduced one, and why."""

    words: Words
    note: str


@dataclass(frozen=True)
class Cell:
    """One cell: where it stands, what the paper says, and the runs that fill it (all but their seeds)."""

    row: str
    column: str
    metric: str
    paper: Printed
    words: Words  # no run where empty
    base: Words  # those that say what is learned, without the method: cells with the same are compared
    quoted: str = ""  # where the paper has it from
    total: str = ""  # what the paper's count is out of
    measures: tuple[Words, ...] = ()  # of its finished runs: the words of python -m sam_repro.measure, without the run
    substitutes: Mapping[str, Substitute] = field(default_factory=dict)  # by scale


@dataclass(frozen=True)
class Table:
    """A declared table, figure or recipe."""

    name: str
    title: str
    citation: str
    source: str
    kind: str
    plot: str
    seeds: int
    cells: tuple[Cell, ...]
    references: Mapping[str, Words]  # methods to compare with, by the name they are shown under
    ratio_to: str
    extra_of: str  # of this reference's time beyond that of ratio_to, a method spends a share
    footnotes: tuple[str, ...]

    @property
    def rows(self) -> list[str]:
        """In the paper's order."""
        return list(dict.fromkeys(cell.row for cell in self.cells))

    @property
    def columns(self) -> list[str]:
        """In the paper's order."""
        return list(dict.fromkeys(cell.column for cell in self.cells))

    @property
    def experiments(self) -> list[str]:
        """The presets that its cells run, in the paper's order; a recipe runs none."""
        words = (word for cell in self.of("") for word in cell.words)
        return list(dict.fromkeys(word.partition("=")[2] for word in words if word.startswith("experiment=")))

    def of(self, experiment: str) -> list[Cell]:
        """The cells that take a run: of this experiment, or all where it is empty. A recipe has none."""
        cells = [cell for cell in self.cells if cell.words and self.kind != "recipe"]
        return [cell for cell in cells if f"experiment={experiment}" in cell.words] if experiment else cells

    def reference(self, cell: Cell, label: str) -> Cell:
        """A method to compare with, in the place of ``cell``: the table's own cell, where it has one."""
        words = (*cell.base, *self.references[label])
        same = (other for other in self.cells if set(other.words) == set(words))
        return next(same, replace(cell, words=words))


def names(folder: Path = EXPERIMENTS) -> list[str]:
    """All declared tables, as ``paper/table``; table10 after table9."""
    found = (path.relative_to(folder).with_suffix("").as_posix() for path in folder.glob("*/*.yaml") if path.stem != "claims")
    return sorted(found, key=lambda name: re.sub(r"\d+", lambda number: number[0].zfill(9), name))


def select(wanted: Sequence[str], folder: Path = EXPERIMENTS) -> list[Table]:
    """The tables of these names; a paper's name stands for all of its tables. UserError for a name that is none."""
    known, found = names(folder), []
    for word in wanted:
        match = [name for name in known if word in (name, name.partition("/")[0])]
        if not match:
            raise UserError(f"There is no table {word!r} in {folder}.{suggest(word, known)}")
        found += [load(folder, name) for name in match]
    return found


@cache
def load(folder: Path, name: str) -> Table:
    """The table of ``<folder>/<name>.yaml``; UserError that names the file where it does not fit."""
    path = folder / f"{name}.yaml"
    try:
        content = parse(path.read_text(), yaml.BaseLoader) or {}  # numbers stay as printed: 96.40
        return _table(name, content)
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not YAML: {' '.join(str(error).split())}.") from error
    except KeyError as error:
        raise UserError(f"{path}: {error.args[0]!r} is missing") from error
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except (TypeError, AttributeError, ValueError) as error:
        raise UserError(f"{path}: a word, a list or a mapping stands where another of them belongs ({error}).") from error


def _table(name: str, content: dict[str, Any]) -> Table:
    only(content, HEADER | NODE)
    for key in ("title", "citation", "source", "plot", "ratio_to", "extra_of"):
        if not isinstance(content.get(key, ""), str):
            raise UserError(f"{key} is text, not {content[key]!r}.")
    if content["kind"] not in KINDS:
        raise UserError(f"kind is one of {', '.join(KINDS)}, not {content['kind']!r}.")
    if content["kind"] == "figure" and not content.get("plot"):
        raise UserError("a figure has plot:, the name of how it is drawn.")
    if not content["seeds"].isdecimal() or not 1 <= int(content["seeds"][:9]) <= SEEDS:
        raise UserError(f"seeds is the paper's number of runs, 1 to {SEEDS}, not {content['seeds'][:20]!r}.")
    columns = {label: _node(node) for label, node in content["columns"].items()}
    if "blocks" in content and "rows" in content:
        raise UserError("rows stand in the blocks, or without any: not both.")
    blocks = content.get("blocks") or {"": {"rows": content["rows"]}}
    cells: list[Cell] = []
    for block, inside in blocks.items():
        only(inside, NODE | {"rows"})
        for row, node in inside["rows"].items():
            only(node, NODE | {"paper", "quoted", "cells"})
            label = f"{block} / {row}" if block else row
            cells += _cells(label, node, [content, inside, node], columns)
    if content["kind"] != "recipe":
        for cell in cells:
            metric_of(cell.metric)
            if cell.total and not cell.total.isdecimal():
                raise UserError(f"row {cell.row!r}: total is a number of steps, not {cell.total!r}.")
            if not PRINTED.fullmatch(cell.paper.value or "0"):
                raise UserError(f"row {cell.row!r}: {cell.paper.value!r} is not as 91.96 ± 0.3, as 2780 (156%), or ~ for nothing.")
    footnotes = content.get("footnotes", [])
    if not isinstance(footnotes, list) or not all(isinstance(note, str) for note in footnotes):
        raise UserError("footnotes is a list of sentences.")
    references = {label: tuple(words.split()) for label, words in content.get("references", {}).items()}
    ratio_to, extra_of = (content.get(key, "") for key in ("ratio_to", "extra_of"))
    for key, label in (("ratio_to", ratio_to), ("extra_of", extra_of)):
        if label and label not in references:
            raise UserError(f"{key}: {label!r} is not among the references.{suggest(label, references)}")
    if extra_of and not ratio_to:
        raise UserError(f"extra_of: {extra_of!r} needs ratio_to, the method beyond which time is extra.")
    if extra_of and references[extra_of] == references[ratio_to]:
        raise UserError(f"extra_of: {extra_of!r} is ratio_to's method, which takes no extra time.")
    return Table(
        name, content["title"], content["citation"], content["source"], content["kind"], content.get("plot", ""),
        int(content["seeds"]), tuple(cells), references, ratio_to, extra_of, tuple(footnotes),
    )  # fmt: skip


def _cells(label: str, row: dict[str, Any], above: list[dict[str, Any]], columns: dict[str, dict[str, Any]]) -> Iterable[Cell]:
    printed = row.get("paper") or ["~"] * len(columns)
    if not isinstance(printed, list):
        raise UserError(f"row {label!r}: paper is a list, a value for each column, not {printed!r}.")
    if len(printed) != len(columns):
        raise UserError(f"row {label!r} has {len(printed)} values for {len(columns)} columns.")
    exceptions = {column: _node(node) for column, node in row.get("cells", {}).items()}
    only(exceptions, columns)
    for (column, node), text in zip(columns.items(), printed, strict=True):
        nodes = [*above, node, exceptions.get(column, {})]
        quoted = row.get("quoted", "")
        values = {key: value for inner in nodes for key, value in inner.get("with", {}).items()}
        try:
            runs = [inner.get("run", "").format_map(values).split() for inner in nodes]
        except KeyError as error:
            raise UserError(f"row {label!r}: there is no value for {{{error.args[0]}}}, which with: would give.") from error
        words = distinct(sorted(chain(*runs), key=lambda word: not word.startswith("experiment=")))
        shared = {next(keys_of([word])) for word in chain(*runs[:2])} - {"optimizer"} | BENCHMARK  # of the table and the block
        base = tuple(word for word in words if next(keys_of([word])) in shared)
        yield Cell(
            label, column, _nearest(nodes, "metric"), Printed.read(text), () if quoted else words, () if quoted else base,
            quoted, _nearest(nodes, "total"), () if quoted else measures_of(nodes), _substitutes(nodes),
        )  # fmt: skip


def _nearest(nodes: list[dict[str, Any]], key: str) -> str:
    # A column says what it shows; a row may say it for all its columns (GLUE: Matthews correlation or accuracy).
    return str(next((node[key] for node in reversed(nodes) if key in node), ""))


def measures_of(nodes: list[dict[str, Any]]) -> tuple[Words, ...]:
    """The commands of ``measure:`` in the last of the nodes that has it; UserError where they are none."""
    found: Any = next((node["measure"] for node in reversed(nodes) if "measure" in node), [])
    if not isinstance(found, list) or not all(isinstance(words, str) and words.strip() for words in found):
        raise UserError("measure is a list of commands, as in [cost steps=50].")
    measures = tuple(tuple(words.split()) for words in found)
    for command, *settings in measures:
        if wrong := [key for key in keys_of(settings) if key in COMMON or (command == "cost" and key in ("model", "batch_size"))]:
            raise UserError(f"measure: {wrong[0]}= is what 'tables run' sets itself.")
        if parsed(command, settings).get("layer") == "":
            raise UserError("measure: landscape needs a layer, layer=NAME.")
    return measures


def _substitutes(nodes: list[dict[str, Any]]) -> dict[str, Substitute]:
    found: dict[str, Substitute] = {}
    for node in nodes:
        for scale, given in node.get("scales", {}).items():
            only(given, {"run", "note"})
            before = found.get(scale, Substitute((), ""))
            words = distinct((*before.words, *given["run"].split()))
            found[scale] = Substitute(words, "; ".join(filter(None, [before.note, given["note"]])))
    return found


def _node(node: Any) -> dict[str, Any]:
    node = {"run": node} if isinstance(node, str) else node
    only(node, NODE)
    return dict(node)


def distinct(words: Iterable[str]) -> Words:
    """The overrides with each key once; the last one stands."""
    return tuple({next(keys_of([word])): word for word in words}.values())
