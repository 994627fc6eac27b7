"""The terminal: a progress bar while a run trains, plain lines where it is none, and a summary at the end."""

from __future__ import annotations

from typing import Any

from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table

from ..console import Console, clock, console
from ..plain import plain

Row = dict[str, Any]


class Display:
    """The progress of one training."""

    def __init__(self, steps: int, done: int, epochs: int) -> None:
        self.epochs = epochs
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TaskProgressColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[numbers]}"),
            console=console,
            disable=not console.is_terminal,
            transient=True,
        )
        self.task = self.bar.add_task("", total=steps, completed=done, numbers="")

    def __enter__(self) -> Display:
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    @property
    def live(self) -> bool:
        """Whether anyone sees the numbers of a step."""
        return console.is_terminal

    def step(self, epoch: int, done: int, loss: float | None, score: float | None, speed: float) -> None:
        """Show the state after a step; ``done`` steps of all."""
        numbers = "" if loss is None else f"loss {loss:.4f}  train {score:.2f} %  "
        self.bar.update(self.task, completed=done, description=f"epoch {epoch}/{self.epochs}", numbers=f"{numbers}{speed:,.0f} samples/s")

    def epoch(self, row: Row, left: float) -> None:
        """A line for a finished epoch, with the seconds left."""
        scored = "" if row["score"] is None else f"{row['split']} {row['score']:6.2f} %  "
        console.print(
            f"epoch {row['epoch']:>3}/{self.epochs}  loss {row['train_loss']:.4f}  train {row['train_score']:6.2f} %  "
            f"{scored}lr {row['lr']:.2g}  {row['images_per_second']:,.0f} samples/s  left {clock(left)}"
        )


def show_summary(summary: Row, path: str) -> None:
    """What a finished run came to."""
    s = summary
    scale = "" if s["scale"] == "paper" else f", scale {s['scale']}"
    console.print(f"\n{s['optimizer']} on {s['dataset']} / {s['model']}, seed {s['seed']}, {s['epochs']} epochs{scale}, {s['hardware']}")
    others = [f"{name} {s[name]:.2f} %" for name in ("accuracy", "f1") if name in s]
    rows = [
        (f"{s['split']} {s['metric']}", f"{s['score_last']:.2f} % last, {s['score_best']:.2f} % best (epoch {s['best_epoch']})"),
        *[("beside it", f"{', '.join(others)} (last)") for _ in others[:1]],
        ("throughput", f"{s['images_per_second']:,.0f} samples/s"),
        ("steps with an ascent", f"{s['sampling_number']:,} of {s['steps']:,}  (sampling number)"),
        ("cost", f"{per_step(s, 'forward')} forward, {per_step(s, 'backward')} backward passes a step  (SGD: 1, 1)"),
        ("gradient norm", f"{s['grad_norm']:.4f}  (whole model, last epoch)"),
        ("time", f"{clock(s['seconds'])} training"),
    ]
    for name, value in rows:
        console.print(f"  {name:<21} {value}")
    if any(s["perturbations"].values()):
        show_perturbations(s["perturbations"], s["steps"])
    if s.get("note"):
        console.print(f"  note                  {s['note']}")
    console.print(f"  files                 {path}")


def show_perturbations(counts: dict[str, int], steps: int, most: int = 40) -> None:
    """How often each layer was perturbed, as a bar chart; of a deep model the ``most`` perturbed layers."""
    if len(set(counts.values())) == 1:
        console.print(f"  perturbed             all {len(counts)} layers, each at {next(iter(counts.values())):,} of {steps:,} steps")
        return
    shown = sorted(counts, key=lambda layer: counts[layer], reverse=True)[:most]
    console.print(f"  perturbed, of {steps:,} steps:")
    width = max(map(len, shown))
    for layer in (layer for layer in counts if layer in shown):
        console.print(f"    {layer:<{width}} {bar(counts[layer] / steps, 30)} {counts[layer]:,}")
    if len(counts) > most:
        console.print(f"    and {len(counts) - most} layers perturbed less often or never")


def per_step(summary: Row, kind: str) -> str:
    """Passes of a step, from the run's total."""
    return f"{summary[f'{kind}_units'] / summary['steps']:.2f}"


def bar(share: float, width: int) -> str:
    """A share as a bar of text, padded to ``width``."""
    eighths = round(share * width * 8)
    full, rest = divmod(eighths, 8)
    return ("█" * full + (" ▏▎▍▌▋▊▉"[rest] if rest else "")).ljust(width)


WORDS = ("run", "state", "dataset", "model", "method", "with", "seed", "epochs")
NUMBERS = ("test", "best test", "val", "best val", "samples/s", "ascents", "passes")


def show_runs(rows: list[Row]) -> None:
    """A table of runs: id, state, what, what sets it apart, and how it came out; columns that are empty are left out."""
    table = Table(box=None, pad_edge=False)
    words, numbers = ([name for name in names if any(row.get(name) not in (None, "") for row in rows)] for names in (WORDS, NUMBERS))
    for name in words:
        table.add_column(name, overflow="fold")
    for name in numbers:
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(*(plain(str(row.get(name, ""))) for name in words + numbers))
    (console if console.is_terminal else Console(highlight=False, markup=False, width=160)).print(table)
    for row in rows:
        if row.get("error"):
            console.print(f"{row['run']} {row['state']}: {row['error']}")
