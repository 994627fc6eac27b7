"""When is the ascent computed? One class an option of ``conf/optimizer/when``."""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..schema import UserError
from .draws import put_back, state_of
from .host import HostCopy, values
from .structure import Plan, Structure, norm_of


class When:
    """Decides for every step whether it makes an ascent."""

    name: ClassVar[str]
    needs_clean: ClassVar[bool] = False  # ``measure`` or ``weigh`` wants the gradient at w of a step with an ascent

    @property
    def needs_gradient(self) -> bool:
        """Whether it decides by the gradient at w, by ``decides`` instead of ``ascends``."""
        return False

    @property
    def weighs(self) -> bool:
        """Whether ``weigh`` is to be asked."""
        return False

    def setup(self, structure: Structure, plan: Plan) -> None:
        """Learn the model and the training; UserError if the option needs more, or does not fit."""

    def ascends(self, step: int) -> bool:
        """Whether step ``step`` (from 0) makes one."""
        raise NotImplementedError

    def decides(self, step: int, gradients: Sequence[Tensor]) -> bool:
        """The same, with the gradient at w of the parameters that would be perturbed."""
        raise NotImplementedError

    def weigh(self, gradients: list[Tensor]) -> Tensor | None:
        """What later decisions need to know of the gradient at w of a step, with or without an ascent; on the device."""

    def measure(self, kept: Sequence[int], clean: list[Tensor], sam: list[Tensor], scale: Tensor | None) -> Tensor | None:
        """What they need to know of an ascent; on the device.

        ``clean`` and ``sam`` are the gradients at w and at w + eps of the perturbed parameters ``kept``, times ``scale`` if
        there is one.
        """

    def observe(self, measured: Tensor) -> None:
        """See what a step measured or weighed."""

    @property
    def rate(self) -> float | None:
        """The share of the next steps that are to make an ascent, where the option sets one as it goes."""
        return None

    def state_dict(self) -> dict[str, Any]:
        """What the option has learned so far."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up where ``state_dict`` left off."""


@dataclass
class Never(When):
    """The base optimizer's own gradient."""

    name = "never"

    def ascends(self, step: int) -> bool:
        return False


@dataclass
class Always(When):
    """SAM: at every step."""

    name = "always"

    def ascends(self, step: int) -> bool:
        return True


@dataclass
class Every(When):
    """At every n-th step, the first one included (SAM-n; LookSAM's t % k = 0)."""

    name = "every"
    n: int

    def ascends(self, step: int) -> bool:
        return step % self.n == 0


@dataclass
class Window(When):
    """At every step of the first or last ``percent`` of the training (mSAM, Figure B.1)."""

    name = "window"
    percent: float
    part: str

    def setup(self, structure: Structure, plan: Plan) -> None:
        if plan.total_steps is None:
            raise UserError("when=window needs to know the length of the training: give total_steps=.")
        inside = round(plan.total_steps * self.percent / 100)
        self.steps = range(inside) if self.part == "first" else range(plan.total_steps - inside, plan.total_steps)

    def ascends(self, step: int) -> bool:
        return step in self.steps


@dataclass
class Random(When):
    """By a coin (RST, Zhao et al. 2022) that falls for an ascent with the probability p.

    ``linear``: from p to p_end over the training; ``piecewise``: p in its first half, p_end in its second.
    """

    name = "random"
    p: float
    p_end: float
    schedule: str

    def setup(self, structure: Structure, plan: Plan) -> None:
        if plan.total_steps is None and self.schedule != "constant":
            raise UserError(f"when=random with schedule={self.schedule} changes p over the training: give total_steps=.")
        self.total_steps = plan.total_steps or 1
        self.probability = self.p  # of the step
        self._coin = random.Random(plan.seed)

    def ascends(self, step: int) -> bool:
        share = min(step / self.total_steps, 1.0)
        gone = {"constant": 0.0, "linear": share, "piecewise": float(share >= 0.5)}[self.schedule]
        self.probability = self.p + (self.p_end - self.p) * gone
        return self._coin.random() < self.probability  # tossed at every step, so that the draws do not depend on what came of them

    @property
    def rate(self) -> float:
        return self.probability

    def state_dict(self) -> dict[str, Any]:
        return {"coin": state_of(self._coin)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        put_back(self._coin, state["coin"])


@dataclass
class GradientNorm(When):
    """AE-SAM (Jiang et al. 2023): where the squared gradient norm stands out of its moving mean.

    The decision needs a number of this step, so the host waits for the device once a step. With a ``lag`` of 1 it takes the
    norm of the step before the last, which has arrived by then; the first two steps then make no ascent.
    """

    name = "gradient_norm"
    needs_clean = True
    lambda1: float
    lambda2: float
    delta: float
    lag: int

    @property
    def needs_gradient(self) -> bool:
        return not self.lag

    @property
    def weighs(self) -> bool:
        return bool(self.lag)

    def setup(self, structure: Structure, plan: Plan) -> None:
        if plan.total_steps is None:
            raise UserError("when=gradient_norm moves its threshold over the training: give total_steps=.")
        self.total_steps = plan.total_steps
        self.mean, self.variance = 0.0, math.exp(-10)
        self._arriving: deque[HostCopy] = deque()

    def decides(self, step: int, gradients: Sequence[Tensor]) -> bool:
        return self._stands_out(step, norm_of(gradients).square().item())  # the host waits here

    def ascends(self, step: int) -> bool:
        return len(self._arriving) > self.lag and self._stands_out(step, self._arriving.popleft().value().item())

    def weigh(self, gradients: list[Tensor]) -> Tensor:
        return norm_of(gradients).square()

    def observe(self, measured: Tensor) -> None:
        self._arriving.append(HostCopy(measured))

    def _stands_out(self, step: int, square: float) -> bool:
        if not math.isfinite(square):  # an overflow under fp16: the step will be skipped
            return False
        self.mean = self.delta * self.mean + (1 - self.delta) * square
        self.variance = self.delta * self.variance + (1 - self.delta) * (square - self.mean) ** 2
        progress = step / self.total_steps
        threshold = progress * self.lambda1 + (1 - progress) * self.lambda2
        return square >= self.mean + threshold * math.sqrt(self.variance)

    def state_dict(self) -> dict[str, Any]:
        return {"mean": self.mean, "variance": self.variance, "arriving": [copy.value().clone() for copy in self._arriving]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.mean, self.variance = state["mean"], state["variance"]
        self._arriving = deque(HostCopy(norm.cpu()) for norm in state.get("arriving", []))


@dataclass
class Variation(When):
    """vSAM: at a rate that follows how much the PSF (the SAM gradient less the plain one) has been changing.

    Norms are taken on the device and read only when the rate is set anew, every N steps.
    """

    name = "variation"
    needs_clean = True
    alpha: float
    N: int
    M: int
    s1: float
    start: int
    cap: float
    norm_layers: int

    def setup(self, structure: Structure, plan: Plan) -> None:
        if self.M > self.N:
            raise UserError(f"M={self.M} slices do not fit N={self.N} norms: M is 1 to N.")
        last = len(structure.layers) - self.norm_layers
        self.measured = {index for index, layer in enumerate(structure.layer_of) if layer >= last}
        self.s = min(float(self.s1), self.cap * self.N)  # samples wanted in the next N iterations
        self.taken = 0  # samples in the current N iterations
        self.norms: deque[tuple[float, float]] = deque(maxlen=2 * self.N)  # |PSF|, |SGD| of the last sampled iterations
        self._on_their_way: deque[HostCopy] = deque(maxlen=2 * self.N)
        self._coin = random.Random(plan.seed)

    def ascends(self, step: int) -> bool:
        """Algorithm 1, lines 4 and 11; an iteration is ``step + 1``."""
        if step > self.start and step % self.N == 0:
            self._set_rate()
            self.taken = 0
        toss = self._coin.random()  # at every step, so that the draws do not depend on what came of them
        if step < self.start:
            return True
        sampling = toss < self.s / self.N and self.taken < self.cap * self.N  # Eq. 15
        self.taken += sampling
        return sampling

    def measure(self, kept: Sequence[int], clean: list[Tensor], sam: list[Tensor], scale: Tensor | None) -> Tensor:
        # "the last few layers of the model also capture the changes"; all where none of them was perturbed
        chosen = [place for place, index in enumerate(kept) if index in self.measured] or range(len(kept))
        sgd = [clean[place] for place in chosen]
        psf = torch._foreach_sub([sam[place] for place in chosen], sgd)
        norms = torch.stack([norm_of(psf), norm_of(sgd)])
        return norms if scale is None else norms / scale

    def observe(self, measured: Tensor) -> None:
        self._on_their_way.append(HostCopy(measured))

    @property
    def rate(self) -> float:
        return self.s / self.N

    def _arrived(self) -> None:
        for psf, sgd in (norms.tolist() for norms in values(self._on_their_way)):
            if math.isfinite(psf) and math.isfinite(sgd):
                self.norms.append((psf, sgd))
        self._on_their_way.clear()

    def _set_rate(self) -> None:
        """Eq. 8 to 14; the rate is kept from dying, one sample in N iterations, and from passing the cap.

        Each of the last N iterations looks back on N norms (Eq. 8). Until there are 2N the rate stays what it is: the spread of
        a window that is still filling grows by itself, and the first rates would be several times too high.
        """
        self._arrived()
        norms = list(self.norms)
        if len(norms) < 2 * self.N or self.N < 2:
            return
        psf = [norm for norm, _ in norms]
        v = [self._spread(psf[i + 1 - self.N : i + 1]) for i in range(self.N, 2 * self.N)]  # Eq. 8
        r = [norm / sgd if sgd else 0.0 for norm, sgd in norms[self.N :]]  # Eq. 11
        change = mean_change(v) + mean_change(r)  # Eq. 9 and 10, 12 and 13
        if math.isfinite(change):
            self.s = min(max(self.s * (1 + self.alpha * change), 1.0), self.cap * self.N)  # Eq. 14

    def _spread(self, norms: Sequence[float]) -> float:
        """Eq. 8: the mean variance within M slices of the sorted norms."""
        ordered = torch.tensor(sorted(norms), dtype=torch.float64)
        slices = [part for part in ordered.tensor_split(self.M) if len(part)]
        return sum(part.var(correction=0).item() for part in slices) / len(slices)

    def state_dict(self) -> dict[str, Any]:
        self._arrived()
        return {"s": self.s, "taken": self.taken, "norms": [list(n) for n in self.norms], "coin": state_of(self._coin)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.s, self.taken = state["s"], state["taken"]
        self.norms.clear()
        self.norms.extend((psf, sgd) for psf, sgd in state["norms"])
        self._on_their_way.clear()
        put_back(self._coin, state["coin"])


def mean_change(values: Sequence[float]) -> float:
    """The mean of (x_i - x_{i-1}) / x_{i-1} (Eq. 9 and 10); a change from zero counts nothing."""
    changes = [(after - before) / before if before else 0.0 for before, after in pairwise(values)]
    return sum(changes) / len(changes)


OPTIONS: dict[str, type[When]] = {option.name: option for option in (Never, Always, Every, Window, Random, GradientNorm, Variation)}
