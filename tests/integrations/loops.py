"""What the integrations are held to: the same training in a plain loop, by one process."""

import contextlib

import torch
import torch.nn.functional as F
from spawned import spawned
from torch import distributed, nn
from torch.nn.utils import clip_grad_norm_

from sam_repro.optim import create

CASES = {
    "sgd": {},
    "sam": {"rho": 0.1},
    "generalized_sam": {"r": 0.2, "alpha": 0.6},
    "layerwise": {"k": 2, "r": 0.3, "alpha": 0.6},
    "looksam": {"rho": 0.1, "k": 3},
    "msam": {"rho": 0.1, "m": 2},
    "vsam": {"rho": 0.1, "start": 1, "s1": 2.0, "N": 4, "M": 2},
}
STEPS, BATCH, ACCUMULATE, PROCESSES = 6, 4, 2, 2  # samples of a process before it accumulates
ROWS = STEPS * BATCH * ACCUMULATE * PROCESSES
LR, MOMENTUM, CLIP, SEED = 0.3, 0.9, 0.3, 3


class Tagger(nn.Module):
    """A class for every token; float32. The loss is of the tokens that are labelled."""

    def __init__(self, dropout=0.0):
        super().__init__()
        torch.manual_seed(5)
        self.embed, self.mix = nn.Embedding(11, 8), nn.Linear(8, 8)
        self.drop, self.head = nn.Dropout(dropout), nn.Linear(8, 3)

    def forward(self, tokens):
        x = self.embed(tokens)
        return self.head(self.drop(torch.tanh(self.mix(x + x.mean(1, keepdim=True)))))


def rows(n=ROWS, seed=0):
    """Tokens and labels, ``(n, 6)``; every sample has another number of labels that count."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(11, (n, 6), generator=generator)
    labels = torch.randint(3, (n, 6), generator=generator)
    return tokens, labels.masked_fill(torch.arange(6) > torch.randint(6, (n, 1), generator=generator), -100)


def criterion(logits, labels):
    """The loss of each sample and its weight: what CrossEntropyLoss makes of all tokens, taken apart."""
    losses = F.cross_entropy(logits.transpose(1, 2), labels, reduction="none")  # zero where there is no label
    counted = labels.ne(-100).sum(1)
    return losses.sum(1) / counted, counted


def plain(name, batches, total=STEPS, *, forward=None, loss=criterion, scaler=None, dropout=0.0, **knobs):
    """Weights after a loop of one's own over ``batches`` of row numbers; what the method reported."""
    model, (tokens, labels) = Tagger(dropout), rows()
    base = torch.optim.SGD(model.parameters(), LR, momentum=MOMENTUM)
    gradient = create(name, model, total_steps=total, seed=knobs.pop("seed", 0), **knobs)
    reports = []
    for chosen in batches:
        with forward or contextlib.nullcontext():
            reports.append(gradient.backward(tokens[chosen], labels[chosen], loss, scaler=scaler))
        if scaler is not None:
            scaler.unscale_(base)
        clip_grad_norm_(model.parameters(), CLIP)
        base.step() if scaler is None else scaler.step(base)
        if scaler is not None:
            scaler.update()
        base.zero_grad()
    return weights(model), reports


def alone(name, batches, **knobs):
    """The same for what ``PROCESSES`` processes do together: their micro-batches are micro-batches of the whole."""
    if name == "msam":
        knobs["m"] *= PROCESSES * ACCUMULATE
    return plain(name, batches, **knobs)


def scaler():
    """One of the CPU, under which the first steps overflow."""
    return torch.amp.GradScaler("cpu", init_scale=2.0**40, backoff_factor=2.0**-15)


def as_on_a_gpu(accelerator):
    """Accelerate knows fp16 on a GPU alone: have it do on the CPU what it does there."""
    accelerator.scaler, accelerator.native_amp, accelerator.state._mixed_precision = scaler(), True, "fp16"


def halved(method, batches, fp16):
    """What ``plain`` does under autocast."""
    half = torch.autocast("cpu", torch.float16 if fp16 else torch.bfloat16, cache_enabled=False)
    return plain(method, batches, forward=half, scaler=scaler() if fp16 else None, **CASES[method])[0]


def weights(model):
    return {name.removeprefix("network."): p.detach().clone() for name, p in model.named_parameters()}


def apart(a, b):
    assert a.keys() == b.keys()
    return max((a[name] - b[name]).abs().max().item() for name in a)


def of_one(rank, folder, train):
    found = {name: train(name, knobs, folder) for name, knobs in CASES.items()}
    if distributed.is_initialized():
        distributed.destroy_process_group()
    return found


def together(train, folder):
    """What ``train(name, knobs, folder)`` returns in each of two processes, for all cases."""
    return spawned(of_one, folder, train, count=PROCESSES, joined=False)


def agree(two, method, batches, **more):
    """Two processes end with the weights of a plain loop over ``batches``, to the last bit with each other's; and these have moved."""
    first, second = two
    assert all(torch.equal(first[name], second[name]) for name in first)
    wanted, _ = alone(method, batches, **more, **CASES[method])
    assert apart(wanted, weights(Tagger())) > 1e-2
    assert apart(first, wanted) < 1e-5
