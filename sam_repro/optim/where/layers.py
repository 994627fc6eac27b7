"""Some layers, chosen by their gradient norms."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...schema import UserError
from ..host import HostCopy, send
from ..structure import Plan, Structure
from .base import Tensors, Where, along


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
        self.among(self.everything, self.tensors)  # tells at once if there are none
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
