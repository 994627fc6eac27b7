"""Code of the user's own: what it may bring, that it is imported where the user names it alone, and what is said where it does not fit."""

import csv
import itertools
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import hydra
import pytest
import torch
from omegaconf import OmegaConf
from own_tables import declare

from sam_repro import claims, evaluate, measure, plugins, study, tables
from sam_repro.__main__ import launch
from sam_repro.compose import plainly
from sam_repro.config import compose, identity
from sam_repro.fingerprint import fingerprint
from sam_repro.optim import create, when
from sam_repro.own import OWN
from sam_repro.runs import take_in
from sam_repro.schema import CONF, FOLDERS, UserError, options
from sam_repro.store import Run

MODULE = """
import torch
from torch import nn
from sam_repro.data import Augment, ImageDataset, Tensors
from sam_repro.optim.when import When
from sam_repro.plugins import register

@register("model/small")
def small(num_classes, in_channels, image_size, *, width):
    return nn.Sequential(nn.Conv2d(in_channels, width, 3), nn.Flatten(), nn.Linear(width * (image_size - 2) ** 2, num_classes))

@register("dataset/noise")
def noise(data_dir, *, samples, **augment):
    random = torch.Generator().manual_seed(0)
    def split(n):
        return Tensors(torch.randint(256, (n, 1, 6, 6), generator=random).byte(), torch.arange(n) % 3)
    return ImageDataset(split(samples), split(9), 3, (127.5,), (73.6,), Augment(**augment))

@register("optimizer/when/late")
class Late(When):
    def __init__(self, after):
        self.after = after
    def ascends(self, step):
        return step >= self.after
"""
CONFS = {
    "model/small": "name: small\nwidth: 4\n",
    "dataset/noise": "name: noise\nsamples: 24\nflip: true\nfiles: [noise/*]\n",
    "optimizer/when/late": "name: late\nafter: 2\n",
    "optimizer/late_sam": """# @package _global_
defaults: [/optimizer/when: late, /optimizer/where: model, /optimizer/between: gradient, /optimizer/samples: batch, _self_]
methods: {late_sam: {after: 3, rho: 0.1}}
after: ${methods.late_sam.after}
rho: ${methods.late_sam.rho}
optimizer: {name: late_sam, when: {after: "${after}"}, where: {rho: "${rho}"}}
""",
    "experiment/quick": "# @package _global_\ndefaults: [override /dataset: noise, override /model: small]\nepochs: 1\nbatch_size: 4\n",
}
NUMBERS = itertools.count()  # Python imports a module of a name once


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Makes a plug-in of a name of its own, and afterwards all that it brought is gone."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(when, "OPTIONS", dict(when.OPTIONS))

    def make(code=MODULE, confs=CONFS, name="", folder=tmp_path):
        name = name or f"plug{next(NUMBERS)}"
        for option, text in confs.items():
            path = folder / "conf" / f"{option}.yaml"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        folder.mkdir(exist_ok=True)
        (folder / f"{name}.py").write_text(code)
        return name

    yield make
    FOLDERS[:] = [CONF]
    OWN.clear()
    plugins.NAMED.clear()


@pytest.fixture
def named(write):
    name = write()
    plugins.load([f"plugins={name}"])
    return name


def run_of(name, *words):
    config = compose([f"plugins={name}", "experiment=quick", "device=cpu", "optimizer=sam", *words])
    launch(config, [])
    return Run("runs", identity(config))


def test_a_run_of_ones_own_model_data_and_method(named):
    run = run_of(named, "optimizer=late_sam")
    assert run.state == "done"
    assert (run.summary["model"], run.summary["dataset"], run.summary["optimizer"]) == ("small", "noise", "late_sam")
    assert (run.summary["steps"], run.summary["sampling_number"]) == (6, 3)  # of six steps the last three
    assert run.config["plugins"] == run.summary["plugins"] == {named: plugins.NAMED[named].source}
    swapped = run_of(named, "optimizer/when=late", "optimizer.when.after=5", "model.width=2", "max_samples=20")
    assert (swapped.summary["steps"], swapped.summary["sampling_number"]) == (5, 0)
    assert create("late_sam", torch.nn.Linear(2, 2), after=7).when.after == 7


def test_hydra_and_the_quick_composition_see_the_same(named):
    words = [f"plugins={named}", "experiment=quick", "optimizer=late_sam", "after=1", "model.width=9"]
    with hydra.initialize_config_dir(str(CONF), job_name="sam_repro", version_base="1.3"):
        assert OmegaConf.to_yaml(plainly(words)) == OmegaConf.to_yaml(hydra.compose("config", words))
    assert {"small", "resnet20"} <= {*options("model")}
    with pytest.raises(UserError, match="optimizer=sam has no knob 'after'; the methods that have it: late_sam"):
        compose([f"plugins={named}", "optimizer=sam", "after=1"])


def test_the_id_has_the_name_and_the_source_not_the_place(write, tmp_path):
    def run_id(word):
        plugins.NAMED.clear(), OWN.clear(), FOLDERS.__delitem__(slice(1, None)), sys.modules.pop("same", None)
        plugins.load([f"plugins={word}"])
        return identity(compose([f"plugins={word}", "model=small", "device=cpu"]))

    folders = [tmp_path / place for place in ("a", "b", "c")]
    for folder, code in zip(folders, (MODULE, MODULE, MODULE + "# another\n"), strict=True):
        write(code, name="same", folder=folder)
    ids = []
    for folder in folders:
        ids.append(run_id(folder / "same.py"))
        sys.path.remove(str(folder))
    assert ids[0] == ids[1] != ids[2]
    assert identity(compose(["optimizer=sam", "device=cpu"])) == "450a3a026b"  # as it always was
    assert compose([])["plugins"] == {}


def test_a_package_is_hashed_whole_and_an_entry_point_names_a_module(write, tmp_path):
    write("from .code import *\n", name="__init__", folder=tmp_path / "packed")
    (tmp_path / "packed" / "code.py").write_text(MODULE)
    info = tmp_path / "packed-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Name: packed\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[sam_repro.plugins]\nshort = packed\n")
    sys.path.append(str(tmp_path))
    plugins.load(["plugins=[short]"])
    assert compose(["plugins=short", "model=small"])["plugins"].keys() == {"short"}
    before = plugins.source(plugins._spec("short"))
    assert before == plugins.NAMED["short"].source
    (tmp_path / "packed" / "code.py").write_text(MODULE + "#")
    assert plugins.source(plugins._spec("short")) != before


def test_two_plugins_may_share_a_folder(write):
    first = write()
    second = write("from sam_repro.plugins import register\n@register('model/tiny')\ndef f(**_): ...", {"model/tiny": "name: tiny\n"})
    plugins.load([f"plugins=[{first}, {second}.py]"])
    assert compose([f"plugins=[{first},{second}.py]", "model=tiny"])["plugins"].keys() == {first, second}


def test_other_presets_of_our_own_code_need_none_of_the_users(write):
    name = write("", {"model/my_vit": "name: my_vit\narch: vit_tiny_patch16_224\n"})
    plugins.load([f"plugins={name}"])
    assert compose([f"plugins={name}", "model=my_vit"])["model"] == {"name": "my_vit", "arch": "vit_tiny_patch16_224"}


def test_what_is_read_of_its_data_is_known_again(named, tmp_path):
    config = compose([f"plugins={named}", "experiment=quick", f"data_dir={tmp_path}"])
    assert fingerprint(config["dataset"], config["data_dir"]) is None
    (tmp_path / "noise").mkdir()
    (tmp_path / "noise" / "one").write_text("1")
    assert fingerprint(config["dataset"], config["data_dir"])["files"] == 1


# -- nobody but the user names code --------------------------------------------------------------------------------------

SPY = "from pathlib import Path\nPath('ran').touch()\n"


def test_a_run_is_not_looked_into_without_its_plugin_nor_with_another_source(named):
    run = run_of(named)
    assert evaluate.evaluate_run(run.id) >= 0
    source = plugins.NAMED.pop(named)
    asked = f"made with code of its user's, '{named}', .* add plugins={named}"
    for look in (evaluate.evaluate_run, lambda one: measure.__main__.run(["cost", f"run={one}"])):
        with pytest.raises(UserError, match=asked):
            look(run.id)
    with pytest.raises(UserError, match=asked):
        take_in(run.path.parent, run.path.parent.parent / "others")
    plugins.NAMED[named] = source._replace(source="0123456789")
    with pytest.raises(UserError, match=r"another source of .*this one is 0123456789"):
        evaluate.evaluate_run(run.id)


def test_no_file_can_name_code(write, tmp_path):
    spy = write(SPY, {"experiment/spying": ""})
    (tmp_path / "conf" / "experiment" / "spying.yaml").write_text(f"# @package _global_\nplugins: [{spy}]\n")
    declare(tmp_path, f"rows: {{r: {{run: plugins={spy}}}}}")
    (tmp_path / "study.yaml").write_text(f"blocks: {{a: {{seeds: [0], runs: [plugins={spy}]}}}}")
    said = f"The plug-in '{spy}' is named by a file, not by you"
    with pytest.raises(UserError, match=said):
        tables.dispatch(["show", "own/t", f"experiments={tmp_path}"])
    with pytest.raises(UserError, match=said):
        study.tasks(tmp_path / "study.yaml", tables.Request())
    FOLDERS.append(tmp_path / "conf")
    with pytest.raises(UserError, match=said):
        compose(["experiment=spying"])
    judged = (
        f"seeds: 1\nclaims: {{c: {{says: S, on: [dataset=digits plugins={spy}], value: optimizer=sgd, of: score_last, holds: above 1}}}}"
    )
    (tmp_path / "own.yaml").write_text(judged)
    with pytest.raises(UserError, match=said):
        claims.dispatch(["run", "c", f"file={tmp_path}/own.yaml"])
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("recorded", ["{../../evil: 1}", "[evil]", "{evil: abc}", "evil"])
def test_nor_can_a_run_directory(write, tmp_path, recorded):
    write(SPY, {"model/small": "name: small\n"}, name="evil")
    run = Run("runs", "abc")
    run.path.mkdir(parents=True)
    (run.path / "config.yaml").write_text(
        f"model: {{name: small}}\ndataset: {{name: digits}}\noptimizer: {{name: sgd}}\nseed: 0\nepochs: 1\nplugins: {recorded}\n"
    )
    with pytest.raises(UserError, match=r"Run abc (was made with code of its user's|is damaged)"):
        plugins.check_run(run.id, run.config)
    assert not (tmp_path / "ran").exists()


def test_an_option_of_a_plugin_that_the_words_leave_out_is_refused(named):
    with pytest.raises(UserError, match=f"model=small is of a plug-in: add plugins={named}"):
        compose(["model=small"])


# -- what does not fit, in one sentence ----------------------------------------------------------------------------------

REGISTER = "from sam_repro.plugins import register\n"
MODEL = REGISTER + "@register('model/small')\ndef small(num_classes, in_channels, image_size, width): ...\n"
WRONG = {
    "no options": (MODEL, {}, "registers model/small, and .*conf/model/small.yaml, .* is not there"),
    "nothing": ("x = 1", {}, "brings nothing: it has no option"),
    "an error in it": ("x = y", {}, r"cannot be imported: NameError: name 'y' is not defined \(plug\d+.py, line 1\)"),
    "no Python": ("def", {}, r"cannot be imported: SyntaxError: .*plug\d+.py, line 1"),
    "what it imports": ("import no_such_thing", {}, "cannot be imported: ModuleNotFoundError: No module named 'no_such_thing'"),
    "a name of ours": (REGISTER + "@register('model/resnet20')\ndef f(): ...", {}, "there is model=resnet20 already"),
    "a file of ours": (MODEL, {**CONFS, "optimizer/sam": "name: sam"}, "optimizer/sam.yaml has the name of an option that exists"),
    "twice": (MODEL + MODEL, CONFS, "there is model=small already"),
    "no such group": (REGISTER + "@register('schedule/own')\ndef f(): ...", {}, "an option is one of dataset/NAME, model/NAME, "),
    "a group of ours": (MODEL, {**CONFS, "schedule/own": "name: own"}, "conf/schedule/own.yaml is of no group that a plug-in can add to"),
    "another name": (MODEL, {"model/small": "name: tiny"}, "is named after its option: name: is small in it"),
    "no YAML": (MODEL, {"model/small": "a: ]"}, "conf/model/small.yaml cannot be read"),
    "no keys": (MODEL, {"model/small": "- a"}, "conf/model/small.yaml is no list of keys and values"),
    "a field too few": (MODEL, {"model/small": "name: small"}, r"small\(\) does not take .*missing a required argument: 'width'"),
    "a field too many": (MODEL, {"model/small": "name: small\nwidth: 1\nheight: 2"}, "unexpected keyword argument 'height'"),
    "limits": (MODEL, {"model/small": "name: small\nwidth: 9\nlimits: {width: [1, 4]}"}, "small.yaml: width=9 is out of range"),
    "half a method": ("", {"optimizer/own": "# @package _global_\noptimizer: {name: own}"}, "is not as an option is written .KeyError"),
    "no such part": ("", {"optimizer/own": CONFS["optimizer/late_sam"].replace("late_sam", "own")}, "optimizer/when has no option 'late'"),
    "no answer": (
        REGISTER + "@register('optimizer/when/late')\nclass Late: ...",
        {"optimizer/when/late": "name: late"},
        "Late is no subclass of sam_repro.optim.when.When",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_what_does_not_fit_is_said_in_a_sentence(write, case):
    code, confs, says = WRONG[case]
    with pytest.raises(UserError, match=says) as caught:
        plugins.load([f"plugins={write(code, confs)}"])
    assert "\n" not in str(caught.value)
    assert (FOLDERS, OWN, plugins.NAMED) == ([CONF], {}, {})


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("no_such_module", "there is no module 'no_such_module', neither installed nor here"),
        ("no.such.module", "there is no module 'no.such.module'"),
        ("no/such.py", "there is no such file"),
        ("my-module", "'my-module' is no name that Python can import"),
        ("", "has no value"),
        ("a,b", r"write plugins=\[a,b\]"),
        ("math", "has no source in Python"),
        ("email", "brings nothing"),
        ("json.py", "its name is that of another module"),
    ],
)
def test_what_is_not_to_be_found(write, word, says):
    write("", {}, name="json")
    with pytest.raises(UserError, match=says):
        plugins.load([f"plugins={word}"])


def test_an_option_without_code_is_refused_before_work_starts(write):
    name = write("", {"model/small": "name: small\n"})
    plugins.load([f"plugins={name}"])
    with pytest.raises(UserError, match=r'model/small.yaml has no code: .* @register\("model/small"\)'):
        compose([f"plugins={name}", "model=small"])


@pytest.mark.parametrize(
    ("wrong", "right", "says"),
    [
        ("num_classes))", "num_classes + 1))", r"model=small makes \(1, 4\) of a sample; it should be \(1, 3\)"),
        ("nn.Flatten(), ", "", "model=small does not take the inputs of dataset=noise"),
        ("    return nn.Sequential", "    return list", r"model=small fails: TypeError: .* \(plug\d+.py, line 10\)"),
        ("return nn.Sequential(nn.Conv2d", "return (nn.Conv2d", "which is no torch.nn.Module"),
        ("torch.arange(n) % 3", "torch.arange(n) % 4", "dataset=noise: train has targets from 0 to 3; of 3 classes they are 0 to 2"),
        ("torch.arange(n) % 3", "torch.rand(n)", "targets that are torch.float32"),
        ("torch.arange(n) % 3", "torch.arange(n + 1) % 3", r"train has inputs of shape \(24, 1, 6, 6\) for 25 targets"),
        ("(n, 1, 6, 6)", "(n, 6, 6)", r"inputs of shape \(24, 6, 6\) for 24 targets"),
        ("split(9)", "split(0)", "test is empty"),
        ("return ImageDataset(", "return (", "makes tuple, which is no sam_repro.data.Dataset"),
    ],
)
def test_a_model_or_data_set_that_does_not_fit(write, wrong, right, says):
    assert MODULE.count(wrong) == 1
    name = write(MODULE.replace(wrong, right))
    plugins.load([f"plugins={name}"])
    with pytest.raises(UserError, match=says):
        run_of(name)
    assert not list(Run("runs", "x").path.parent.glob("*/metrics.jsonl"))


# -- the document --------------------------------------------------------------------------------------------------------

DOCS = Path(__file__).resolve().parents[1] / "docs"


def blocks(heading, kind=""):
    part = (DOCS / "plugins.md").read_text().partition(heading)[2].partition("\n## ")[0]
    return [text for found, text in re.findall(r"```(\w*)\n(.*?)```", part, re.DOTALL) if found == kind]


def test_the_first_example_is_as_it_stands(write, tmp_path):
    heading = "# Your own models"
    name = write(blocks(heading, "python")[0], {"model/tiny": blocks(heading, "yaml")[0]}, name="mine")
    words = blocks(heading)[0].splitlines()[0].split()[3:]
    assert words[0] == f"plugins={name}"
    plugins.load(words)
    launch(compose([*words, "epochs=1", "max_samples=64", "device=cpu"]), words)
    assert [path.name for path in tmp_path.glob("runs/*/summary.json")] == ["summary.json"]


@pytest.mark.long
def test_the_whole_example_from_a_wheel(tmp_path):
    """In a folder that has the example and nothing else: a sweep, a table, a verdict, as the document has them."""
    root, place = DOCS.parent, tmp_path / "own"
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(build, cwd=root, check=True, capture_output=True)
    zipfile.ZipFile(next(tmp_path.glob("*.whl"))).extractall(tmp_path / "site")
    shutil.copytree(DOCS / "examples" / "own", place, ignore=shutil.ignore_patterns("__pycache__"))
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site"), "CUDA_VISIBLE_DEVICES": "", "SAM_REPRO_DATA": "", "COLUMNS": "200"}

    def said(line):
        command = [sys.executable, *line.split()[1:]]
        answer = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True)
        assert answer.returncode == 0, f"{line}\n{answer.stdout}\n{answer.stderr}"
        return answer.stdout

    where = [sys.executable, "-c", "import sam_repro; print(sam_repro.__file__)"]
    found = subprocess.run(where, cwd=place, env=environment, capture_output=True, text=True).stdout
    assert found.startswith(str(tmp_path / "site"))
    for line in blocks("## An example, whole")[0].splitlines():
        said(line)
    assert len(list((place / "runs").glob("*/summary.json"))) == 9
    table = (place / "results" / "scans" / "methods.csv").read_text()
    assert table.count("accuracy,scans,small,") == 3
    verdict = csv.DictReader((place / "results" / "claims.csv").open())
    (row,) = verdict
    assert row["verdict"] in ("supported", "contradicted", "undecided")
    assert row["n"] == "3"
    shown = said("python -m sam_repro.tables show scans/methods experiments=tables plugins=mine")
    assert "9 of 9 runs are done, 0 are missing." in shown
    (place / "mine.py").write_text((place / "mine.py").read_text() + "# changed\n")
    one = next((place / "runs").glob("*/summary.json")).parent.name
    answer = subprocess.run(
        [sys.executable, "-m", "sam_repro.evaluate", f"run={one}", "plugins=mine"],
        cwd=place,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert (answer.returncode, "was made with another source of 'mine'" in answer.stderr) == (1, True)
