"""The documents: every method has its card, and the examples run."""

import importlib.util
import re
import runpy
from pathlib import Path

import pytest
import torch

from sam_repro.optim import settings
from sam_repro.schema import METHOD_PARTS, options, read

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = ROOT / "docs" / "examples"


@pytest.mark.parametrize("method", options("optimizer"))
def test_every_method_has_a_card_that_names_its_parts(method):
    card = (ROOT / "docs" / "methods" / f"{method}.md").read_text()
    for heading in ("**Parts**", "**Cost of a step**", "**Settings**", "Source:"):
        assert heading in card
    usual = {"between": "gradient", "samples": "batch", "where": "model"}
    for part in METHOD_PARTS:
        option = settings(method).get(part, {}).get("name")
        if option not in (None, usual.get(part)):
            assert f"{part}={option}" in card


def test_the_readme_lists_every_method_with_its_knobs():
    readme = (ROOT / "README.md").read_text()
    for method in options("optimizer"):
        row = re.search(rf"`{method}` \| (.*) \|\n", readme)
        assert row, method
        for knob in read(f"optimizer/{method}").keys() - {"defaults", "methods", "optimizer"}:
            assert f"`{knob}`" in row[1], f"{method}: {knob}"


def example(name):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_plain_loop(capsys):
    torch.manual_seed(0)
    ran = runpy.run_path(str(EXAMPLES / "plain_loop.py"))
    assert ran["report"].loss < 0.5
    assert 50 <= ran["ascents"] < 300


def test_hugging_face(tmp_path):
    pytest.importorskip("transformers", reason="transformers is not installed")
    pytest.importorskip("accelerate", reason="transformers' Trainer needs accelerate, which is not installed")
    trainer = example("huggingface_trainer").main(str(tmp_path))
    assert trainer.gradient.step == 20
    assert trainer.state.log_history[-1]["train_loss"] < 1.0


def test_lightning(tmp_path):
    pytest.importorskip("lightning", reason="lightning is not installed")
    module = example("lightning_module").main(str(tmp_path))
    assert module.gradient.step == 12


@pytest.mark.long
def test_the_notebook_runs():
    """As a reader opens it: in its folder, on the runs that the repository keeps."""
    nbformat, nbclient = (pytest.importorskip(name, reason=f"{name} is not installed") for name in ("nbformat", "nbclient"))
    notebook = nbformat.read(ROOT / "docs" / "notebook.ipynb", as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells)  # kept without: what they show is made anew
    nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(ROOT / "docs")}}).execute()
    shown = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert len(shown) == 4
    assert "text/html" in shown[0]["data"]
    assert "vega" in shown[-1]["data"]["text/html"]
