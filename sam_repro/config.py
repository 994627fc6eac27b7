"""From overrides to the configuration of a run, with every check of what the user wrote. Knows no torch: errors come at once."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from collections.abc import Sequence
from fnmatch import fnmatch
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from . import plugins
from .complaints import explain, no_such_knob
from .loggers import check
from .schema import (
    CONF,
    GROUPS,
    METADATA,
    METHOD_PARTS,
    PARTS,
    USUAL,
    Fields,
    UserError,
    check_path,
    fields,
    flat,
    keys_of,
    kind,
    options,
    read,
    reference,
    short,
    suggest,
    typed,
)  # fmt: skip
from .sense import check_sense
from .store import Run, find

# Where a run lies and how it is watched: no part of what it is.
OUTSIDE = (
    "data_dir", "runs_dir", "results_dir", "workers", "rerun", "dry_run", "norms_every", "save_every", "check_every", "logger", "wandb",
)  # fmt: skip
NO_WORD = re.compile(r"(null|true|false|[-+]?[\d.]+(e[-+]?\d+)?)?", re.IGNORECASE)  # what Hydra does not take for an option's name
CUDA_ONLY = ("tf32", "cudnn_benchmark")  # elsewhere they change nothing

Config = dict[str, Any]


def compose(overrides: Sequence[str]) -> Config:
    """The checked configuration of a run, from Python: ``compose(["optimizer=sam", "rho=0.1"])``.

    Raises UserError, one sentence, for anything that does not fit.
    """
    import hydra
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException

    from .compose import plainly

    check_overrides(overrides)
    composed: DictConfig | None
    try:
        if GlobalHydra.instance().is_initialized():  # by somebody who may have search paths of their own
            composed = hydra.compose("config", list(overrides))
        elif (composed := plainly(overrides)) is None:
            with hydra.initialize_config_dir(str(CONF), job_name="sam_repro", version_base="1.3"):
                composed = hydra.compose("config", list(overrides))
    except (HydraException, OmegaConfBaseException, ValueError, RecursionError) as error:  # ValueError: Hydra's own, of its parser
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

    config: Config = {}
    scale = resolved["scale"]
    factors = {"epochs": scale["epochs"], "steps": scale["epochs"] * scale["data"]}
    if "when" not in resolved["optimizer"] and resolved["optimizer"].pop("combine", None) and "optimizer/combine" in given:
        raise UserError(no_such_knob("optimizer/combine", resolved["optimizer"]["name"], resolved))
    method_parts = [f"optimizer.{part}" for part in METHOD_PARTS if part in resolved["optimizer"]]
    for part in (*PARTS, *method_parts):
        if not isinstance(node := _at(resolved, part), dict) or "name" not in node:
            raise UserError(f"{part}={short(node)} is no choice: choose an option, {part.replace('.', '/')}=...")
        _put(config, part, _part(part, _at(resolved, part), _at(raw, part), given, factors, config))
    if config["optimizer"].get("combine") == USUAL:
        del config["optimizer"]["combine"]
    _common(config, resolved, raw, given)

    plugins.check_options(config)
    _kinds_fit(config)
    _scale(config, scale, given)
    check_sense(config, given)
    if config["init_from"]:
        found = find(config["runs_dir"], config["init_from"])
        if found.state != "done":
            raise UserError(f"init_from={config['init_from']}: that run is {found.state}, not done.")
        config["init_from"] = found.id
    return config


def _kinds_fit(config: Config) -> None:
    """Refuse a model that cannot read the data set."""
    held, dataset = kind("dataset", config["dataset"]["name"]), config["dataset"]["name"]
    if kind("model", config["model"]["name"]) != held:
        fitting = ", ".join(name for name in options("model") if kind("model", name) == held)
        raise UserError(f"model={config['model']['name']} cannot read dataset={dataset}, which holds {held}: choose a model of {fitting}.")


def _scale(config: Config, scale: Config, given: set[str]) -> None:
    """Multiply the factors of the scale in, and lower what it limits, except where the user set it."""
    config["scale"] = scale["name"]
    if "epochs" not in given:
        config["epochs"] = max(1, round(config["epochs"] * scale["epochs"]))
    if "train_fraction" not in given:
        config["train_fraction"] *= scale["data"]
    if scale["samples"] and "max_samples" not in given:
        config["max_samples"] = scale["samples"]
    if scale["batch"] and "batch_size" not in given:
        config["batch_size"] = min(config["batch_size"], scale["batch"])
    if scale["score_every"] and "score_every" not in given:
        config["score_every"] = scale["score_every"]


def _part(part: str, node: Config, written: Config, given: set[str], factors: dict[str, float], config: Config) -> Config:
    """The checked fields of a part, scaled where they count epochs or steps. Knobs that they refer to are put into ``config``."""
    known = fields(part.replace(".", "/"), node["name"]).defaults
    for key in node.keys() - known.keys() - set(METADATA):
        if f"{part}.{key}" in given:
            raise UserError(f"{part}={node['name']} has no field {key!r}.{suggest(key, known)}")
    # A knob is named as the user knows it: "k", not "optimizer.where.k".
    knobs = {key: knob for key in known if (knob := reference(written.get(key)))}
    for key, unit in read(f"{part.replace('.', '/')}/{node['name']}").get("scales", {}).items():
        if not {f"{part}.{key}", knobs.get(key)} & given:
            node[key] = round(node[key] * factors[unit]) if isinstance(known[key], int) else node[key] * factors[unit]
    values = typed(part.replace(".", "/"), node["name"], node, knobs)
    config |= {knob: values[key] for key, knob in knobs.items()}
    return values


def _common(config: Config, resolved: Config, raw: Config, given: set[str]) -> None:
    """What every run has, and every method of two passes; and a refusal of what nobody reads."""
    core = read("config")
    known = Fields(core, core["choices"], core["limits"])
    shared = Fields(core["optimizer"], known.choices, known.limits)
    for key in shared.defaults if "when" in config["optimizer"] else ():
        knob = reference(raw["optimizer"][key])
        config["optimizer"][key] = shared.checked(key, knob or f"optimizer.{key}", resolved["optimizer"][key])
        if knob:
            config[knob] = config["optimizer"][key]
    config["optimizer"]["name"] = resolved["optimizer"]["name"]
    for key in core.keys() - {"defaults", "optimizer", "methods", "hydra", *METADATA}:
        config[key] = plugins.recorded(resolved[key]) if key == "plugins" else known.checked(key, key, resolved[key])
    check_device(config["device"])
    check(config["logger"], config["wandb"])

    unread = {f"optimizer.{key}" for key in resolved["optimizer"].keys() - config["optimizer"].keys()}
    for key in sorted((unread | resolved.keys() - config.keys()) & given - set(GROUPS)):
        raise UserError(no_such_knob(key, resolved["optimizer"]["name"], resolved))


def check_device(name: str) -> None:
    """UserError where no device is called so."""
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", name):
        raise UserError(f"device is one of auto, cpu, cuda, cuda:0, cuda:1, ..., mps, not {name!r}.")


def check_overrides(overrides: Sequence[str]) -> None:
    """Refuse what Hydra would take and a run would not read."""
    for override in overrides:
        key = next(keys_of([override]))
        value = override.partition("=")[2].strip()
        if not key:
            raise UserError(f"{override!r} has no key: an override is key=value, as in lr=0.1.")
        check_path(key, value)
        if key in GROUPS and (value.startswith("[") or any(NO_WORD.fullmatch(one.strip()) for one in value.split(","))):
            none = " Leave it out for none." if key == "experiment" else suggest(value, options(key))
            raise UserError(f"{override!r} is no choice.{none}")
        if (key == "hydra" or key.startswith("hydra/")) and value.startswith("["):
            raise UserError(f"{override!r} is no choice: one option is chosen, as in hydra/launcher=joblib.")
        if override.startswith("~"):
            raise UserError(f"{override!r}: a key cannot be removed, only set.")
        if "@" in override.partition("=")[0] or (value.startswith("{") and not key.startswith("hydra")):
            raise UserError(f"{override!r}: set one key at a time, as in optimizer.where.r=0.1.")
        if key.partition(".")[0] in (*METADATA, "methods") or key.endswith((".name", ".kind")) or key.startswith("scale."):
            raise UserError(f"{key!r} is not for the command line: choose options (optimizer=sam) and set their own keys (rho=0.1).")


def identity(config: Config, fixes: list[str] | None = None) -> str:
    """The id of the run: ten hex digits of the hash of all that can change its numbers.

    Paths and the like are left out, and so is the device's index; ``device`` must be resolved (no ``auto``) before. ``fixes``: those of
    ``conf/numerics.yaml`` that there were, where not all that concern it.
    """
    # Knobs are left out as well: they are in the parts that read them, however they were set there.
    cuda = config["device"].startswith("cuda")
    keys = {*read("config"), *PARTS, "optimizer", "scale"} - {*OUTSIDE, *(() if cuda else CUDA_ONLY)}
    if one_for_all(config):
        keys -= {"processes", "sync_bn"}
    inside = _without_neutral({key: value for key, value in config.items() if key in keys}, read("config"))
    for part in PARTS:
        inside[part] = _without_neutral(config[part], read(f"{part}/{config[part]['name']}"))
    method = dict(config["optimizer"])
    method |= {p: _without_neutral(method[p], read(f"optimizer/{p}/{method[p]['name']}")) for p in METHOD_PARTS if p in method}
    known = fixed(config) if fixes is None else fixes
    inside |= {"optimizer": method, "device": config["device"].partition(":")[0], "numerics": [1, *known] if known else 1}
    return hashlib.sha1(json.dumps(inside, sort_keys=True).encode()).hexdigest()[:10]


def check_named_after(run: Run) -> None:
    """UserError where the configuration in a run's directory is not the one that the directory is named after: somebody changed it."""
    config = run.config
    with contextlib.suppress(UserError, LookupError, TypeError, AttributeError):
        fixes = fixed(config)
        if run.id in {identity(config, fixes[:count]) for count in range(len(fixes) + 1)}:  # before a fix its runs had other ids
            return
    raise UserError(
        f"{run.path / 'config.yaml'} is not what run {run.id} is named after: it was changed since. Put it back, or remove the run "
        f"('runs rm {run.id}') and train anew."
    )


def one_for_all(config: Config) -> bool:
    """Whether the number of processes is no part of what a run is: they compute what one would, but for rounding.

    Not where each of them normalises by its part of a batch, perturbs by it, or chooses and splits samples of it.
    """
    if config.get("processes", 1) == 1:
        return True
    if config.get("mixup") or config.get("cutmix"):  # of images of one process's part
        return False
    together = config.get("sync_bn", False) or not read(f"model/{config['model']['name']}").get("batchnorm", True)
    method = config["optimizer"]
    return together and method.get("scope", "batch") == "batch" and method.get("samples", {"name": "batch"})["name"] == "batch"


def complete(config: Config, **changes: Any) -> Config:
    """The configuration of a run that is over, which may be older than some keys, to be loaded with ``changes``; not compiled."""
    return {**read("config")["neutral"], **config, "compile": "none", **changes}


def _without_neutral(values: Config, written: Config) -> Config:
    """Without the fields that are younger than the rest, where they have the value of the time before them."""
    neutral = written.get("neutral", {})
    return {key: value for key, value in values.items() if key not in neutral or neutral[key] != value}


def fixed(config: Config) -> list[str]:
    """The fixes of ``conf/numerics.yaml`` that changed what this configuration gives, by name: runs before and after are different runs."""
    values = dict(flat(config))
    fixes = read("numerics")
    return [name for name, fix in fixes.items() if any(_matches(values, condition) for condition in fix["of"])]


def _matches(values: Config, condition: Config) -> bool:
    return all(key in values and any(fnmatch(str(values[key]), pattern) for pattern in one.split("|")) for key, one in condition.items())


# -- the tree of the configuration ---------------------------------------------------------------------------------------


def _at(node: Config, dotted: str) -> Config:
    for key in dotted.split("."):
        node = node[key]
    return node


def _put(node: Config, dotted: str, value: Any) -> None:
    *path, last = dotted.split(".")
    for key in path:
        node = node.setdefault(key, {})
    node[last] = value
