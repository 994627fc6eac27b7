"""RoBERTa (Liu et al. 2019) by the transformers library, as a chain of its layers. The state is the tokens and their mask."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

from torch import Tensor, nn

from ..chain import Chain
from ..schema import UserError
from .weights import refuse

State = tuple[Tensor, Tensor]


class Embed(nn.Module):
    """Ids and mask, both ``(B, tokens)``, to ``(B, tokens, width)`` and a mask of keys, ``(B, 1, 1, tokens)``."""

    def __init__(self, embeddings: nn.Module) -> None:
        super().__init__()
        self.embeddings = embeddings

    def forward(self, inputs: State) -> State:
        ids, mask = inputs
        return self.embeddings(ids), mask.bool()[:, None, None, :]


class Block(nn.Module):
    """A layer of the encoder; hands the mask on."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, state: State) -> State:
        hidden, mask = state
        return self.layer(hidden, attention_mask=mask), mask


class Classifier(nn.Module):
    """The first token to the classes."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.classifier = head

    def forward(self, state: State) -> Tensor:
        return self.classifier(state[0])


def roberta(num_classes: int, *, pretrained: str, layers: int, width: int, heads: int, dropout: float) -> Chain:
    """Embed, block1, ..., head; random weights unless ``pretrained`` names a folder or a model of the hub.

    Raises UserError where that is not to be had or has another shape, and where ``heads`` does not divide ``width``.
    """
    try:
        from transformers import RobertaConfig, RobertaForSequenceClassification
    except ImportError as error:
        raise UserError("RoBERTa needs the transformers library: pip install 'sam-repro[nlp]'.") from error
    if width % heads:
        raise UserError(f"model.heads={heads} does not divide model.width={width}.")
    shape: dict[str, Any] = {
        "num_hidden_layers": layers,
        "hidden_size": width,
        "num_attention_heads": heads,
        "intermediate_size": 4 * width,
    }
    rates: dict[str, Any] = {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
    # What roberta-base has, beside its shape.
    common: dict[str, Any] = {"vocab_size": 50265, "max_position_embeddings": 514, "type_vocab_size": 1, "layer_norm_eps": 1e-5}
    common |= {"attn_implementation": "sdpa", "num_labels": num_classes, "bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2}
    if not pretrained:
        return chained(RobertaForSequenceClassification(RobertaConfig(**common, **shape, **rates)))
    try:
        library: Any = RobertaForSequenceClassification
        model, found = library.from_pretrained(
            pretrained, num_labels=num_classes, attn_implementation="sdpa", output_loading_info=True, **rates
        )
    except Exception as error:  # the library raises errors of many kinds
        raise UserError(
            f"model.pretrained={pretrained} could not be read ({type(error).__name__}): set it to a folder with the model, "
            "or to '' for random weights."
        ) from error
    # What it has besides is the head of another task.
    refuse(
        {key for key in found["missing_keys"] if not key.startswith("classifier.")}, f"model.pretrained={pretrained} has not all weights"
    )
    for key, value in shape.items():
        if getattr(model.config, key) != value:
            raise UserError(f"model.pretrained={pretrained} has {key}={getattr(model.config, key)}, but the model's shape says {value}.")
    return chained(model)


def chained(model: Any) -> Chain:
    """A ``RobertaForSequenceClassification`` as a chain. The modules are the model's own."""
    stages = OrderedDict[str, nn.Module](embed=Embed(model.roberta.embeddings))
    stages |= {f"block{index}": Block(layer) for index, layer in enumerate(model.roberta.encoder.layer, start=1)}
    stages["head"] = Classifier(model.classifier)
    return Chain(stages)
