"""The gradient methods. They need PyTorch and PyYAML alone: no Hydra, no trainer.

In a loop of one's own::

    gradient = create("layerwise", model, k=4)
    for inputs, targets in batches:
        report = gradient.backward(inputs, targets, nn.CrossEntropyLoss(reduction="none"))
        base.step(); schedule.step(); base.zero_grad()
"""

from __future__ import annotations

from typing import Any

from torch import nn

from ..schema import TWO_PASSES, USUAL, Fields, UserError, fields, merged, options, read, reference, resolve, suggest, typed
from . import between, combine, distill, samples, when, where
from .distill import Distillation
from .gradient import Gradient
from .host import HostCopy
from .method import Method, Report
from .static import StaticStep
from .structure import Plan

__all__ = ["Distillation", "Gradient", "HostCopy", "Method", "Plan", "Report", "StaticStep", "UserError", "build", "create", "settings"]


def create(
    name: str,
    model: nn.Module,
    *,
    total_steps: int | None = None,
    steps_per_epoch: int | None = None,
    dataset_size: int | None = None,
    seed: int = 0,
    **knobs: Any,
) -> Method:
    """The method ``name`` on ``model``, with the defaults of ``conf/optimizer/<name>.yaml``.

    Args:
        name: an option of ``conf/optimizer``, from ``sgd`` to ``vsam``.
        model: any module; one that is a ``Chain`` saves what both passes have in common. The method knows the parameters
            that require a gradient now: after unfreezing others, create it anew.
        total_steps: of the whole training.
        steps_per_epoch: optimizer steps.
        dataset_size: samples of the training set; these three for methods that need to know them.
        seed: of the method's own draws.
        knobs: the method's numbers (``k=4``), another option for a question (``where="model"``), or a field of a
            part by its full name (``**{"where.rho": 0.1}``).

    Raises:
        UserError: an unknown method or knob, a value that does not fit the field or the model.
    """
    return build(settings(name, **knobs), model, Plan(total_steps, steps_per_epoch, dataset_size, seed))


def settings(name: str, **knobs: Any) -> dict[str, Any]:
    """The resolved settings of a method: the ``optimizer`` part of a run's configuration, without Hydra."""
    if name not in options("optimizer"):
        raise UserError(f"There is no method {name!r}.{suggest(name, options('optimizer'))}")
    content = read(f"optimizer/{name}")
    core = read("config")
    own = content.keys() - {"defaults", "methods", "optimizer"}
    chosen = {path.rpartition("/")[2]: option for entry in content["defaults"] if entry != "_self_" for path, option in entry.items()}
    common = core["optimizer"] if "when" in chosen else {}  # they speak of two passes
    chosen = {"combine": USUAL["name"], **chosen} if common else chosen
    known = Fields(common, core["choices"], core["limits"])
    chosen |= {part: knobs.pop(part) for part in list(chosen) if part in knobs}
    dotted = {key: knobs.pop(key) for key in list(knobs) if "." in key}
    for key in knobs.keys() - own - common.keys():
        raise UserError(f"{name} has no knob {key!r}.{suggest(key, [*own, *common, *chosen])}")

    written = merged(common, content["optimizer"])
    values = resolve(written, {**content, **knobs})
    unread = knobs.keys() & own
    result: dict[str, Any] = {"name": name}
    for key in common:
        result[key] = known.checked(key, key, knobs.get(key, values[key]))
        unread -= {reference(written[key])}
    for question, option in chosen.items():
        group = f"optimizer/{question}"
        own_fields = fields(group, option).defaults
        part = {key: value for key, value in values.get(question, {}).items() if key in own_fields}
        for full in [full for full in dotted if full.startswith(f"{question}.")]:
            if full.partition(".")[2] not in own_fields:
                raise UserError(f"{question}={option} has no field {full!r}.{suggest(full.partition('.')[2], own_fields)}")
            part[full.partition(".")[2]] = dotted.pop(full)
        names = {key: knob for key in part if (knob := reference(written.get(question, {}).get(key)))}
        unread -= set(names.values())
        result[question] = typed(group, option, part, names)
    for full in dotted:
        raise UserError(f"{full!r} is no field of a part; the parts are {', '.join(TWO_PASSES)}.")
    for key in unread:
        raise UserError(f"{key!r} is not read: the part of {name} that reads it was swapped for another.")
    if result.get("combine") == USUAL:
        del result["combine"]
    return result


def build(settings: dict[str, Any], model: nn.Module, plan: Plan) -> Method:
    """The method of resolved settings; UserError where they do not fit the model."""
    method = _built(settings, model, plan)
    method.name = settings.get("name", "")
    return method


def _built(settings: dict[str, Any], model: nn.Module, plan: Plan) -> Method:
    if "teacher" in settings:
        values = dict(settings["teacher"])
        return Distillation(model, distill.OPTIONS[values.pop("name")](**values), plan=plan)
    parts: dict[str, Any] = {}
    for part, module in zip(TWO_PASSES, (when, where, between, samples, combine), strict=True):
        values = dict(settings.get(part, USUAL))
        parts[part] = module.OPTIONS[values.pop("name")](**values)
    common = {key: value for key, value in settings.items() if key not in ("name", *TWO_PASSES)}
    return Gradient(model, **parts, **common, plan=plan)
