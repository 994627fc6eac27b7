"""Where the files of a user's own tables and claims go: where the user says, and not among the project's."""

from __future__ import annotations

from pathlib import Path

from ..schema import HERE, UserError
from .declare import EXPERIMENTS


def check_own_place(results_dir: str, what: str) -> None:
    """UserError where the folder is the project's own ``results``, or within the installed package."""
    place, projects = Path(results_dir).resolve(), (EXPERIMENTS.parent / "results").resolve()
    if place.is_relative_to(projects) or place.is_relative_to(HERE):
        raise UserError(f"{what} is your own, and {place} is the project's: say where its files go, as in results_dir=my-results.")
