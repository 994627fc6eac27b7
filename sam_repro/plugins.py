"""A user's own models, data sets and methods: code that is imported only where the command line names it, ``plugins=my_module``.

A plug-in is a module that registers what it brings, and a folder ``conf/`` beside it with the option files, of the form that the
project's own have (docs/plugins.md)::

    @register("model/mine")                                  # its fields stand in conf/model/mine.yaml
    def mine(num_classes, in_channels, image_size, *, width): ...

Its name and a hash of its source are in the configuration of a run, and so in the run's id. What a run directory, a declared table or a
claim says is never imported: ``load`` gets the user's own words alone.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Iterable, Mapping
from importlib.machinery import ModuleSpec
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, NamedTuple

from . import brought
from .brought import BRINGS
from .own import CODE, OWN, register, said
from .schema import CONF, FOLDERS, METHOD_PARTS, UserError, option_file

__all__ = ["BRINGS", "check_options", "check_run", "load", "recorded", "register"]

MADE_HERE = {"task", "arch"}  # fields of data sets of GLUE's form and of timm's models: code of ours makes those
GROUP = "sam_repro.plugins"  # of the entry points of installed packages


class Plugin(NamedTuple):
    """A plug-in that this process has imported."""

    source: str  # ten hex digits of the hash of its code
    folder: Path  # of its options


NAMED: dict[str, Plugin] = {}


def load(words: Iterable[str]) -> None:
    """Import the plug-ins that the user's words name, ``plugins=my_module`` or ``plugins=[a,path/to/b.py]``, each once.

    UserError where one is not to be found, cannot be imported, or brings nothing that fits.
    """
    given = [word.partition("=")[2].strip() for word in words if word.partition("=")[0].lstrip("+") == "plugins"]
    for word in _listed(given[-1]) if given else []:
        spec = _spec(word)  # also of one that is known: another file of the same name is refused
        if name_of(word) not in NAMED:
            _load(word, spec)


def _listed(value: str) -> list[str]:
    """``[a,b]`` as its parts."""
    inside = value.strip("'\"")
    parts = inside[1:-1].split(",") if inside.startswith("[") and inside.endswith("]") else [inside]
    words = [part.strip().strip("'\"") for part in parts if part.strip()]
    if any("," in word for word in words):
        raise UserError(f"plugins={value} is more than one: write plugins=[{value}], which stands for every run.")
    if not words and value != "[]":
        raise UserError("plugins= has no value: name a module, as in plugins=my_module, or a file, as in plugins=path/to/my_module.py.")
    return words


def name_of(word: str) -> str:
    """What a plug-in is called wherever it lies: the module's name, or that of the entry point."""
    return Path(word).stem if word.endswith(".py") else word


def _load(word: str, spec: ModuleSpec) -> None:
    digest, folder = source(spec), (Path(str(spec.origin)).parent / "conf").resolve()
    if folder == CONF:
        raise UserError(f"plugins={word}: {folder} beside it is sam_repro's own; put it into a folder of its own, with its conf/.")
    before, known = dict(OWN), list(FOLDERS)
    try:
        _imported(word, spec.name)
        if folder.is_dir() and folder not in FOLDERS:
            brought.check_files(word, folder)
            FOLDERS.append(folder)
        brought.check(word, folder, before.keys())
        brought.add_answers(OWN.keys() - before.keys())
    except BaseException:
        OWN.clear()
        OWN.update(before)
        FOLDERS[:] = known
        raise
    NAMED[name_of(word)] = Plugin(digest, folder)
    from .compose import show_hydra_the_folders

    show_hydra_the_folders()


def _spec(word: str) -> ModuleSpec:
    """Where the module is that a word names; UserError where there is none, or none with a source."""
    path = Path(word).resolve() if word.endswith(".py") else None
    if path and not path.is_file():
        raise UserError(f"plugins={word}: there is no such file.")
    module = name_of(word)
    if not path:
        module = next((entry.module for entry in entry_points(group=GROUP) if entry.name == word), word)
    if not all(part.isidentifier() for part in module.split(".")):
        raise UserError(f"plugins={word}: {module!r} is no name that Python can import; it has letters, digits and _ alone.")
    place = str(path.parent if path else Path.cwd())
    if place not in sys.path:
        sys.path.append(place)  # behind all others: it hides none of them
    spec = _found(word, module)
    if spec is None:
        raise UserError(
            f"plugins={word}: there is no module {module!r}, neither installed nor here; a file is named by its path, as in x/{module}.py."
        )
    if not spec.origin or not spec.origin.endswith(".py"):
        raise UserError(f"plugins={word}: the module {module!r} has no source in Python ({spec.origin}).")
    if path and Path(spec.origin).resolve() != path:
        raise UserError(f"plugins={word}: its name is that of another module, {spec.origin}; rename the file.")
    return spec


def _found(word: str, module: str) -> ModuleSpec | None:
    try:
        return importlib.util.find_spec(module)
    except ModuleNotFoundError:  # nor what it is a part of
        return None
    except Exception as error:  # of the package that it is a part of
        raise UserError(f"plugins={word} cannot be imported: {said(error)}.") from error


def _imported(word: str, module: str) -> None:
    try:
        importlib.import_module(module)
    except UserError as error:
        raise UserError(f"plugins={word}: {error}") from error
    except Exception as error:
        raise UserError(f"plugins={word} cannot be imported: {said(error)}.") from error


def source(spec: ModuleSpec) -> str:
    """The hash of the code: of a module the file's, in a package that of all its files of Python."""
    origin = Path(str(spec.origin))
    files = sorted(origin.parent.rglob("*.py")) if spec.submodule_search_locations or "." in spec.name else [origin]
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.relative_to(origin.parent).as_posix()}\0".encode() + file.read_bytes() + b"\0")
    return digest.hexdigest()[:10]


# -- what a configuration says of them -----------------------------------------------------------------------------------


def recorded(value: Any) -> dict[str, str]:
    """Names and hashes, for the configuration, of the plug-ins in its ``plugins``; UserError for one that the user has not named."""
    words = [value] if isinstance(value, str) else value
    if not isinstance(words, list):
        raise UserError(f"plugins is a list of modules, as in [a,b], not {value!r}.")
    names = [name_of(str(word)) for word in words]
    for name in names:
        if name not in NAMED:
            raise UserError(
                f"The plug-in {name!r} is named by a file, not by you: code is imported for plugins={name} on the command line alone."
            )
    return {name: NAMED[name].source for name in sorted(names)}


def check_options(config: Mapping[str, Any]) -> None:
    """UserError where a configuration has an option of a plug-in that it does not name, or one that nothing registers."""
    method = config["optimizer"]
    chosen = [(group, config[group]["name"]) for group in ("dataset", "model", "optimizer")]
    chosen += [(f"optimizer/{part}", method[part]["name"]) for part in METHOD_PARTS if part in method]
    for group, name in chosen:
        path = option_file(f"{group}/{name}")
        owners = [one for one, plugin in NAMED.items() if plugin.folder in path.parents]
        if owners and not {*owners} & config["plugins"].keys():
            raise UserError(f"{group}={name} is of a plug-in: add plugins={owners[0]}.")
        if owners and group in CODE and f"{group}/{name}" not in OWN and not MADE_HERE & config.get(group, {}).keys():
            raise UserError(f'{path} has no code: no plug-in that is named has @register("{group}/{name}").')


def check_run(run_id: str, config: Mapping[str, Any]) -> None:
    """UserError where a run needs plug-ins that the user has not named, or that have another source by now."""
    needed = config.get("plugins") or {}
    if not isinstance(needed, dict) or not all(isinstance(one, str) for one in (*needed, *needed.values())):
        raise UserError(f"Run {run_id} is damaged: plugins in its config.yaml is no list of names with hashes.")
    if missing := [name for name in needed if name not in NAMED]:
        raise UserError(
            f"Run {run_id} was made with code of its user's, {', '.join(map(repr, needed))}, which a run cannot import by itself: "
            f"if you trust {'it' if len(needed) == 1 else 'them'}, add plugins={missing[0] if len(needed) == 1 else '[...]'}."
        )
    for name, digest in needed.items():
        if digest != NAMED[name].source:
            raise UserError(
                f"Run {run_id} was made with another source of {name!r} ({digest}; this one is {NAMED[name].source}): "
                "bring that source back, or train anew with this one."
            )
