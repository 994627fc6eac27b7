"""``python -m sam_repro.evaluate run=ID [runs_dir=runs] [data_dir=...] [device=auto] [plugins=...]``: a finished run on its test set."""

from __future__ import annotations

import sys

from . import plugins
from .command import command
from .config import complete
from .measure.finished import find_finished
from .plain import say
from .schema import UserError, suggest

USAGE = "python -m sam_repro.evaluate run=ID [runs_dir=runs] [data_dir=...] [device=auto] [plugins=...]"
KEYS = {"run", "runs_dir", "data_dir", "device", "plugins"}


def main() -> None:
    """The command line."""
    with command("sam_repro.evaluate", usage=USAGE):
        settings = dict(word.split("=", 1) for word in sys.argv[1:] if "=" in word)
        for key in settings.keys() - KEYS:
            raise UserError(f"There is no key {key!r}.{suggest(key, KEYS)}")
        if len(settings) != len(sys.argv) - 1 or not settings.get("run"):
            raise UserError(f"usage: {USAGE}")
        plugins.load(sys.argv[1:])
        settings.pop("plugins", None)
        evaluate_run(**settings)


def evaluate_run(run: str, runs_dir: str = "runs", data_dir: str | None = None, device: str = "auto") -> float:
    """Print and return the test score of the weights that the run ended with; UserError if it has not ended."""
    found = find_finished(run, runs_dir)
    from .device import resolve_device
    from .train.backends import backends
    from .train.job import Job
    from .train.score import evaluate

    config = complete(found.config, device=device, val_fraction=0.0)
    if data_dir is not None:
        config["data_dir"] = data_dir
    with backends(config):
        job = Job(resolve_device(config))
        job.resume(found.checkpoint)
        job.take_average()
        scores = evaluate(job.model, job.scored_samples(), job.dataset.metrics, config["precision"])
    said = ", ".join(f"{name} {value:.2f} %" for name, value in scores.items())
    say(f"run {found.id}, epoch {job.epoch}: test {said} on {len(job.parts.score):,} samples")
    return scores[job.dataset.metrics[0]]


if __name__ == "__main__":
    main()
