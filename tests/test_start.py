"""What makes the first second: which of the heavy modules a command loads. Their import is most of the time until it answers."""

import ctypes
import json
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from sam_repro import device
from sam_repro.config import compose
from sam_repro.device import device_type, resolve_device
from sam_repro.schema import UserError

HEAVY = {
    "torch", "torch._dynamo", "torch._inductor", "torch.utils.flop_counter", "sympy", "torchvision", "timm", "transformers", "datasets",
    "sklearn", "scipy", "statsmodels", "pandas", "pyarrow", "matplotlib", "altair", "vl_convert", "jinja2", "wandb", "tensorboard",
    "hydra", "omegaconf",
}  # fmt: skip
HYDRA = {"hydra", "omegaconf"}
FEW = ("max_samples=32", "epochs=1", "batch_size=16")


def loaded(code: str, folder) -> set[str]:
    """Those of HEAVY that a process has loaded when it ends, without a GPU."""
    said = "import atexit, json, sys; atexit.register(lambda: open('modules.json', 'w').write(json.dumps([*sys.modules])))\n"
    where = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    ended = subprocess.run([sys.executable, "-c", said + code], cwd=folder, env=where, capture_output=True, text=True)
    assert "Traceback" not in ended.stderr, ended.stderr
    return HEAVY & {*json.loads((folder / "modules.json").read_text())}


def command(module: str, *words: str) -> str:
    return f"import runpy; sys.argv[:] = {['', *words]!r}; runpy.run_module({module!r}, run_name='__main__', alter_sys=True)"


@pytest.mark.parametrize(
    ("module", "words", "may"),
    [
        ("sam_repro", ["--help"], HYDRA),
        ("sam_repro", ["epocs=3"], HYDRA),
        ("sam_repro", ["optimizer=smo"], HYDRA),
        ("sam_repro.tables", ["lst"], HYDRA),
        ("sam_repro.tables", ["--help"], HYDRA),
        ("sam_repro.tables", ["report", "kdd24/tabel1"], HYDRA),
        ("sam_repro.claims", ["lst"], HYDRA),
        ("sam_repro.claims", ["show"], HYDRA),
        ("sam_repro.study", ["lst"], HYDRA),
        ("sam_repro.search", ["lst"], HYDRA),
        ("sam_repro.runs", ["lst"], HYDRA),
        ("sam_repro.measure", ["lst"], HYDRA),
        ("sam_repro.measure", ["norms", "run=none"], HYDRA),
        ("sam_repro.evaluate", ["rn=1"], HYDRA),
        ("sam_repro.tracking", ["lst"], HYDRA),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_a_wrong_word_is_answered_before_anything_heavy_is_loaded(tmp_path, module, words, may):
    assert loaded(command(module, *words), tmp_path) <= may


def test_the_library_loads_torch_alone(tmp_path):
    assert loaded("import sam_repro.optim, sam_repro.models", tmp_path) == {"torch"}


@pytest.mark.parametrize("words", [["optimizer=layerwise", "k=2"], ["optimizer=sam", "base=adamw", "lr=0.001"]], ids=" ".join)
def test_a_run_loads_what_it_uses_and_shown_again_not_even_torch(tmp_path, words):
    counted = {"torch.utils.flop_counter"} if "k=2" in words else set()  # of partial passes the share in a whole one is told
    assert loaded(command("sam_repro", *words, *FEW), tmp_path) == {"torch", *counted, *HYDRA}
    assert [path.name for path in (tmp_path / "runs").glob("*/summary.json")] == ["summary.json"]
    assert loaded(command("sam_repro", *words, *FEW), tmp_path) == HYDRA


def fails(*_):
    raise AssertionError("torch was asked")


@pytest.mark.parametrize(("platform", "driver"), [("linux", None), ("linux", 100), ("darwin", 0)])
def test_without_a_driver_that_sees_a_gpu_torch_is_not_asked(monkeypatch, platform, driver):
    def library(_):
        if driver is None:
            raise OSError("libcuda.so.1: cannot open shared object file")
        return SimpleNamespace(cuInit=lambda _: driver)

    monkeypatch.setattr(device.sys, "platform", platform)
    monkeypatch.setattr(ctypes, "CDLL", library)
    monkeypatch.setattr(device, "Path", lambda _: SimpleNamespace(exists=lambda: False))
    monkeypatch.setattr(torch.cuda, "is_available", fails)
    assert resolve_device(compose([]))["device"] == device_type("") == "cpu"


@pytest.mark.parametrize(("amd", "driver"), [(False, 0), (True, 100)])
@pytest.mark.parametrize("built_for_it", [True, False])
def test_a_driver_that_sees_one_leaves_it_to_torch(monkeypatch, amd, driver, built_for_it):
    monkeypatch.setattr(device.sys, "platform", "linux")
    monkeypatch.setattr(ctypes, "CDLL", lambda _: SimpleNamespace(cuInit=lambda _: driver))
    monkeypatch.setattr(device, "Path", lambda _: SimpleNamespace(exists=lambda: amd))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: built_for_it)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert device_type("auto") == ("cuda" if built_for_it else "cpu")
    assert device_type("cpu") == "cpu"
    if built_for_it:
        assert device_type("cuda:0") == "cuda"
        with pytest.raises(UserError, match="PyTorch sees 1 GPU: use device=cpu"):
            resolve_device({"device": "cuda:1"})
