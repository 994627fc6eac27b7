"""The statistics of a verdict: an effect with its interval, the region it should lie in, and what several of them come to.

One rule: the 95 % interval inside the region is ``supported``, wholly outside ``contradicted``, else ``undecided``. Of ``within X`` that is
the two one-sided tests of equivalence (TOST), each at 2.5 %.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from ...schema import UserError, suggest

LEVEL = 0.025  # on each side
POWER = 0.8
MOST = 10_000  # seeds; more are no answer
SUPPORTED, CONTRADICTED, UNDECIDED, NOT_RUN = VERDICTS = ("supported", "contradicted", "undecided", "not run")

Values = Mapping[str, Mapping[int, float]]  # by method and seed
Array = NDArray[np.float64]
Printed = tuple[float, float | None]  # a mean that a paper prints, and its ±
REGIONS = {"above": "X", "below": "X", "within": "X", "between": "X and Y", "exactly": "X"}


@dataclass(frozen=True)
class Region:
    """The numbers for which the sentence holds."""

    text: str
    low: float
    high: float
    closed: bool = False  # whether the bounds are inside

    @classmethod
    def read(cls, text: str, ratio: bool) -> Region:
        """``above X``, ``below X``, ``within X``, ``between X and Y`` or ``exactly X``; of a ratio ``within X`` is 1/(1+X) to 1+X."""
        kind, *numbers = text.replace(" and ", " ").split() or [""]
        if kind not in REGIONS:
            raise UserError(f"holds: {text!r} begins with none of {', '.join(REGIONS)}.{suggest(kind, REGIONS)}")
        values = [number("holds", one) for one in numbers]
        if len(values) != (2 if kind == "between" else 1) or values != sorted(values):
            raise UserError(f"holds: {text!r} is not as '{kind} {REGIONS[kind]}'.")
        low, high = values[0], values[-1]
        if kind == "within":
            low, high = (1 / (1 + high), 1 + high) if ratio else (-high, high)
        if (low if ratio else high) <= 0 and (ratio or kind == "within"):
            raise UserError(f"holds: {text!r}: a ratio and a margin are above 0.")
        low, high = {"above": (low, math.inf), "below": (0.0 if ratio else -math.inf, high)}.get(kind, (low, high))
        return cls(text, low, high, kind in ("between", "exactly"))

    def has(self, number: float) -> bool:
        """Whether the sentence holds for this number, known exactly."""
        at_bound = any(math.isclose(number, bound, rel_tol=1e-9, abs_tol=1e-15) for bound in (self.low, self.high))
        return self.closed if at_bound else self.low < number < self.high


@dataclass(frozen=True)
class Estimate:
    """An effect as it was measured; without deviation (``error`` 0) it is exact, where it has none (``error`` nan) nothing is known."""

    effect: float
    error: float
    df: float
    n: int  # seeds a cell, the least
    slopes: tuple[float, float] = (1, 1)  # degrees of freedom of n seeds a cell: slopes[0] n - slopes[1]


@dataclass(frozen=True)
class Ruling:
    """A verdict, and the numbers that it comes from: of a ratio they are ratios again."""

    verdict: str
    p: float = 1.0  # one-sided, that the effect lies outside the region
    q: float = 1.0  # that it lies inside
    effect: float = math.nan
    low: float = math.nan
    high: float = math.nan
    n: int = 0
    needed: int | None = None
    margin: float = math.nan  # from the effect to the nearest bound of the region, in standard errors


def contrast(values: Values, weights: Mapping[str, float], counted: bool = True, over: Mapping[str, float] | None = None) -> Estimate:
    """The weighted sum of methods' means, by least squares of ``y ~ method + seed``, all methods giving the residual variance.

    With ``over`` it is the slope of ``y ~ over + seed``. Seeds are blocks where at least two methods share them. What is ``counted`` is
    exact where it does not deviate, and such methods give no residual variance; a score can be the same by chance: its test set is finite.
    """
    constant = {method for method, cells in values.items() if counted and len(cells) > 1 and len({*cells.values()}) == 1}
    n = min(len(values[method]) for method in weights)
    if constant >= weights.keys():
        return Estimate(math.fsum(weight * next(iter(values[method].values())) for method, weight in weights.items()), 0.0, math.inf, n)
    if constant & weights.keys() or over:
        values, constant = {method: values[method] for method in weights}, set()
    cells = [(method, seed, y) for method, of in values.items() if method not in constant for seed, y in of.items()]
    methods, blocks = list(dict.fromkeys(method for method, _, _ in cells)), _blocks([seed for _, seed, _ in cells])
    if over:
        design, wanted, slopes = [[over[method], 1.0] for method, _, _ in cells], [1.0, 0.0], (len(methods) - 1, 1)
    else:
        design, wanted = [[float(method == one) for one in methods] for method, _, _ in cells], [weights.get(one, 0.0) for one in methods]
        slopes = (len(methods) - 1, len(methods) - 1) if blocks.size else (len(methods), len(methods))
    return Estimate(*_fit(np.hstack([np.array(design), blocks]), [y for *_, y in cells], np.array(wanted)), n, slopes)


def mean(values: Sequence[float], exact: bool = False) -> Estimate:
    """Of replicates, with their own deviation; ``exact``: one of them, or equal ones, are the number itself."""
    n, middle = len(values), float(np.mean(values))
    if exact and len({*values}) == 1:
        return Estimate(values[0], 0.0, math.inf, n)
    error = float(np.std(values, ddof=1)) / math.sqrt(n) if len({*values}) > 1 else math.nan
    return Estimate(middle, error, n - 1, n)


def taus(ranked: Values, by: Values) -> Estimate:
    """Kendall's tau between two metrics over the methods, of each seed. Equal ones are exact where chance hardly makes them as large."""
    seeds = sorted(set.intersection(*(set(of) for values in (ranked, by) for of in values.values())))
    pairs = [([ranked[method][seed] for method in ranked], [by[method][seed] for method in ranked]) for seed in seeds]
    found = [float(stats.kendalltau(*pair).statistic) for pair in pairs]
    found = [tau for tau in found if math.isfinite(tau)]  # a metric that is the same for all has no ranks
    if not found:
        return Estimate(math.nan, math.nan, 0, 0)
    chance = [stats.kendalltau(*pair, alternative="greater" if found[0] > 0 else "less").pvalue for pair in pairs]
    return mean(found, exact=float(np.prod(chance)) <= LEVEL)


def printed(values: Sequence[Printed | None], weights: Sequence[float], n: int, ratio: bool) -> Estimate | None:
    """The same effect of the means and deviations that a paper prints, by Welch; None where it prints no mean."""
    if not weights or any(value is None or (ratio and value[0] <= 0) for value in values):
        return None
    means, stds = zip(*(value for value in values if value), strict=True)
    effect = math.fsum(weight * (math.log(one) if ratio else one) for weight, one in zip(weights, means, strict=True))
    if not all(stds):  # printed as 0.0 it is rounded away
        return Estimate(effect, math.nan, 0, n)
    of_runs = [(weight * std / (one if ratio else 1)) ** 2 / n for weight, one, std in zip(weights, means, stds, strict=True)]
    return Estimate(effect, math.sqrt(sum(of_runs)), sum(of_runs) ** 2 / sum(v**2 / (n - 1) for v in of_runs), n)


def _blocks(seeds: Sequence[int]) -> Array:
    """Columns of the seeds that at least two cells share, which sum to zero."""
    shared = sorted(seed for seed, count in Counter(seeds).items() if count > 1)
    columns = np.array([[float(seed == one) - float(seed == shared[-1]) for one in shared[:-1]] for seed in seeds])
    return columns.reshape(len(seeds), max(0, len(shared) - 1))


def _fit(design: Array, y: Sequence[float], weights: Array) -> tuple[float, float, int]:
    """The weighted coefficients, their standard error, and the residual degrees of freedom."""
    target = np.asarray(y, dtype=float)
    inverse = np.linalg.pinv(design)
    coefficients = inverse @ target
    weights = np.concatenate([weights, np.zeros(design.shape[1] - len(weights))])
    df = len(target) - int(np.linalg.matrix_rank(design))
    squares = float(((target - design @ coefficients) ** 2).sum())
    if df < 1 or squares <= 1e-24 * float((target**2).sum()):  # rounding; runs that do not differ by chance say nothing of it
        return float(weights @ coefficients), math.nan, df
    return float(weights @ coefficients), math.sqrt(squares / df) * float(np.linalg.norm(weights @ inverse)), df


def rule(found: Estimate, region: Region, ratio: bool = False) -> Ruling:
    """Where the interval lies. The effect of a ratio is the logarithm of it."""
    show = math.exp if ratio else float
    low, high = ((math.log(bound) if bound else -math.inf) if ratio else bound for bound in (region.low, region.high))
    effect = show(found.effect)
    if found.error == 0:
        inside = region.has(effect)
        verdict, p, q = (SUPPORTED, 0.0, 1.0) if inside else (CONTRADICTED, 1.0, 0.0)
        return Ruling(verdict, p, q, effect, effect, effect, found.n, min(found.n, 2), math.inf if inside else -math.inf)
    if not found.error > 0:
        return Ruling(UNDECIDED, effect=effect, n=found.n)
    above, below = (found.effect - low) / found.error, (high - found.effect) / found.error
    p, q = max(float(stats.t.sf(one, found.df)) for one in (above, below)), min(float(stats.t.cdf(one, found.df)) for one in (above, below))
    half = float(stats.t.isf(LEVEL, found.df)) * found.error
    verdict = SUPPORTED if p <= LEVEL else CONTRADICTED if q <= LEVEL else UNDECIDED
    interval = (show(found.effect - half), show(found.effect + half))
    return Ruling(verdict, p, q, effect, *interval, found.n, needed(found, low, high), min(above, below))


def needed(found: Estimate, low: float, high: float) -> int | None:
    """Seeds a cell with which the interval falls inside the region, or outside, four times of five: at this effect and this deviation."""
    spread = found.error * math.sqrt(found.n)
    inside = low < found.effect < high
    bounds = [abs(found.effect - bound) for bound in (low, high) if math.isfinite(bound)]
    distances = bounds if inside else [min(bounds)]

    def power(n: int) -> float:
        df = found.slopes[0] * n - found.slopes[1]
        if df < 1:
            return 0.0
        critical = stats.t.isf(LEVEL, df)
        shifts = [distance * math.sqrt(n) / spread for distance in distances]
        return sum(1.0 if shift > critical + 8 else float(stats.nct.sf(critical, df, shift)) for shift in shifts) - (len(shifts) - 1)

    if power(MOST) < POWER:
        return None
    few, enough = 1, MOST
    while enough - few > 1:
        middle = (few + enough) // 2
        few, enough = (few, middle) if power(middle) >= POWER else (middle, enough)
    return enough


def combine(rulings: Sequence[Ruling], any_: bool) -> tuple[Ruling, int]:
    """What several come to, with the numbers of the one that decides, and its index.

    All must hold: one that is contradicted refutes. Or any: then one must hold after Holm's correction over them, so that one which was not
    run counts among them. Where some have runs and others none, they do not decide.
    """
    p, q, count = [one.p for one in rulings], [one.q for one in rulings], len(rulings)
    verdicts = [one.verdict for one in rulings]
    p_all, q_all = (min(1.0, count * min(p)), max(q)) if any_ else (max(p), min(1.0, count * min(q)))
    if any_:
        verdict = SUPPORTED if p_all <= LEVEL else CONTRADICTED if {*verdicts} == {CONTRADICTED} else ""
    else:
        verdict = CONTRADICTED if CONTRADICTED in verdicts else SUPPORTED if {*verdicts} == {SUPPORTED} else ""
    known = [index for index, one in enumerate(verdicts) if one != NOT_RUN]
    verdict = verdict or (UNDECIDED if known else NOT_RUN)
    of_it = [index for index, one in enumerate(verdicts) if one == verdict] or known
    sign = -1 if any_ else 1
    decisive = min(of_it, key=lambda index: sign * rulings[index].margin if not math.isnan(rulings[index].margin) else -math.inf)
    one = rulings[decisive]
    return Ruling(verdict, p_all, q_all, one.effect, one.low, one.high, one.n, one.needed, one.margin), decisive


def holm(rulings: Sequence[Ruling]) -> list[str]:
    """The verdicts after Holm's correction over all that were judged."""
    from statsmodels.stats.multitest import multipletests  # two seconds to import

    judged = [index for index, one in enumerate(rulings) if one.verdict != NOT_RUN]
    verdicts = [one.verdict for one in rulings]
    if judged:
        adjusted = multipletests([min(rulings[index].p, rulings[index].q) for index in judged], method="holm")[1]
        for index, p in zip(judged, adjusted, strict=True):
            verdicts[index] = verdicts[index] if p <= LEVEL else UNDECIDED
    return verdicts


def number(key: str, text: str) -> float:
    """What stands at ``key``; UserError where it is no number."""
    try:
        number = float(text)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise UserError(f"{key}: {text!r} is no number.")
    return number
