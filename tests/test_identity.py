"""A run's id outlives the version that gave it: new keys and fixes that do not concern it leave it alone."""

from pathlib import Path

import pytest
import yaml

from sam_repro.config import compose, fixed, identity
from sam_repro.schema import fields, options, read

RESULTS = Path(__file__).parent.parent / "results" / "runs"
# Written down before any key had a neutral value. They never change: whoever must change one adds a fix to conf/numerics.yaml.
IDS = {
    "optimizer=aesam": "03a945ac2e",
    "optimizer=asam": "4751cd8efa",
    "optimizer=esam": "2797e9e6d1",
    "optimizer=generalized_sam": "0228a7d919",
    "optimizer=layersam": "30c29df572",
    "optimizer=layerwise": "b1b7bc81e7",
    "optimizer=looklayersam": "232f738742",
    "optimizer=looksam": "5a8fea16f1",
    "optimizer=mesa": "4d9e64609a",
    "optimizer=msam": "72133f8915",
    "optimizer=saf": "40ad681c6d",
    "optimizer=sam": "450a3a026b",
    "optimizer=sam_n": "86cc3f8b85",
    "optimizer=sgd": "4cd02b98b0",
    "model=mobilenet": "28b455f82f",
    "model=resnet18": "4c60f58344",
    "model=resnet50": "71101b24b7",
    "model=wrn50_2": "700574503d",
    "experiment=msam/cifar100_resnet50 optimizer=sam": "26efdfb4ef",
}


@pytest.mark.parametrize("words", IDS)
def test_ids_are_those_of_the_first_version(words):
    assert identity(compose(["device=cpu", *words.split()])) == IDS[words]


def test_a_new_key_counts_once_it_is_not_neutral():
    def run_id(*words):
        return identity(compose(["device=cpu", *words]))

    others = [
        "score_every=2",
        "drop_last=true",
        "decay_in_loss=true",
        "graphs=true",
        "lag=1",
        "normalize=true",
        "tensors=weights",
        "model.zero_gamma=true",
    ]
    assert len({run_id(), *map(run_id, others)}) == 1 + len(others)
    assert (
        run_id("score_every=1", "drop_last=false", "graphs=false", "lag=0", "normalize=false", "tensors=all", "model.init=he") == run_id()
    )


def test_what_concerns_cuda_alone_counts_there_alone():
    def run_id(device, *words):
        return identity(compose([f"device={device}", *words]))

    cuda = ["tf32=true", "cudnn_benchmark=false"]
    both = ["deterministic=true", "channels_last=false", "precision=fp16"]
    assert len({run_id("cuda:0"), *(run_id("cuda", word) for word in cuda + both)}) == 1 + len(cuda + both)
    assert len({run_id("cpu"), *(run_id("cpu", word) for word in both)}) == 1 + len(both)
    assert run_id("cpu") == run_id("cpu", *cuda)
    assert run_id("cuda") == "da40f8dbbf"


def test_every_neutral_value_is_one_that_the_field_can_have():
    groups = ["dataset", "model", "base", "schedule", *(f"optimizer/{part}" for part in ("when", "where", "between", "samples", "teacher"))]
    for group in groups:
        for option in options(group):
            for key, value in read(f"{group}/{option}").get("neutral", {}).items():
                assert fields(group, option).checked(key, key, value) == value


@pytest.mark.parametrize(
    ("words", "fixes"),
    [
        ([], []),
        (["optimizer=vsam"], ["vsam-windows"]),
        (["optimizer=sam", "optimizer/when=variation"], ["vsam-windows"]),
        (["criterion=low"], ["first-step"]),
        (["criterion=random", "model=wrn16_2"], ["first-step", "pre-activation"]),
        (["optimizer/when=every"], ["last-choice"]),
        (["model=timm", "model.arch=resnet18"], []),
        (["model=timm", "model.arch=vit_tiny_patch16_224"], ["pre-activation"]),
    ],
)
def test_a_fix_concerns_those_whose_numbers_it_changed(words, fixes):
    assert fixed(compose(words)) == fixes


def test_the_ids_of_the_archive_are_those_of_its_configurations():
    orphans = {one for fix in read("numerics").values() for one in fix["orphans"]}
    for path in RESULTS.glob("*/config.yaml"):
        config = yaml.safe_load(path.read_text())
        assert identity(config) == path.parent.name or path.parent.name in orphans, (
            f"{path} is another run now: conf/numerics.yaml lists those"
        )
