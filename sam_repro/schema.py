"""What can be configured: the option files of ``conf/``, read as plain YAML.

The file of an option is also its schema: it lists every field with its default, and the type of the default is the type
of the field. ``choices: {field: [words]}`` in the file names the words a field may take, ``limits: {field: [low, high]}``
the numbers; a number without limits is not negative. ``kind: text`` says of a data set or a model that it is not of images,
``batchnorm: false`` of a model that no sample of a batch changes what it makes of another,
``scales: {field: epochs}`` (or ``steps``) that a field counts those, and follows ``conf/scale``, and ``neutral: {field: value}`` that
a field is younger than the rest, with the value that stands for what was done before: with it, a run keeps the id that it had.
``files: [patterns]`` says of a plug-in's data set what is read of it under ``data_dir``, and ``holds: {train, classes, channels, side}``
of any how many samples it trains on, at the most, and what a model must know of them, so that much is refused before it is read.
Knows neither torch nor Hydra, so that the library's ``create`` and the command line check a value in the same way, and at once.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from .plain import plain

HERE = Path(__file__).resolve().parent
CONF = next((path for path in (HERE / "conf", HERE.parent / "conf") if path.is_dir()), HERE / "conf")
FOLDERS = [CONF]  # where option files lie: the project's own, and behind it those of the plug-ins that were named
QUESTIONS = ("when", "where", "between", "samples")
TWO_PASSES = (*QUESTIONS, "combine")  # the parts of a method that answers them
USUAL = {"name": "mix"}  # what is made of both gradients where a configuration has nothing of it, as those before there was a choice
METHOD_PARTS = (*TWO_PASSES, "teacher")  # a method answers the questions, or has a teacher
# Of an option file: what it says of its fields.
METADATA = ("choices", "limits", "kind", "scales", "neutral", "batchnorm", "files", "holds")
PARTS = ("dataset", "model", "base", "schedule")
GROUPS = (*PARTS, "optimizer", "experiment", "scale", *(f"optimizer/{part}" for part in METHOD_PARTS))
# Of Hydra's own groups, those with options of ours.
ENGINES = {"hydra/launcher": ("basic", "joblib", "submitit_local", "submitit_slurm", "ray"), "hydra/sweeper": ("basic", "optuna")}
PATHS = ("data_dir", "runs_dir", "results_dir")
NOT_NEGATIVE = (0, math.inf)
FAST: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
MOST, DEEPEST = 100_000, 50  # values in a file of YAML, and how deep they are nested
LARGEST = 1e12  # of numbers without a limit: far beyond what is meant, and far below what float32 and int64 hold
REFERENCE = re.compile(r"^\$\{([\w.]+)\}$")


class UserError(ValueError):
    """What the user can put right. The message is one sentence that says how."""

    exit_status = 1


class Diverged(UserError):  # noqa: N818 (a run's state, as stopped and done are)
    """A training in which something is no longer finite: in ``epoch``, and ``what``."""

    exit_status = 3

    def __init__(self, message: str, epoch: int = 0, what: Sequence[str] = (), found: Mapping[str, Any] | None = None) -> None:
        super().__init__(message)
        self.epoch, self.what = epoch, list(what)
        self.found = dict(found or {})  # of the step: which, its batch, and the numbers of the one before


def keys_of(overrides: Iterable[str]) -> Iterator[str]:
    """``["+a.b=1", "~c"]`` -> ``a.b``, ``c``."""
    for override in overrides:
        yield override.partition("=")[0].lstrip("+~").partition("@")[0]


def options(group: str) -> list[str]:
    """The options of a group, e.g. ``options("optimizer/when")``; experiments as ``paper/benchmark``."""
    pattern = "**/*.yaml" if group == "experiment" else "*.yaml"
    found = ((path, folder / group) for folder in FOLDERS for path in (folder / group).glob(pattern))
    return sorted({path.relative_to(folder).with_suffix("").as_posix() for path, folder in found})


def is_group(name: str) -> bool:
    """Whether there is a group of this name, as ``optimizer/when``."""
    return any((folder / name).is_dir() for folder in FOLDERS)


def option_file(name: str) -> Path:
    """Where ``<name>.yaml`` lies, or would."""
    return next((path for folder in FOLDERS if (path := folder / f"{name}.yaml").is_file()), CONF / f"{name}.yaml")


def parse(text: str, loader: Any = FAST) -> Any:
    """YAML, by libyaml where PyYAML has it: ten times as fast.

    Raises yaml.YAMLError where it is none, and UserError where it would be too large: of few lines, which name each other, billions.
    """
    reader = loader(text)
    try:
        node = reader.get_single_node()
        if node is None:
            return None
        _sized(node, {}, 1)
        return reader.construct_document(node)
    except (yaml.YAMLError, UserError):
        raise
    except (ValueError, TypeError, RecursionError, OverflowError) as error:  # a number of 5,000 digits, a date of month 13
        raise yaml.YAMLError(f"{error}") from error
    finally:
        reader.dispose()


def _sized(node: Any, known: dict[int, tuple[int, int]], depth: int) -> tuple[int, int]:
    """How many values a node stands for, what it names counted wherever it is named, and how deep; UserError for too many, or too deep."""
    if id(node) not in known and depth <= DEEPEST:
        inside = [one for pair in node.value for one in (pair if isinstance(pair, tuple) else (pair,))] if node.id != "scalar" else []
        sizes = [_sized(one, known, depth + 1) for one in inside]
        known[id(node)] = 1 + sum(count for count, _ in sizes), 1 + max((height for _, height in sizes), default=0)
    count, height = known.get(id(node), (1, 1))
    if depth + height - 1 > DEEPEST:
        raise UserError(f"it is nested more than {DEEPEST} deep, or names itself.")
    if count > MOST:
        raise UserError(f"it stands for more than {MOST:,} values.")
    return count, height


@cache
def _read(path: Path) -> Any:
    # YAML 1.1 takes 1e-8 for a string where OmegaConf takes it for a number; the files write 1.0e-8, which is both.
    return parse(path.read_text()) or {}


def read(name: str) -> dict[str, Any]:
    """The content of ``conf/<name>.yaml``; UserError with a suggestion if there is no such option."""
    path = option_file(name)
    if not path.is_file():
        group, _, option = name.rpartition("/")
        raise UserError(f"{group} has no option {option!r}.{suggest(option, options(group))}")
    content = merged(_read(path), {})
    for base in [entry for entry in content.get("defaults", []) if isinstance(entry, str) and entry != "_self_"]:
        content = merged(read(f"{name.rpartition('/')[0]}/{base.partition('@')[0]}"), content)  # "base/glue@_here_"
    return content


class Fields(NamedTuple):
    """The fields of an option."""

    defaults: dict[str, Any]
    choices: dict[str, list[Any]]
    limits: dict[str, tuple[float, float]]

    def checked(self, key: str, name: str, value: Any) -> Any:
        """``value`` as one of field ``key``; UserError, which calls it ``name``, if it cannot be."""
        return checked(name, value, self.defaults[key], self.choices.get(key, ()), self.limits.get(key, NOT_NEGATIVE))


def fields(group: str, option: str) -> Fields:
    """The fields of ``conf/<group>/<option>.yaml``."""
    content = read(f"{group}/{option}")
    choices, limits = content.get("choices", {}), content.get("limits", {})
    content = {key: value for key, value in content.items() if key not in METADATA}
    top = group.rpartition("/")[2]
    if isinstance(content.get(top), dict):  # "@package _global_": the fields beside the knobs they refer to
        content = {key: resolve(value, content) for key, value in content[top].items()}
    content.pop("defaults", None)
    return Fields(content, choices, limits)


def kind(group: str, option: str) -> str:
    """What an option of ``dataset`` holds or of ``model`` reads: ``images``, or the word its file has for it (``text``)."""
    return str(read(f"{group}/{option}").get("kind", "images"))


def typed(group: str, option: str, values: dict[str, Any], names: dict[str, str]) -> dict[str, Any]:
    """Every field of an option: from ``values`` where it stands there, else the default; checked, in ``names``' words."""
    known = fields(group, option)
    dotted = group.replace("/", ".")
    return {key: known.checked(key, names.get(key, f"{dotted}.{key}"), values.get(key, default)) for key, default in known.defaults.items()}


def resolve(value: Any, root: dict[str, Any]) -> Any:
    """Replace ``${a.b}`` by what stands at ``root["a"]["b"]``, through dicts and chains of references."""
    if isinstance(value, dict):
        return {key: resolve(item, root) for key, item in value.items()}
    target = reference(value)
    if target is None:
        return value
    node: Any = root
    for key in target.split("."):
        node = node[key]
    return resolve(node, root)


def flat(node: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """``{"a": {"b": 1}}`` as ``("a.b", 1)``."""
    for key, value in node.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def only(node: Any, known: Iterable[str]) -> None:
    """UserError where ``node`` is no mapping, or has a key that is none of ``known``."""
    if not isinstance(node, Mapping):
        raise UserError(f"{node!r} is no mapping, as in {{{', '.join(f'{key}: ...' for key in sorted(known))}}}.")
    for key in node.keys() - set(known):
        raise UserError(f"there is no key {key!r}.{suggest(key, known)}")


def reference(value: Any) -> str | None:
    """``"a.b"`` of ``"${a.b}"``; None for anything else."""
    match = REFERENCE.match(value) if isinstance(value, str) else None
    return match[1] if match else None


def merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """A copy of ``base`` with ``over`` laid on it, dicts merged key by key."""
    out = {key: merged(value, {}) if isinstance(value, dict) else value for key, value in base.items()}
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(out.get(key), dict)
        out[key] = merged(out[key], value) if both else value
    return out


def checked(name: str, value: Any, default: Any, words: Iterable[Any], limits: tuple[float, float]) -> Any:
    """``value`` as the type of ``default`` within ``limits``, or as one of ``words``; UserError that names it otherwise."""
    words, kind = list(words), type(default)
    if value == "???":
        raise UserError(f"{name} must be given: {name}=...")
    if kind is float and isinstance(value, int) and not isinstance(value, bool) and abs(value) <= 1e30:
        value = float(value)
    if value in [word for word in words if isinstance(word, str) or type(value) is kind]:  # 0.0 is no word where 0 is one
        return value
    if isinstance(default, str) and words:
        raise UserError(f"{name} is one of {', '.join(map(str, words))}, not {value!r}.{suggest(str(value), words)}")
    also = "".join(f" or {word}" for word in words)
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if number and kind in (int, float) and not _finite(limits[0]) <= value <= _finite(limits[1]):
        raise UserError(f"{name}={short(value)} is out of range: {name} is {_range(value, *limits)}{also}.")
    if isinstance(value, kind) and isinstance(value, bool) == (kind is bool):
        return value
    said = {
        bool: "true or false",
        int: "a whole number",
        float: "a number",
        str: "a word",
        dict: "a group of keys",
        list: "a list, as in [a,b]",
    }
    if value == "":
        raise UserError(f"{name}= has no value: {name} is {said.get(kind, kind.__name__)}{also}.")
    raise UserError(f"{name} is {said.get(kind, kind.__name__)}{also}, not {short(value)!r}.")


def _finite(limit: float) -> float:
    """A limit, and where there is none that of all numbers."""
    return limit if math.isfinite(limit) else math.copysign(LARGEST, limit)


def _range(value: float, low: float, high: float) -> str:
    """The numbers that are allowed, in place of ``value``."""
    if math.isinf(low):
        return f"a finite number, {-LARGEST:g} to {LARGEST:g}"
    if math.isinf(high):
        return f"at least {low}" if value < low else f"{low} to {LARGEST:g}"
    return " to ".join(f"{end:g}" if isinstance(end, float) else str(end) for end in (low, high))


def short(value: Any) -> Any:
    """What can be shown in a sentence."""
    text = str(value)
    return value if len(text) <= 80 else f"{text[:60]}..."


def suggest(word: str, known: Iterable[Any]) -> str:
    """`` Did you mean 'x'?`` or, where nothing is close, what there is; with a space in front."""
    known = sorted({str(item) for item in known})
    alike = [one for one in known if one.lower() == word.lower()]
    close = alike or difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    if close:
        return f" Did you mean {close[0]!r}?"
    return f" There is: {', '.join(known)}." if known else ""


def check_path(key: str, value: str) -> None:
    """UserError where ``key`` is one of ``PATHS`` and ``value`` no folder's name."""
    name = value.strip("'\"")
    if key not in PATHS:
        return
    if not name:
        raise UserError(f"{key}= has no value: it names a folder, as in {key}=some/where.")
    if name.startswith("~"):
        raise UserError(f'{key}={value}: no shell replaces this ~; write {key}="$HOME{name[1:]}", or the whole path.')
    check_plain(key, name)


def check_plain(key: str, value: str) -> None:
    """UserError where the text is not UTF-8, which YAML is, or has control characters, which a terminal obeys."""
    if plain(value) != value:
        raise UserError(f"{key}={plain(value)} is no plain text in UTF-8: make a link to it with a name that is, and give that.")
