"""Pages of the documentation that are made from the option files and the method cards: ``docs/options.md``, ``docs/methods/README.md``."""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd

from ..front import GROUPS, first_sentence, keys_of_every_run
from ..schema import ENGINES, METHOD_PARTS, QUESTIONS, UserError, fields, options, read
from .methods import mean_and_deviation, seeds_of, side_by_side

ASKED = {
    "when": "When is an ascent computed?",
    "where": "Where, and how far, are the weights moved?",
    "between": "What stands between two ascents?",
    "samples": "On which samples?",
    "combine": "What is made of the gradients at the weights and at the perturbed ones?",
    "teacher": "What a method without an ascent holds the model to.",
}
COST = re.compile(r"^- \*\*Cost of a step\*\*: (.*)$", re.M)
MADE = "This page is made by `python -m sam_repro.tables readme`."


def options_page() -> str:
    """Every group with its options and their own keys, and the keys of every run, with their defaults."""
    parts = [
        f"# Options\n\nA word `group=option` chooses, `key=value` sets. {MADE} `python -m sam_repro --help optimizer=sam` prints the file\n"
        "of one option. A key that the chosen options do not have is an error that says which options have it."
    ]
    for group, what in GROUPS.items():
        parts.append(f"## `{group}=`\n\n{what[0].upper()}{what[1:]}.\n\n" + _rows(group))
    parts += [f"## `optimizer/{part}=`\n\n{ASKED[part]}\n\n" + _rows(f"optimizer/{part}") for part in METHOD_PARTS]
    benchmarks: dict[str, list[str]] = {}
    for name in options("experiment"):
        benchmarks.setdefault(name.partition("/")[0], []).append(f"`{name}`")
    parts.append(
        "## `experiment=`\n\nA benchmark of a paper, with the numbers of each method in it, each with its source.\n\n"
        + "\n".join(f"- {' · '.join(names)}" for names in benchmarks.values())
    )
    engines = "\n".join(f"- `{group}=`: {', '.join(f'`{one}`' for one in names)}" for group, names in ENGINES.items())
    parts.append(f"## With `-m`\n\nWhat starts the runs of a sweep, or chooses them: [sweeps.md](sweeps.md).\n\n{engines}")
    parts.append(f"## Keys of every run\n\n```yaml\n{keys_of_every_run().strip()}\n```")
    return "\n\n".join(parts) + "\n"


def _rows(group: str) -> str:
    rows = [f"| `{one}` | {_cell(first_sentence(group, one))} | {', '.join(_keys(group, one))} |" for one in options(group)]
    return "\n".join(["| option | | own keys |", "| --- | --- | --- |", *rows])


def _keys(group: str, option: str) -> list[str]:
    """``k=4`` for a method, ``dataset.crop=4`` for the others."""
    if group == "optimizer":
        return [f"`{key}={_value(value)}`" for key, value in read(f"optimizer/{option}").get("methods", {}).get(option, {}).items()]
    if group == "scale":
        return [f"`{key}` x {value:g}" for key, value in read(f"scale/{option}").items() if isinstance(value, int | float)]
    own = {key: value for key, value in fields(group, option).defaults.items() if key not in ("name", "kind")}
    return [f"`{group.replace('/', '.')}.{key}={_value(value)}`" for key, value in own.items()]


def _value(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else f"{value:g}" if isinstance(value, float) else f"{value}"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def methods_page(cards: Path, results: Path) -> str:
    """The index of the method cards in a folder: its sentence, its cost, our runs of it. UserError where a method has no card."""
    said, runs = side_by_side(results)
    lines = []
    for one in options("optimizer"):
        try:
            found = COST.search((cards / f"{one}.md").read_text())
        except OSError as error:
            raise UserError(f"{cards / one}.md cannot be read: {error.strerror}.") from error
        cost = _cell(found[1]) if found else ""
        lines.append(f"| [{one}]({one}.md) | {_cell(first_sentence('optimizer', one))} | {cost} | {_ours(one, runs)} |")
    questions = "\n".join(f"- `{question}`: {ASKED[question]}" for question in QUESTIONS)
    head = (
        f"# The methods\n\nEach is a file of answers to four questions, `conf/optimizer/<method>.yaml`:\n\n{questions}\n\n"
        "`saf` and `mesa` make no ascent: they have a teacher. "
        f"SGD's step is one forward and one backward pass. SAM's memory is three times the weights beyond SGD's: the weights at w, the\n"
        f"gradient at w and the perturbation. {MADE}"
    )
    ours = f"Ours: {said}; {seeds_of(runs)}. Empty: no run there." if said else "Ours: no runs yet."
    columns = "| method | | cost of a step | ours: accuracy, % · time of a step (SGD = 1) · seeds |\n| --- | --- | --- | --- |"
    return "\n".join([head, "", ours, "", columns, *lines]) + "\n"


def _ours(method: str, runs: pd.DataFrame) -> str:
    """Accuracy, time of a step and number of seeds of each setting of a method in which there are runs, one a line."""
    cells = []
    for one in runs[runs.method == method].itertuples() if len(runs) else ():
        numbers = mean_and_deviation(one.score, one.score_std, 2), mean_and_deviation(one.step, one.step_std, 2) or "not timed", str(one.n)
        setting = one.setting.removeprefix(method).strip()
        cells.append((f"{_cell(setting)}: " if setting else "") + " · ".join(numbers))
    return "<br>".join(cells)
