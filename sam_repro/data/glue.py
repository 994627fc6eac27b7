"""The classification tasks of GLUE (Wang et al. 2019), from the hub or from the original files. The dev set is the test set."""

from __future__ import annotations

import csv
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..schema import UserError, suggest
from .split import unscored
from .text import TextDataset, Texts

Rows = list[dict[str, Any]]
MISSING = "GLUE needs the libraries transformers and datasets: pip install 'sam-repro[nlp]'."


@dataclass(frozen=True)
class Task:
    """Where a task's texts and labels stand: the fields of ``conf/dataset/glue_*.yaml``."""

    task: str  # its name on the hub
    folder: str  # under data_dir/glue
    train: str
    dev: str
    text: str
    pair: str  # empty: a single text
    label: str
    columns: str  # the names of the columns, where the file does not begin with them
    labels: str  # the words for 0, 1, ..., where the file has words
    hub_text: str
    hub_pair: str
    metrics: str
    sizes: str  # of the two parts of the whole task

    @property
    def words(self) -> list[str]:
        """What the file has for the labels 0, 1, ..."""
        return self.labels.split() or ["0", "1"]

    def check(self) -> None:
        """UserError for the field that cannot be: before a file is read, and not after an epoch."""
        for key, words, least in (("labels", self.words, 2), ("columns", self.columns.split(), 0)):
            if len(words) < least or len({*words}) < len(words):
                raise UserError(f"dataset.{key} is words that all differ{f', at least {least}' if least else ''}, not {' '.join(words)!r}.")
        if wrong := unscored(self.metrics.split(), len(self.words)):
            raise UserError(f"dataset.metrics: {wrong}.")
        for key in ("task", "folder", "train", "dev", "text", "label", "hub_text"):
            if not getattr(self, key):
                raise UserError(f"dataset.{key} is empty: conf/dataset/base/glue.yaml says what it is.")
        if len(self.sizes.split()) != 2 or not all(size.isdecimal() for size in self.sizes.split()):
            raise UserError(f"dataset.sizes is the samples of the training and of the dev set, as in '3668 408', not {self.sizes!r}.")


def glue(data_dir: str, *, tokenizer: str, max_length: int, **fields: Any) -> TextDataset:
    """``glue/<folder>`` under ``data_dir``, else ``nyu-mll/glue`` from the hub; tokens of RoBERTa, at most ``max_length`` a sample."""
    task = Task(**fields)
    task.check()
    folder = Path(data_dir) / "glue" / task.folder
    if folder.is_dir():
        parts = [_local(folder / name, task) for name in (task.train, task.dev)]
    else:
        parts = [_hub(task, part, data_dir) for part in ("train", "validation_matched" if task.task == "mnli" else "validation")]
    encode, pad = _encoder(tokenizer, data_dir, max_length)
    train, test = (Texts.of(encode([r[0] for r in rows], [r[1] for r in rows]), [r[2] for r in rows]) for rows in parts)
    sizes = " + ".join(f"{len(split):,}" for split in (train, test))
    whole = " + ".join(f"{int(size):,}" for size in task.sizes.split())
    note = f"{sizes} of {whole} samples of {task.folder}: a part of the task, its numbers compare with nobody's" if sizes != whole else ""
    return TextDataset(train, test, len(task.words), pad, tuple(task.metrics.split()), note)


Sample = tuple[str, str | None, int]


def _local(path: Path, task: Task) -> list[Sample]:
    """The samples of a file of tab-separated values; quotes in it mean nothing."""
    if path.exists() and not path.is_file():  # a pipe would wait for ever
        raise UserError(f"{path} is no file: put GLUE's original files there.")
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            names = task.columns.split() or None
            return _samples(csv.DictReader(file, names, delimiter="\t", quoting=csv.QUOTE_NONE), task, path)
    except OSError as error:
        raise UserError(
            f"{path} cannot be read ({error.strerror}): put GLUE's original files there, or remove the folder to use the hub."
        ) from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} is no table of tab-separated text ({error}): put GLUE's original files there.") from error


def _samples(rows: csv.DictReader[str], task: Task, path: Path) -> list[Sample]:
    for column in filter(None, (task.text, task.pair, task.label)):
        if column not in (rows.fieldnames or ()):
            raise UserError(f"{path} has no column {column!r}; its first line has: {', '.join(rows.fieldnames or ['nothing'])}.")
    samples: list[Sample] = []
    short = []
    for row in rows:
        text, pair, label = row[task.text], row[task.pair] if task.pair else None, row[task.label]
        if text is None or label is None or (task.pair and pair is None):
            short.append(rows.line_num)
        elif label not in task.words:
            raise UserError(f"{path}, line {rows.line_num}: {label!r} is no label; labels are {', '.join(task.words)}.")
        else:
            samples.append((text, pair, task.words.index(label)))
    if len(short) > len(samples) / 1000:  # the official QQP has a few such lines, which the hub leaves out too
        raise UserError(f"{path}, line {short[0]}, has too few columns.")
    if not samples:
        raise UserError(f"{path} has no samples: put GLUE's original file there.")
    return samples


def _hub(task: Task, part: str, data_dir: str) -> list[Sample]:
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise UserError(MISSING) from error
    try:
        rows: Any = load_dataset("nyu-mll/glue", task.task, split=part)
    except Exception as error:  # the library raises errors of many kinds where there is no network
        raise UserError(
            f"GLUE's {task.folder} is neither in {Path(data_dir) / 'glue' / task.folder} nor to be had from the hub "
            f"({type(error).__name__}): put {task.train} and {task.dev} there, or set data_dir=."
        ) from error
    for key, column in (("hub_text", task.hub_text), ("hub_pair", task.hub_pair)):
        if column and column not in rows.column_names:
            raise UserError(f"dataset.{key}: the hub's {task.task} has no column {column!r}.{suggest(column, rows.column_names)}")
    pairs = rows[task.hub_pair] if task.hub_pair else [None] * len(rows)
    return list(zip(rows[task.hub_text], pairs, rows["label"], strict=True))


Encode = Callable[[list[str], list[str | None]], list[list[int]]]


def _encoder(name: str, data_dir: str, max_length: int) -> tuple[Encode, int]:
    """RoBERTa's tokenizer: from ``data_dir/roberta_bpe``, else ``name``, a local folder or one on the hub."""
    try:
        from transformers import RobertaTokenizer
    except ImportError as error:
        raise UserError(MISSING) from error
    local = Path(data_dir) / "roberta_bpe"
    try:
        tokenizer: Any = RobertaTokenizer.from_pretrained(local if local.is_dir() else name)
    except Exception as error:  # as above
        raise UserError(
            f"The tokenizer {name} could not be read ({type(error).__name__}): put RoBERTa's vocab.json and merges.txt into {local}, "
            "or set dataset.tokenizer= to a folder that has them."
        ) from error

    def encode(texts: list[str], pairs: list[str | None]) -> list[list[int]]:
        second = pairs if pairs and pairs[0] is not None else None
        ids: list[list[int]] = tokenizer(texts, second, truncation=True, max_length=max_length)["input_ids"]
        return ids

    return encode, tokenizer.pad_token_id
