"""What the commands of ``python -m sam_repro.measure`` do, on settings that were checked: measure, print, write beside the run."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch

from ..console import console
from ..files import write
from ..store import Row, Run
from . import figures
from .compare import Compared, compare_methods, compare_run
from .cost import Costs
from .finished import Finished
from .landscape import landscape
from .norms import draw_norms, layer_norms
from .objective import Objective
from .progress import bar
from .sharpness import eigenvalues, sam_sharpness, trace

Settings = dict[str, Any]


def sharpness(run: Run, s: Settings) -> None:
    """The largest eigenvalues of the Hessian, its trace, and how far the loss rises within rho: ``<run>/sharpness.json``."""
    at = _load(run, s)
    console.print(f"{at}")
    with bar() as shown:
        tick = shown.work("loss and SAM sharpness", len(at))
        objective = Objective(at.model, at.loss, at, tick)
        rise = sam_sharpness(objective, s["rho"])
        shown.say("Lanczos 1")
        found = eigenvalues(
            objective, s["top"], tolerance=s["tolerance"], iterations=s["iterations"], seed=s["seed"],
            watch=lambda i, value, bound: shown.say(f"Lanczos {i + 1}: {value:.4g} ± {bound:.1g}"),
        )  # fmt: skip
        result: Row = {
            "seed": s["seed"], "loss": rise.loss, "grad_norm": rise.grad_norm,
            "rho": s["rho"], "sam_sharpness": rise.sharpness,
            "lambda_max": found.values[0], "eigenvalues": found.values, "bounds": found.bounds,
            "iterations": found.iterations, "tolerance": s["tolerance"], "converged": found.converged,
        }  # fmt: skip
        if s["trace"]:
            shown.say("trace 1")
            estimate = trace(objective, s["probes"], seed=s["seed"], watch=lambda i: shown.say(f"trace {i + 1} of {s['probes']}"))
            result |= {"trace": estimate.value, "trace_error": estimate.error, "probes": estimate.probes}
    result = at.where_from() | result
    _write(run.measured("sharpness"), result)
    _say_sharpness(result, run.measured("sharpness"))


def _say_sharpness(r: Row, path: Path) -> None:
    values = ", ".join(f"{value:.4g}" for value in r["eigenvalues"])
    not_there = "" if r["converged"] else f", NOT converged to {r['tolerance']:g}: raise iterations="
    console.print(f"  loss            {r['loss']:.4f}")
    console.print(f"  gradient norm   {r['grad_norm']:.4g}")
    console.print(f"  eigenvalues     {values}  ({r['iterations']} iterations{not_there})")
    if "trace" in r:
        console.print(f"  trace           {r['trace']:.4g} ± {r['trace_error']:.2g}  ({r['probes']} probes)")
    console.print(f"  SAM sharpness   {r['sam_sharpness']:.4g}  (rho={r['rho']:g})")
    console.print(f"  file            {path}  ({r['seconds']:.0f} s)")


def draw(run: Run, s: Settings) -> None:
    """The loss around the weights, along directions of a layer: ``<run>/landscape/<layer>.json`` and pictures of it."""
    figures.needed()
    at = _load(run, s)
    console.print(f"{at}")
    with bar() as shown:
        tick = shown.work(f"landscape of {s['layer']}", s["points"] ** s["dimensions"])
        found = landscape(
            at.model, at.loss, at, s["layer"],
            dimensions=s["dimensions"], points=s["points"], distance=s["distance"], seed=s["seed"], tick=tick,
        )  # fmt: skip
    result = {
        **{key: s[key] for key in ("layer", "dimensions", "points", "distance", "seed")},
        "x": found.x, "y": found.y, "loss": [[z if math.isfinite(z) else None for z in row] for row in found.loss],
        "center": found.loss[s["points"] // 2 if s["dimensions"] == 2 else 0][s["points"] // 2],
        **at.where_from(),
    }  # fmt: skip
    path = run.measured("landscape", s["layer"], s["dimensions"])
    _write(path, result)
    pictures = figures.draw_landscape(result, path.with_name(path.name.removesuffix(".json")))
    console.print(f"  loss            {result['center']:.4f} at the weights, up to {max(map(max, found.loss)):.4g} around them")
    for picture in (path, *(f"{made}.png (and .svg)" for made in pictures)):
        console.print(f"  file            {picture}")
    console.print(f"  time            {result['seconds']:.0f} s")


def norms(run: Run, s: Settings) -> None:
    """Gradient norms of the training loss at the end, and pictures of those during training: ``<run>/norms/``."""
    figures.needed()
    at = _load(run, s)
    console.print(f"{at}")
    with bar() as shown:
        found = layer_norms(Objective(at.model, at.loss, at, shown.work("gradient", len(at))))
    whole = math.hypot(*found.values())
    path = run.measured("norms")
    _write(path, {"grad_norm": whole, "layers": found, **at.where_from()})
    width = max(map(len, [*found, "whole model"])) + 2
    for name, norm in {**found, "whole model": whole}.items():
        console.print(f"  {name:<{width}}{norm:.4g}")
    for made in draw_norms(run, path.parent):
        console.print(f"  file            {made}.png (and .svg)")


def stages(run: Run | None, s: Settings) -> None:
    """What an ascent behind each stage of the model costs, for ``optimizer=budget costs=``, and what budgets come to: printed."""
    from ..device import resolve_device
    from .stages import Timing, ask, prepared, price

    at = None if run is None else Finished(run, device=s["device"], data_dir=s["data_dir"], samples="all", batch_size=1).job
    device = torch.device(resolve_device(s)["device"]) if at is None else at.device
    what = f"{s['model']}, batch {s['batch_size']}, {device}" if run is None else f"run {run.id}"
    with bar() as shown, prepared(at, s["model"], s["batch_size"], device) as (model, base, batches, costs):
        timing = Timing(model, base, batches, costs, s["steps"], shown.work("stages", s["steps"]))
        priced = price(timing)
        asked = ask(timing._replace(steps=3 * s["steps"], tick=shown.work("budgets", 3 * s["steps"])), priced)
    console.print(f"{what}: an ascent behind each stage with layers, in steps of SGD, {s['steps']} steps in turn")
    console.print(f"{'stage':>5}{'FLOPs':>10}{'clock':>10}")
    for one in priced:
        console.print(f"{one.stage:>5}{one.flops:>10.4f}{one.clock:>10.4f}")
    console.print(f"costs=[{','.join(f'{one.clock:.4f}' for one in priced)}]", soft_wrap=True)
    console.print(f"\nbudget, and what ascents took of SGD's time, {3 * s['steps']} steps in turn")
    console.print(f"{'asked':>7}{'by FLOPs':>10}{'by costs=':>11}")
    for row in asked:
        console.print(f"{row.budget:>7.2f}{row.by_flops:>10.3f}{row.by_clock:>11.3f}")


def cost(run: Run | None, s: Settings) -> None:
    """A step's cost by FLOPs and by the clock, beside SGD's: printed, and of a run ``<run>/cost.json``."""
    with bar() as shown:
        tick = shown.work("steps", s["steps"])
        if run is None:
            from ..device import resolve_device

            device = torch.device(resolve_device(s)["device"])
            what = f"{s['model']}, batch {s['batch_size']}, {device}"
            costs, rows = compare_methods(s["model"], s["batch_size"], device, s["steps"], tick)
        else:
            at = Finished(run, device=s["device"], data_dir=s["data_dir"], samples="all", batch_size=1)
            what = f"run {run.id}, batch {at.job.config['batch_size']}, {at.job.device}, {at.job.config['precision']}"
            costs, rows = compare_run(at.job, s["steps"], tick, run.summary["sampling_number"] / run.summary["steps"])
    _say_costs(what, costs, rows, s["steps"])
    if run is not None:
        result = {
            "forward": costs.forward, "backward": costs.backward, "layers": [layer._asdict() for layer in costs.layers],
            "methods": [row._asdict() for row in rows], "steps": s["steps"], "batch_size": at.job.config["batch_size"],
            **at.where_from(), "precision": at.job.config["precision"],
        }  # fmt: skip
        _write(run.measured("cost"), result)
        console.print(f"file {run.measured('cost')}")


def _say_costs(what: str, costs: Costs, rows: list[Compared], steps: int) -> None:
    console.print(
        f"{what}, torch {torch.__version__}: MFLOPs of a sample, {costs.forward / 1e6:.2f} forward, {costs.backward / 1e6:.2f} backward"
    )
    width = max(len(layer.layer) for layer in costs.layers)
    console.print(f"{'layer':<{width}}{'forward':>10}{'B_i':>10}{'gradient':>10}")
    for layer in costs.layers:
        console.print(f"{layer.layer:<{width}}{layer.forward / 1e6:>10.3f}{layer.propagation / 1e6:>10.3f}{layer.gradient / 1e6:>10.3f}")
    console.print(f"\nmean step in SGD's steps, {steps} steps in turn")
    console.print(f"{'method':<42}{'predicted':>10}{'measured':>10}{'ms/step':>10}{'ascents':>9}")
    for row in rows:
        console.print(f"{row.method:<42}{row.predicted:>10.3f}{row.measured:>10.3f}{row.milliseconds:>10.1f}{row.ascents:>9.0%}")


def _load(run: Run, s: Settings) -> Finished:
    return Finished(run, device=s["device"], data_dir=s["data_dir"], samples=s["samples"], batch_size=s["batch_size"])


def _write(path: Path, result: Row) -> None:
    write(path, json.dumps(result, indent=None if "x" in result else 2, allow_nan=False) + "\n")
