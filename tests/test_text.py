"""GLUE from files, texts in batches, RoBERTa as a chain."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch

from sam_repro import data
from sam_repro.chain import layers
from sam_repro.config import compose
from sam_repro.data.split import Sampling
from sam_repro.data.text import TextDataset, Texts
from sam_repro.models import create
from sam_repro.optim import create as method
from sam_repro.schema import CONF, UserError, kind, typed
from sam_repro.train.score import f1, matthews

transformers = pytest.importorskip("transformers", reason="transformers is not installed (extra 'nlp')")
REAL = Path(os.environ.get("SAM_REPRO_DATA", "nowhere"))
needs_glue = pytest.mark.skipif(not (REAL / "glue").is_dir(), reason="set SAM_REPRO_DATA to a folder with glue/ and roberta_bpe/")

# How byte-level BPE writes a byte: as the character that it is in Latin-1, where that can be seen, else as one from 256 on.
SEEN = [*range(33, 127), *range(161, 173), *range(174, 256)]
BYTES = {b: chr(b) for b in SEEN} | {b: chr(256 + place) for place, b in enumerate(b for b in range(256) if b not in SEEN)}


@pytest.fixture
def files(tmp_path):
    """GLUE's form with a few sentences, and a tokenizer whose tokens are bytes."""
    words = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", *BYTES.values()]
    (tmp_path / "roberta_bpe").mkdir()
    (tmp_path / "roberta_bpe" / "vocab.json").write_text(json.dumps({word: index for index, word in enumerate(words)}))
    (tmp_path / "roberta_bpe" / "merges.txt").write_text("#version: 0.2\n")
    sst, cola, mrpc = (tmp_path / "glue" / name for name in ("SST-2", "CoLA", "MRPC"))
    for folder in (sst, cola, mrpc):
        folder.mkdir(parents=True)
    rows = [f'{"very " * (i % 7)}{"good" if i % 2 else "bad"} "film\t{i % 2}' for i in range(40)]
    for name in ("train.tsv", "dev.tsv"):
        (sst / name).write_text("\n".join(["sentence\tlabel", *rows]) + "\n")
        (cola / name).write_text("gj04\t1\t\tThe sailors rode.\nbc01\t0\t*\tSailors the rode.\n")
        (mrpc / name).write_text(
            "\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\n1\t7\t8\tHe said so .\tSo he said .\n0\t7\t8\tA .\tB .\n"
        )
    return tmp_path


def settings(name, **changes):
    return {**compose([f"dataset={name}", "model=roberta_tiny"])["dataset"], **changes}


def text_of(texts, index, base=5):
    """The bytes of a text, without the special tokens."""
    start, length = texts.offsets[index], texts.lengths[index]
    characters = list(BYTES)
    return bytes(characters[t - base] for t in texts.tokens[start : start + length].tolist() if t >= base).decode()


def test_files_are_read_as_they_are(files):
    sst = data.load(settings("glue_sst2"), str(files)).dataset
    assert text_of(sst.train, 3) == 'very very very good "film'
    assert sst.train.targets[:4].tolist() == [0, 1, 0, 1]
    cola = data.load(settings("glue_cola"), str(files)).dataset
    assert text_of(cola.test, 0) == "The sailors rode."
    assert (cola.classes, cola.metrics) == (2, ("matthews", "accuracy"))
    mrpc = data.load(settings("glue_mrpc"), str(files)).dataset
    assert text_of(mrpc.train, 0) == "He said so .So he said ."
    assert mrpc.train.targets.tolist() == [1, 0]
    cut = data.load(settings("glue_sst2", max_length=8), str(files)).dataset
    assert cut.train.lengths.max() == 8


def test_another_task_is_a_few_lines(files, monkeypatch):
    (files / "glue" / "RTE").mkdir()
    for name in ("train.tsv", "dev.tsv"):
        (files / "glue" / "RTE" / name).write_text("index\tsentence1\tsentence2\tlabel\n0\tA.\tB.\tnot_entailment\n1\tA.\tA.\tentailment\n")
    lines = ["defaults: [base/glue@_here_, _self_]", "name: glue_rte", "task: rte", "folder: RTE", "text: sentence1", "pair: sentence2"]
    lines += ["labels: entailment not_entailment", "sizes: 2490 277"]
    monkeypatch.setattr("sam_repro.schema.FOLDERS", [files / "conf"])
    shutil.copytree(CONF, files / "conf")
    (files / "conf" / "dataset" / "glue_rte.yaml").write_text("\n".join(lines))
    assert kind("dataset", "glue_rte") == "text"
    rte = typed("dataset", "glue_rte", {}, {})
    assert data.load(rte, str(files)).dataset.train.targets.tolist() == [1, 0]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("sentnce\tlabel\na\t1\n", r"train.tsv has no column 'sentence'; its first line has: sentnce, label"),
        ("", r"train.tsv has no column 'sentence'; its first line has: nothing"),
        ("sentence\tlabel\na\tyes\n", r"train.tsv, line 2: 'yes' is no label; labels are 0, 1"),
        ("sentence\tlabel\nfine\t1\nshort\n", r"train.tsv, line 3, has too few columns"),
        ("sentence\tlabel\nfine\t7\n", r"train.tsv, line 2: '7' is no label; labels are 0, 1"),
        ("sentence\tlabel\n", r"train.tsv has no samples"),
        ("sentence\tlabel\n" + "a" * 200_000 + "\t1\n", r"train.tsv is no table of tab-separated text"),
        (None, r"train.tsv cannot be read"),
        (b"sentence\tlabel\n\xff\xfe\t1\n", r"train.tsv is no table of tab-separated text"),
    ],
)
def test_a_damaged_file_is_named(files, content, says):
    path = files / "glue" / "SST-2" / "train.tsv"
    path.unlink()
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=says):
        data.load(settings("glue_sst2"), str(files))


def test_a_few_short_lines_are_left_out_and_said(files):
    """The official QQP has some; the hub leaves them out too."""
    path = files / "glue" / "SST-2" / "train.tsv"
    path.write_text("sentence\tlabel\n" + "fine\t1\n" * 2000 + "short\n")
    dataset = data.load(settings("glue_sst2"), str(files)).dataset
    assert len(dataset.train) == 2000
    assert dataset.note.startswith("2,000 + 40 of 67,349 + 872 samples of SST-2: a part of the task")


def test_without_files_the_hub_is_asked_and_without_a_network_the_user_is_told_what_to_do(files, monkeypatch):
    datasets = pytest.importorskip("datasets", reason="datasets is not installed (extra 'nlp')")

    def no_network(*_, **__):
        raise ConnectionError("no network")

    monkeypatch.setattr(datasets, "load_dataset", no_network)
    with pytest.raises(UserError, match=r"GLUE's QQP is neither in .*glue/QQP nor to be had from the hub"):
        data.load(settings("glue_qqp"), str(files))
    asked = []

    def hub(*name, split):
        asked.append((*name, split))
        return datasets.Dataset.from_dict({"sentence": ["good", "bad"], "label": [1, 0]})

    monkeypatch.setattr(datasets, "load_dataset", hub)
    (files / "glue" / "SST-2").rename(files / "glue" / "elsewhere")
    parts = data.load(settings("glue_sst2"), str(files))
    assert parts.train.targets.tolist() == [1, 0]
    assert text_of(parts.train, 0) == "good"
    assert asked == [("nyu-mll/glue", "sst2", "train"), ("nyu-mll/glue", "sst2", "validation")]


def test_batches_hold_texts_of_about_a_length_and_every_text_once():
    lengths = torch.randint(3, 100, (1000,), generator=torch.Generator().manual_seed(0)).tolist()
    texts = Texts.of([[index + 2] * length for index, length in enumerate(lengths)], [index % 2 for index in range(1000)])
    batches = TextDataset(texts, texts, 2, 1).batches(texts, Sampling(16, 0))
    epoch = list(batches.epoch(0))
    assert len(epoch) == len(batches) == 63
    assert torch.cat([b.indices for b in epoch]).sort().values.equal(torch.arange(1000))
    for batch in epoch:
        ids, mask = batch.inputs
        assert ids.shape[1] == mask.sum(1).max()
        assert mask.sum(1).tolist() == [lengths[i] for i in batch.indices]
        assert torch.equal(ids, torch.where(mask, batch.indices[:, None] + 2, 1))
        assert batch.targets.tolist() == [i % 2 for i in batch.indices]
    padding = 1 - sum(lengths) / sum(b.inputs[0].numel() for b in epoch)
    assert padding < 0.08, "random batches of 16 have 45 % padding"
    again, other = list(batches.epoch(0)), list(batches.epoch(1))
    assert all(torch.equal(a.indices, b.indices) for a, b in zip(epoch, again, strict=True))
    assert not torch.equal(epoch[0].indices, other[0].indices)
    longest = torch.tensor([float(b.inputs[0].shape[1]) for b in epoch])
    assert abs(torch.corrcoef(torch.stack([longest, torch.arange(63.0)]))[0, 1]) < 0.4, "short and long batches are mixed"


def test_roberta_as_a_chain_is_the_librarys_own():
    config = transformers.RobertaConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=3, num_attention_heads=2, intermediate_size=32, max_position_embeddings=40
    )
    from sam_repro.models.roberta import chained

    theirs = transformers.RobertaForSequenceClassification(config).double().eval()
    ids = torch.randint(3, 50, (4, 12))
    mask = torch.arange(12) < torch.tensor([12, 7, 3, 9])[:, None]
    ids = ids.masked_fill(~mask, 1)
    expected = theirs(input_ids=ids, attention_mask=mask.long()).logits
    chain = chained(theirs)
    assert [name for name, _ in chain.named_children()] == ["embed", "block1", "block2", "block3", "head"]
    assert torch.allclose(chain((ids, mask)), expected, atol=1e-12)
    assert torch.allclose(chain(chain((ids, mask), stop=2), start=2), expected, atol=1e-12)


def test_roberta_base_has_its_size():
    model = create("roberta_base", 2, pretrained="")
    assert sum(p.numel() for p in model.parameters()) == 124_647_170
    assert len(model) == 14
    assert len(layers(model)) == 3 + 12 * 6 + 2


def test_a_pretrained_folder_is_read_and_another_shape_refused(tmp_path):
    config = transformers.RobertaConfig(
        vocab_size=50265, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=32, type_vocab_size=1
    )
    transformers.RobertaForSequenceClassification(config).save_pretrained(tmp_path / "it")
    shape = {"layers": 1, "width": 8, "heads": 1}
    first, second = (create("roberta_tiny", 2, pretrained=str(tmp_path / "it"), **shape) for _ in range(2))
    assert torch.equal(first[1].layer.output.dense.weight, second[1].layer.output.dense.weight)
    with pytest.raises(UserError, match="has hidden_size=8, but the model's shape says 16"):
        create("roberta_tiny", 2, pretrained=str(tmp_path / "it"), layers=1, width=16, heads=1)
    with pytest.raises(UserError, match=r"model.pretrained=.* could not be read"):
        create("roberta_tiny", 2, pretrained=str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match=r"model.heads=3 does not divide model.width=128"):
        create("roberta_tiny", 2, heads=3)


def test_micro_batches_split_ids_and_mask_together():
    """mSAM with m = 1 is SAM, and m = 2 the mean of SAM on the halves."""
    torch.manual_seed(0)
    model = create("roberta_tiny", 2, layers=1, width=8, heads=1, dropout=0.0).double()
    mask = torch.arange(6) < torch.tensor([6, 4, 3, 5])[:, None]
    inputs, targets = (torch.randint(3, 50, (4, 6)).masked_fill(~mask, 1), mask), torch.tensor([0, 1, 1, 0])

    def gradient(name, part, **knobs):
        model.zero_grad()
        chosen = tuple(t[part] for t in inputs)
        method(name, model, rho=0.1, **knobs).backward(chosen, targets[part], torch.nn.CrossEntropyLoss(reduction="none"))
        return torch.cat([p.grad.flatten() for p in model.parameters()])

    whole = slice(0, 4)
    assert torch.allclose(gradient("msam", whole, m=1), gradient("sam", whole), atol=1e-12)
    halves = (gradient("sam", slice(0, 2)) + gradient("sam", slice(2, 4))) / 2
    assert torch.allclose(gradient("msam", whole, m=2), halves, atol=1e-12)


def test_scores_of_glue():
    predictions, targets = torch.tensor([1, 1, 0, 0, 1, 0]), torch.tensor([1, 0, 0, 0, 1, 1])
    tp, tn, fp, fn = 2, 2, 1, 1
    expected = (tp * tn - fp * fn) / ((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)) ** 0.5
    assert matthews(predictions, targets).item() == pytest.approx(100 * expected)
    assert f1(predictions, targets).item() == pytest.approx(100 * 2 * tp / (2 * tp + fp + fn))
    assert matthews(torch.ones(6).long(), targets).item() == 0.0


@needs_glue
@pytest.mark.parametrize(
    ("name", "changes", "train", "dev", "note"),
    [
        ("glue_cola", {}, 8551, 1043, False),
        ("glue_mrpc", {}, 3668, 408, False),
        ("glue_sst2", {}, 67349, 872, False),
        ("glue_qqp", {"folder": "QQP_subset", "train": "train_part.tsv", "dev": "dev_part.tsv"}, 9377, 23496, True),
    ],
)
def test_the_real_files(name, changes, train, dev, note):
    dataset = data.load(settings(name, **changes), str(REAL)).dataset
    assert (len(dataset.train), len(dataset.test), dataset.classes) == (train, dev, 2)
    assert bool(dataset.note) == note
    assert (dataset.train.tokens[dataset.train.offsets] == 0).all(), "every text begins with <s>"
