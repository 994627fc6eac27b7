"""The run store as pandas frames: a row a run, and long frames of its epochs, layers, steps and measurements.

    from sam_repro.results import load
    load("runs").runs.groupby("optimizer").score_last.mean()

A frame is read when it is asked for. Of a large store it is kept in the user's cache, and read again for the runs whose files have changed.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable
from functools import cache, cached_property
from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow
from pyarrow import csv

from ..console import console
from ..files import write
from ..plain import plain
from ..schema import UserError, flat
from ..store import LAYER_COLUMNS, MEASURED, OVER, DamagedError, Row, Run, all_runs

# Of ``runs``; besides them ``config.<key>``, the configuration as conf/ documents it, and the dataset's further metrics.
COLUMNS = {
    "run": ("", "the run's id; the index"),
    "state": ("", "running, stopped, done, diverged, failed or damaged"),
    "error": ("", "why it stopped, diverged or failed; which file is damaged"),
    "dataset": ("", "option of conf/dataset"), "model": ("", "option of conf/model, or timm's name"),
    "optimizer": ("", "option of conf/optimizer"),
    "seed": ("", "of initial weights, order and augmentation"), "scale": ("", "option of conf/scale"),
    "device": ("", "cpu, cuda or mps"), "precision": ("", "fp32, bf16 or fp16"), "hardware": ("", "the device in words"),
    "metric": ("", "what the score is"), "split": ("", "what it is taken on: test or val"),
    "score_last": ("%", "after the last epoch"), "score_best": ("%", "of the best epoch scored"), "best_epoch": ("", "which one that was"),
    "train_loss": ("nats", "mean over the last epoch, of the first pass"),
    "grad_norm": ("", "mean over the last epoch's steps of the norm of the last pass's gradient"),
    "epochs": ("", "trained"), "steps": ("", "trained"), "train_samples": ("", "in an epoch"), "parameters": ("", "trainable"),
    "images_per_second": ("1/s", "samples trained on over the time it took, without evaluation and checkpoints"),
    "seconds": ("s", "of training"), "peak_memory": ("bytes", "that tensors took at most on a GPU; empty on the CPU"),
    "skipped_steps": ("steps", "not taken under fp16, for their gradient overflowed; empty elsewhere"),
    "sampling_number": ("steps", "with an ascent"), "sampling_rate": ("%", "of the steps have an ascent"),
    "forward_units": ("SGD's steps", "forward passes"), "backward_units": ("SGD's steps", "backward passes"),
    "forward_per_step": ("SGD's steps", "forward passes of a step"), "backward_per_step": ("SGD's steps", "backward passes of a step"),
    "perturbations": ("", "of layers: over all layers and steps"),
    "lambda_max": ("", "largest eigenvalue of the Hessian over the whole training set (measure sharpness)"),
    "step_cost": ("SGD's steps", "time of a step, in turns with SGD's in one process (measure cost)"),
    "started": ("", "ISO 8601, UTC"), "ended": ("", "ISO 8601, UTC"), "commit": ("", "of the code"), "path": ("", "the run's directory"),
}  # fmt: skip
LONG = {
    "epochs": "run, epoch (from 1), and metrics.jsonl's: train_loss (nats), train_score and score (%, empty where not scored), lr, "
    "grad_norm, weight_norm, images_per_second, seconds, steps, sampling_number, forward_units, backward_units, each of that epoch",
    "layers": "run, epoch, layer, depth (0 next to the input), grad_norm (mean over the epoch's steps), perturbations (of that epoch)",
    "steps": "run, step, and the norms that norms_every recorded",
    "measurements": "run, measure (cost, sharpness, norms), name, value",
}
IN_A_RUN = ("config.yaml", "status.json", "summary.json", MEASURED["sharpness"], MEASURED["cost"])


class Frames:
    """All runs of one or several stores; where two have the same run, that of the first stands, but for one that is done."""

    def __init__(self, *places: str | Path) -> None:
        self.places = tuple(Path(place) for place in places)
        self.found: dict[str, Run] = {}
        self._ended: dict[str, Run | None] = {}
        for place in self.places:
            for run in all_runs(place):
                if plain(run.id) != run.id:
                    _warn(f"{run.path} is left out: the name is none of a run.")
                    continue
                if run.id not in self.found or (_over(run) and not _over(self.found[run.id]) and (run.path / "summary.json").exists()):
                    self.found[run.id] = run

    @cached_property
    def runs(self) -> pd.DataFrame:
        """A row a run, oldest first, indexed by id; ``COLUMNS`` says what they are."""
        rows = _kept(self, "runs", IN_A_RUN, lambda run: [{"text": json.dumps(self._row(run))}])
        content = [json.loads(text) | {"run": run} for run, text in zip(rows.get("run", []), rows.get("text", []), strict=True)]
        for row in content:
            if row["path"] != str(self.found[row["run"]].path):
                self.found[row["run"]] = Run(Path(row["path"]).parent, row["run"])
            if row["state"] == "running":  # which its file says of one that was killed, too
                row["state"] = self.found[row["run"]].state
        frame = pd.DataFrame(content, columns=None if content else [*COLUMNS])
        return frame.reindex(columns=[*COLUMNS, *(key for key in frame.columns if key not in COLUMNS)]).set_index("run")

    def _row(self, run: Run) -> Row:
        """What the small files of a run say; those of another store where they are damaged."""
        rows = (_row(one) for one in (run, *(Run(place, run.id) for place in self.places if place / run.id != run.path)))
        first = next(rows)
        return first if first["state"] != "damaged" else next((row for row in rows if row["state"] in OVER), first)

    @cached_property
    def epochs(self) -> pd.DataFrame:
        """A row a run and epoch."""
        return _kept(self, "epochs", ("metrics.jsonl",), Run.metrics, ("epoch",))

    @cached_property
    def layers(self) -> pd.DataFrame:
        """A row a run, epoch and layer."""
        return _kept(self, "layers", ("layers.csv",), _layers, ("epoch", "layer", "depth", "grad_norm", "perturbations"))

    @cached_property
    def steps(self) -> pd.DataFrame:
        """A row a run and recorded step."""
        return _kept(self, "steps", ("steps.csv",), Run.steps, ("step",))

    @cached_property
    def measurements(self) -> pd.DataFrame:
        """A row a number that was measured on a finished run."""
        names = [name for name in MEASURED.values() if "{" not in name]
        return _kept(self, "measurements", names, _measurements, ("measure", "name", "value"))

    @cached_property
    def settings(self) -> set[tuple[str, str, str]]:
        """Scale, device and precision of the runs that are over: at others none need be looked for. A damaged run may be of any."""
        over = self.runs[self.runs.state.isin(OVER)]
        any_ = product(("paper", "small"), ("cuda", "cpu", "mps"), ("fp32", "bf16", "fp16")) if (self.runs.state == "damaged").any() else ()
        return {*zip(over["scale"], over["device"], over["precision"], strict=True), *any_}

    def ended(self, run_id: str) -> Run | None:
        """The run if it is done and whole, or diverged. UserError where it is damaged, and no other store has a whole one."""
        if run_id in self.found and run_id not in self._ended:
            self._ended[run_id] = self._look(run_id)
        return self._ended.get(run_id)

    def _look(self, run_id: str) -> Run | None:
        damaged: DamagedError | None = None
        for place in self.places:
            run = Run(place, run_id)
            try:
                if not _over(run) or (run.state == "diverged" and self.found[run_id].path != run.path):  # it is being made anew
                    continue
                if run.state == "done":
                    run.check()
            except DamagedError as error:
                advice = f"damaged: restore it, or remove {run.path}, and 'tables run' makes the run anew."
                damaged = damaged or (error if place == self.places[0] else DamagedError(error.path, advice))
                continue
            if damaged:
                _warn(f"{damaged} Until then {run.path} stands for it.")
            self.found[run_id] = run
            return run
        if damaged:
            raise damaged
        return None


def load(runs_dir: str | Path = "runs", *others: str | Path) -> Frames:
    """The runs of a store, and of others (an archive) behind it, as frames; UserError where there is no such folder.

    What is damaged is a row of state ``damaged``; a long frame lacks it, which is said.
    """
    for place in (runs_dir, *others):
        if not Path(place).is_dir():
            raise UserError(f"There is no folder {place}: give the one that holds the runs' folders.")
    return Frames(runs_dir, *others)


def export(frames: Frames, out: Path) -> None:
    """Write ``runs`` as .parquet or .csv; a column of words and numbers is one of words."""
    if out.suffix not in (".parquet", ".csv"):
        raise UserError(f"out={out} ends in .parquet or .csv.")
    frame = frames.runs.copy()
    for name in frame.select_dtypes(object).columns:
        kinds = {type(value) for value in frame[name].dropna()}
        if len(kinds) > 1 or kinds & {list, dict}:
            frame[name] = frame[name].map(lambda value: value if isinstance(value, str) else json.dumps(value), na_action="ignore")
    part = out.with_name(f".{out.name}.part")
    out.parent.mkdir(parents=True, exist_ok=True)
    frame.to_parquet(part) if out.suffix == ".parquet" else frame.to_csv(part)
    part.replace(out)


def _row(run: Run) -> Row:
    """What the small files of a run say."""
    try:
        return _read(run)
    except UserError as error:
        return {"state": "damaged", "error": str(error), "path": str(run.path)}
    except (KeyError, TypeError, AttributeError) as error:  # JSON and YAML, but not of ours
        return {"state": "damaged", "error": f"{run.path} has a file that is not whole ({error}).", "path": str(run.path)}


def _read(run: Run) -> Row:
    status, config, summary = run.status, run.config, run.summary if run.status.get("state") == "done" else {}
    state = status["state"] if summary or status["state"] != "done" else "stopped"
    sharpness, cost = run.measurement("sharpness"), run.measurement("cost")
    model = config["model"]
    row: Row = {
        "state": state, "error": status.get("error"), "dataset": config["dataset"]["name"], "model": model.get("arch", model["name"]),
        "optimizer": config["optimizer"]["name"], **{key: config[key] for key in ("seed", "scale", "precision")},
        "device": config["device"].partition(":")[0], **{key: status.get(key) for key in ("started", "ended", "commit")},
        "path": str(run.path), **{f"config.{key}": value for key, value in flat(config)},
    }  # fmt: skip
    if not summary:
        return row
    said = {key: value for key, value in summary.items() if key in COLUMNS or key not in config}  # what else is in both is config.<key>
    row |= {key: value for key, value in said.items() if key not in ("run_id", "versions", "perturbations")}
    row |= {
        "perturbations": sum(summary["perturbations"].values()), "sampling_rate": 100 * summary["sampling_number"] / summary["steps"],
        "forward_per_step": summary["forward_units"] / summary["steps"], "backward_per_step": summary["backward_units"] / summary["steps"],
    }  # fmt: skip
    if sharpness and sharpness["samples"] == sharpness["of"]:  # of a part of the training set it is another number
        row["lambda_max"] = sharpness["lambda_max"]
    return row | {"step_cost": step_cost(summary, cost)}


MANY = 64  # fewer are read as fast
NO_ASCENT = 1e-6  # forward passes of a step beyond the first: a mean of ones is not quite one
STRETCHED = 3  # how many times the passes timed, or their inverse, training may have: beyond that noise is scaled up


def step_cost(summary: Row, cost: Row) -> float | None:
    """A step of the run's method in SGD's, as ``python -m sam_repro.measure cost run=ID`` timed them in turns after training.

    What is beyond a plain step is scaled to the passes of all training, in which the ascents were as many, or through as many layers,
    as ``forward_units`` says. None where those timed are too few or too small to stand for those of training, or the other way round.
    """
    if summary["optimizer"] == "sgd":
        return 1.0
    row: Row = next((row for row in cost.get("methods", []) if row["method"] == summary["optimizer"]), {})
    if "forward_units" not in row:
        return None
    timed, trained = row["forward_units"] - 1, summary["forward_units"] / summary["steps"] - 1
    if max(timed, trained) < NO_ASCENT:
        return float(row["measured"])
    if not 1 / STRETCHED <= timed / max(trained, NO_ASCENT) <= STRETCHED:
        return None
    return float(1 + (row["measured"] - 1) * trained / timed)


def _layers(run: Run) -> pd.DataFrame:
    path = run.path / "layers.csv"
    if not path.exists():
        return pd.DataFrame()
    types = {"epoch": pyarrow.int64(), "layer": pyarrow.string(), "grad_norm": pyarrow.float64(), "perturbations": pyarrow.int64()}
    try:
        options = csv.ConvertOptions(column_types=types, include_columns=list(LAYER_COLUMNS))
        frame = csv.read_csv(path, convert_options=options, read_options=csv.ReadOptions(use_threads=False)).to_pandas()
    except (pyarrow.ArrowInvalid, KeyError) as error:
        raise DamagedError(path, f"damaged: {error}") from error
    return frame.assign(depth=frame.layer.map({name: depth for depth, name in enumerate(frame.layer.unique())}))


def _measurements(run: Run) -> list[Row]:
    rows = []
    for measure in (key for key, name in MEASURED.items() if "{" not in name):
        for name, value in flat(run.measurement(measure)):
            if isinstance(value, int | float) and not isinstance(value, bool):
                rows.append({"measure": measure, "name": name, "value": float(value)})
    for row in run.measurement("cost").get("methods", []):
        numbers = ((key, value) for key, value in row.items() if isinstance(value, int | float))
        rows += [{"measure": "cost", "name": f"{row['method']}.{key}", "value": float(value)} for key, value in numbers]
    return rows


def _over(run: Run) -> bool:
    try:
        return run.state in OVER
    except DamagedError:
        return (run.path / "summary.json").exists()


def _kept(frames: Frames, kind: str, files: Iterable[str], read: Callable[[Run], Any], columns: Iterable[str] = ()) -> pd.DataFrame:
    """A frame of all runs: from the cache where it has the files as they are now, else read, and kept."""
    names, runs = list(files), frames.found
    stamps = {key: _stamp(run, names) for key, run in runs.items()}
    cache = _cache(frames, kind) if len(runs) >= MANY else None
    known, old = _from_cache(cache) if cache else ({}, pd.DataFrame())
    if known and known == stamps:
        return _ordered(old, columns)
    fresh = {key for key, stamp in stamps.items() if known.get(key) != stamp}
    parts = [] if old.empty else [old[old.run.isin([key for key in stamps if key not in fresh])]]
    parts += [part for key in runs if key in fresh and not (part := _part(runs[key], read)).empty]
    frame = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()
    for name in {"run", "layer"} & {*frame.columns}:  # three million names take a second to read, their places in a list none
        frame[name] = pd.Categorical(frame[name], list(runs) if name == "run" else frame[name].unique())
    frame = frame.sort_values("run", kind="stable", ignore_index=True) if len(frame) else frame
    if cache:
        _to_cache(cache, frame, stamps)
    return _ordered(frame, columns)


def _ordered(frame: pd.DataFrame, columns: Iterable[str]) -> pd.DataFrame:
    first = [name for name in ("run", *columns) if columns or name in frame]
    return frame.reindex(columns=[*first, *(key for key in frame.columns if key not in first)])


def _part(run: Run, read: Callable[[Run], Any]) -> pd.DataFrame:
    try:
        return pd.DataFrame(read(run)).assign(run=run.id)
    except UserError as error:
        _warn(str(error))
        return pd.DataFrame()


def _stamp(run: Run, names: Iterable[str]) -> str:
    def one(name: str) -> str:
        try:
            found = os.stat(run.path / name)  # noqa: PTH116 (a thousand runs)
        except OSError:
            return "-"
        return f"{found.st_mtime_ns}.{found.st_size}"

    return " ".join([str(run.path.absolute()), *map(one, names)])


def _cache(frames: Frames, kind: str) -> Path:
    where = hashlib.sha256("\n".join(str(place.absolute()) for place in frames.places).encode()).hexdigest()[:16]
    version = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:8]  # another one may read the files otherwise
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sam_repro" / where / f"{kind}-{version}.parquet"


def _from_cache(path: Path) -> tuple[dict[str, str], pd.DataFrame]:
    try:
        frame = pd.read_parquet(path)
        return dict(frame.attrs["stamps"]), frame
    except (OSError, ValueError, KeyError):  # there is none, or it is not whole
        return {}, pd.DataFrame()


def _to_cache(path: Path, frame: pd.DataFrame, stamps: dict[str, str]) -> None:
    kept = frame.copy(deep=False)
    kept.attrs["stamps"] = stamps
    try:
        write(path, kept.to_parquet())
    except OSError as error:  # no home, no room: it is read anew the next time
        _warn(f"The cache {path} cannot be written: {error.strerror}.")


@cache
def _warn(text: str) -> None:
    """Say it, once."""
    console.print(text)
