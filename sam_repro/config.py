"""From overrides to the configuration of a run, with every check of what the user wrote. Knows no torch: errors come at once."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from fnmatch import fnmatch
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from . import plugins
from .loggers import check
from .schema import (
    CONF,
    METADATA,
    METHOD_PARTS,
    QUESTIONS,
    Fields,
    UserError,
    fields,
    flat,
    is_group,
    kind,
    options,
    read,
    reference,
    short,
    suggest,
    typed,
)
from .sense import check_sense
from .store import Run, find

PARTS = ("dataset", "model", "base", "schedule")
GROUPS = (*PARTS, "optimizer", "experiment", "scale", *(f"optimizer/{part}" for part in METHOD_PARTS))
# Of Hydra's own groups, those with options of ours.
ENGINES = {"hydra/launcher": ("basic", "joblib", "submitit_local", "submitit_slurm", "ray"), "hydra/sweeper": ("basic", "optuna")}
# Where a run lies and how it is watched: no part of what it is.
OUTSIDE = (
    "data_dir",
    "runs_dir",
    "results_dir",
    "workers",
    "rerun",
    "dry_run",
    "norms_every",
    "save_every",
    "check_every",
    "logger",
    "wandb",
)
PATHS = ("data_dir", "runs_dir", "results_dir")
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
    method_parts = [f"optimizer.{part}" for part in METHOD_PARTS if part in resolved["optimizer"]]
    for part in (*PARTS, *method_parts):
        if not isinstance(node := _at(resolved, part), dict) or "name" not in node:
            raise UserError(f"{part}={short(node)} is no choice: choose an option, {part.replace('.', '/')}=...")
        _put(config, part, _part(part, _at(resolved, part), _at(raw, part), given, factors, config))
    _common(config, resolved, raw, given)

    plugins.check_options(config)
    _kinds_fit(config)
    _options_fit(config)
    _scale(config, scale, given)
    check_sense(config, given)
    m = config["optimizer"].get("samples", {}).get("m")
    if m is not None and config["accumulate"] > 1:
        raise UserError(f"accumulate={config['accumulate']} does not go with mSAM: its m={m} micro-batches pass one by one already.")
    if m is not None and config["batch_size"] % m:
        raise UserError(f"m={m} does not divide batch_size={config['batch_size']}: the micro-batches of mSAM are equal.")
    return config


def _kinds_fit(config: Config) -> None:
    """Refuse a model that cannot read the data set."""
    held, dataset = kind("dataset", config["dataset"]["name"]), config["dataset"]["name"]
    if kind("model", config["model"]["name"]) != held:
        fitting = ", ".join(name for name in options("model") if kind("model", name) == held)
        raise UserError(f"model={config['model']['name']} cannot read dataset={dataset}, which holds {held}: choose a model of {fitting}.")


def _options_fit(config: Config) -> None:
    """Refuse options that say nothing together."""
    mixed = next((key for key in ("mixup", "cutmix") if config[key]), None)
    if mixed and kind("dataset", config["dataset"]["name"]) != "images":
        raise UserError(f"{mixed}={config[mixed]} mixes images, and dataset={config['dataset']['name']} has none.")
    if mixed and config["model"].get("cache"):
        raise UserError(f"{mixed}={config[mixed]} shows other images in every epoch, and model.cache=true needs the same.")
    if mixed and config["optimizer"].get("teacher", {}).get("name") == "bank":
        raise UserError(
            f"{mixed}={config[mixed]} does not go with SAF, which compares what the model says of the same image in two epochs."
        )
    if config["ema"] and config["swa"]:
        raise UserError("ema= and swa= are two ways to average the weights: set one of them.")
    if config["early_stopping"] and not config["val_fraction"]:
        raise UserError(
            "early_stopping= goes by the score of a held-out part, never by the test set's: val_fraction=0.1 holds out a tenth."
        )
    if config["save_every"] and config["processes"] > 1:
        raise UserError("save_every= is for one process: several save where an epoch ends.")
    if config["init_from"]:
        found = find(config["runs_dir"], config["init_from"])
        if found.state != "done":
            raise UserError(f"init_from={config['init_from']}: that run is {found.state}, not done.")
        config["init_from"] = found.id


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
        raise UserError(_no_such_knob(key, resolved["optimizer"]["name"], resolved))


def check_device(name: str) -> None:
    """UserError where no device is called so."""
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", name):
        raise UserError(f"device={name} is one of auto, cpu, cuda, cuda:0, cuda:1, ..., mps.")


def check_overrides(overrides: Sequence[str]) -> None:
    """Refuse what Hydra would take and a run would not read."""
    for override in overrides:
        key = next(keys_of([override]))
        value = override.partition("=")[2].strip()
        if not key:
            raise UserError(f"{override!r} has no key: an override is key=value, as in lr=0.1.")
        if key in PATHS:
            _check_path(key, value)
        if key in GROUPS and (value.startswith("[") or any(NO_WORD.fullmatch(one.strip()) for one in value.split(","))):
            none = " Leave it out for none." if key == "experiment" else suggest(value, options(key))
            raise UserError(f"{override!r} is no choice.{none}")
        if override.startswith("~"):
            raise UserError(f"{override!r}: a key cannot be removed, only set.")
        if "@" in override.partition("=")[0] or (value.startswith("{") and not key.startswith("hydra")):
            raise UserError(f"{override!r}: set one key at a time, as in optimizer.where.r=0.1.")
        if key.partition(".")[0] in (*METADATA, "methods") or key.endswith((".name", ".kind")) or key.startswith("scale."):
            raise UserError(f"{key!r} is not for the command line: choose options (optimizer=sam) and set their own keys (rho=0.1).")


def _check_path(key: str, value: str) -> None:
    """Refuse what is no folder's name."""
    name = value.strip("'\"")
    if not name:
        raise UserError(f"{key}= has no value: it names a folder, as in {key}=some/where.")
    if name.startswith("~"):
        raise UserError(f'{key}={value}: no shell replaces this ~; write {key}="$HOME{name[1:]}", or the whole path.')


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


# -- errors ------------------------------------------------------------------------------------------------------------


def keys_of(overrides: Iterable[str]) -> Iterator[str]:
    """``["+a.b=1", "~c"]`` -> ``a.b``, ``c``."""
    for override in overrides:
        yield override.partition("=")[0].lstrip("+~").partition("@")[0]


def explain(error: Exception, overrides: Sequence[str]) -> str:
    """Hydra's complaint as one sentence with a suggestion."""
    text = str(error)
    if isinstance(error, RecursionError):
        return "A value is nested too deeply to be read."
    if override := getattr(error, "override", None):  # its grammar
        return _unread(str(override))
    if match := re.search(r"Ambiguous value for argument '([^']*)'", text):
        return f"{match[1]!r} is several values: -m makes a run of each; a list is written with brackets, [a,b]."
    if match := re.search(r"Could not find '([\w/.-]+)'", text):
        group, _, option = match[1].rpartition("/")
        while group and not is_group(group):  # experiments are two deep: kdd24/cifar10
            group, _, head = group.rpartition("/")
            option = f"{head}/{option}"
        if group.startswith("hydra/"):
            return f"{group} has no option {option!r}.{suggest(option, ENGINES.get(group, ()))}"
        return f"{group} has no option {option!r}.{_options(group, option)}"
    match = re.search(r"Could not override '([^']+)'", text) or re.search(r"Key '([^']+)' is not in struct", text)
    if match:
        composed = _what_composes(overrides)
        return _no_such_knob(match[1].partition("@")[0], composed["optimizer"]["name"], composed)
    return text.strip().splitlines()[0]


def _unread(override: str) -> str:
    """Why Hydra's grammar has no place for it."""
    key, equals, value = str(short(override)).partition("=")
    if not equals:
        return f"{key!r} is no override: one is key=value, as in lr=0.1."
    value = "".join(sign if sign.isprintable() else "?" for sign in value.strip("'\""))
    return f"{str(short(override))!r} cannot be read: quote a value with signs that mean something to Hydra, {key}=\"'{value}'\"."


def _options(group: str, option: str) -> str:
    found = suggest(option, options(group))
    return (
        found
        if "Did you mean" in found or group not in plugins.BRINGS
        else f"{found} One of your own needs plugins=, the module that has it."
    )


def _no_such_knob(key: str, method: str, composed: Config) -> str:
    owners = [name for name in options("optimizer") if key in read(f"optimizer/{name}")]
    known = [name for name in (*_dotted(composed), *GROUPS) if name != key]
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


def _what_composes(overrides: Sequence[str]) -> Config:
    """The configuration that the group choices alone give: the keys there were to choose from."""
    import hydra
    from hydra.core.global_hydra import GlobalHydra

    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(str(CONF), job_name="sam_repro", version_base="1.3"):
        choices = [o for o in overrides if next(keys_of([o])) in GROUPS]
        for attempt in (choices, [o for o in choices if not o.startswith("optimizer/")]):
            with contextlib.suppress(Exception):
                content: Any = OmegaConf.to_container(hydra.compose("config", attempt), resolve=False)
                return content
        return _what_composes([])


def _dotted(node: Config, prefix: str = "") -> Iterator[str]:
    for key, value in node.items():
        if key not in (*METADATA, "methods", "hydra"):
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
