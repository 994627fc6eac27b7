"""What a user writes, and what is answered."""

import itertools
import subprocess
import sys

import pytest

from sam_repro.config import compose, identity
from sam_repro.optim import settings
from sam_repro.schema import TWO_PASSES, UserError, fields, kind, options

HAVE_K = "budget, late_layerwise, layerwise, looklayersam, looksam"
PARTS = [f"optimizer/{part}" for part in TWO_PASSES]


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["kk=3"], "Did you mean 'k'"),
        (["optimzer=sgd"], "Did you mean 'optimizer'"),
        (["optimizer=layerwize"], "Did you mean 'layerwise'"),
        (["dataset=cifar"], "Did you mean 'cifar10'"),
        (["experiment=kdd24/cifar01"], "Did you mean 'cifar10'"),
        (["optimizer/when=alway"], "Did you mean 'always'"),
        (["optimizer.where.kk=3"], "Did you mean 'optimizer.where.k'"),
        (["criterion=hgih"], "Did you mean 'high'"),
        (["schedule.per=epcoh", "schedule=cosine"], "Did you mean 'epoch'"),
        (["optimizer=sgd", "k=4"], f"optimizer=sgd has no knob 'k'; the methods that have it: {HAVE_K}"),
        (["optimizer=sam", "r=0.1"], "optimizer=sam has no knob 'r'"),
        (["optimizer=saf", "optimizer/when=always"], "optimizer=saf has no 'optimizer/when': it makes no ascent"),
        (["optimizer=saf", "optimizer/combine=mix"], "optimizer=saf has no 'optimizer/combine': it makes no ascent"),
        (["optimizer/whn=always"], "optimizer=layerwise has no 'optimizer/whn'; it has: optimizer/when"),
        (["optimizer=msam", "m=5"], "m=5 does not divide batch_size=64"),
        (["optimizer/where=model", "k=3"], "'k' is not read"),
        (["optimizer/where=model", "optimizer.where.k=3"], "has no field 'k'"),
        (["base=adamw", "momentum=0.5"], "'momentum' belongs to base=sgd"),
        (["k=abc"], "k is a whole number or all, not 'abc'"),
        (["k=2.5"], "k is a whole number"),
        (["k=-1"], "k=-1 is out of range: k is at least 0"),
        (["lr=fast"], "lr is a number"),
        (["epochs=2.5"], "epochs is a whole number"),
        (["epochs=0"], "epochs=0 is out of range: epochs is 1 to"),
        (["batch_size=0"], "batch_size=0 is out of range"),
        (["val_fraction=1.5"], "val_fraction=1.5 is out of range: val_fraction is 0 to 0.9"),
        (["train_fraction=0"], "train_fraction=0.0 is out of range"),
        (["device=gpu"], "device is one of auto, cpu, cuda, cuda:0, cuda:1, ..., mps, not 'gpu'"),
        (["precision=fp8"], "precision is one of fp32, bf16"),
        (["rerun=maybe"], "rerun is true or false"),
        (["dataset.flip=2"], "dataset.flip is true or false"),
        (["model=timm"], "model.arch must be given"),
        (["lr=nan"], "lr=nan is out of range"),
        (["lr=inf"], "lr=inf is out of range"),
        (["optimizer=sam", "rho=-1"], "rho=-1.0 is out of range: rho is at least 0"),
        (["dataset.crop=-1"], "dataset.crop=-1 is out of range"),
        (["momentum=2"], "momentum=2.0 is out of range: momentum is 0 to 0.999999"),
        (["seed=99999999999999"], "seed=99999999999999 is out of range"),
        (["lr=null"], "lr is a number, not None"),
        (["dataset=null"], "'dataset=null' is no choice. There is: cifar10"),
        (["scale=null"], "'scale=null' is no choice. There is: paper"),
        (["optimizer.where=null"], "optimizer.where=None is no choice"),
        (["~lr"], "a key cannot be removed"),
        (["scale.epochs=2"], "'scale.epochs' is not for the command line"),
        (["optimizer.name=foo"], "'optimizer.name' is not for the command line"),
        (["+optimizer.where={foo: 1}"], "set one key at a time"),
        (["+methods.sam.rho=0.3"], "'methods.sam.rho' is not for the command line"),
        (["+dataset@extra=digits"], "set one key at a time"),
        (["+scale.foo=1"], "'scale.foo' is not for the command line"),
        (["+foo=3"], "There is no key 'foo'"),
        (["epochs"], "'epochs' is no override: one is key=value"),
    ],
    ids=lambda v: " ".join(v) if isinstance(v, list) else None,
)
def test_a_wrong_word_is_answered_in_one_sentence(overrides, says):
    with pytest.raises(UserError) as caught:
        compose(overrides)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_errors_and_help_come_at_once_because_torch_is_not_loaded():
    loads = "import sys, sam_repro.config, sam_repro.runs, sam_repro.sweep, sam_repro.__main__; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", loads], capture_output=True, text=True, check=True).stdout.strip() == "False"
    answer = subprocess.run([sys.executable, "-m", "sam_repro", "optimizer=sgd", "k=4"], capture_output=True, text=True)
    assert answer.returncode == 1
    assert answer.stderr == f"sam_repro: optimizer=sgd has no knob 'k'; the methods that have it: {HAVE_K}.\n"


OFTEN = ("sgd", "looksam", "layerwise", "saf", "async_sam", "gsam")  # the others are composed before each change alone


@pytest.mark.parametrize("method", [pytest.param(one, marks=() if one in OFTEN else pytest.mark.long) for one in options("optimizer")])
def test_every_method_composes_with_every_option_of_every_group(method):
    teacher = method in ("saf", "mesa")
    for group in ("dataset", "base", "schedule", "scale", *(["optimizer/teacher"] if teacher else PARTS)):
        for option in options(group):
            model = ["model=roberta_tiny"] if group == "dataset" and kind("dataset", option) == "text" else []
            config = compose([f"optimizer={method}", f"{group}={option}", *model])
            assert config["optimizer"]["name"] == method
            assert "???" not in str(config)
            assert "choices" not in str(config)
            assert "methods" not in config


@pytest.mark.parametrize("method", options("optimizer"))
def test_the_library_has_the_defaults_of_the_command_line(method):
    assert settings(method) == compose([f"optimizer={method}"])["optimizer"]


def test_library_and_command_line_swap_parts_alike():
    assert settings("layerwise", where="model", alpha=0.5) == compose(["optimizer/where=model", "alpha=0.5"])["optimizer"]
    assert settings("sam", **{"where.normalize": False}) == compose(["optimizer=sam", "optimizer.where.normalize=false"])["optimizer"]


def test_identity_is_what_the_run_is_and_not_where_it_lies():
    def run_id(*overrides):
        return identity(compose(["device=cpu", *overrides]))

    same = run_id()
    assert same == run_id("data_dir=/elsewhere", "runs_dir=there", "results_dir=x", "rerun=true", "dry_run=true")
    assert same == run_id("k=4") == run_id("optimizer.where.k=4") == run_id("r=0.10", "epochs=20") == run_id("optimizer=layerwise")
    assert run_id("optimizer=sam", "rho=1") == run_id("optimizer=sam", "rho=1.0")
    assert identity(compose(["device=cuda:0"])) == identity(compose(["device=cuda:1"]))
    others = [run_id(o) for o in ("seed=1", "k=5", "k=all", "lr=0.05", "epochs=21", "model=wrn16_2", "bn=both") if o != "bn=both"]
    others += [run_id("optimizer.bn=both"), run_id("scale=small"), identity(compose(["device=cuda"])), run_id("optimizer=sam")]
    assert len({same, *others}) == len(others) + 1


def test_an_experiment_brings_each_method_its_own_numbers():
    """As in the table of the paper: the numbers follow the method chosen, the command line beats them."""
    layerwise = compose(["experiment=kdd24/cifar10", "optimizer=layerwise"])
    assert (layerwise["k"], layerwise["epochs"], layerwise["batch_size"], layerwise["dataset"]["name"]) == (4, 150, 128, "cifar10")
    general = compose(["experiment=kdd24/cifar10", "optimizer=generalized_sam"])
    assert (general["r"], general["alpha"], general["optimizer"]["mix"]) == (0.1, 0.8, 0.8)
    assert "k" not in general
    assert compose(["experiment=kdd24/cifar10", "optimizer=looksam"])["optimizer"]["when"]["n"] == 3
    assert compose(["experiment=kdd24/cifar10", "k=7"])["optimizer"]["where"]["k"] == 7
    assert compose(["experiment=kdd24/cifar10", "model=wrn16_2"])["model"]["name"] == "wrn16_2"


def test_scale_is_a_factor_that_the_command_line_beats():
    small = compose(["experiment=kdd24/cifar10", "scale=small"])
    assert (small["epochs"], small["train_fraction"], small["scale"]) == (150, 0.1, "small")
    assert small["score_every"] == 10
    given = compose(["experiment=kdd24/cifar10", "scale=small", "epochs=7", "score_every=3"])
    assert (given["epochs"], given["score_every"]) == (7, 3)
    assert compose(["scale=smoke"])["epochs"] == 1


def test_every_option_file_names_itself_and_its_choices_fit():
    groups = ["dataset", "model", "base", "schedule", "scale", *PARTS]
    for group, option in itertools.chain.from_iterable(((g, o) for o in options(g)) for g in groups):
        known, choices, limits = fields(group, option)
        assert known["name"] == option
        assert choices.keys() | limits.keys() <= known.keys()
        for key, words in choices.items():
            assert known[key] in words or not isinstance(known[key], str)
