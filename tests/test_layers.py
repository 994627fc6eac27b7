"""Which parameters are counted to which layer: a table of every kind of model."""

import pytest
from torch import nn

from sam_repro.chain import Chain, layers
from sam_repro.models import create

TABLES = {
    "resnet20": {
        "stem.conv": "stem.conv stem.bn", "block1.conv1": "block1.conv1 block1.bn1", "block1.conv2": "block1.conv2 block1.bn2",
        "block9.conv2": "block9.conv2 block9.bn2", "head.linear": "head.linear",
    },
    "resnet18": {
        "block3.conv2": "block3.conv2 block3.bn2", "block3.projection.0": "block3.projection.0 block3.projection.1",
    },
    "wrn16_2": {
        "stem": "stem", "block1.conv1": "block1.bn1 block1.conv1", "block1.conv2": "block1.bn2 block1.conv2",
        "block1.projection": "block1.projection", "block2.conv1": "block2.bn1 block2.conv1", "head.linear": "head.bn head.linear",
    },
    "wrn28_10 activation=post": {
        "stem.conv": "stem.conv stem.bn", "block1.conv1": "block1.conv1 block1.bn1", "block1.conv2": "block1.conv2 block1.bn2",
        "block1.projection.conv": "block1.projection.conv block1.projection.bn", "head.linear": "head.linear",
    },
    "pyramidnet110": {
        "stem.conv": "stem.conv stem.bn", "block1.conv1": "block1.bn1 block1.conv1",
        "block1.conv2": "block1.bn2 block1.conv2 block1.bn3", "head.linear": "head.bn head.linear",
    },
    "mobilenet": {"block1.0": "block1.0 block1.1", "block1.3": "block1.3 block1.4"},
    "vit_s32": {
        "embed.patch_embed.proj": "embed embed.patch_embed.proj", "block1.attn.qkv": "block1.norm1 block1.attn.qkv",
        "block1.attn.proj": "block1.attn.proj", "block1.mlp.fc1": "block1.norm2 block1.mlp.fc1", "block1.mlp.fc2": "block1.mlp.fc2",
        "head.linear": "pool.norm head.linear",
    },
    "vit_s32 head=two_layers": {"head.hidden": "pool.norm head.hidden", "head.linear": "head.linear"},
    "roberta_tiny": {
        "block1.layer.attention.output.dense": "block1.layer.attention.output.dense block1.layer.attention.output.LayerNorm",
        "block1.layer.output.dense": "block1.layer.output.dense block1.layer.output.LayerNorm",
    },
}  # fmt: skip


def holders(model):
    """The modules whose parameters each layer has."""
    names = {parameter: name.rpartition(".")[0] for name, parameter in model.named_parameters()}
    return {layer.name: " ".join(dict.fromkeys(names[p] for p in layer.parameters)) for layer in layers(model)}


@pytest.mark.parametrize("words", TABLES)
def test_a_normalisation_belongs_to_the_layer_that_it_acts_with(words):
    name, *values = words.split()
    pytest.importorskip({"vit_s32": "timm", "roberta_tiny": "transformers"}.get(name, "torch"))
    model = create(name, image_size=224 if name == "vit_s32" else 32, **dict(value.split("=") for value in values))
    found = holders(model)
    assert {key: found[key] for key in TABLES[words]} == TABLES[words]
    assert sum(len(layer.parameters) for layer in layers(model)) == len(list(model.parameters()))


def test_what_declares_nothing_goes_by_registration():
    """And a module of one's own declares it as ours do; the first layer in what is fed counts."""

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.before, self.norm, self.mlp = nn.Linear(3, 3), nn.LayerNorm(3), nn.Sequential(nn.ReLU(), nn.Linear(3, 3), nn.Linear(3, 3))

    block = Block()
    assert holders(block) == {"before": "before norm", "mlp.1": "mlp.1", "mlp.2": "mlp.2"}
    block.feeds = {"norm": "mlp"}
    assert holders(block) == {"before": "before", "mlp.1": "norm mlp.1", "mlp.2": "mlp.2"}


def test_a_layer_begins_in_the_stage_of_the_normalisation_before_it():
    chain = Chain(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Linear(2, 2))
    chain.feeds = {"1": "2"}
    assert [(layer.name, layer.stage) for layer in layers(chain)] == [("0", 0), ("2", 1)]
