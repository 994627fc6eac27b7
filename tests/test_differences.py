"""What sets runs apart, in a list of them, beside the defaults, and two by two."""

import re

import pytest
from own_tables import put

from sam_repro import runs
from sam_repro.config import compose
from sam_repro.differences import apart, between, described, from_defaults, in_words, words_of
from sam_repro.store import all_runs


def test_runs_that_a_list_would_show_alike_are_told_apart_by_their_keys():
    sweep = [compose(["optimizer=layerwise", f"lr={lr}", f"k={k}", "device=cpu"]) for lr in (0.05, 0.1) for k in (2, "all")]
    alone = compose(["optimizer=sam", "rho=0.2", "epochs=3", "device=cpu"])
    assert [in_words(keys) for keys in apart([*sweep, alone])] == [
        "k=2 lr=0.05", "k=all lr=0.05", "k=2 lr=0.1", "k=all lr=0.1", "",
    ]  # fmt: skip
    assert [in_words(keys) for keys in apart([{**alone, "seed": seed, "runs_dir": str(seed)} for seed in (0, 1)])] == ["", ""]


def test_a_knob_is_named_once_and_paths_never():
    words = words_of(compose(["optimizer=sam", "rho=0.2"]))
    assert [key for key in words if key.endswith("rho")] == ["rho"]
    assert not {"runs_dir", "logger", "wandb.mode"} & words.keys()


def test_what_is_not_the_default_comes_first():
    config = compose(["optimizer=sam", "rho=0.2", "optimizer/when=every", "mixup=0.5", "device=cpu"])
    when = {"optimizer.when.name": ("every", "always"), "optimizer.when.n": (5, None)}
    assert from_defaults(config) == {**when, "rho": (0.2, 0.05), "mixup": (0.5, 0.0)}
    lines = list(described(config))
    assert lines[0].startswith("config   dataset=digits model=resnet20 optimizer=sam")
    assert any(re.fullmatch(r"  rho +0.2 +\(default 0.05\)", line) for line in lines[1:5])
    assert lines.index("  the whole of it:") == 5


def test_a_run_whose_defaults_are_not_to_be_had_is_described_all_the_same():
    config = compose([])
    assert from_defaults({**config, "model": {**config["model"], "name": "of_a_plugin"}}) == {}


def test_two_runs_differ_in_some_keys(tmp_path, capsys):
    one, other = (put(tmp_path, "optimizer=sam", f"rho={rho}", score=score) for rho, score in ((0.1, 60), (0.2, 70)))
    assert list(between(one.config, other.config)) == [("rho", 0.1, 0.2)]
    runs.run(["diff", one.id, other.id], {"runs_dir": str(tmp_path)})
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == [one.id, other.id]
    assert ["rho", "0.1", "0.2"] in lines
    assert ["test", "60.00", "70.00"] in lines
    runs.run(["diff", one.id, one.id], {"runs_dir": str(tmp_path)})
    assert "the configurations are equal" in capsys.readouterr().out


def test_scores_of_the_test_set_and_of_a_held_out_part_have_columns_of_their_own(tmp_path, capsys):
    put(tmp_path, "optimizer=sam", score=60)
    put(tmp_path, "optimizer=sam", "val_fraction=0.1", score=70)
    runs.run(["list"], {"runs_dir": str(tmp_path)})
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.index("best test") < head.index(" val ")
    by_score = {score: next(line.index(score) for line in lines if score in line) for score in ("60.00", "70.00")}
    assert by_score["60.00"] < head.index("best test") < by_score["70.00"]


@pytest.mark.parametrize(
    ("name", "content"),
    [("summary.json", "[]"), ("status.json", '{"state": 3}'), ("config.yaml", "seed: [0]"), ("metrics.jsonl", "{}"), ("config.yaml", "\0")],
)
def test_the_list_does_not_break_on_an_odd_run(tmp_path, capsys, name, content):
    odd, whole = (put(tmp_path, "optimizer=sam", f"rho={rho}", score=60) for rho in (0.1, 0.2))
    (odd.path / name).write_text(content)
    runs.run(["list"], {"runs_dir": str(tmp_path)})
    said = capsys.readouterr().out
    assert whole.id in said
    assert odd.id in said
    assert len(all_runs(tmp_path)) == 2
