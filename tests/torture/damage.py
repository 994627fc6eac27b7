"""Damage in any file of a run: what is looked at or goes on afterwards is right, or says in one sentence that it is not."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from random import Random

from sam_repro.schema import UserError
from sam_repro.store import Run

from .process import Ended, Moments, command, kill
from .straight import PLACE, other_than, run_of, straight, train, words_of

Harm = Callable[[Random, Path], str]
METHOD = "layerwise"  # which writes every file there is
READ = ("config", "metrics", "layers", "steps", "summary")


def flipped(rng: Random, tries: int, folder: Path) -> Iterator[str]:
    """One bit."""
    return _damaged(rng, tries, folder, _flip)


def cut(rng: Random, tries: int, folder: Path) -> Iterator[str]:
    """The end of the file, all of its content, or the file."""
    return _damaged(rng, tries, folder, _cut)


def _flip(rng: Random, path: Path) -> str:
    content = bytearray(path.read_bytes())
    place, bit = rng.randrange(len(content)), rng.randrange(8)
    content[place] ^= 1 << bit
    path.write_bytes(content)
    return f"bit {bit} of byte {place}"


def _cut(rng: Random, path: Path) -> str:
    length = rng.choice([rng.randrange(path.stat().st_size), 0, -1])
    if length < 0:
        path.unlink()
        return "removed"
    path.write_bytes(path.read_bytes()[:length])
    return f"cut to {length} bytes"


def _damaged(rng: Random, tries: int, folder: Path, harm: Harm) -> Iterator[str]:
    """Every file of a finished and of a stopped run in turn."""
    places = [(ended, name) for ended in (True, False) for name in _files(ended)]
    rng.shuffle(places)
    for number in range(tries):
        ended, name = places[number % len(places)]
        runs_dir = folder / str(number)
        shutil.copytree(_whole(ended), runs_dir)
        run = run_of(METHOD, runs_dir)
        what = harm(rng, run.path / name)
        fault = _looked_at(run, ended, name) or _gone_on(run, ended)
        yield fault and f"{'finished' if ended else 'stopped'} run, {name} {what}: {fault}"
        shutil.rmtree(runs_dir)


@cache
def _whole(ended: bool) -> Path:
    """The folder with a run that is over, or was stopped within its fourth epoch."""
    run, count = straight(METHOD)
    if ended:
        return run.path.parent
    runs_dir = PLACE[0].with_name("stopped")
    train(METHOD, runs_dir, Moments(runs_dir, count * 3 // 5, kill(signal.SIGTERM)))
    assert run_of(METHOD, runs_dir).state == "stopped"
    return runs_dir


def _files(ended: bool) -> list[str]:
    path = run_of(METHOD, _whole(ended)).path
    return sorted(file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file() and file.stat().st_size)


def _views(runs_dir: Path) -> dict[str, Ended]:
    """What the commands show."""
    run = run_of(METHOD, runs_dir)
    where = f"runs_dir={runs_dir}"
    return {
        "list": command("sam_repro.runs", "list", where),
        "show": command("sam_repro.runs", "show", run.id, where),
        "evaluate": command("sam_repro.evaluate", f"run={run.id}", where, "device=cpu"),
    }


@cache
def _expected(ended: bool) -> dict[str, str]:
    views = _views(_whole(ended))
    assert not (fault := views["show"].fault(0) or views["list"].fault(0)), fault
    return {name: _shown(name, view.out, _whole(ended)) for name, view in views.items()}


def _shown(name: str, out: str, runs_dir: Path) -> str:
    """Of what a command shows, all but where the run lies, and the notes on when, where and by whom it was made."""
    lines = [line.replace(str(runs_dir), "") for line in out.splitlines()]
    if name == "show":
        lines = [line.partition(", started")[0] for line in lines if not line.startswith(("command ", "data "))]
    return "\n".join(line for line in lines if "runs_dir" not in line or name != "show") + _config(lines)


def _config(lines: list[str]) -> str:
    """The configuration that ``show`` prints, without the folder."""
    return "".join(line.partition('"runs_dir"')[0] for line in lines if line.startswith("config "))


def _looked_at(run: Run, ended: bool, name: str) -> str:
    """What is wrong with what the commands and the store show of it."""
    expected, views = _expected(ended), _views(run.path.parent)
    for view, shown in views.items():
        noticed = shown.status == 1 or "damaged" in shown.out
        if fault := shown.fault(0, 1) or ("" if noticed or _shown(view, shown.out, run.path.parent) == expected[view] else "shows another"):
            return f"{view}: {fault}"
    whole = run_of(METHOD, _whole(ended))
    for what in READ:
        if _read(run, what) not in ("noticed", _read(whole, what)) and (ended or what in ("config", "summary")):
            return f"{what} reads as another, without a word"
    return ""


def _read(run: Run, what: str) -> object:
    try:
        found = getattr(run, what)
        found = found() if callable(found) else found
        return {**found, "runs_dir": ""} if what == "config" else found
    except UserError:
        return "noticed"


def _gone_on(run: Run, ended: bool) -> str:
    """What is wrong with how the same command goes on."""
    resumed = command("sam_repro.__main__", *words_of(METHOD, run.path.parent))
    if fault := resumed.fault(0, 1):
        return f"resume: {fault}"
    if resumed.status == 1:
        return "resume: done, by a refusal" if not ended and _is_done(run) else ""
    if not ended:
        try:
            other = other_than(run, straight(METHOD)[0])
        except UserError as error:
            other = str(error)
        return other and f"resume: {other}"
    return ""


def _is_done(run: Run) -> bool:
    try:
        return run.state == "done"
    except UserError:
        return False
