"""What is not let in: files from elsewhere that do not fit, cannot be read, or would do harm. Each ends in one sentence."""

import json
import os
import re
from itertools import pairwise

import numpy as np
import pytest
import torch
import yaml

from sam_repro import data, runs
from sam_repro.command import command
from sam_repro.config import compose
from sam_repro.console import console
from sam_repro.data import image_folder
from sam_repro.data.picture import SUFFIXES, read_image
from sam_repro.fingerprint import fingerprint
from sam_repro.models import create
from sam_repro.plain import harmless
from sam_repro.results import declare, load
from sam_repro.results.declare import EXPERIMENTS
from sam_repro.schema import FAST, UserError, parse
from sam_repro.store import Run
from sam_repro.train.job import Job


def moved(state, old, new):
    return {key.replace(old, new): value for key, value in state.items()}


WRONG_WEIGHTS = {
    "a missing block": (lambda state: {k: v for k, v in state.items() if "blocks.3." not in k}, r"blocks\.3\.attn.* and 4 more"),
    "renamed keys": (lambda state: moved(state, "norm1", "ln1"), r"blocks\.0\.ln1\.bias"),
    "no positions": (lambda state: {k: v for k, v in state.items() if k != "pos_embed"}, r"\?\): pos_embed\."),
    "half a head": (lambda state: {**{k: v for k, v in state.items() if k != "head.bias"}, "head.weight": torch.ones(5, 192)}, "head"),
    "another width": (lambda state: {**state, "norm.weight": torch.ones(3)}, r"\): norm\.weight\."),
    "no weights": (lambda state: {"epoch": 3}, "do the weights belong"),
    "a list": (lambda state: [1, 2], "do the weights belong"),
}


@pytest.mark.parametrize("wrong", WRONG_WEIGHTS)
@pytest.mark.parametrize("classes", [5, 1000])
def test_weights_that_do_not_fit_a_vision_transformer_are_listed(tmp_path, wrong, classes):
    timm = pytest.importorskip("timm", reason="timm is not installed (extra 'timm')")
    change, says = WRONG_WEIGHTS[wrong]
    values = {"arch": "vit_tiny_patch16_224", "image_size": 32, "weights": str(tmp_path / "it.pth")}
    state = timm.create_model("vit_tiny_patch16_224", img_size=32).state_dict()
    torch.save(change(state), tmp_path / "it.pth")
    if wrong == "half a head" and classes == 5:
        create("timm", classes, **values)  # another task's head: it is new
    else:
        with pytest.raises(UserError, match=says):
            create("timm", classes, **values)
    torch.save({key: value for key, value in state.items() if not key.startswith("head.")}, tmp_path / "it.pth")
    assert torch.equal(create("timm", classes, **values).embed.pos_embed, state["pos_embed"])


def test_weights_that_do_not_fit_roberta_are_listed(tmp_path):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed (extra 'nlp')")
    config = transformers.RobertaConfig(num_hidden_layers=2, hidden_size=16, num_attention_heads=2, intermediate_size=64)
    model = transformers.RobertaForSequenceClassification(config)
    model.save_pretrained(tmp_path, state_dict=moved(model.state_dict(), "layer.1.output", "layer.1.out"))
    with pytest.raises(UserError, match=r"has not all weights: roberta\.encoder\.layer\.1\.output"):
        create("roberta_tiny", 2, pretrained=str(tmp_path), layers=2, width=16, heads=2)


WRONG_CHECKPOINTS = {
    "no model": lambda state: state.pop("model"),
    "another layer": lambda state: state["model"].pop("stem.conv.weight"),
    "an epoch in words": lambda state: state.update(epoch="three"),
    "weights that are none": lambda state: state["model"].update({"stem.conv.weight": "x"}),
    "no tensors": lambda state: state.update(model=[1]),
    "another base": lambda state: state.update(base={"state": {}, "param_groups": []}),
    "another schedule": lambda state: state.update(schedule=3),
    "another method": lambda state: state.update(gradient={"bank": 1}),
    "no random state": lambda state: state.update(random=torch.ones(3)),
    "not even a mapping": lambda state: state.clear(),
}


def test_a_checkpoint_of_the_right_form_with_wrong_contents_is_named(tmp_path):
    job = Job(compose(["model=resnet20", "dataset=digits", "max_samples=64", "batch_size=32", "device=cpu", f"runs_dir={tmp_path}"]))
    path = tmp_path / "state.pt"
    job.save(path)
    job.resume(path)
    (tmp_path / "checksums.json").unlink()
    for wrong, change in WRONG_CHECKPOINTS.items():
        job.save(path)
        state = torch.load(path)
        change(state)
        torch.save(state, path)
        (tmp_path / "checksums.json").unlink()
        with pytest.raises(UserError, match=r"state\.pt .*rerun=true starts") as caught:
            job.resume(path)
        assert "\n" not in str(caught.value), wrong


def picture(kind, path):
    """An image of which the left half is pure red or black, the right half white, 40 x 20 pixels; the pixels that it must come to."""
    from PIL import Image

    rgb = np.full((20, 40, 3), 255, np.uint8)
    rgb[:, :20] = [0, 0, 0] if kind in ("grey", "16 bits", "one bit", "16 bits in PGM", "16 bits in TIFF") else [255, 0, 0]
    image = Image.fromarray(rgb)
    if kind.startswith("16 bits"):
        half = np.full((20, 40), 65535, np.uint16)
        half[:, :20], half[:, 20:] = 100 << 8, 200 << 8
        rgb[:, :20], rgb[:, 20:] = 100, 200
        image = Image.fromarray(half)
    elif kind == "alpha":  # what is transparent hides black
        image = Image.fromarray(np.dstack([rgb * (rgb[..., 1:2] == 0), (rgb[..., 1] == 0).astype(np.uint8) * 255]))
    elif kind == "palette with a transparent colour":
        image = image.quantize(4)
        transparent = image.getpixel((39, 0))
        image.info["transparency"] = transparent
        image.putpalette([0 if index // 3 == transparent else value for index, value in enumerate(image.getpalette())])
    elif kind != "plain":
        image = image.convert({"grey": "L", "one bit": "1", "palette": "P", "CMYK": "CMYK"}[kind])
    image.save(path)
    return rgb


KINDS = {
    "plain": ".bmp .gif .png .ppm .tif .tiff .webp .jpg", "grey": ".png .jpeg .bmp .pgm", "16 bits": ".png", "16 bits in PGM": ".pgm",
    "16 bits in TIFF": ".tif", "one bit": ".png .pbm", "palette": ".png .gif .bmp", "CMYK": ".jpg .tif", "alpha": ".png .webp .tif",
    "palette with a transparent colour": ".png",
}  # fmt: skip


@pytest.mark.parametrize(("kind", "suffix"), [(kind, suffix) for kind in KINDS for suffix in KINDS[kind].split()])
def test_an_image_of_every_kind_comes_out_right(tmp_path, kind, suffix):
    path = tmp_path / f"it{suffix}"
    rgb = picture(kind, path)
    found = np.asarray(read_image(path)).astype(int)
    distance = abs(found - rgb)[:, [*range(16), *range(24, 40)]]  # not where the halves meet, which JPEG blurs
    assert found.shape == rgb.shape
    assert distance.max() <= (16 if suffix in (".jpg", ".jpeg", ".webp") else 0)


@pytest.mark.parametrize("suffix", sorted({*SUFFIXES}))
def test_a_truncated_image_is_named(tmp_path, suffix):
    from PIL import Image

    path = tmp_path / f"it{suffix}"
    Image.effect_noise((64, 64), 90).convert("1" if suffix == ".pbm" else "RGB").save(path)
    whole = path.read_bytes()
    for share in (0.02, 0.5, 0.9):
        path.write_bytes(whole[: int(len(whole) * share)])
        with pytest.raises(UserError, match=r"it\.\w+ cannot be read as an image") as caught:
            read_image(path)
        assert "\n" not in str(caught.value)


def test_bombs_pipes_and_other_formats_are_named(tmp_path):
    from PIL import Image

    path = tmp_path / "it.png"
    for make, says in (
        (lambda: path.write_bytes(b"P6 60000 60000 255\n"), "decompression bomb"),
        (lambda: Image.new("L", (3, 40000)).save(path), "3 x 40000 pixels"),
        (lambda: Image.fromarray(np.ones((4, 4), np.float32)).save(path, format="TIFF"), "numbers of 32 bits, mode F"),
        (lambda: path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"), "cannot identify image file"),
        (lambda: (path.unlink(), os.mkfifo(path)), "is no file"),
        (lambda: (path.unlink(), path.symlink_to("/dev/zero")), "is no file"),
        (lambda: (path.unlink(), path.symlink_to("nowhere")), "is no file"),
    ):
        make()
        with pytest.raises(UserError, match=rf"it\.png .*{says}"):
            read_image(path)


@pytest.fixture
def tree(tmp_path):
    """Two classes of one small image each."""
    for part in ("train", "val"):
        for name in ("a", "b"):
            (tmp_path / part / name).mkdir(parents=True)
            picture("plain", tmp_path / part / name / "0.bmp")
    return tmp_path


def test_hidden_folders_are_no_classes_and_no_class_is_empty_without_a_word(tree, capsys):
    hidden = tree / "train" / ".ipynb_checkpoints"
    hidden.mkdir()
    for place in (hidden / "0.png", tree / "train" / "a" / "._0.png"):
        picture("plain", place)
    (tree / "train" / "a" / "notes.txt").touch()
    made = image_folder(tree, size=16)
    assert (made.classes, len(made.train), len(made.test)) == (2, 2, 2)
    assert "left out are 1 .txt, by their names no images" in " ".join(capsys.readouterr().out.split())
    (tree / "train" / "b" / "0.bmp").rename(tree / "train" / "b" / "0.avif")
    with pytest.raises(UserError, match=r"train/b has no images \(.*\.webp\); it has 1 \.avif\."):
        image_folder(tree)
    (tree / "train" / "b").joinpath("0.avif").rename(tree / "train" / "b" / "0.bmp")
    (tree / "val" / "b" / "0.bmp").rename(tree / "val" / "0.bmp")
    with pytest.raises(UserError, match=r"val/b has no images .* it has nothing"):
        image_folder(tree)
    (tree / "val" / "b").rmdir()
    with pytest.raises(UserError, match="train has the class 'b', which the validation set has not"):
        image_folder(tree)


def test_a_pipe_in_a_folder_of_images_is_named_and_names_need_not_be_utf8(tree):
    path = tree / "val" / "b" / "1.png"
    os.mkfifo(path)
    with pytest.raises(UserError, match=r"val/b/1\.png is no file"):
        image_folder(tree)
    path.unlink()
    odd = os.fsdecode(b"\xff\xfe.bmp")
    picture("plain", tree / "train" / "a" / odd)
    (tree / "val" / "b").rename(tree / "val" / odd)
    (tree / "train" / "b").rename(tree / "train" / odd)
    made = image_folder(tree, size=16, normalise="half")
    assert len(list(made.in_order(made.train, 1))) == 3
    (tree / "imagenet").mkdir()
    for part in ("train", "val"):
        (tree / part).rename(tree / "imagenet" / part)
    found = fingerprint({"name": "imagenet"}, str(tree))
    (tree / "imagenet" / "train" / ".cache").mkdir()
    (tree / "imagenet" / "train" / ".cache" / "x.png").touch()
    assert found["files"] == 5
    assert fingerprint({"name": "imagenet"}, str(tree)) == found


LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in pairwise("abcdefghijk"))
LARGE = {
    "laughs": (LAUGHS, "stands for more than 100,000 values"),
    "laughs that are merged": (LAUGHS + "l: {<<: [{y: *k}, {z: *k}]}", "stands for more than"),
    "names itself": ("a: &a [*a]", "nested more than 50 deep, or names itself"),
    "deep": (f"a: {'[' * 60}{']' * 60}", "nested more than 50 deep"),
    "deeper": ("[" * 100_000, None),
    "deep by names": ("a0: &a0 [x]\n" + "".join(f"a{i + 1}: &a{i + 1} [*a{i}]\n" for i in range(60)), "nested more than 50 deep"),
    "a number of 5,000 digits": (f"a: {'9' * 5000}", None),
    "a month 13": ("a: 2020-13-13", None),
}


@pytest.mark.parametrize("loader", [FAST, yaml.SafeLoader, yaml.BaseLoader])
@pytest.mark.parametrize("large", LARGE)
def test_yaml_of_few_lines_that_stand_for_billions_is_refused(large, loader, tmp_path):
    text, says = LARGE[large]
    if loader is yaml.BaseLoader and large in ("a number of 5,000 digits", "a month 13"):
        assert parse(text, loader)  # words stay words
        return
    with pytest.raises((UserError, yaml.YAMLError), match=says):
        parse(text, loader)
    folder = tmp_path / "runs" / "0123"
    folder.mkdir(parents=True)
    (folder / "status.json").write_text('{"state": "done"}')
    (folder / "config.yaml").write_text(text)
    with pytest.raises(UserError, match=r"config\.yaml is missing or damaged"):
        Run(tmp_path / "runs", "0123").config  # noqa: B018


def test_yaml_that_names_things_twice_is_read_as_ever():
    text = "a: &a {x: 1}\nb: [*a, *a]\nc: {<<: *a, y: 2}\n"
    assert parse(text) == yaml.safe_load(text)
    assert parse("") is None
    with pytest.raises(yaml.YAMLError):
        parse("a: 1\n---\nb: 2")


@pytest.mark.parametrize(("old", "new", "says"), [
    ("seeds: 3", "seeds: '1000000000'", "seeds is the paper's number of runs, 1 to 1000"),
    ("seeds: 3", f"seeds: '{'9' * 5000}'", "seeds is the paper's number of runs"),
    ("footnotes:", f"footnotes: {'[' * 60}{']' * 60}\nrows2:", "nested more than 50 deep"),
    ("footnotes:", f"footnotes: {'[' * 5000}\nrows2:", "is not YAML"),
])  # fmt: skip
def test_a_declaration_that_asks_for_billions_is_named(tmp_path, old, new, says):
    content = (EXPERIMENTS / "kdd24" / "table1.yaml").read_text()
    assert old in content
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "table.yaml").write_text(content.replace(old, new, 1))
    with pytest.raises(UserError, match=rf"own/table\.yaml.*{says}"):
        declare.load(tmp_path, "own/table")


def test_a_run_directory_moves_no_cursor_and_brings_no_tag(tmp_path, capsys):
    folder = tmp_path / "0123"
    folder.mkdir()
    evil = "\x1b[2J\x9b1m\u202e<script>"
    status = {"state": "failed", "started": evil, "host": evil, "commit": evil, "command": evil, "error": evil}
    (folder / "status.json").write_text(json.dumps(status))
    config = {"dataset": {"name": evil}, "model": {"name": evil}, "optimizer": {"name": evil}, "seed": 0, "epochs": 1}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    runs.run(["list"], {"runs_dir": str(tmp_path)})
    runs.run(["show", "0"], {"runs_dir": str(tmp_path)})
    console.print(f"left at {evil}")
    out = capsys.readouterr().out
    assert not {"\x1b", "\x9b", "\u202e"} & {*out}
    assert out.count("\\x1b[2J") >= 5
    assert harmless(f"| {evil} | 1<br>2 | a < b |\n") == r"| \x1b[2J\x9b1m\u202e&lt;script> | 1<br>2 | a < b |" + "\n"
    with pytest.raises(SystemExit), command("it"):
        raise UserError(evil + os.fsdecode(b"\xff"))
    assert capsys.readouterr().err == "it: \\x1b[2J\\x9b1m\\u202e<script>\\udcff\n"


@pytest.mark.parametrize(("word", "says"), [
    ("dataset.size=1000000000", "out of range: dataset.size is 0 to 1024"),
    ("dataset.crop=1000000000", "out of range: dataset.crop is 0 to 256"),
    ("model=pyramidnet110 model.alpha=1000000000", "out of range: model.alpha is 1 to 4096"),
    ("dataset=glue_sst2 model=roberta_tiny model.width=1000000000", "out of range: model.width is 8 to 8192"),
    ("dataset=glue_sst2 model=roberta_tiny dataset.max_length=1000000000", "out of range: dataset.max_length is 8 to 512"),
])  # fmt: skip
def test_sizes_of_billions_are_out_of_range(word, says):
    with pytest.raises(UserError, match=says):
        compose(word.split())


NONSENSE = {
    "metrics": {"": "one or several of accuracy, matthews, f1, each once, not none", "bleu": "not bleu", "f1 f1": "each once"},
    "labels": {"yes": "at least 2, not 'yes'", "a b a": "words that all differ", "a b c": "f1 is of two classes, not of 3"},
    "columns": {"Quality Quality": "words that all differ, not 'Quality Quality'", "a b": "has no column '#1 String'"},
    "text": {"": "dataset.text is empty", "nonsense": "has no column 'nonsense'"},
    "pair": {"nonsense": "has no column 'nonsense'"},
    "label": {"": "dataset.label is empty", "#1 String": "'it' is no label"},
    "train": {"": "dataset.train is empty", "pipe": "pipe is no file"},
    "sizes": {"": "as in '3668 408', not ''", "many few": "not 'many few'", "1 2 3": "not '1 2 3'"},
    "folder": {"": "dataset.folder is empty"},
}  # fmt: skip


@pytest.mark.parametrize(("key", "value"), [(key, value) for key in NONSENSE for value in NONSENSE[key]])
def test_nonsense_in_the_fields_of_glue_is_named(tmp_path, key, value):
    folder = tmp_path / "glue" / "MRPC"
    folder.mkdir(parents=True)
    os.mkfifo(folder / "pipe")
    for name in ("train.tsv", "dev.tsv"):
        (folder / name).write_text("Quality\t#1 String\t#2 String\n1\tit\tthat\n")
    settings = compose(["dataset=glue_mrpc", "model=roberta_tiny"])["dataset"]
    with pytest.raises(UserError, match=re.escape(NONSENSE[key][value])):
        data.load({**settings, key: value}, str(tmp_path))


WRONG_TYPES = (
    "model: 5",
    "dataset: [x]",
    "optimizer: sam",
    "optimizer: {name: [x]}",
    "seed: x",
    "epochs: {a: 1}",
    "epochs: true",
    "model: null",
)


@pytest.mark.parametrize("wrong", WRONG_TYPES)
def test_wrong_types_in_the_configuration_of_a_run_are_a_damaged_file(tmp_path, wrong, capsys):
    folder = tmp_path / "0123"
    folder.mkdir()
    (folder / "status.json").write_text('{"state": "failed", "started": "2026", "host": "h", "commit": "c", "command": "it"}')
    (folder / "config.yaml").write_text(yaml.safe_dump({**compose([]), **yaml.safe_load(wrong)}))
    runs.run(["list"], {"runs_dir": str(tmp_path)})
    assert "damaged" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"config\.yaml is missing or damaged"):
        runs.run(["show", "0"], {"runs_dir": str(tmp_path)})
    assert load(tmp_path).runs.state.tolist() == ["damaged"]


def test_names_that_are_not_utf8_are_named_where_they_cannot_be_kept(tmp_path, capsys):
    odd = os.fsdecode(b"\xff\xfe")
    with (
        pytest.raises(UserError, match=r"data_dir=.* is no plain text in UTF-8: make a link"),
        Run(tmp_path, "0123").held({**compose([]), "data_dir": str(tmp_path / odd)}, "it"),
    ):
        pass
    assert not (tmp_path / "0123").exists()
    (tmp_path / odd).mkdir()
    (tmp_path / odd / "status.json").write_text('{"state": "done"}')
    runs.run(["list"], {"runs_dir": str(tmp_path)})
    assert len(load(tmp_path).runs) == 0
    assert r"\udcff\udcfe is left out: the name is none of a run" in " ".join(capsys.readouterr().out.split())
