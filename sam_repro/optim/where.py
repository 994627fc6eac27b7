"""Where, and how far, are the weights moved? One class an option of ``conf/optimizer/where``."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..schema import UserError
from .falls import left
from .host import HostCopy, send
from .structure import Plan, Structure, norm_of

Tensors = list[Tensor] | tuple[Tensor, ...]


class Where:
    """Chooses the parameters to perturb and the perturbation."""

    name: ClassVar[str]

    def setup(self, structure: Structure, plan: Plan) -> None:
        """Learn the model; UserError if the option does not fit it."""
        self.structure = structure
        self.everything = list(range(len(structure.parameters)))

    def among(self, indices: Sequence[int], tensors: str) -> list[int]:
        """Of the parameters ``indices``: ``all``, or the ``weights`` alone, those of more than one dimension.

        The code of KDD'24's author perturbs convolution and dense kernels, and neither normalisations nor biases.
        """
        return [index for index in indices if tensors == "all" or self.structure.parameters[index].ndim > 1]

    def begin(self, step: int) -> None:
        """Step ``step`` (from 0) begins; on the host."""

    def select(self) -> list[int]:
        """The parameters (indices into ``structure.parameters``) that this step perturbs."""
        return self.everything

    @property
    def varies(self) -> str:
        """Why no recorded step could serve another one; empty where one can."""
        return ""

    def recorded(self, selected: Sequence[int]) -> tuple[Sequence[int], Tensor | None]:
        """What a recorded step perturbs in place of ``selected``, so that it serves other choices as well.

        With it goes the factor of every layer's perturbation and mix, ``(layers,)`` on the device: 1, or 0 for those not selected.
        """
        return selected, None

    def perturbation(self, selected: Sequence[int], gradients: list[Tensor]) -> Tensors:
        """The perturbation of the parameters ``selected`` (those that have a gradient at w), tensor by tensor."""
        raise NotImplementedError

    def observe(self, layer_norms: Tensor) -> None:
        """See the norm of every layer's gradient in the last pass, before the mix; a tensor on the device."""

    def state_dict(self) -> dict[str, Any]:
        """What the option has learned so far."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up where ``state_dict`` left off."""


def ratio(numerator: Tensor | float, denominator: Tensor) -> Tensor:
    """The quotient; zero over zero is zero: where there is no direction we stay where we are."""
    return torch.where(denominator == 0, torch.zeros_like(denominator), numerator / denominator)


def along(gradients: list[Tensor], length: float, normalize: bool) -> Tensors:
    """``length`` g/|g| with |g| over all that is perturbed, or ``length`` g."""
    return torch._foreach_mul(gradients, ratio(length, norm_of(gradients)) if normalize else length)


@dataclass
class Model(Where):
    """rho g/|g| over the whole model (SAM, Foret et al. 2021, Eq. 2), or rho g (KDD'24, Eq. 3)."""

    name = "model"
    rho: float
    normalize: bool
    tensors: str

    def setup(self, structure: Structure, plan: Plan) -> None:
        super().setup(structure, plan)
        self._selected = self.among(self.everything, self.tensors)

    def select(self) -> list[int]:
        return self._selected

    def perturbation(self, selected: Sequence[int], gradients: list[Tensor]) -> Tensors:
        return along(gradients, self.rho, self.normalize)


@dataclass
class Annealed(Where):
    """rho_t g/|g| over the whole model, rho_t on its way from ``rho`` to ``rho_end`` as the learning rate is on its to zero (GSAM).

    ``schedule`` is the formula of the learning rate's; where that one is another, rho_t does not follow it.
    """

    name = "annealed"
    rho: float
    rho_end: float
    schedule: str

    def setup(self, structure: Structure, plan: Plan) -> None:
        super().setup(structure, plan)
        if plan.total_steps is None:
            raise UserError("where=annealed changes rho over the training: give total_steps=.")
        self.total_steps = plan.total_steps
        first = norm_of([structure.parameters[0].detach()])
        self.length = torch.full_like(first, self.rho)  # rho_t, which a recorded step reads

    def begin(self, step: int) -> None:
        self.length.fill_(self.rho_end + (self.rho - self.rho_end) * left(self.schedule, step / self.total_steps))

    def perturbation(self, selected: Sequence[int], gradients: list[Tensor]) -> Tensors:
        return torch._foreach_mul(gradients, ratio(self.length, norm_of(gradients)))


@dataclass
class Adaptive(Where):
    """rho T^2 g/|T g| with T = |w| + eta for weights, 1 for the rest (ASAM, Kwon et al. 2021, and its official code)."""

    name = "adaptive"
    rho: float
    eta: float

    def perturbation(self, selected: Sequence[int], gradients: list[Tensor]) -> Tensors:
        # As in the official code, "weight" in the name decides: normalisation weights scale, biases do not.
        places = [place for place, index in enumerate(selected) if "weight" in self.structure.names[index]]
        scales = torch._foreach_abs([self.structure.parameters[selected[place]].detach() for place in places])
        torch._foreach_add_(scales, self.eta)
        once = _scaled(gradients, places, scales)
        return torch._foreach_mul(_scaled(once, places, scales), ratio(self.rho, norm_of(once)))


def _scaled(tensors: list[Tensor], places: list[int], scales: Sequence[Tensor]) -> list[Tensor]:
    """The tensors, those at ``places`` times ``scales``."""
    result = list(tensors)
    if places:
        products = torch._foreach_mul([tensors[place] for place in places], list(scales))
        for place, product in zip(places, products, strict=True):
            result[place] = product
    return result


@dataclass
class TrustRatio(Where):
    """LayerSAM (LookSAM supplement, Algorithm 2), layer by layer.

    ``printed``: rho |w_i|/|g_i| g_i/|g|, with |g| over the model. ``local``: rho |w_i| g_i/|g_i|. ``whole``: every layer's
    gradient times its trust ratio |w_i|/|g_i|, then all of it at the length rho; ``printed`` at rho = 1 is as long as the weights.
    """

    name = "trust_ratio"
    rho: float
    trust: str

    def perturbation(self, selected: Sequence[int], gradients: list[Tensor]) -> Tensors:
        padded: list[Tensor | None] = [None] * len(self.everything)
        weights = list(padded)
        for index, gradient in zip(selected, gradients, strict=True):
            padded[index], weights[index] = gradient, self.structure.parameters[index].detach()
        factor = self.rho * ratio(self.structure.layer_norms(weights), self.structure.layer_norms(padded))
        if self.trust == "printed":
            factor = factor * ratio(1.0, norm_of(gradients))
        scaled = torch._foreach_mul(gradients, self.structure.spread(factor, selected, gradients))
        return along(list(scaled), self.rho, normalize=True) if self.trust == "whole" else scaled


@dataclass
class Layers(Where):
    """r g on the k layers whose gradient was largest in the last pass (KDD'24, Eq. 6 and Algorithm 1).

    ``normalize``: r g/|g|, with |g| over what is perturbed. The host has to know the layers before it can go on: it waits for
    their numbers once a step. With a ``lag`` of 1 they are those of the step before the last, which have arrived by then.
    """

    name = "layers"
    k: int | str
    r: float
    criterion: str
    normalize: bool
    tensors: str
    lag: int

    def setup(self, structure: Structure, plan: Plan) -> None:
        super().setup(structure, plan)
        total = len(structure.layers)
        self.count = total if self.k == "all" else int(self.k)
        if self.count > total:
            raise UserError(f"k={self.k} does not fit: the model has {total} layers, k is 0 to {total}, or all.")
        self._generator = torch.Generator().manual_seed(plan.seed)
        # Line 2: all norms are equal before the first step. A tie goes to the output, where the paper finds the largest norms,
        # and with ``low`` to the input.
        tied = range(self.count) if self.criterion == "low" else range(total - self.count, total)
        self._chosen = self._drawn() if self.criterion == "random" else list(tied)
        self._arriving: deque[HostCopy] = deque(maxlen=self.lag + 1)  # the choices of the last steps, also of those without an ascent
        self._mask = structure.parameters[0].new_zeros(total, requires_grad=False)

    @property
    def varies(self) -> str:
        return "normalize=true divides by the norm of other layers in each step" if self.normalize and not self._whole else ""

    def recorded(self, selected: Sequence[int]) -> tuple[Sequence[int], Tensor | None]:
        """All that lies behind the first layer selected: one recording a cut of the chain, and masks."""
        if self._whole:
            return selected, None
        chosen, cut = set(self.chosen), self.structure.first_stage(selected)
        send([float(layer in chosen) for layer in range(len(self.structure.layers))], self._mask)
        behind = [index for index in self.everything if self.structure.first_stage([index]) >= cut]
        return self.among(behind, self.tensors), self._mask

    @property
    def _whole(self) -> bool:
        return self.count == len(self.structure.layers)

    def select(self) -> list[int]:
        """Line 4: w' <- k layers with the top gradient norms."""
        return self.among(self.everything if self._whole else self.structure.parameters_of(self.chosen), self.tensors)

    def _drawn(self) -> list[int]:
        drawn: list[int] = torch.randperm(len(self.structure.layers), generator=self._generator)[: self.count].tolist()
        return drawn

    @property
    def chosen(self) -> list[int]:
        """The layers to perturb next."""
        if len(self._arriving) > self.lag:
            self._chosen = sorted(self._arriving.popleft().value().tolist())  # waits for the one small copy from the device
        return self._chosen

    def perturbation(self, selected: Sequence[int], gradients: list[Tensor]) -> Tensors:
        return along(gradients, self.r, self.normalize)

    def observe(self, layer_norms: Tensor) -> None:
        """Line 9: collect |grad L(w_i + r grad L(w_i))| of every layer."""
        if self.count in (0, len(self.structure.layers)):
            return
        if self.criterion == "random":
            self._chosen = self._drawn()
        else:
            self._arriving.append(HostCopy(layer_norms.topk(self.count, largest=self.criterion == "high").indices))

    def state_dict(self) -> dict[str, Any]:
        chosen = list(self.chosen)
        arriving = [copy.value().clone() for copy in self._arriving]
        return {"chosen": chosen, "arriving": arriving, "generator": self._generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._chosen = list(state["chosen"])
        self._arriving.clear()
        self._arriving.extend(HostCopy(choice.cpu()) for choice in state.get("arriving", []))
        self._generator.set_state(state["generator"])


@dataclass
class RandomTensors(Where):
    """(rho / beta) g/|g| on each tensor with probability beta, |g| over those drawn: |eps| = rho / beta (ESAM's code).

    The paper draws single weights and divides by the norm over all; the code, followed here, draws whole tensors, all of
    them at the first step.
    """

    name = "random_tensors"
    rho: float
    beta: float

    def setup(self, structure: Structure, plan: Plan) -> None:
        super().setup(structure, plan)
        self._drawn = self.everything
        self._random = random.Random(plan.seed)

    @property
    def varies(self) -> str:
        return "other tensors are perturbed in each step" if self.beta < 1 else ""

    def select(self) -> list[int]:
        return self._drawn

    def perturbation(self, selected: Sequence[int], gradients: list[Tensor]) -> Tensors:
        return torch._foreach_mul(gradients, ratio(self.rho / self.beta, norm_of(gradients)))

    def observe(self, layer_norms: Tensor) -> None:
        """Draw the tensors of the next step."""
        self._drawn = [index for index in self.everything if self._random.random() < self.beta]

    def state_dict(self) -> dict[str, Any]:
        version, numbers, gauss = self._random.getstate()
        return {"drawn": list(self._drawn), "random": [version, list(numbers), gauss]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._drawn = list(state["drawn"])
        version, numbers, gauss = state["random"]
        self._random.setstate((version, tuple(numbers), gauss))


OPTIONS: dict[str, type[Where]] = {option.name: option for option in (Model, Annealed, Adaptive, TrustRatio, Layers, RandomTensors)}
