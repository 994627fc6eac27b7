"""The run store: a run's directory is named after what the run is. Knows no torch, so that looking up a run is fast.

    <runs_dir>/<run_id>/  config.yaml  status.json  metrics.jsonl  layers.csv  checkpoint/  summary.json

Every file is replaced whole, never left half written. The metrics are the record; the summary is derived from them.
``.checksums.json`` has the SHA-256 of what was written: a file that is another one is damaged. Of runs of the time before, and of
imported ones, nothing is known, and they pass.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import platform
import shutil
import traceback
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout

from .files import CHECKSUMS, Checked, write
from .provenance import now, provenance
from .schema import Diverged, UserError, check_plain, parse

Row = dict[str, Any]
# What the commands of python -m sam_repro.measure write beside a finished run.
MEASURED = {"sharpness": "sharpness.json", "landscape": "landscape/{layer}{line}.json", "norms": "norms/norms.json", "cost": "cost.json"}
STATES = ("running", "stopped", "done", "diverged", "failed")
OVER = ("done", "diverged")  # states of a run that is not tried again by itself
LAST = ("train_loss", "grad_norm", "weight_norm")  # of the last epoch in which all was finite, where the next one diverged
LAYER_COLUMNS = ("epoch", "layer", "grad_norm", "perturbations")
OUTCOME = (
    "error",
    "ended",
    "epoch",
    "not_finite",
    "last_finite",
    "step",
    "batch",
    "step_before",
)  # of status.json: how the run came to its state
# What the files of a run must have to be whole: words, then numbers.
SUMMARY = (
    ("dataset", "model", "optimizer", "metric", "split", "hardware", "scale"),
    (
        "seed", "epochs", "score_last", "score_best", "train_loss", "images_per_second", "steps", "sampling_number",
        "forward_units", "backward_units", "seconds", "grad_norm",
    ),
)  # fmt: skip
METRICS: tuple[tuple[str, ...], tuple[str, ...]] = (
    (), ("epoch", "train_loss", "grad_norm", "images_per_second", "seconds", "steps", "sampling_number")
)  # fmt: skip
DATA = ("name", "sha1"), ("files", "bytes")
RESULTS = {
    "sharpness": {"lambda_max", "samples", "of"}, "landscape": {"layer", "x", "y", "loss", "samples", "of"},
    "norms": {"layers", "grad_norm"}, "cost": {"methods", "steps", "date", "commit"},
}  # fmt: skip


class DamagedError(UserError):
    """A file of a run is missing, or not whole."""

    def __init__(self, path: Path, advice: str) -> None:
        super().__init__(f"{path} is {advice}")
        self.path = path


class Run:
    """One directory of the store."""

    def __init__(self, runs_dir: str | Path, run_id: str) -> None:
        self.id = run_id
        self.path = Path(runs_dir) / run_id
        self.files = Checked(self.path)
        self._lock: int | None = None  # the inode of the lock, while this process holds it
        self.checkpoint = self.path / "checkpoint" / "last.pt"
        self.previous = self.path / "checkpoint" / "previous.pt"  # the one before it
        self.best = self.path / "checkpoint" / "best.pt"  # of the best score so far, where early_stopping asks for it

    @property
    def status(self) -> Row:
        """``status.json``; empty before the run has started."""
        content = self._json("status.json")
        known = content.get("data")
        if not content and "summary.json" in self.files.known():
            raise self._damaged("status.json")
        if content and (content.get("state") not in STATES or not (known is None or _has(known, *DATA))):
            raise self._damaged("status.json")
        return content

    @property
    def state(self) -> str:
        """running, stopped, done, diverged or failed; ``new`` before the run has started, ``stopped`` if it was killed."""
        state = self.status.get("state", "new")
        if state == "running" and not self.is_held():
            return "stopped"
        return "stopped" if state == "done" and not self.summary else str(state)

    @property
    def begun(self) -> bool:
        """Whether there is a checkpoint to go on from."""
        return self.checkpoint.exists() or self.previous.exists()

    @property
    def verdict(self) -> str:
        """How a run diverged, in a sentence."""
        status = self.status
        lost = ", ".join(status.get("not_finite", ["unknown"]))
        when = f"in epoch {status.get('epoch', '?')}, {status.get('ended', 'some time ago')}"
        return f"Run {self.id} diverged {when} (not finite: {lost}): rerun=true runs it again."

    @property
    def summary(self) -> Row:
        """``summary.json``; empty until the run is done."""
        content = self._json("summary.json")
        if content and not (_has(content, *SUMMARY) and isinstance(content.get("perturbations"), dict)):
            raise self._damaged("summary.json")
        return content

    @property
    def config(self) -> Row:
        """``config.yaml``."""
        try:
            return _configuration(parse(self.text("config.yaml")))
        except (OSError, ValueError, yaml.YAMLError) as error:
            raise self._damaged("config.yaml") from error

    def metrics(self) -> list[Row]:
        """``metrics.jsonl``: one row an epoch."""
        path = self.path / "metrics.jsonl"
        try:
            rows = [_mapping(json.loads(line)) for line in self.text(path.name).splitlines()] if self._there(path.name) else []
        except ValueError as error:
            raise self._damaged(path.name) from error
        if path.exists() and not rows and not self._lost_at_once:
            raise self._damaged(path.name)
        if not all(_has(row, *METRICS) and isinstance(row.get("score", ""), int | float | None) for row in rows):
            raise self._damaged(path.name)
        return rows

    @property
    def _lost_at_once(self) -> bool:
        """Whether the run has no epoch to show: it diverged in the first one."""
        status = self.status
        return status.get("state") == "diverged" and status.get("epoch") == 1

    def layers(self) -> list[Row]:
        """``layers.csv``: one row an epoch and layer."""
        path = self.path / "layers.csv"
        if not self._there(path.name):
            return []
        kinds = dict(zip(LAYER_COLUMNS, (int, str, float, int), strict=True))
        try:
            lines = io.StringIO(self.text(path.name), newline="")
            rows = [{key: kind(row[key]) for key, kind in kinds.items()} for row in csv.DictReader(lines)]
        except (KeyError, TypeError, ValueError) as error:
            raise self._damaged(path.name) from error
        if not rows and not self._lost_at_once:
            raise self._damaged(path.name)
        return rows

    def steps(self) -> list[dict[str, float]]:
        """``steps.csv``: one row a recorded step, a cell that is empty left out; empty where none were recorded."""
        path = self.path / "steps.csv"
        if not self._there(path.name):
            return []
        try:
            reader = csv.DictReader(io.StringIO(self.text(path.name), newline=""))
            names = {*(reader.fieldnames or ())}
            rows = [{key: float(value) for key, value in row.items() if value != ""} for row in reader]
        except (TypeError, ValueError) as error:  # a row has more cells than there are names, or fewer
            raise self._damaged(path.name) from error
        if not {"step", "plain_norm", "psf_norm"} <= names or any("step" not in row for row in rows):
            raise self._damaged(path.name)
        return rows

    def text(self, name: str) -> str:
        """What a file holds; DamagedError where that is not what was written, or no text."""
        try:
            return self.files.text(name)
        except ValueError as error:
            raise self._damaged(name) from error

    def check(self) -> None:
        """UserError, which names the file, where what a finished run left is not whole: a row an epoch, and an epoch and layer."""
        self.config  # noqa: B018
        if not self.summary:
            raise self._damaged("summary.json")
        epochs, layers = list(range(1, int(self.summary["epochs"]) + 1)), list(self.summary["perturbations"])
        if [row["epoch"] for row in self.metrics()] != epochs:
            raise self._damaged("metrics.jsonl")
        if sorted((row["epoch"], row["layer"]) for row in self.layers()) != sorted((epoch, layer) for epoch in epochs for layer in layers):
            raise self._damaged("layers.csv")
        self.steps()
        for command, name in MEASURED.items():
            for path in self.path.glob(name.format(layer="*", line="")):
                content = self._json(path.relative_to(self.path).as_posix())
                timed = content.get("methods", []) if command == "cost" else []
                if not RESULTS[command] <= content.keys() or not all(_has(row, ("method",), ("measured",)) for row in timed):
                    raise self._damaged(path.relative_to(self.path).as_posix())

    def measured(self, command: str, layer: str = "", dimensions: int = 2) -> Path:
        """Where a command of ``python -m sam_repro.measure`` writes its result."""
        return self.path / MEASURED[command].format(layer=layer, line="-1d" if dimensions == 1 else "")

    def measurement(self, command: str) -> Row:
        """What it wrote; empty where the run was not measured."""
        return self._json(MEASURED[command])

    def all_measured(self) -> list[Path]:
        """The results there are."""
        return [path for name in MEASURED.values() for path in sorted(self.path.glob(name.format(layer="*", line="")))]

    # -- writing -------------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def held(self, config: Row, command: str) -> Iterator[None]:
        """The run is ours while this lasts: ``status.json`` says running, and then stopped, diverged or failed if it was left early.

        Raises UserError where another process holds it, and where a path in ``config`` is not UTF-8, which YAML is.
        """
        for key, value in config.items():
            check_plain(key, str(value))
        with self._locked():
            for name in ("traceback.txt", *([CHECKSUMS, "status.json"] if config["rerun"] else [])):
                (self.path / name).unlink(missing_ok=True)
            self.files.put({"config.yaml": yaml.safe_dump(config, sort_keys=False)})
            before, made = self.status, provenance()
            history = before.get("history", [])
            if earlier := {key: before[key] for key in ("commit", "host", "versions") if key in before and before[key] != made[key]}:
                history = [*history, earlier]  # the epochs before were made elsewhere
            self._say("running", started=before.get("started") or now(), command=command, **made, history=history)
            try:
                yield
            except KeyboardInterrupt:
                self._say("stopped")
                raise
            except Diverged as error:
                rows = [row for row in self.metrics() if row["epoch"] < error.epoch]
                last = {key: rows[-1][key] for key in LAST if key in rows[-1]} if rows else {}
                self._say("diverged", error=str(error), epoch=error.epoch, not_finite=error.what, last_finite=last, **error.found)
                raise
            except BaseException as error:
                if not isinstance(error, UserError):
                    write(self.path / "traceback.txt", traceback.format_exc())
                self._say("failed", error=f"{error}" or type(error).__name__)
                raise

    def note(self, **facts: Any) -> None:
        """Write into ``status.json`` what is known of a run now that it begins. The run must be held."""
        self._say("running", **facts)

    def record(self, metrics: list[Row], layers: list[Row], steps: Sequence[str] = ()) -> None:
        """Write the rows of all epochs so far; of ``steps.csv`` the lines, where there are any."""
        table = io.StringIO(newline="")
        writer = csv.DictWriter(table, LAYER_COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(layers)
        self._still_ours()
        recorded = {"steps.csv": "".join(line + "\n" for line in steps)} if steps else {}
        rows = "".join(json.dumps(row) + "\n" for row in metrics)
        self.files.put({"layers.csv": table.getvalue(), **recorded, "metrics.jsonl": rows})

    def finish(self, summary: Row) -> None:
        """Write the summary, and that the run is done."""
        self._still_ours()
        self.files.put({"summary.json": json.dumps(summary, indent=2) + "\n"})
        self._say("done")

    def _still_ours(self) -> None:
        """UserError where somebody has removed the directory, or the lock, while the run is held."""
        if self._lock is None:  # nobody holds it, as in a test of the files
            return
        if not (self.path / "config.yaml").exists():
            raise UserError(f"{self.path} was removed while the run was at work: nothing of it is left, and it ends here.")
        try:
            same = (self.path / ".lock").stat().st_ino == self._lock
        except OSError:
            same = False
        if not same:
            raise UserError(
                f"{self.path / '.lock'} was removed while the run was at work: another process may write there, so it ends here."
            )

    def forget(self) -> None:
        """Remove what was computed, to begin anew. The run must be held."""
        self.files.forget(("summary.json", "metrics.jsonl", "layers.csv", "steps.csv"))
        for path in self.all_measured():
            path.unlink()
        shutil.rmtree(self.path / "checkpoint", ignore_errors=True)

    def remove(self) -> None:
        """Remove the run; UserError where a process is at work on it."""
        with self._locked():
            shutil.rmtree(self.path)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """The lock of the directory, which ends with the process; UserError where another one has it."""
        self.path.mkdir(parents=True, exist_ok=True)
        status = {} if (self.path / ".lock").exists() else self.status
        if status.get("state") == "running" and status.get("host") == platform.node() and _alive(status.get("pid")):
            raise UserError(f"Run {self.id} is running (process {status['pid']}), though its lock was removed; let it end.")
        try:
            held = FileLock(self.path / ".lock", timeout=0.5).acquire()  # another process may look for a moment whether it is held
        except Timeout as error:
            raise UserError(f"Run {self.id} is running (process {self.status.get('pid')}); let it end.") from error
        with held:
            self._lock = (self.path / ".lock").stat().st_ino
            try:
                yield
            finally:
                self._lock = None

    def _damaged(self, name: str) -> DamagedError:
        if name in MEASURED.values() or name.startswith("landscape/"):
            return DamagedError(self.path / name, "damaged: measure the run again, which replaces it, or remove it.")
        return DamagedError(self.path / name, f"missing or damaged: rerun=true runs {self.id} anew, 'runs rm' removes it.")

    def is_held(self) -> bool:
        """Whether a process is at work on the run; also where nobody but that process may look."""
        if not (self.path / ".lock").exists():
            return False
        try:
            with FileLock(self.path / ".lock", blocking=False):
                return False
        except OSError:
            return True

    def _say(self, state: str, **more: Any) -> None:
        kept = {key: value for key, value in self.status.items() if key not in OUTCOME}
        if state != "running":
            if not (self.path / "config.yaml").exists():
                return  # somebody has removed the directory: what would be left is no run
            more["ended"] = now()
        write(self.path / "status.json", json.dumps({**kept, "state": state, **more}, indent=2) + "\n")

    def _there(self, name: str) -> bool:
        """Whether there is such a file; DamagedError where there was one. The summary is derived: where it is gone, the run is resumed."""
        try:
            return (self.path / name).exists() if name == "summary.json" else self.files.there(name)
        except ValueError as error:
            raise self._damaged(name) from error

    def _json(self, name: str) -> Row:
        try:
            return _mapping(json.loads(self.text(name))) if self._there(name) else {}
        except ValueError as error:
            raise self._damaged(name) from error


class Watched(Run):
    """A run that process 0 writes, as the other processes of the training see it: they read it, and leave it alone."""

    @contextlib.contextmanager
    def held(self, config: Row, command: str) -> Iterator[None]:  # noqa: ARG002
        """Process 0 holds it."""
        yield

    def note(self, **facts: Any) -> None:
        """Process 0 does."""

    def record(self, metrics: list[Row], layers: list[Row], steps: Sequence[str] = ()) -> None:
        """Process 0 does."""

    def finish(self, summary: Row) -> None:
        """Process 0 does."""

    def forget(self) -> None:
        """Process 0 does."""


def _has(row: Any, words: Iterable[str], numbers: Iterable[str]) -> bool:
    """Whether a mapping has these words and these numbers."""
    return isinstance(row, dict) and (
        all(isinstance(row.get(key), str) for key in words) and all(isinstance(row.get(key), int | float) for key in numbers)
    )


def _alive(pid: Any) -> bool:
    """Whether there is such a process of this machine, other than this one."""
    if not isinstance(pid, int) or pid == os.getpid():
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _mapping(content: Any) -> Row:
    """What a file holds, which is nothing where it is not a mapping."""
    if not isinstance(content, dict):
        raise ValueError(f"{type(content).__name__} is no mapping")
    return content


def _configuration(content: Any) -> Row:
    """The content of a file with a configuration; ValueError where what says which run it is is of another type."""
    for key in ("dataset", "model", "optimizer"):
        if not isinstance(_mapping(_mapping(content).get(key)).get("name"), str):
            raise ValueError(f"{key} has no name")
    for key in ("seed", "epochs"):
        if type(content.get(key)) is not int:
            raise ValueError(f"{key} is no whole number")
    return _mapping(content)


def all_runs(runs_dir: str | Path) -> list[Run]:
    """The runs of a store, oldest first."""
    folders = {path.parent for name in ("status.json", CHECKSUMS) for path in Path(runs_dir).glob(f"*/{name}")}
    return sorted((Run(runs_dir, folder.name) for folder in folders), key=_started)


def _started(run: Run) -> tuple[str, str]:
    try:
        return str(run.status.get("started", "")), run.id
    except UserError:
        return "", run.id


def find(runs_dir: str | Path, prefix: str) -> Run:
    """The run whose id begins with ``prefix``, which may be a path of its directory; UserError if it is none, or several."""
    begins = Path(prefix).name
    found = [run for run in all_runs(runs_dir) if begins and run.id.startswith(begins)]
    if len(found) == 1:
        return found[0]
    if found:
        raise UserError(f"{prefix!r} is the beginning of {len(found)} run ids: {', '.join(run.id for run in found)}.")
    raise UserError(f"There is no run {prefix!r} in {runs_dir}: 'python -m sam_repro.runs list' shows those there are.")
