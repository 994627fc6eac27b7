"""A filled table as LaTeX: a ``longtable`` for a paper, with all that the Markdown page has, in the packages longtable and amssymb."""

from __future__ import annotations

import re

from .render import LEGEND, caption, told
from .sheet import Sheet

LETTERS = {"\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "_": r"\_", "#": r"\#", "^": r"\^{}", "~": r"\~{}", "{": r"\{", "}": r"\}",
           "$": r"\$", "<": "$<$", ">": "$>$", "±": r"$\pm$", "×": r"$\times$", "−": "$-$", "✓": r"$\checkmark$", "✗": r"$\times$",
           "α": r"$\alpha$", "γ": r"$\gamma$", "ρ": r"$\rho$", "λ": r"$\lambda$", "Δ": r"$\Delta$", "∇": r"$\nabla$", "‖": r"$\|$",
           "ε": r"$\varepsilon$", "¹": r"\textsuperscript{1}", "²": r"\textsuperscript{2}", "³": r"\textsuperscript{3}"}  # fmt: skip


def as_latex(sheet: Sheet, pictures: bool) -> str:
    """The figure's picture if there is one, then the table: in each cell ours, the paper's value and what else is known."""
    table, label = sheet.table, sheet.table.name.replace("/", ":")
    picture = [
        r"\begin{figure}", r"\centering", rf"\includegraphics[width=\linewidth]{{{table.name.rpartition('/')[2]}}}",
        rf"\caption{{{latex(caption(sheet))}}}", rf"\label{{fig:{label}}}", r"\end{figure}",
    ]  # fmt: skip
    head = "\n".join([r"\hline", _row(["", *table.columns]), r"\hline"])
    rows = [_row([row, *("<br>".join(told(sheet, sheet.at(row, column))) for column in table.columns)]) for row in table.rows]
    tests = [f"{t.row}, {t.column} against {t.against}: {t.difference:+.3f}, p = {t.p:.3f} (n = {t.n})." for t in sheet.tests]
    paired = [f"Paired t-tests over seeds, two-sided: {' '.join(tests)}"] if tests else []
    said = [LEGEND["recipe" if table.kind == "recipe" else "table"], *sheet.notes, *paired, *table.footnotes]
    return "\n".join([
        *(picture if pictures else []),
        rf"\begin{{longtable}}{{l{'r' * len(table.columns)}}}",
        rf"\caption{{{latex(caption(sheet))}}}\label{{{label}}}\\", head, r"\endfirsthead", head, r"\endhead",
        *rows,
        r"\hline", r"\end{longtable}",
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
    return "".join(LETTERS.get(letter, letter) for letter in text)


def _row(cells: list[str]) -> str:
    return " & ".join(_stacked(cell) for cell in cells) + r" \\"


def _stacked(cell: str) -> str:
    lines = [latex(line) for line in cell.split("<br>")]
    return r"\shortstack[r]{" + r"\\".join(lines) + "}" if len(lines) > 1 else lines[0]
