"""Texts as token ids: padded to the longest of their batch, and batched with others of about their length."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .split import Batch, Dataset, Sampling, Shuffled

POOL = 50  # batches of text sorted by length together: enough to save most padding, few enough to stay random


@dataclass(frozen=True)
class Texts:
    """Text ``i`` is ``tokens[offsets[i] : offsets[i] + lengths[i]]``; ``lengths`` stays on the host, which makes the batches."""

    tokens: Tensor  # int64, all texts one after the other
    offsets: Tensor  # int64, (n,)
    lengths: Tensor  # int64, (n,)
    targets: Tensor  # int64, (n,)

    @classmethod
    def of(cls, ids: Sequence[Sequence[int]], labels: Sequence[int]) -> Texts:
        """From lists of token ids."""
        lengths = torch.tensor([len(text) for text in ids])
        tokens = torch.tensor([token for text in ids for token in text])
        return cls(tokens, lengths.cumsum(0) - lengths, lengths, torch.tensor(labels))

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: Tensor) -> Texts:
        return Texts(self.tokens, self.offsets[index], self.lengths[index], self.targets[index])

    def to(self, device: torch.device) -> Texts:
        """A copy on the device."""
        return Texts(self.tokens.to(device), self.offsets.to(device), self.lengths, self.targets.to(device))

    @property
    def nbytes(self) -> int:
        """Of the tokens."""
        return self.tokens.numel() * self.tokens.element_size()

    def batch(self, chosen: Tensor, pad: int) -> Batch:
        """The texts ``chosen`` (on the host): ``inputs`` is the ids and the mask (true: no padding), both ``(n, longest)``."""
        device = self.tokens.device
        longest = int(self.lengths[chosen].max())
        lengths = self.lengths[chosen].to(device, non_blocking=True)
        indices = chosen.to(device, non_blocking=True)
        places = torch.arange(longest, device=device)
        mask = places < lengths[:, None]
        ids = self.tokens[(self.offsets[indices][:, None] + places).clamp_(max=len(self.tokens) - 1)]
        return Batch((ids.masked_fill_(~mask, pad), mask), self.targets[indices], indices)


@dataclass(frozen=True)
class TextDataset(Dataset):
    """Texts with labels; ``pad``: the token that fills a batch up."""

    train: Texts
    test: Texts
    classes: int
    pad: int
    metrics: tuple[str, ...] = ("accuracy",)
    note: str = ""

    def batches(self, split: Texts, sampling: Sampling) -> TextBatches:
        """Shuffled, to train on."""
        return TextBatches(split, sampling, self.pad)

    def in_order(self, split: Texts, batch_size: int) -> Iterator[Batch]:
        """The split as it is, to measure on."""
        for chosen in torch.arange(len(split)).split(batch_size):
            yield split.batch(chosen, self.pad)


@dataclass(frozen=True)
class TextBatches(Shuffled):
    """The training set, epoch by epoch, texts of about a length together."""

    pad: int

    def epoch(self, number: int, start: int = 0) -> Iterator[Batch]:
        """The batches of epoch ``number``: the texts shuffled, sorted by length within each pool, the batches shuffled again."""
        sampling = self.sampling
        generator = torch.Generator().manual_seed(sampling.seed_of(number))
        pools = torch.randperm(len(self.split), generator=generator).split(POOL * sampling.batch_size)
        made = [b for pool in pools for b in pool[self.split.lengths[pool].argsort(stable=True)].split(sampling.batch_size)]
        order = torch.randperm(len(made), generator=generator).tolist()
        for whole in [whole for place in order for whole in sampling.cut(made[place])][start:]:  # a cut is one, or none
            yield self.split.batch(sampling.mine(whole), self.pad)._replace(whole=len(whole))
