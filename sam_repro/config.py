"""From overrides to the configuration of a run, with every check of what the user wrote. Knows no torch: errors come at once."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from .schema import CONF, METHOD_PARTS, QUESTIONS, UserError, checked, fields, options, read, reference, suggest, typed

NUMERICS = 1  # raised when a fix changes the numbers a configuration gives: old runs are then other runs
PARTS = ("dataset", "model", "base", "schedule")
# Where a run lies and how it is watched: no part of what it is.
OUTSIDE = ("data_dir", "runs_dir", "results_dir", "rerun", "dry_run")

Config = dict[str, Any]


def compose(overrides: Sequence[str]) -> Config:
    """The checked configuration of a run, from Python: ``compose(["optimizer=sam", "rho=0.1"])``.

    Raises UserError, one sentence, for anything that does not fit.
    """
    import hydra
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException

    try:
        if GlobalHydra.instance().is_initialized():
            composed = hydra.compose("config", list(overrides))
        else:
            with hydra.initialize_config_dir(str(CONF), job_name="sam_repro", version_base="1.3"):
                composed = hydra.compose("config", list(overrides))
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(explain(error, overrides)) from error
    return finish(composed, overrides)


def finish(composed: DictConfig, overrides: Sequence[str]) -> Config:
    """Check what Hydra composed and reduce it to what this run reads: plain values, ready to be hashed.

    A part that was swapped keeps the fields it has; a knob that no part refers to is dropped, or refused where the user
    gave it. Scale factors are multiplied in, except into what the user set.
    """
    try:
        resolved: Any = OmegaConf.to_container(composed, resolve=True)
    except OmegaConfBaseException as error:
        raise UserError(str(error).splitlines()[0]) from error
    raw: Any = OmegaConf.to_container(composed, resolve=False)
    given = set(keys_of(overrides))
    core = read("config")
    choices = core.pop("choices")
    config: Config = {}

    method_parts = [f"optimizer.{part}" for part in METHOD_PARTS if part in resolved["optimizer"]]
    for part in (*PARTS, *method_parts):
        node, written = _at(resolved, part), _at(raw, part)
        known, _ = fields(part.replace(".", "/"), node["name"])
        for key in node.keys() - known.keys() - {"choices"}:
            if f"{part}.{key}" in given:
                raise UserError(f"{part}={node['name']} has no field {key!r}.{suggest(key, known)}")
        # A knob is named as the user knows it: "k", not "optimizer.where.k".
        knobs = {key: knob for key in known if (knob := reference(written.get(key)))}
        values = typed(part.replace(".", "/"), node["name"], node, knobs)
        config |= {knob: values[key] for key, knob in knobs.items()}
        _put(config, part, values)

    common = core["optimizer"] if "when" in resolved["optimizer"] else {}  # they speak of two passes
    for key, default in common.items():
        knob = reference(raw["optimizer"][key])
        value = checked(knob or f"optimizer.{key}", resolved["optimizer"][key], default, choices.get(key, ()))
        config["optimizer"][key] = value
        if knob:
            config[knob] = value
    config["optimizer"]["name"] = resolved["optimizer"]["name"]
    unread = resolved["optimizer"].keys() - config["optimizer"].keys() - {"choices"}
    _refuse({f"optimizer.{key}" for key in unread}, given, resolved)

    for key, default in core.items():
        if key not in ("defaults", "optimizer", "methods", "hydra"):
            words = choices.get(key, ())
            default = "" if isinstance(default, str) else default
            config[key] = checked(key, resolved[key], default, words)
    groups = {"dataset", "model", "base", "schedule", "optimizer", "experiment", "scale", "methods", "choices", "hydra"}
    _refuse(resolved.keys() - config.keys() - groups, given, resolved)

    scale = resolved["scale"]
    config["scale"] = scale["name"]
    if "epochs" not in given:
        config["epochs"] = max(1, round(config["epochs"] * scale["epochs"]))
    if "train_fraction" not in given:
        config["train_fraction"] *= scale["data"]
    _check_ranges(config)
    return config


def _refuse(unread: Iterable[str], given: set[str], resolved: Config) -> None:
    for key in sorted(set(unread) & given):
        raise UserError(_no_such_knob(key, resolved["optimizer"]["name"], resolved))


def _check_ranges(config: Config) -> None:
    """What can be seen to be wrong without the data or the model."""
    for key, least in (("epochs", 1), ("batch_size", 1), ("seed", 0), ("clip", 0), ("weight_decay", 0), ("lr", 0)):
        if config[key] < least:
            raise UserError(f"{key}={config[key]} is too small: {key} is at least {least}.")
    for key, low, high in (("val_fraction", 0, 0.9), ("label_smoothing", 0, 0.99)):
        if not low <= config[key] <= high:
            raise UserError(f"{key}={config[key]} is a share between {low} and {high}.")
    if not 0 < config["train_fraction"] <= 1:
        raise UserError(f"train_fraction={config['train_fraction']} is a share above 0, up to 1.")
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", config["device"]):
        raise UserError(f"device={config['device']} is one of auto, cpu, cuda, cuda:0, cuda:1, ...")
    method = config["optimizer"]
    k, m = method.get("where", {}).get("k"), method.get("samples", {}).get("m")
    if isinstance(k, int) and k < 0:
        raise UserError(f"k={k} is too small: k is a number of layers, 0 or more, or all.")
    if m is not None and (m < 1 or config["batch_size"] % m):
        raise UserError(f"m={m} does not divide batch_size={config['batch_size']}: the micro-batches of mSAM are equal.")


def identity(config: Config) -> str:
    """The id of the run: ten hex digits of the hash of all that can change its numbers.

    Paths and the like are left out, and so is the device's index; ``device`` must be resolved (no ``auto``) before.
    """
    # Knobs are left out as well: they are in the parts that read them, however they were set there.
    keys = {*read("config"), *PARTS, "optimizer", "scale"} - set(OUTSIDE)
    inside = {key: value for key, value in config.items() if key in keys}
    inside |= {"device": config["device"].partition(":")[0], "numerics": NUMERICS}
    return hashlib.sha1(json.dumps(inside, sort_keys=True).encode()).hexdigest()[:10]


# -- errors ------------------------------------------------------------------------------------------------------------


def keys_of(overrides: Iterable[str]) -> Iterator[str]:
    """``["+a.b=1", "~c"]`` -> ``a.b``, ``c``."""
    for override in overrides:
        yield override.partition("=")[0].lstrip("+~").partition("@")[0]


def explain(error: Exception, overrides: Sequence[str]) -> str:
    """Hydra's complaint as one sentence with a suggestion."""
    text = str(error)
    if match := re.search(r"Could not find '([\w/.-]+)'", text):
        group, _, option = match[1].rpartition("/")
        while group and not (CONF / group).is_dir():  # experiments are two deep: kdd24/cifar10
            group, _, head = group.rpartition("/")
            option = f"{head}/{option}"
        return f"{group} has no option {option!r}.{suggest(option, options(group))}"
    match = re.search(r"Could not override '([^']+)'", text) or re.search(r"Key '([^']+)' is not in struct", text)
    if match:
        composed = _what_composes(overrides)
        return _no_such_knob(match[1].partition("@")[0], composed["optimizer"]["name"], composed)
    return text.strip().splitlines()[0]


def _no_such_knob(key: str, method: str, composed: Config) -> str:
    owners = [name for name in options("optimizer") if key in read(f"optimizer/{name}")]
    known = [name for name in (*_dotted(composed), *_groups()) if name != key]
    if key.startswith("optimizer/"):
        questions = ", ".join(f"optimizer/{question}" for question in QUESTIONS if question in composed["optimizer"])
        return f"optimizer={method} has no {key!r}{'; it has: ' + questions if questions else ': it makes no ascent'}."
    if owners and method not in owners:
        return f"optimizer={method} has no knob {key!r}; the methods that have it: {', '.join(owners)}."
    if owners:
        return f"{key!r} is not read: the part of optimizer={method} that reads it was swapped for another."
    if key == "momentum":
        return "'momentum' belongs to base=sgd."
    return f"There is no key {key!r}.{_close(key, known)}"


def _close(key: str, known: list[str]) -> str:
    found = suggest(key, known)
    return found if "Did you mean" in found else " 'python -m sam_repro --cfg job' shows every key."


def _groups() -> list[str]:
    return [path.name for path in CONF.iterdir() if path.is_dir()] + [f"optimizer/{part}" for part in METHOD_PARTS]


def _what_composes(overrides: Sequence[str]) -> Config:
    """The configuration that the group choices alone give: the keys there were to choose from."""
    import hydra
    from hydra.core.global_hydra import GlobalHydra

    groups = set(_groups())
    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(str(CONF), job_name="sam_repro", version_base="1.3"):
        choices = [o for o in overrides if next(keys_of([o])) in groups]
        for attempt in (choices, [o for o in choices if not o.startswith("optimizer/")]):
            with contextlib.suppress(Exception):
                content: Any = OmegaConf.to_container(hydra.compose("config", attempt), resolve=False)
                return content
        return _what_composes([])


def _dotted(node: Config, prefix: str = "") -> Iterator[str]:
    for key, value in node.items():
        if key not in ("choices", "methods", "hydra"):
            yield prefix + key
            if isinstance(value, dict):
                yield from _dotted(value, f"{prefix}{key}.")


def _at(node: Config, dotted: str) -> Config:
    for key in dotted.split("."):
        node = node[key]
    return node


def _put(node: Config, dotted: str, value: Any) -> None:
    *path, last = dotted.split(".")
    for key in path:
        node = node.setdefault(key, {})
    node[last] = value
