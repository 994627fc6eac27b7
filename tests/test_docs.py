"""The documents: every method has its card, and the examples run."""

import itertools
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import small_chain
from torch import nn

from sam_repro.config import compose
from sam_repro.optim import Method, create, settings
from sam_repro.schema import METHOD_PARTS, options, read

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = ROOT / "docs" / "examples"
CARDS = ROOT / "docs" / "methods"


@pytest.mark.parametrize("method", options("optimizer"))
def test_every_method_has_a_card_that_names_its_parts(method):
    card = (CARDS / f"{method}.md").read_text()
    headings = [card.find(f"- **{one}**") for one in ("Parts", "Cost of a step", "Settings", "Use", "Tune", "Not for")]
    assert -1 not in headings
    assert headings == sorted(headings)
    assert "Source:" in card
    usual = {"between": "gradient", "samples": "batch", "where": "model", "combine": "mix"}
    for part in METHOD_PARTS:
        option = settings(method).get(part, {}).get("name")
        if option not in (None, usual.get(part)):
            assert f"{part}={option}" in card


@pytest.mark.parametrize("method", options("optimizer"))
def test_a_command_of_a_card_is_one_of_its_method(method):
    """A sweep's key must not only compose: the method has to have it, and the values have to fit it."""
    commands = re.findall(r"`python -m sam_repro ([^`]+)`", (CARDS / f"{method}.md").read_text())
    assert commands
    for words in itertools.chain.from_iterable(alternatives(one) for one in commands):
        config = compose(words)
        assert config["optimizer"]["name"] == method, words


@pytest.mark.parametrize("method", options("optimizer"))
def test_the_line_of_a_card_for_a_loop_makes_its_method(method):
    (line,) = re.findall(r"`(create\(.*?\))`", (CARDS / f"{method}.md").read_text())
    made = eval(line, {"create": create, "model": small_chain(), "epochs": 2, "batches": [0] * 5, "data": range(40), "len": len})
    assert line.startswith(f'create("{method}", model')
    assert isinstance(made, Method)


def test_the_options_page_has_every_method_with_its_knobs_and_the_index_its_card():
    options_, index = ((ROOT / "docs" / name).read_text() for name in ("options.md", "methods/README.md"))
    assert len(options("optimizer")) > 30, "the front page says so"
    for method in options("optimizer"):
        row = re.search(rf"^\| `{method}` \| (.*) \|$", options_, re.M)
        assert row, method
        for knob in read(f"optimizer/{method}").keys() - {"defaults", "methods", "optimizer"}:
            assert f"`{knob}=" in row[1], f"{method}: {knob}"
        assert re.search(rf"^\| \[{method}\]\({method}\.md\) \| .+ \| .+ \| .* \|$", index, re.M), method


README = (ROOT / "README.md").read_text()


def test_the_scores_with_label_noise_are_those_of_the_runs():
    """Two scores, then the runs that they are of, in the same order."""
    ((scores, names),) = re.findall(r"SAM \(ρ = 0.1\) ended at (.*?): runs (\w+ and \w+)", (ROOT / "docs/training.md").read_text())
    summaries = [json.loads((ROOT / "results/runs" / name / "summary.json").read_text()) for name in names.split(" and ")]
    sam, sgd = (summary["score_last"] for summary in summaries)
    assert re.findall(r"([\d.]+) %", scores) == [f"{sam:.2f}", f"{sgd:.2f}"]
    assert f"{sam - sgd:.1f} points above SGD" in README


def test_the_loop_of_the_front_page_runs_as_printed():
    (program,) = re.findall(r"^```python\n(.*?)^```$", README, re.M | re.S)
    model = small_chain()
    base = torch.optim.SGD(model.parameters(), lr=0.1)
    before = [p.detach().clone() for p in model.parameters()]
    schedule, batches = torch.optim.lr_scheduler.ConstantLR(base), [(torch.randn(8, 2, 8, 8).double(), torch.randint(3, (8,)))] * 2
    found = {"model": model, "base": base, "schedule": schedule, "batches": batches, "nn": nn}
    exec(program, found)
    assert found["report"].ascended
    assert any(not torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True))


@pytest.mark.parametrize("line", re.findall(r"^python -m sam_repro ((?!--help).+?)(?:  +#.*)?$", README, re.M))
def test_a_command_of_the_front_page_is_one(line):
    for words in alternatives(line):
        compose(words)


def alternatives(line):
    """The words of each run of a command."""
    return [list(words) for words in itertools.product(*(expanded(word) for word in line.split() if word != "-m"))]


def expanded(word):
    key, _, values = word.partition("=")
    return [f"{key}={value}" for value in values.split(",")]


def test_every_link_leads_somewhere():
    for page in (ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), ROOT / "results" / "README.md"):
        for target in re.findall(r"\]\(([^)#\s]+)", page.read_text()):
            assert target.startswith("https://") or (page.parent / target).exists(), f"{page}: {target}"


PROGRAMS = re.findall(r"^## (.*?)$|^```python\n(.*?)^```$", "## Plain\n" + (ROOT / "docs" / "library.md").read_text(), re.M | re.S)
TITLES = [title for title, _ in PROGRAMS if title]
TITLED = list(zip(TITLES, [program for _, program in PROGRAMS if program], strict=True))
SAYS = {
    "Plain": r"^0\.\d+ True$",
    "Checkpoints": "^True$",
    "Accelerate": "'sampling_number': 2",
    "Hugging Face's Trainer": "'sampling_number': 20",
}


def run(program, folder):
    """What the program prints, in a process of its own."""
    (folder / "program.py").write_text(program)
    command = [sys.executable, "program.py"]
    if processes := re.match(r"# torchrun --nproc-per-node (\d)", program):
        command[1:1] = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", processes[1]]
    where = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=folder, env=where, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.long
@pytest.mark.parametrize(("title", "program"), TITLED, ids=TITLES)
def test_the_programs_of_the_library_page_run_as_printed(tmp_path, title, program):
    said = run(program, tmp_path)
    assert re.search(SAYS.get(title, ""), said, re.M), said
    if title == "Several processes":
        assert len(set(said.split())) == 1


def test_the_examples_are_those_of_the_library_page():
    printed = [program for _, program in PROGRAMS]
    for example in EXAMPLES.glob("*.py"):
        assert example.read_text() in printed, example.name


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
