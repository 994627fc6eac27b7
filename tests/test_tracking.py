"""Trackers: that they hold what the run's own files hold, and that none of them can harm a run."""

import os
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest
import yaml

from sam_repro.__main__ import launch
from sam_repro.config import compose, identity
from sam_repro.schema import UserError
from sam_repro.store import Run
from sam_repro.tracking import __main__ as commands
from sam_repro.tracking import follow, keys
from sam_repro.train import loop

wandb = pytest.importorskip("wandb")
ROOT = Path(__file__).resolve().parents[1]
SMALL = ["device=cpu", "train_fraction=0.1", "seed=3", "optimizer=layerwise", "k=2", "wandb.mode=offline"]


def run_here(folder, *overrides) -> Run:
    overrides = [*SMALL, f"runs_dir={folder}", *overrides]
    config = compose(overrides)
    launch(config, overrides)
    return Run(folder, identity(config))


def records(path):
    """The records of a .wandb file. W&B's process writes the last a moment after the run was finished, and of a killed one never."""
    for _ in range(100):
        found = list(as_they_are(path))
        if any(record.WhichOneof("record_type") == "exit" for record in found):
            break
        time.sleep(0.1)
    return found


def as_they_are(path):
    """LevelDB's log format, 7 bytes of W&B's before it."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, parts = path.read_bytes(), 7, b""
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:  # a block's end is padded
            at += 32768 - at % 32768
            continue
        size, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        parts = (b"" if kind in (1, 2) else parts) + data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # a whole record, or the last part of one
            yield Record.FromString(parts)


def recorded(run):
    """What W&B's offline files hold of a run: a segment for each time it was taken up."""
    found = [records(next(folder.glob("*.wandb"))) for folder in commands.recorded(run.path)]
    return [{record.WhichOneof("record_type"): record for record in segment} for segment in found], found


def items(update):
    return {item.key or item.nested_key[0]: yaml.safe_load(item.value_json) for item in update}


def history(segment):
    return [items(record.history.item) for record in segment if record.WhichOneof("record_type") == "history"]


def events(run):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    [folder] = {path.parent for path in run.path.rglob("events.out.*")}
    read = accumulator.EventAccumulator(str(folder), size_guidance={"images": 0, "tensors": 0, "scalars": 0})
    return read.Reload()


def numbers(run):
    return [{key: value for key, value in row.items() if key not in ("seconds", "images_per_second")} for row in run.metrics()]


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """A run shown to both."""
    return run_here(tmp_path_factory.mktemp("runs"), "epochs=2", "logger=[wandb,tensorboard]", "wandb.group=kdd24/table1")


def test_the_logger_is_no_part_of_what_a_run_is(both, tmp_path):
    overrides = ["device=cpu", "runs_dir=x", "logger=[wandb]", "wandb.mode=online", "wandb.project=p"]
    assert identity(compose(overrides)) == identity(compose(["device=cpu"]))
    without = run_here(tmp_path, "epochs=2")
    assert without.id == both.id
    assert numbers(without) == numbers(both)


def test_wandb_offline_holds_the_metrics(both):
    [kinds], [segment] = recorded(both)
    described = kinds["run"].run
    assert (described.run_id, described.run_group, described.job_type) == (both.id, "kdd24/table1", "train")
    assert set(described.tags) == {"digits", "resnet20", "layerwise"}
    rows = history(segment)
    assert [row["epoch"] for row in rows if "epoch" in row] == [1, 2]
    for row, line in zip(rows, both.metrics(), strict=True):
        assert row | keys.of_epoch(line) == row
        assert row["sam/sampling_rate"] == 1.0
        assert row["_step"] == line["epoch"]
    assert {name.partition("/")[0] for name in keys.of_epoch(both.metrics()[0])} == {"train", "test", "perf", "sam"}
    steps = [record.metric for record in segment if record.WhichOneof("record_type") == "metric"]
    assert ("*", "epoch") in {(metric.glob_name, metric.step_metric) for metric in steps}
    assert kinds["exit"].exit.exit_code == 0


def test_wandb_offline_holds_the_layers_and_the_final_numbers(both):
    _, [segment] = recorded(both)
    summary = {}
    for record in segment:
        if record.WhichOneof("record_type") == "summary":
            summary |= items(record.summary.update)
    assert summary | keys.of_summary(both.summary) == summary
    assert summary["final/score_last"] == both.summary["score_last"]
    assert (summary["state"], summary["final/scale"]) == ("done", "paper")
    media = commands.recorded(both.path)[0] / "files" / "media"
    table = yaml.safe_load(next(media.glob("table/sam/layers*.json")).read_text())
    assert [dict(zip(table["columns"], line, strict=True)) for line in table["data"]] == both.layers()
    assert len(list(media.glob("images/sam/layers_*.png"))) == 2


def test_tensorboard_holds_the_same(both):
    read = events(both)
    for line in both.metrics():
        for name, value in keys.of_epoch(line).items():
            point = next(point for point in read.Scalars(name) if point.step == line["epoch"])
            assert point.value == pytest.approx(value, rel=1e-6)
    assert read.Scalars("final/score_last")[0].value == pytest.approx(both.summary["score_last"])
    assert set(keys.HEATMAPS.values()) <= set(read.Tags()["images"])
    assert b"name: layerwise" in read.Tensors("config/text_summary")[0].tensor_proto.string_val[0]


def test_the_heatmap_has_the_layers_in_their_rows(both):
    from sam_repro.tracking.heatmap import heatmap, matrix

    layers, epochs, values = matrix(both.layers(), "perturbations")
    assert (layers, epochs) == (list(both.summary["perturbations"]), [1, 2])
    assert values.sum(1).tolist() == list(both.summary["perturbations"].values())
    picture = heatmap(both.layers(), "grad_norm", "x")
    assert picture.shape[2] == 3
    assert picture.std() > 20


def stop_at(monkeypatch, error):
    """Raise in the second epoch."""
    evaluate, calls = loop.evaluate, []

    def stopping(*args):
        calls.append(1)
        if len(calls) == 2:
            raise error
        return evaluate(*args)

    monkeypatch.setattr(loop, "evaluate", stopping)


def test_a_resumed_run_goes_on_in_its_trackers(tmp_path, monkeypatch, both):
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop_at(patch, KeyboardInterrupt())
        run_here(tmp_path, "epochs=2", "logger=[wandb,tensorboard]")
    run = run_here(tmp_path, "epochs=2", "logger=[wandb,tensorboard]")
    kinds, segments = recorded(run)
    assert [segment["exit"].exit.exit_code for segment in kinds] == [255, 0]
    assert [segment["run"].run.resumed or segment["run"].run.run_id for segment in kinds] == [run.id, run.id]
    assert [row["test/score"] for segment in segments for row in history(segment) if "epoch" in row] == [r["score"] for r in both.metrics()]
    assert [point.step for point in events(run).Scalars("test/score")] == [1, 2]


def test_a_failed_run_is_marked_failed(tmp_path, monkeypatch):
    stop_at(monkeypatch, UserError("The loss became nan."))
    with pytest.raises(UserError):
        run_here(tmp_path, "epochs=2", "logger=[wandb]")
    [run] = [Run(tmp_path, path.name) for path in tmp_path.iterdir()]
    [kinds], _ = recorded(run)
    assert kinds["exit"].exit.exit_code == 1


def test_a_tracker_that_raises_is_said_once_and_harms_nothing(tmp_path, monkeypatch, capsys, both):
    from sam_repro.tracking.tensorboard import TensorBoard

    closed = []
    monkeypatch.setattr(TensorBoard, "log", lambda *_: 1 / 0)
    monkeypatch.setattr(TensorBoard, "close", lambda *_: closed.append(1) or 1 / 0)
    run = run_here(tmp_path, "epochs=2", "logger=[tensorboard]")
    assert run.state == "done"
    assert numbers(run) == numbers(both)
    assert capsys.readouterr().out.count("ZeroDivisionError") == 1
    assert closed == [1]
    monkeypatch.undo()
    run_here(tmp_path, "epochs=2", "logger=[tensorboard]")  # it is done: shown now, and not trained again
    assert [point.step for point in events(run).Scalars("train/loss")] == [1, 2]
    before = sorted(run.path.rglob("events.out.*"))
    run_here(tmp_path, "epochs=2", "logger=[tensorboard]")
    assert sorted(run.path.rglob("events.out.*")) == before


def test_a_rerun_begins_anew_in_its_trackers(tmp_path):
    run_here(tmp_path, "epochs=1", "logger=[tensorboard]")
    run = run_here(tmp_path, "epochs=1", "logger=[tensorboard]", "rerun=true")
    assert [point.value for point in events(run).Scalars("train/loss")] == [pytest.approx(run.metrics()[0]["train_loss"])]


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["logger=[wandbb]"], "logger has no tracker 'wandbb'. Did you mean 'wandb'?"),
        (["logger=wandb"], "logger is a list, as in [a,b], not 'wandb'."),
        (["logger=[wandb]", "wandb.mode=on"], "wandb.mode is one of offline, online, disabled, not 'on'"),
        (["wandb.projct=x"], "There is no key 'wandb.projct'. Did you mean 'wandb.project'?"),
    ],
)
def test_what_does_not_fit_is_refused_before_work_starts(overrides, said):
    with pytest.raises(UserError) as caught:
        compose(overrides)
    assert said in str(caught.value)


def test_a_tracker_that_is_not_installed_names_its_extra(monkeypatch):
    monkeypatch.setattr("sam_repro.loggers.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"needs wandb and matplotlib: pip install 'sam-repro\[wandb\]'"):
        compose(["logger=[wandb]"])


def test_the_standard_variables_of_wandb_are_read(monkeypatch):
    monkeypatch.setenv("WANDB_PROJECT", "elsewhere")
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert compose([])["wandb"] == {"project": "elsewhere", "entity": "", "group": "", "mode": "disabled"}
    assert compose(["wandb.project=here"])["wandb"]["project"] == "here"


def test_runs_are_named_by_what_their_command_set_and_by_wandbs_variables(both, monkeypatch):
    from sam_repro.tracking.describe import group_of, tags, title

    assert title(both.config, both) == "layerwise digits resnet20 train_fraction=0.1 k=2 epochs=2 seed 3"
    [kinds], _ = recorded(both)
    assert kinds["run"].run.display_name == title(both.config, both)
    [folder] = {path.parent.name for path in both.path.rglob("events.out.*")}
    assert folder == title(both.config, both)  # the name that TensorBoard shows
    monkeypatch.setenv("WANDB_RUN_GROUP", "mine")
    monkeypatch.setenv("WANDB_TAGS", "first, second,digits")
    config = {**both.config, "wandb": {**both.config["wandb"], "group": ""}}
    assert group_of(config, both) == "mine"
    assert group_of(both.config, both) == "kdd24/table1"
    assert tags(config, both) == ["digits", "resnet20", "layerwise", "first", "second"]


def test_wandb_name_is_the_runs_name(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_NAME", "my run")
    [kinds], _ = recorded(run_here(tmp_path, "epochs=1", "logger=[wandb]"))
    assert kinds["run"].run.display_name == "my run"


def test_tensorboard_compares_runs_by_their_settings(both):
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    content = events(both).SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    settings = HParamsPluginData.FromString(content).session_start_info.hparams
    assert (settings["k"].number_value, settings["optimizer.name"].string_value) == (2, "layerwise")


def test_an_archived_run_is_recorded_beside_the_archive(both, tmp_path, monkeypatch):
    from sam_repro.results.archive import archive

    monkeypatch.chdir(tmp_path)
    archive(both, tmp_path / "results" / "runs")
    before = sorted(path.name for path in (tmp_path / "results" / "runs" / both.id).rglob("*"))
    commands.record([both.id[:6]], runs_dir="results/runs")
    assert sorted(path.name for path in (tmp_path / "results" / "runs" / both.id).rglob("*")) == before
    [kinds], [segment] = recorded(Run(commands.RECORDED, both.id))
    assert kinds["run"].run.run_id == both.id
    assert [row["test/score"] for row in history(segment) if "epoch" in row] == [row["score"] for row in both.metrics()]


def test_the_claims_are_a_table_of_wandb(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "claims.csv").write_text("paper,claim,verdict\nkdd24,kdd24-1,supported\n")
    commands.claims(project="mine")
    [folder] = commands.recorded(commands.RECORDED / "claims")
    kinds = {record.WhichOneof("record_type"): record for record in records(next(folder.glob("*.wandb")))}
    assert (kinds["run"].run.project, kinds["run"].run.job_type) == ("mine", "claims")
    [table] = folder.rglob("*.table.json")
    assert yaml.safe_load(table.read_text())["data"] == [["kdd24", "kdd24-1", "supported"]]
    with pytest.raises(UserError, match="claims report"):
        commands.claims(results_dir="elsewhere")


def test_the_experiment_is_the_group_and_the_paper_a_tag(tmp_path):
    from sam_repro.tracking.describe import group_of, tags

    config = compose(["experiment=kdd24/cifar10", "optimizer=sam", "scale=small"])
    run = Run(tmp_path, "x")
    with run.held(config, "python -m sam_repro experiment=kdd24/cifar10 optimizer=sam scale=small"):
        assert group_of(config, run) == "kdd24/cifar10"
        assert tags(config, run) == ["kdd24", "cifar10", "resnet20", "sam", "scale small"]


def test_every_key_of_the_dashboard_is_one_we_log(both):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pydantic's, about W&B's package
        pytest.importorskip("wandb_workspaces")
        from sam_repro.tracking.dashboard import workspace
    from sam_repro.tracking.describe import identity_of

    view = workspace("someone", "sam-repro")
    [_], [segment] = recorded(both)
    logged = {key for row in history(segment) for key in row} | {"val/score"} | set(keys.of_summary(both.summary))
    used = set()
    for panel in (panel for section in view.sections for panel in section.panels):
        lines = [panel.x, *panel.y] if isinstance(getattr(panel, "y", None), list) else [getattr(panel, key, None) for key in "xy"]
        used |= {getattr(axis, "name", axis) for axis in lines if axis} | set(getattr(panel, "media_keys", ()))
    used |= {column.removeprefix("summary:") for column in view.runset_settings.pinned_columns if column.startswith("summary:")}
    assert {"test/score", "final/images_per_second", "sam/sampling_rate", "sam/layers_grad_norm", "epoch", keys.TIME} <= used <= logged
    assert [row[keys.TIME] for row in history(segment) if keys.TIME in row] == pytest.approx(
        [sum(row["seconds"] for row in both.metrics()[: epoch + 1]) for epoch in range(2)]
    )
    assert all(any(section.name.startswith(paper) for section in view.sections) for paper in ("KDD'24", "vSAM", "LookSAM", "mSAM"))
    assert [group.name for group in view.runset_settings.groupby] == ["Group", "method"]
    assert "method" in identity_of(both.config, both)
    assert view._to_model()  # what save() sends


def test_an_agent_of_wandb_would_give_a_command_that_composes():
    """The command as W&B's own agent makes it from the sweep file."""
    from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args, load_sweep_config

    sweep = load_sweep_config(str(ROOT / "docs" / "examples" / "wandb_sweep.yaml"))
    chosen = {
        key: {"value": rule.get("value", rule.get("min", rule.get("values", [None])[0]))} for key, rule in sweep["parameters"].items()
    }
    words = create_sweep_command_args({"args": chosen})["args_no_hyphens"]
    command = create_sweep_command(sweep["command"])
    assert command[:4] == ["${env}", "${interpreter}", "-m", "sam_repro"]
    assert command[-1] == "${args_no_hyphens}"
    config = compose([*command[4:-1], *words])
    assert (config["optimizer"]["name"], config["optimizer"]["where"]["k"], config["val_fraction"]) == ("layerwise", 1, 0.1)
    assert sweep["metric"]["name"] in keys.of_summary({"score_best": 1.0, "sampling_number": 1, "steps": 1})


def test_sync_says_what_is_missing(both, tmp_path, monkeypatch, capsys):
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    with pytest.raises(UserError, match="no account is known here; set WANDB_API_KEY"):
        commands.sync([both.id[:4]], str(both.path.parent))
    commands.sync([], str(tmp_path))
    assert "nothing to send" in capsys.readouterr().out
    for folder in commands.recorded(both.path):
        assert commands.unsent(folder)


@pytest.mark.slow
def test_ctrl_c_closes_the_trackers(tmp_path):
    """As a terminal sends it: to every process of the command."""
    words = [*SMALL, "epochs=1000", "logger=[wandb]", f"runs_dir={tmp_path}"]
    process = subprocess.Popen([sys.executable, "-m", "sam_repro", *words], cwd=ROOT, stdout=subprocess.DEVNULL, start_new_session=True)
    while not list(tmp_path.glob("*/wandb/sent.json")):
        assert process.poll() is None
        time.sleep(0.2)
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(timeout=30) == 130
    [run] = [Run(tmp_path, path.name) for path in tmp_path.iterdir()]
    [kinds], [segment] = recorded(run)
    assert (run.state, kinds["exit"].exit.exit_code) == ("stopped", 255)
    assert [row["epoch"] for row in history(segment) if "epoch" in row] == [row["epoch"] for row in run.metrics()]
    assert follow.Follower("wandb", run.config, run).sent["state"] == "stopped"
