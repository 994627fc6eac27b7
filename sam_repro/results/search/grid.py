"""The combinations of a search: every answer to a question with every answer to the others, but for what is excluded or cannot be built."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...config import Config, compose
from ...schema import QUESTIONS, UserError, fields, only, options, suggest
from ...trial import Trial
from ..declare import Words, distinct

COMMON = ("precision", "optimizer.mix")  # what an option may need beside its numbers
WHY = "why"  # the key of an exclusion beside those of the questions


@dataclass(frozen=True)
class Answer:
    """An option of a question with its numbers, of those that are not stated the option's own; and overrides that it needs besides."""

    question: str
    option: str
    stated: Words  # both

    @classmethod
    def read(cls, question: str, text: Any) -> Answer:
        """``orthogonal alpha=0.1 precision=fp32``; UserError where there is no such option, number or key of all runs."""
        option, *stated = str(text).split()
        group = f"optimizer/{question}"
        if option not in options(group):
            raise UserError(f"{question} has no option {option!r}.{suggest(option, options(group))}")
        known = {*fields(group, option).defaults, *COMMON}
        for key, equals, _ in (word.partition("=") for word in stated):
            if not equals or key not in known:
                raise UserError(f"{question}: {option} has no number {key!r}.{suggest(key, known)}")
        return cls(question, option, tuple(stated))

    @property
    def words(self) -> Words:
        """As overrides. All numbers are among them, for optimizer=sam would give an option its own rho in place of the option's."""
        stated = dict(word.split("=", 1) for word in self.stated)
        numbers = {key: value for key, value in fields(f"optimizer/{self.question}", self.option).defaults.items() if key != "name"}
        own = (f"optimizer.{self.question}.{key}={_written(stated.get(key, value))}" for key, value in numbers.items())
        besides = (f"{key}={value}" for key, value in stated.items() if key not in numbers)
        return (f"optimizer/{self.question}={self.option}", *own, *besides)

    def __str__(self) -> str:
        return " ".join((self.option, *self.stated))


@dataclass(frozen=True)
class Combination:
    """One answer to each question, in the order of ``QUESTIONS``."""

    answers: tuple[Answer, ...]

    @property
    def words(self) -> Words:
        """As overrides; the rest is SAM's."""
        return ("optimizer=sam", *(word for answer in self.answers for word in answer.words))

    @property
    def place(self) -> str:
        """Where it stands in an order by lot, which a new answer in the grid does not change."""
        return hashlib.sha1(str(self).encode()).hexdigest()

    def __str__(self) -> str:
        return " × ".join(map(str, self.answers))


@dataclass(frozen=True)
class Grid:
    """The combinations, in an order by lot, and those left out, each with the reason."""

    combinations: tuple[Combination, ...]
    excluded: Mapping[str, int]  # how many for which reason
    refused: Mapping[Combination, str]  # what cannot be composed or built


def read(questions: Any, exclusions: Iterable[Any], common: Words) -> Grid:
    """The grid of a declaration; UserError where an answer or exclusion does not fit, or no combination is left with an answer."""
    only(questions, QUESTIONS)
    answers = [[Answer.read(question, text) for text in questions.get(question, [])] for question in QUESTIONS]
    for question, found in zip(QUESTIONS, answers, strict=True):
        if not found or len({*found}) < len(found):
            raise UserError(f"grid: {question} is a list of answers, each once, as in [{', '.join(options(f'optimizer/{question}')[:2])}].")
    left = [Combination(one) for one in itertools.product(*answers)]
    excluded: dict[str, int] = {}
    for exclusion in exclusions:
        out = [one for one in left if _matches(exclusion, one)]
        if not out:
            raise UserError(f"excluded: {exclusion} leaves out no combination that is not out already.")
        excluded[exclusion[WHY]] = excluded.get(exclusion[WHY], 0) + len(out)
        left = [one for one in left if one not in out]
    refused = _refused(left, common)
    for answer in itertools.chain.from_iterable(answers):
        of_it = [one for one in left if answer in one.answers]
        if of_it and all(one in refused for one in of_it):
            raise UserError(f"grid: {answer.question}: {answer} goes with nothing: {refused[of_it[0]]}")
    return Grid(tuple(sorted((one for one in left if one not in refused), key=lambda one: one.place)), excluded, refused)


def _matches(exclusion: Any, combination: Combination) -> bool:
    """Whether the combination has one of the options that the exclusion names, for each question that it names."""
    only(exclusion, (*QUESTIONS, WHY))
    named = {question: value if isinstance(value, list) else [value] for question, value in exclusion.items() if question != WHY}
    if not str(exclusion.get(WHY) or "").strip() or len(named) < 2:
        raise UserError(f"excluded: {exclusion} names options of two questions at least, and why: {WHY}: ...")
    return all(answer.option in named[answer.question] for answer in combination.answers if answer.question in named)


def _refused(combinations: Sequence[Combination], common: Words) -> dict[Combination, str]:
    """Those that cannot be composed, or built on the model, and why."""
    trial, refused = Trial(), {}
    for one in combinations:
        try:
            trial.check(composed((*common, *one.words)))
        except UserError as error:
            refused[one] = " ".join(str(error).split())
    return refused


def composed(words: Iterable[str]) -> Config:
    """The configuration of these overrides, of which the last of a key stands."""
    return compose(distinct(words))


def _written(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
