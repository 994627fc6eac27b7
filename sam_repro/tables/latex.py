"""A filled table as LaTeX: a ``longtable`` with all that the Markdown page has.

It takes the packages longtable, amssymb and, for a figure's picture beside the file, graphicx; a wide table a page in landscape.
"""

from __future__ import annotations

import re
import textwrap
import unicodedata

from .render import caption, legend, told
from .sheet import Sheet

LETTERS = {"\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "_": r"\_", "#": r"\#", "^": r"\^{}", "~": r"\~{}", "{": r"\{", "}": r"\}",
           "$": r"\$", "<": "$<$", ">": "$>$", "±": r"$\pm$", "×": r"$\times$", "−": "$-$", "✓": r"$\checkmark$", "✗": r"$\times$",
           "∇": r"$\nabla$", "‖": r"$\|$", "≤": r"$\le$", "≥": r"$\ge$", "→": r"$\rightarrow$", "≈": r"$\approx$", "’": "'", "–": "--",
           "¹": r"\textsuperscript{1}", "²": r"\textsuperscript{2}", "³": r"\textsuperscript{3}"}  # fmt: skip
HEAD, LABEL = 16, 26  # characters in a line of a column's and of a row's name


def as_latex(sheet: Sheet, pictures: bool) -> str:
    """The figure's picture if there is one, then the table: in each cell ours, the paper's value and what else is known."""
    table, label = sheet.table, sheet.table.name.replace("/", ":")
    picture = [
        r"\begin{figure}", r"\centering", rf"\includegraphics[width=\linewidth]{{{table.name.rpartition('/')[2]}}}",
        rf"\caption{{{latex(caption(sheet))}}}", rf"\label{{fig:{label}}}", r"\end{figure}",
    ]  # fmt: skip
    head = "\n".join([r"\hline", _row("", [_wrapped(column, HEAD) for column in table.columns]), r"\hline"])
    rows = [_row(row, [told(sheet, sheet.at(row, column)) for column in table.columns]) for row in table.rows]
    tests = [f"{t.row}, {t.column} against {t.against}: {t.difference:+.3f}, p = {t.p:.3f} (n = {t.n})." for t in sheet.tests]
    paired = [f"Paired t-tests over seeds, two-sided: {' '.join(tests)}"] if tests else []
    said = [legend(table), *sheet.notes, *paired, *table.footnotes]
    return "\n".join([
        *(picture if pictures else []),
        r"{\scriptsize\setlength{\tabcolsep}{3pt}",
        rf"\begin{{longtable}}{{l{'r' * len(table.columns)}}}",
        rf"\caption{{{latex(caption(sheet))}}}\label{{{label}}}\\", head, r"\endfirsthead", head, r"\endhead",
        *rows,
        r"\hline", r"\end{longtable}}",
        r"{\footnotesize\raggedright", *(rf"{latex(note)}\par" for note in said), "}", "",
    ])  # fmt: skip


def latex(text: str) -> str:
    """Markdown's bold, code and line breaks within plain text, the rest escaped."""
    parts = re.split(r"(\*\*.+?\*\*|`[^`]+`)", text)
    return "".join(_part(part) for part in parts)


def _part(text: str) -> str:
    if text.startswith("**") and len(text) > 4:
        return rf"\textbf{{{latex(text[2:-2])}}}"
    if text.startswith("`") and len(text) > 2:
        return rf"\texttt{{{latex(text[1:-1])}}}"
    return "".join(_letter(letter) for letter in text)


def _letter(letter: str) -> str:
    alphabet, _, name = unicodedata.name(letter, "").rpartition(" LETTER ")
    if alphabet in ("GREEK SMALL", "GREEK CAPITAL"):
        name = name.replace("LAMDA", "LAMBDA")  # Unicode's spelling
        return rf"$\{name.lower() if alphabet == 'GREEK SMALL' else name.capitalize()}$"
    return LETTERS.get(letter, letter)


def _row(label: str, cells: list[list[str]]) -> str:
    # {}: LaTeX would take a star or a bracket at the beginning of a line for an argument of the \\ before it.
    shorter = [[part for line in cell for part in line.split(", ")] for cell in cells]
    return "{}" + " & ".join([_stacked(_wrapped(label, LABEL), "l"), *(_stacked(cell, "r") for cell in shorter)]) + r" \\"


def _wrapped(label: str, width: int) -> list[str]:
    return [line for part in label.split(" / ") for line in textwrap.wrap(part, width)]


def _stacked(lines: list[str], side: str) -> str:
    if len(lines) < 2:
        return "".join(map(latex, lines))
    return rf"\shortstack[{side}]{{" + r"\\".join("{}" + latex(line) for line in lines) + "}"
