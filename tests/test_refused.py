"""What cannot run, and what nobody can mean, is refused in a sentence, before anything starts."""

import json
import os
import subprocess
import sys
import time
from random import Random

import pytest
import yaml
from own_tables import METHODS, declare

from sam_repro import tables
from sam_repro.__main__ import launch
from sam_repro.config import check_named_after, compose, identity
from sam_repro.files import write
from sam_repro.measure.finished import find_finished
from sam_repro.results.declare import load
from sam_repro.results.select import Request
from sam_repro.schema import GROUPS, METADATA, UserError, fields, flat, options, read
from sam_repro.store import Run, all_runs
from sam_repro.trial import Trial


def refused(*words: str) -> str:
    with pytest.raises(UserError) as error:
        Trial().check(compose(words))
    return str(error.value)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("k=21", "k=21 does not fit: the model has 20 layers, k is 0 to 20, or all."),
        ("model=vit_s16 model.freeze=true dataset=cifar10 k=4", "k=4 does not fit: the model has 1 layers"),
        ("optimizer=vsam N=4", "M=5 slices do not fit N=4 norms: M is 1 to N."),
        ("optimizer=msam m=4 optimizer/when=gradient_norm", "does not go with samples=micro"),
        ("optimizer=aesam graphs=true", "graphs=true does not go with this method"),
        ("optimizer=mesa model=resnet18 model.bits=4", "set model.bits=0."),
        ("model=vit_s16", "needs images of a multiple of 16 pixels, not 8: set dataset.size."),
        ("model=roberta_tiny dataset=glue_sst2 model.heads=3", "model.heads=3 does not divide model.width=128."),
    ],
)
def test_a_method_that_does_not_fit_its_model_is_told_without_data(words, says):
    if "vit" in words:
        pytest.importorskip("timm")
    if "roberta" in words:
        pytest.importorskip("transformers")
    assert says in refused(*words.split())


def test_what_fits_passes_and_is_built_once(monkeypatch):
    from sam_repro import models

    made, create = [], models.create
    monkeypatch.setattr(models, "create", lambda **values: made.append(values["name"]) or create(**values))
    trial = Trial()
    for method in options("optimizer"):
        for seed in range(2):
            trial.check(compose([f"optimizer={method}", f"seed={seed}"]))
    assert made == ["resnet20"]


def test_no_weights_are_fetched_or_read(monkeypatch):
    timm = pytest.importorskip("timm")
    monkeypatch.setattr(
        timm, "create_model", lambda name, pretrained, create=timm.create_model, **more: create(name, **more) if not pretrained else 1 / 0
    )
    Trial().check(compose(["model=vit_s16", "model.pretrained=true", "dataset=cifar10"]))


def test_a_sweep_with_such_a_job_starts_none(tmp_path):
    words = ["-m", "k=2,21", "max_samples=32", "batch_size=16", "epochs=1"]
    ended = subprocess.run([sys.executable, "-m", "sam_repro", *words], cwd=tmp_path, capture_output=True, text=True)
    assert (ended.returncode, ended.stdout) == (1, "")
    first, second = ended.stderr.splitlines()
    assert first.startswith("sam_repro: no job was started, for this one does not fit: k=21 ")
    assert second == "k=21 does not fit: the model has 20 layers, k is 0 to 20, or all."
    assert not list(tmp_path.glob("runs/*/config.yaml"))


@pytest.mark.parametrize("words", [["runs", "list"], ["tables", "report"], ["study", "show"], ["claims", "list"]], ids=" ".join)
def test_every_command_wants_a_folder_that_is_one(words):
    module, word = words
    ended = subprocess.run([sys.executable, "-m", f"sam_repro.{module}", word, "runs_dir=~/x"], capture_output=True, text=True)
    said = 'runs_dir=~/x: no shell replaces this ~; write runs_dir="$HOME/x", or the whole path.'
    assert (ended.returncode, ended.stdout, ended.stderr) == (1, "", f"sam_repro.{module}: {said}\n")


def test_a_table_with_such_a_run_starts_none(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "Work", None)
    table = load(declare(tmp_path, METHODS.replace("k=2", "k=99")), "own/t")
    with pytest.raises(UserError) as error:
        tables.run([table], Request(scale="smoke", runs_dir=str(tmp_path / "runs")), 1)
    first, second = str(error.value).splitlines()
    assert first.startswith("No run was started, for this one does not fit: dataset=digits epochs=1 optimizer=layerwise k=99")
    assert second.startswith("k=99 does not fit: the model has 20 layers")


NONSENSE = {
    "momentum=1": "momentum is 0 to 0.999999.",
    "lr=0": "lr=0.0 is out of range: lr is 1e-12 to 1e+30.",
    "lr=1e39": "lr=1e+39 is out of range: lr is 1e-12 to 1e+30.",
    "clip=1e-300": "clip=1e-300 is out of range: clip is 1e-06 to 1e+12 or 0.",
    "optimizer=sam rho=1e39": "rho=1e+39 is out of range: rho is 0 to 1e+12.",
    "optimizer=aesam lambda1=-inf": "lambda1=-inf is out of range: lambda1 is a finite number, -1e+12 to 1e+12.",
    f"k=1{'0' * 200}": "is out of range: k is 0 to 1e+12 or all.",
    "workers=1e30": "workers is 0 to 1024.",
    "max_samples=1": "max_samples=1 is out of range: max_samples is 2 to 1000000000 or 0.",
    "max_samples=0.0": "max_samples=0.0 is out of range: max_samples is 2 to 1000000000 or 0.",
    "model=resnet18 model.bits=1": "model.bits=1 is out of range: model.bits is 2 to 8 or 0.",
    "dataset.size=1000000000": "dataset.size is 0 to 1024.",
    "schedule.factor=1e300": "schedule.factor is 0 to 1000.",
    "schedule.first=0.9": "schedule.first=0.9 comes after schedule.second=0.75: first is 0 to second.",
    "optimizer=SAM": "optimizer has no option 'SAM'. Did you mean 'sam'?",
    "optimizer=sam optimizer.rho=0.1": "'optimizer.rho' is set without its group: rho=...",
    "schedule.decay=0.2": "schedule=step has no 'decay'; what has it: schedule=wsd.",
    "schedule=cosine schedule.warmup=20": "schedule.warmup=20.0 epochs leave nothing of a training of 20: it is below 20.",
    "base.nesterov=true momentum=0": "base.nesterov=true needs a momentum above 0.",
    "lr=4 weight_decay=0.5": "is 2: from 2 on the decay alone makes the weights larger at every step; with this lr",
    "batch_size=1438": "batch_size=1438 is more than the 1,437 samples to train on: it is 1 to 1437.",
    "batch_size=64 max_samples=32": "batch_size=64 is more than the 32 samples to train on: it is 1 to 32.",
    "processes=65": "A batch of 64 samples is none for 65 processes: batch_size is at least 65.",
    "accumulate=65": "accumulate=65 makes more parts than a batch has samples: it is 1 to batch_size, here 64.",
    "dataset.cutout=8": "dataset.cutout=8 hides the whole image, of 8 pixels: it is 0 to 7.",
    "dataset=cifar10 dataset.size=16 dataset.cutout=16": "dataset.cutout=16 hides the whole image, of 16 pixels: it is 0 to 15.",
    "dataset.crop=8": "dataset.crop=8 leaves nothing of some images, of 8 pixels: it is 0 to 7.",
    "runs_dir=/tmp/a(1)": "quote a value with signs that mean something to Hydra, runs_dir=\"'/tmp/a(1)'\".",
    "runs_dir=/tmp/\udcff": "is no plain text in UTF-8: make a link to it with a name that is, and give that.",
    "runs_dir=~/x": 'no shell replaces this ~; write runs_dir="$HOME/x", or the whole path.',
    "wandb.mode=inf": "wandb.mode is a word, not inf: wandb.mode=\"'inf'\".",
    "+hydra=[1]": "'+hydra=[1]' is no choice: one option is chosen, as in hydra/launcher=joblib.",
    "hydra/launcher=[1]": "'hydra/launcher=[1]' is no choice: one option is chosen, as in hydra/launcher=joblib.",
    "results_dir=\x1b[31m": r"results_dir=\x1b[31m is no plain text in UTF-8",
    "k=2 hydra.job=${optimizer}": "Hydra cannot read hydra.job=${optimizer}.",
    "runs_dir=": "runs_dir= has no value: it names a folder, as in runs_dir=some/where.",
    "lr=": "lr= has no value: lr is a number.",
    "=5": "'=5' has no key: an override is key=value, as in lr=0.1.",
    "model=5": "'model=5' is no choice. There is: mobilenet",
    "optimizer/when=5": "'optimizer/when=5' is no choice. There is: always",
    "experiment=null": "'experiment=null' is no choice. Leave it out for none.",
    "scale=[small,smoke]": "'scale=[small,smoke]' is no choice. There is: paper, small, smoke.",
    "plugins=5": "plugins is a list of modules, as in [a,b], not 5.",
    "seed=1,2": "'seed=1,2' is several values: use -m for a run of each; a list is written with brackets, [a,b].",
    f"lr={'[' * 500}": "cannot be read: quote a value",
    f"lr={'[' * 500}{']' * 500}": "A value is nested too deeply to be read.",
}  # fmt: skip


@pytest.mark.parametrize("words", NONSENSE, ids=lambda words: words[:40])
def test_what_nobody_can_mean_is_refused_with_what_is_allowed(words):
    with pytest.raises(UserError) as error:
        compose(words.split())
    assert NONSENSE[words] in str(error.value)
    assert "\n" not in str(error.value)


MEANT = [
    "clip=0", "max_samples=0", "max_samples=32", "model=resnet18 model.bits=0", "accumulate=64", "dataset.cutout=7", "schedule.first=0.75",
    "scale=smoke batch_size=128", "batch_size=1437", "scale=smoke experiment=looksam/vit_b16_64k model.pretrained=false",
]  # fmt: skip


@pytest.mark.parametrize("words", MEANT)
def test_what_is_at_the_border_is_taken(words):
    compose(words.split())


def test_a_number_that_is_a_word_as_well_keeps_its_type():
    config = compose(["clip=0", "max_samples=0"])
    assert [type(config[key]) for key in ("clip", "max_samples")] == [float, int]


@pytest.mark.parametrize("words", ["model=5", "experiment=null", "hydra=5", "lr=1e39", "runs_dir=/tmp/a(1)"])
def test_the_command_says_it_in_one_line(tmp_path, words):
    ended = subprocess.run([sys.executable, "-m", "sam_repro", words], cwd=tmp_path, capture_output=True, text=True)
    assert (ended.returncode, ended.stdout, len(ended.stderr.splitlines())) == (1, "", 1), ended.stderr


def test_a_configuration_changed_by_hand_is_not_taken_for_the_run(tmp_path):
    words = ["optimizer=sgd", "device=cpu", "max_samples=32", "batch_size=16", "epochs=1", f"runs_dir={tmp_path}"]
    config = compose(words)
    launch(config, words)
    (run,) = all_runs(tmp_path)
    assert find_finished(run.id, str(tmp_path)).id == run.id
    path = run.path / "config.yaml"
    for changed in (path.read_text().replace("lr: 0.1", "lr: 0.2"), "device: 5\n", path.read_text().replace("name: sgd", "name: none")):
        path.write_text(changed)
        for refused in (lambda: find_finished(run.id, str(tmp_path)), lambda: launch(config, words)):
            with pytest.raises(
                UserError, match=rf"config\.yaml is (not what run {run.id} is named after: it was changed since|missing or damaged)"
            ):
                refused()


def test_a_run_from_before_a_fix_is_not_taken_for_a_changed_one(tmp_path):
    config = compose(["optimizer=vsam", "device=cpu"])
    for fixes in ([], ["vsam-windows"]):
        run = Run(tmp_path, identity(config, fixes))
        write(run.path / "config.yaml", yaml.safe_dump(config))
        check_named_after(run)


VALUES = [
    "0", "1", "-1", "2", "7", "64", "0.5", "-0.5", "1e-300", "1e300", "1e400", "-inf", "inf", "nan", f"1{'0' * 40}", "0x10", "1_000",
    "true", "False", "null", "", "''", "all", "none", "paper", "[]", "[1]", "[a,b]", "[[1]]", "{}", "{a:1}", "{a:{b:1}}", "${lr}", "${k}",
    "${nope}", "${optimizer}", "${oc.env:NOPE}", "${oc.env:HOME}", "${", "}", "(", "a(1)", "a b", "a,b", "a=b", "~/x", "'", '"', "\\", "ä",
    "…", "\x1b[31m", "???", "..", "/", "choice(1,2)", "range(1,3)", "interval(0,1)", "glob(*)", "int(3)", "str([1])", "[" * 50, "<b>", "%s",
    "{0}", "@", "#", ":", "-", "+", "*", "&a", "!!x",
]  # fmt: skip
CHOICES = [group for group in GROUPS if options(group)]
COMMON = {key: value for key, value in read("config").items() if key not in ("defaults", "hydra", *METADATA)}
OWN = {
    f"{group.replace('/', '.')}.{key}"
    for group in CHOICES
    if group != "experiment"
    for option in options(group)
    for key in fields(group, option)[0]
}
KNOBS = {key for option in options("optimizer") for key in read(f"optimizer/{option}")}
KEYS = sorted({*(key for key, _ in flat(COMMON)), *OWN, *KNOBS, *CHOICES, *(group.replace("/", ".") for group in CHOICES)})
NO_KEYS = ["", "x", "a.b", "lr.x", "optimizer.when.", ".", "..a", "hydra", "hydra.job"]


def overrides(random: Random) -> list[str]:
    """A few words of a command: options, keys of all parts with values that may fit, and keys that there are not."""
    groups = random.sample(CHOICES, random.randint(0, 3))
    words = [f"{group}={random.choice([*options(group)] * 2 + VALUES[:12] + ['nope', 'null'])}" for group in groups]
    for _ in range(random.randint(0, 2)):
        key = random.choice(KEYS if random.random() < 0.95 else NO_KEYS)
        words.append(f"{random.choice(['', '', '', '', '', '+', '++', '~'])}{key}={random.choice(VALUES)}")
    return words


def said_of(words: list[str]) -> str:
    """What is said of them; empty where they are a configuration, which then has an id."""
    try:
        config = compose(words)
    except UserError as error:
        return str(error)
    identity(config)
    assert json.loads(json.dumps(config, allow_nan=False)) == config
    return ""


def test_random_words_are_a_configuration_or_one_sentence():
    """Some dozens of them; with SAM_REPRO_RANDOM as many as so many seconds hold."""
    until, seed = time.monotonic() + float(os.environ.get("SAM_REPRO_RANDOM", 0)), int(os.environ.get("SAM_REPRO_SEED", 0))
    kinds = {"": 0, "refused": 0}
    while sum(kinds.values()) < 60 or time.monotonic() < until:
        words = overrides(Random(seed))
        try:
            said = said_of(words)
        except Exception as error:
            raise AssertionError(f"seed {seed}: {words}") from error
        assert said.count("\n") == 0, (seed, words, said)
        assert said.isprintable(), (seed, words, said)
        assert len(said) < 2000, (seed, words, said)
        kinds["refused" if said else ""] += 1
        seed += 1
    assert min(kinds.values()) > 5, kinds
