"""The wheel: that it holds all it needs, and works where no checkout is."""

import ast
import graphlib
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
QUICK = ["optimizer=layerwise", "k=4", "epochs=1", "train_fraction=0.1", "device=cpu"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dist")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)], cwd=ROOT, check=True, capture_output=True
    )
    return next(folder.glob("*.whl"))


def test_the_wheel_runs_from_any_directory(wheel, tmp_path):
    site, elsewhere = tmp_path / "site", tmp_path / "elsewhere"
    elsewhere.mkdir()
    zipfile.ZipFile(wheel).extractall(site)
    assert (site / "sam_repro" / "py.typed").exists()
    assert (site / "hydra_plugins" / "sam_repro_ray.py").exists()
    source = {path.relative_to(ROOT / "conf") for path in (ROOT / "conf").rglob("*.yaml")}
    assert {path.relative_to(site / "sam_repro" / "conf") for path in (site / "sam_repro" / "conf").rglob("*.yaml")} == source
    tables = {path.relative_to(ROOT / "experiments") for path in (ROOT / "experiments").rglob("*.yaml")}
    assert {path.relative_to(site / "sam_repro" / "experiments") for path in (site / "sam_repro" / "experiments").rglob("*.yaml")} == tables
    answer = subprocess.run(
        [sys.executable, "-m", "sam_repro", *QUICK],
        cwd=elsewhere,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(site)},
    )
    assert answer.returncode == 0, answer.stderr
    assert (next((elsewhere / "runs").glob("*/summary.json"))).exists()
    where = subprocess.run(
        [sys.executable, "-c", "import sam_repro.schema as s; print(s.CONF)"],
        cwd=elsewhere, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(site)},
    )  # fmt: skip
    assert where.stdout.strip() == str(site / "sam_repro" / "conf")


@pytest.mark.slow
def test_the_wheel_in_an_empty_environment(wheel, tmp_path):
    """Needs a network: it installs the pinned dependencies anew."""
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "venv")], check=True)
    python = tmp_path / "venv" / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "--quiet", "uv"], check=True)
    constraints = str(ROOT / "constraints.txt")
    subprocess.run([python, "-m", "uv", "pip", "install", "--quiet", "--python", python, "-c", constraints, str(wheel)], check=True)
    answer = subprocess.run([python.with_name("sam-repro"), *QUICK], cwd=tmp_path, capture_output=True, text=True)
    assert answer.returncode == 0, answer.stderr
    assert "files" in answer.stdout


def test_the_library_needs_no_hydra_and_no_trainer():
    loaded = "import sys, sam_repro.optim, sam_repro.models; print(*sys.modules)"
    answer = subprocess.run([sys.executable, "-c", loaded], capture_output=True, text=True, check=True, cwd=ROOT)
    assert not {"hydra", "omegaconf", "rich", "sklearn", "timm", "torchvision", "sam_repro.train"} & set(answer.stdout.split())


def test_imports_point_one_way():
    """Between the rooms of the house, and the files beside them, there is no circle: none knows what is built on it."""
    house, arrows = ROOT / "sam_repro", {}
    for path in house.rglob("*.py"):
        inside = ["sam_repro", *path.relative_to(house).parts[:-1]]
        room = path.relative_to(house).parts[0].removesuffix(".py")
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.level:
                name = [*inside[: len(inside) - node.level + 1], *(node.module or "").split(".")]
                targets = [name[1]] if name[1:] and name[1] else [alias.name for alias in node.names]
                arrows.setdefault(room, set()).update({*targets} - {room})
    assert {"optim", "train", "results"} <= arrows.keys()
    assert arrows["optim"] == {"chain", "schema"}
    graphlib.TopologicalSorter(arrows).prepare()  # CycleError names a circle
