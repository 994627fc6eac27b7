"""Models and batches that are not this repository's: what a forward moves, checkpoints, takes and returns."""

import copy
import itertools
from collections import OrderedDict, UserDict
from dataclasses import dataclass
from types import MappingProxyType

import pytest
import torch
import torch.nn.functional as F
from helpers import batch, criterion, small_chain
from taped import Tapes
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence
from torch.utils.checkpoint import checkpoint

from sam_repro.chain import Chain
from sam_repro.optim import StaticStep, UserError, create


def reference(model, loss, rho=0.05):
    """SAM's gradient by two full passes over a copy, from the formula; ``loss(model)`` is the mean loss."""
    model = copy.deepcopy(model)
    parameters = [p for p in model.parameters() if p.requires_grad]
    g = torch.autograd.grad(loss(model), parameters)
    norm = torch.sqrt(sum(t.abs().square().sum() for t in g))
    with torch.no_grad():
        for p, t in zip(parameters, g, strict=True):
            p.add_(rho * t / norm)
    return torch.autograd.grad(loss(model), parameters)


def apart(model, expected):
    found = [p.grad for p in model.parameters() if p.requires_grad]
    return max((a.to_dense() - b).abs().max().item() for a, b in zip(found, expected, strict=True))


# -- buffers ---------------------------------------------------------------------------------------------------------------


class Codebook(nn.Module):
    """A moving mean and a counter: moved in place, through ``.data``, or by putting new tensors in their places."""

    def __init__(self, how):
        super().__init__()
        self.how = how
        self.register_buffer("mean", torch.zeros(4, dtype=torch.float64))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))
        self.register_buffer("absent", None)

    def forward(self, x):
        mean = x.detach().mean((0, 2, 3))
        if self.how == "replaced":
            self.mean, self.count, self.absent = 0.9 * self.mean + 0.1 * mean, self.count + 1, mean
        else:
            (self.mean.data if self.how == "data" else self.mean).lerp_(mean, 0.1)
            self.count += 1
        return x - mean.view(1, -1, 1, 1)


class OwnForward(nn.BatchNorm2d):
    """Moves its statistics whatever ``track_running_stats`` says."""

    def forward(self, x):
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, True, 0.1, self.eps)


def evonorm():
    return pytest.importorskip("timm.layers").EvoNorm2dB0(4)


MOVING = {
    "BatchNorm": lambda: nn.BatchNorm2d(4), "InstanceNorm": lambda: nn.InstanceNorm2d(4, affine=True, track_running_stats=True),
    "EvoNorm": evonorm, "spectral norm": lambda: nn.utils.parametrizations.spectral_norm(nn.Conv2d(4, 4, 3)),
    "spectral norm, the older one": lambda: nn.utils.spectral_norm(nn.Conv2d(4, 4, 3)), "own forward": lambda: OwnForward(4),
    **{f"codebook, {how}": lambda how=how: Codebook(how) for how in ("in place", "data", "replaced")},
}  # fmt: skip
IMAGES = torch.randn(8, 4, 6, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
LABELS = torch.arange(8) % 3


def moving(kind):
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(4, 4, 1), MOVING[kind](), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 3)).double()


def buffers_of(model):
    return {name: t.clone() for name, t in model.named_buffers()}


@pytest.mark.parametrize("name", ["sam", "msam", "esam", "layerwise"])
@pytest.mark.parametrize("kind", MOVING)
def test_the_perturbed_pass_leaves_every_buffer_as_the_clean_pass_left_it(kind, name):
    """So that training moves them as SGD does, which sees the same batches."""
    knobs = {"msam": {"m": 1}, "layerwise": {"k": 1}}.get(name, {})
    model, plain = moving(kind), moving(kind)
    method = create(name, model, **knobs)
    for step in range(3):
        method.backward(IMAGES, LABELS, criterion)
        model.zero_grad()
        plain(IMAGES)
        found, expected = buffers_of(model), buffers_of(plain)
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[key], expected[key]) for key in expected), step


def test_both_passes_move_all_buffers_where_asked():
    model = moving("codebook, in place")
    create("sam", model, bn="both").backward(IMAGES, LABELS, criterion)
    assert model[1].count == 2


def test_each_of_several_perturbed_passes_begins_with_the_buffers_that_the_clean_ones_left():
    model = moving("spectral norm")
    create("sam", model).backward(list(IMAGES.split(4)), list(LABELS.split(4)), criterion)
    plain = moving("spectral norm")
    for part in IMAGES.split(4):
        plain(part)
    assert all(torch.equal(a, b) for a, b in zip(model.buffers(), plain.buffers(), strict=True))


def test_an_exception_leaves_buffers_as_they_were_and_a_replay_puts_them_back():
    model, calls = moving("codebook, in place"), []

    def fails_at_the_second(outputs, targets):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return criterion(outputs, targets)

    with pytest.raises(KeyboardInterrupt):
        create("sam", model).backward(IMAGES, LABELS, fails_at_the_second)
    assert model[1].count == 1
    model = moving("codebook, in place")
    static = StaticStep(create("sam", model), Tapes(lambda: [*model.parameters(), *model.buffers()]))
    for step in range(4):
        static.backward(IMAGES, LABELS, criterion)
        assert model[1].count == step + 1
    with pytest.raises(UserError, match=r"puts a new tensor in the place of 1.mean; write into it"):
        StaticStep(create("sam", moving("codebook, replaced"))).backward(IMAGES, LABELS, criterion)


def test_a_model_without_such_buffers_pays_nothing_for_them():
    """No operation that copies, and no hook."""
    for model in (small_chain(), nn.Sequential(nn.Flatten(), nn.Linear(50, 3)).double()):
        told, copied = create("sam", model).passes.buffers.modules
        assert not copied
        assert len(told) == 3 * isinstance(model, Chain)
        with torch.profiler.profile() as profile, create("sam", model).passes.buffers.kept():
            model(batch()[0])
        assert "aten::_foreach_copy_" not in {event.key for event in profile.key_averages()}


# -- what a model takes and returns ----------------------------------------------------------------------------------------


@dataclass
class Said:
    logits: torch.Tensor
    loss: torch.Tensor | None = None


class Words(nn.Module):
    """Takes named arguments, as the models of Hugging Face do, and returns a dataclass."""

    def __init__(self, sparse=False):
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(11, 4, sparse=sparse, dtype=torch.float64)
        self.linear = nn.Linear(4, 3, dtype=torch.float64)

    def forward(self, input_ids, attention_mask, labels=None, flag=None, position=None):
        embedded = self.embedding(input_ids) * attention_mask[..., None]
        if position is not None:
            embedded = embedded + position[..., None]
        logits = self.linear(embedded.sum(1))
        return Said(logits, None if labels is None else F.cross_entropy(logits, labels))


def words():
    ids = torch.randint(11, (8, 5), generator=torch.Generator().manual_seed(0))
    return {"input_ids": ids, "attention_mask": (ids != 3).double(), "labels": LABELS}


def of_logits(said, targets):
    return criterion(said.logits, targets)


def encoding():
    return pytest.importorskip("transformers").BatchEncoding(words())


CONTAINERS = {
    "dict": words, "BatchEncoding": encoding, "UserDict": lambda: UserDict(words()), "OrderedDict": lambda: OrderedDict(words()),
    "proxy": lambda: MappingProxyType(words()), "a bool first": lambda: {"flag": True, **words()},
    "nothing first": lambda: {"flag": None, **words()}, "a word first": lambda: {"flag": "tanh", **words()},
    "a number first": lambda: {"flag": torch.tensor(3.0), **words()},
    "one row for all": lambda: {**words(), "position": torch.arange(5.0)[None]},
}  # fmt: skip


def by_part(model, parts, rho=0.05):
    """mSAM's gradient: the mean of those of equal parts."""
    each = [reference(model, lambda m, part=part: part(m), rho) for part in parts]
    return [torch.stack(column).mean(0) for column in zip(*each, strict=True)]


@pytest.mark.parametrize("kind", CONTAINERS)
def test_any_mapping_is_the_arguments_of_the_model(kind):
    model, inputs = Words(), CONTAINERS[kind]()
    report = create("sam", model).backward(inputs, LABELS, of_logits)
    assert apart(model, reference(Words(), lambda m: of_logits(m(**inputs), LABELS).mean())) < 1e-15
    assert type(report.outputs) is Said
    assert not report.outputs.logits.requires_grad
    assert not report.outputs.loss.requires_grad


@pytest.mark.parametrize("kind", CONTAINERS)
def test_any_mapping_is_split_and_what_it_became_is_joined(kind):
    """With it the mean loss that the model returns, a number of each micro-batch."""
    model, inputs = Words(), CONTAINERS[kind]()

    def part(start):
        rows = {k: v[start : start + 4] if isinstance(v, torch.Tensor) and v.ndim and len(v) == 8 else v for k, v in inputs.items()}
        return lambda m: of_logits(m(**rows), LABELS[start : start + 4]).mean()

    report = create("msam", model, m=2, rho=0.05).backward(
        inputs, UserDict(labels=LABELS), lambda said, targets: of_logits(said, targets["labels"])
    )
    assert apart(model, by_part(Words(), [part(0), part(4)])) < 1e-15
    expected = Words()(**inputs)
    assert torch.allclose(report.outputs.logits, expected.logits)
    assert torch.allclose(report.outputs.loss, expected.loss)


def test_a_model_that_takes_one_argument_of_another_kind_gets_it():
    class Sized(nn.Linear):
        def forward(self, said):
            return super().forward(said.logits)

    model = Sized(4, 3).double()
    create("msam", model, m=2, rho=0.05).backward(Said(IMAGES[:, :, 0, 0]), LABELS, criterion)
    twin = nn.Linear(4, 3).double()
    twin.load_state_dict(model.state_dict())
    create("msam", twin, m=2, rho=0.05).backward(IMAGES[:, :, 0, 0], LABELS, criterion)
    assert apart(model, [p.grad for p in twin.parameters()]) == 0


def test_inputs_without_samples_or_with_too_few_are_refused():
    with pytest.raises(UserError, match="The inputs hold no tensor with a dimension of samples: they are dict"):
        create("sam", Words()).backward({"flag": True}, LABELS, of_logits)
    with pytest.raises(UserError, match=r"A tensor of shape \(7, 3\) does not have the 8 samples of its batch along dimension 0"):
        create("msam", Words(), m=2).backward({**words(), "flag": torch.zeros(7, 3)}, LABELS, of_logits)
    with pytest.raises(UserError, match="not in a Said, which may change"):
        StaticStep(create("sam", Words())).backward({**words(), "flag": Said(LABELS)}, LABELS, of_logits)


def gpt2(**more):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes = {"vocab_size": 11, "n_embd": 8, "n_layer": 1, "n_head": 2, "n_positions": 16, "bos_token_id": None, "eos_token_id": None}
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0, **more)).double()


def next_words(said, ids):
    return criterion(said.logits[:, :-1].transpose(1, 2), ids[:, 1:]).mean(1)


def test_a_cache_that_a_model_returns_keeps_no_graph():
    model, ids = gpt2(), words()["input_ids"]
    for name, knobs in (("sam", {}), ("msam", {"m": 4}), ("esam", {})):
        layer = create(name, model, **knobs).backward({"input_ids": ids}, ids, next_words).outputs.past_key_values.layers[0]
        assert len(layer.keys) == 8
        assert not layer.keys.requires_grad
        assert not layer.values.requires_grad


def test_a_cache_that_a_model_takes_is_the_same_for_both_passes():
    model, ids = gpt2(), words()["input_ids"]
    with torch.no_grad():
        cache = model(ids, use_cache=True).past_key_values
    inputs = {"input_ids": ids, "past_key_values": cache}
    expected = reference(model, lambda m: next_words(m(input_ids=ids, past_key_values=copy.deepcopy(cache)), ids).mean())
    create("sam", model).backward(inputs, ids, next_words)
    assert cache.layers[0].keys.shape[2] == 5
    assert apart(model, expected) < 1e-14


class Recurrent(nn.Module):
    def __init__(self, batch_first=False):
        super().__init__()
        torch.manual_seed(0)
        self.gru, self.linear = nn.GRU(4, 5, batch_first=batch_first, dtype=torch.float64), nn.Linear(5, 3, dtype=torch.float64)

    def forward(self, x):
        return self.linear(self.gru(x)[1][-1])


SEQUENCES = torch.randn(8, 6, 4, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
LENGTHS = torch.tensor([6, 1, 5, 4, 3, 5, 2, 1])


def packed(places=slice(None)):
    return pack_padded_sequence(SEQUENCES[places], LENGTHS[places], batch_first=True, enforce_sorted=False)


def loss_of(inputs, targets):
    return lambda model: criterion(model(inputs), targets).mean()


def test_packed_sequences_are_taken_and_split():
    model = Recurrent()
    create("sam", model).backward(packed(), LABELS, criterion)
    assert apart(model, reference(Recurrent(), loss_of(packed(), LABELS))) < 1e-15
    parts = [loss_of(packed(places), LABELS[places]) for places in (slice(0, 4), slice(4, 8))]
    for inputs in (packed(), (packed(),), {"x": packed()}):
        model = Recurrent()
        create("msam", model, m=2, rho=0.05).backward(inputs, LABELS, criterion)
        assert apart(model, by_part(Recurrent(), parts)) < 1e-15
    create("esam", model, gamma=0.5).backward(packed(), LABELS, criterion)
    with pytest.raises(UserError, match="not in a PackedSequence"):
        StaticStep(create("sam", model)).backward(packed(), LABELS, criterion)


def test_samples_may_lie_along_another_dimension():
    flipped = SEQUENCES.transpose(0, 1)
    for name, knobs in (("sam", {}), ("msam", {"m": 3}), ("esam", {}), ("layerwise", {"k": 1})):
        model, other = Recurrent(), Recurrent(batch_first=True)
        create(name, model, **knobs).backward(flipped, LABELS, criterion, batch_dim=1)
        create(name, other, **knobs).backward(SEQUENCES, LABELS, criterion)
        assert apart(model, [p.grad for p in other.parameters()]) < 1e-15
    method = create("sam", model)
    StaticStep(method).backward(flipped, LABELS, criterion, batch_dim=1)
    with pytest.raises(ValueError, match=r"shape \(6,\), .* not \(8,\): pass .* batch_dim= where samples are not along dimension 0"):
        method.backward(flipped, LABELS, criterion)


def test_losses_of_places_are_refused_with_what_is_right_and_that_is_right():
    torch.manual_seed(0)
    places = torch.randint(3, (8, 6, 6))
    model = nn.Conv2d(4, 3, 1).double()
    expected = reference(model, lambda m: F.cross_entropy(m(IMAGES), places))
    for name in ("sgd", "sam", "msam"):
        with pytest.raises(ValueError, match=r"not \(\d, 6, 6\): pass the mean of each sample's places, losses.flatten\(1\).mean\(1\)"):
            create(name, model).backward(IMAGES, places, criterion)
    create("sam", model).backward(IMAGES, places, lambda outputs, targets: criterion(outputs, targets).flatten(1).mean(1))
    assert apart(model, expected) < 1e-15
    places[places == 1] = -100

    def of_the_others(outputs, targets):
        number = (targets != -100).flatten(1).sum(1)
        return criterion(outputs, targets).flatten(1).sum(1) / number.clamp(min=1), number

    expected = reference(model, lambda m: F.cross_entropy(m(IMAGES), places))
    model.zero_grad()
    create("sam", model).backward(IMAGES, places, of_the_others)
    assert apart(model, expected) < 1e-15


def test_a_models_own_mean_is_refused_with_what_to_do():
    for name, knobs in (("sam", {}), ("msam", {"m": 2})):
        with pytest.raises(ValueError, match="compute the losses from the outputs where the model itself returns a mean"):
            create(name, Words(), **knobs).backward(words(), LABELS, lambda said, _: said.loss)


# -- checkpointed activations ----------------------------------------------------------------------------------------------


class Checkpointed(nn.Module):
    def __init__(self, inner, reentrant):
        super().__init__()
        self.inner, self.reentrant = inner, reentrant

    def forward(self, x):
        return self.inner(x) if self.reentrant is None else checkpoint(self.inner, x, use_reentrant=self.reentrant)


def checkpointed_chain(reentrant):
    return Chain(OrderedDict((name, Checkpointed(stage, reentrant)) for name, stage in small_chain(dropout=0.3).named_children()))


def some_steps(model, name, knobs):
    method = create(name, model, total_steps=9, **knobs)
    base, seen = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9), []
    torch.manual_seed(5)
    for step in range(4):
        x, y = batch(8, seed=step)
        parts = (x.requires_grad_(), y) if step % 2 else ([*x.requires_grad_().split(4)], [*y.split(4)])  # as reentrant checkpoints need it
        report = method.backward(*parts, criterion)
        seen += [report.layers, report.layer_norms.clone(), *(p.grad.clone() for p in model.parameters())]
        base.step()
        base.zero_grad()
    return seen


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize(
    ("name", "knobs"),
    [
        ("sam", {}), ("layerwise", {"k": 1, "r": 0.3}), ("layerwise", {"k": 2, "r": 0.3}),
        ("layerwise", {"k": 1, "criterion": "low", "r": 0.3}),
        ("looksam", {"k": 2}), ("msam", {"m": 2}), ("esam", {}), ("aesam", {"lambda1": 0.5, "lambda2": 1.0, "delta": 0.2}),
    ],
)  # fmt: skip
def test_checkpointing_changes_no_gradient(name, knobs, reentrant):
    found, expected = (some_steps(checkpointed_chain(how), name, knobs) for how in (reentrant, None))
    assert all(torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b for a, b in zip(found, expected, strict=True))


def test_reentrant_checkpoints_of_a_later_day_are_refused():
    """They would leave unperturbed what is in them: here all layers, then the second one alone."""
    for chosen in ([0, 1, 2, 3], [1]):
        model = nn.Sequential(*checkpointed_chain(None))
        method = create("layerwise", model, k=len(chosen) if len(chosen) == 1 else "all")
        if len(chosen) == 1:
            method.where._chosen = chosen
        method.backward(*batch(), criterion)
        for stage in itertools.islice(model, 1, None):
            stage.reentrant = True
        if len(chosen) == 1:
            method.where._chosen = chosen
            method.where._arriving.clear()
        with pytest.raises(UserError, match="use_reentrant=True was switched on after the first ascent: create the method anew"):
            method.backward(*batch(), criterion)


def test_gradients_accumulate_beside_reentrant_checkpoints():
    model, plain = checkpointed_chain(True), checkpointed_chain(None)
    for one in (model, plain):
        method = create("sam", one)
        for seed in (0, 1):
            torch.manual_seed(seed)
            x, y = batch(seed=seed)
            method.backward(x.requires_grad_(), y, criterion)
    assert apart(model, [p.grad for p in plain.parameters()]) == 0


# -- states ----------------------------------------------------------------------------------------------------------------

PLAN = {"total_steps": 10, "steps_per_epoch": 2, "dataset_size": 8}


def recurrent(name, **knobs):
    return create(name, Recurrent(), **PLAN, **({"k": 1} if name == "layerwise" else {}), **knobs)


def state_of(name):
    return recurrent(name).state_dict()


@pytest.mark.parametrize("name", ["sgd", "sam", "looksam", "vsam", "aesam", "layerwise", "saf", "mesa"])
def test_the_state_of_another_method_is_refused(name):
    for other in {"sam", "sam_n", "looksam", "vsam", "saf", "mesa"} - {name}:
        method = recurrent(name)
        with pytest.raises(UserError, match=f"^The state is one of '{other}' and the method is '{name}': go on with '{other}', or begin"):
            method.load_state_dict(state_of(other))


def nameless(state):
    return {key: value for key, value in state.items() if key not in ("method", "version")}


def test_a_state_without_a_name_is_judged_by_its_keys():
    """As those were that older checkpoints hold."""
    for name in ("sam", "looksam", "vsam", "aesam", "layerwise", "esam", "saf", "mesa"):
        recurrent(name).load_state_dict(nameless(state_of(name)))
    older = nameless(state_of("aesam"))
    del older["when"]["arriving"]
    recurrent("aesam").load_state_dict(older)
    for name, other in (("looksam", "sam"), ("sam", "looksam"), ("vsam", "aesam"), ("sam", "saf"), ("saf", "mesa"), ("mesa", "sgd")):
        with pytest.raises(UserError, match=r"^The state is not one of .* with these parts: (when|between|teacher) does not fit; load it"):
            recurrent(name).load_state_dict(nameless(state_of(other)))
    with pytest.raises(UserError, match="between does not fit"):
        recurrent("looksam", between="gradient").load_state_dict(state_of("looksam"))


def test_a_state_of_another_model_or_a_later_version_is_refused():
    for name in ("looksam", "mesa"):
        method = create(name, Words(), **PLAN)
        method.backward(words(), LABELS, of_logits)
        with pytest.raises(UserError, match=r"^The state is one of another model: the "):
            recurrent(name).load_state_dict(method.state_dict())
    with pytest.raises(UserError, match="of version 2, this sam-repro reads up to 1: install a newer one"):
        create("sam", Words()).load_state_dict({**state_of("sam"), "version": 2})


def test_outputs_without_logits_have_no_teacher():
    for name in ("saf", "mesa"):
        with pytest.raises(UserError, match=r"^saf and mesa compare logits: the model is to return a tensor"):
            create(name, nn.Linear(4, 3), **PLAN).backward(
                torch.zeros(8, 2, 4), LABELS, lambda outputs, _: outputs.mean((1, 2)), indices=torch.arange(8)
            )


# -- parameters ------------------------------------------------------------------------------------------------------------


def steps_with_words(name, knobs, *, sparse, weighted=False):
    model = Words(sparse)
    method = create(name, model, **PLAN, **knobs)
    method.watch = True
    seen = []
    for step in range(6):
        inputs = words()
        inputs["input_ids"] = inputs["input_ids"].roll(step, 0) % (11 - step)

        def loss(said, targets):
            return (of_logits(said, targets), targets + 1.0) if weighted else of_logits(said, targets)

        report = method.backward(inputs, LABELS, loss, indices=torch.arange(8))
        seen += [report.layer_norms, *(p.grad.to_dense().clone() for p in model.parameters())]
        with torch.no_grad():
            for p in model.parameters():
                p -= 0.1 * p.grad.to_dense()
        if step % 2:  # the others accumulate
            model.zero_grad()
    return seen, model.embedding.weight


EVERY = [
    ("sgd", {}), ("sam", {}), ("sam_n", {"n": 2}), ("asam", {}), ("generalized_sam", {}), ("generalized_sam", {"normalize": True}),
    ("looksam", {"k": 2}), ("layersam", {}), ("looklayersam", {"k": 2}), ("esam", {}), ("aesam", {}), ("layerwise", {"k": 1}),
    ("vsam", {"start": 2, "N": 2, "M": 1}), ("vsam_a", {"start": 2, "N": 2, "M": 1}), ("msam", {"m": 2}),
    ("late", {"percent": 70.0}), ("rst", {"c": 2.0}), ("gsam", {}), ("wsam", {}), ("renormalised_sam", {}),
    ("saf", {"start": 0, "delay": 1}), ("mesa", {"start": 0}),
    ("fsam", {}), ("vasso", {"lam": 0.5}), ("s2sam", {}), ("momentum_sam", {"rho": 0.1}), ("async_sam", {}), ("fisher_sam", {"eta": 9.0}),
    ("unified_sam", {}), ("zsharp", {"percentile": 0.6}), ("ssam_f", {}), ("ssam_d", {}), ("random_sam", {"std": 0.1}),
]  # fmt: skip


@pytest.mark.parametrize("weighted", [False, True], ids=["", "weighted"])
@pytest.mark.parametrize(("name", "knobs"), EVERY)
def test_sparse_gradients_are_what_dense_ones_are(name, knobs, weighted):
    found, expected = (steps_with_words(name, knobs, sparse=sparse, weighted=weighted)[0] for sparse in (True, False))
    assert max((a - b).abs().max().item() for a, b in zip(found, expected, strict=True)) < 1e-13


def test_a_gradient_stays_sparse_where_nothing_is_made_of_two():
    for name in ("sgd", "sam", "esam", "msam"):
        model = Words(sparse=True)
        create(name, model, **({"m": 2} if name == "msam" else {})).backward(words(), LABELS, of_logits)
        assert model.embedding.weight.grad.is_sparse
    with pytest.raises(UserError, match="graphs=true does not go with sparse gradients"):
        StaticStep(create("sam", Words(sparse=True))).backward(words(), LABELS, of_logits)


class Complex(nn.Module):
    """A complex matrix; or the same numbers as a real one of pairs, which is what has a gradient by the book."""

    def __init__(self, real):
        super().__init__()
        torch.manual_seed(0)
        pairs = torch.randn(4, 5, 2, dtype=torch.float64)
        self.weight = nn.Parameter(pairs if real else torch.view_as_complex(pairs))
        self.linear = nn.Linear(5, 3, dtype=torch.float64)

    def forward(self, x):
        weight = self.weight if self.weight.is_complex() else torch.view_as_complex(self.weight)
        return self.linear((x.to(torch.complex128) @ weight).abs())


@pytest.mark.parametrize(("name", "knobs"), [row for row in EVERY if row[0] != "asam"])
def test_complex_parameters_are_pairs_of_real_ones(name, knobs):
    """But to ASAM, whose scale |w| is that of a number."""
    seen = []
    for real in (False, True):
        model = Complex(real)
        method = create(name, model, **PLAN, **knobs)
        method.watch = True
        seen.append([])
        for step in range(4):
            report = method.backward(IMAGES[:, :, step, 0], LABELS, criterion, indices=torch.arange(8))
            grads = [torch.view_as_real(p.grad) if p.is_complex() else p.grad for p in model.parameters()]
            seen[-1] += [report.layer_norms, *(g.clone() for g in grads), *(w for w in report.watched or () if isinstance(w, torch.Tensor))]
            with torch.no_grad():
                for p in model.parameters():
                    p -= 0.1 * p.grad
            model.zero_grad()
    assert max((a - b).abs().max().item() for a, b in zip(*seen, strict=True)) < 1e-13
