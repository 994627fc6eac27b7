"""Tables of the tests' own, and finished runs with the numbers that a test wants."""

import csv
import json
from pathlib import Path

from sam_repro.config import compose, identity
from sam_repro.results.declare import EXPERIMENTS, load
from sam_repro.results.render import as_csv
from sam_repro.results.select import Request
from sam_repro.results.sheet import sheet
from sam_repro.store import Run

ROOT = Path(__file__).resolve().parents[1]


def declared(name):
    return load(EXPERIMENTS, name)


HEAD = """title: T
citation: C, 2024.
source: Table 0
kind: table
metric: accuracy
seeds: 3
run: dataset=digits epochs=1
columns: {c: {}}
"""


METHODS = """references: {SGD: optimizer=sgd, SAM: optimizer=sam}
ratio_to: SGD
extra_of: SAM
columns: {Acc.: {metric: accuracy}, Speed: {metric: images_per_second}, Sampling: {metric: sampling_number, total: 50}}
rows:
  SGD: {run: optimizer=sgd, paper: [91.96 ± 0.3, 200, ~]}
  SAM: {run: optimizer=sam, paper: [92.64 ± 0.4, 100, 50]}
  layer-wise: {run: optimizer=layerwise, paper: [92.81, 160 (81%), 50], cells: {Sampling: k=2}}
  quoted: {quoted: "elsewhere, 2022", paper: [95.0, ~, ~]}
"""


def declare(folder, content, name="own/t"):
    path = folder / f"{name}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(HEAD.replace("columns: {c: {}}\n", "") + content if "columns:" in content else HEAD + content)
    return folder


ROW = {"train_loss": 0.5, "train_score": 50.0, "lr": 0.1, "images_per_second": 9.0, "sampling_number": 0, "steps": 25, "split": "test"}


def put(runs_dir, *overrides, score=50.0, speed=100.0, ascents=0, passes=1.2, seed=0, device="cpu"):
    """A finished run as the trainer leaves it, with the numbers a test wants."""
    config = compose(["dataset=digits", "epochs=1", *overrides]) | {"seed": seed, "device": device}
    run = Run(runs_dir, identity(config))
    layers = {"stem": 3, "head": 1}
    model, method = config["model"]["name"], config["optimizer"]["name"]
    with run.held({**config, "rerun": False}, f"python -m sam_repro {' '.join(overrides)} data_dir=/elsewhere"):
        rows = [{"epoch": e, "score": score + e - 2, "grad_norm": 1 / e, "seconds": 2.0, **ROW} for e in (1, 2)]
        run.record(rows, [{"epoch": e, "layer": k, "grad_norm": 1 / 3, "perturbations": n} for e in (1, 2) for k, n in layers.items()])
        run.finish({
            "run_id": run.id, "dataset": config["dataset"]["name"], "model": model, "optimizer": method, "seed": seed, "epochs": 2,
            "steps": 50, "metric": "accuracy", "score_last": score, "score_best": score + 1,
            "best_epoch": 2, "split": "val" if config["val_fraction"] else "test", "train_loss": 0.5, "images_per_second": speed,
            "sampling_number": ascents, "forward_units": 50 * passes, "backward_units": 50 * passes, "perturbations": layers,
            "grad_norm": 0.5, "seconds": 4.0, "hardware": "a machine", "device": device, "scale": config["scale"], "versions": {},
        })  # fmt: skip
    return run


def time_steps(run, measured, passes, steps=24):
    """What ``measure cost`` leaves of a run: its step in SGD's, the forward passes that the timed ones made."""
    method = {"method": run.summary["optimizer"], "measured": measured, "forward_units": passes}
    rows = [{"method": "sgd", "measured": 1.0, "forward_units": 1.0}, method]
    (run.path / "cost.json").write_text(json.dumps({"methods": rows, "steps": steps, "date": "2026-01-02T03:04:05", "commit": "abc"}))


def sheet_of(tmp_path, table, **request):
    asked = Request(runs_dir=str(tmp_path / "runs"), results_dir=str(tmp_path / "results"), **request)
    return sheet(table, asked, asked.frames)


def lines_of(sheet):
    return {(row["row"], row["column"], row["metric"]): row for row in csv.DictReader(as_csv(sheet.lines).splitlines())}
