"""Models of the timm library; its vision transformers (Dosovitskiy et al. 2021) as chains of their blocks."""

from __future__ import annotations

from collections import OrderedDict
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ..chain import Chain
from ..schema import UserError, suggest
from .weights import whole


class Embed(nn.Module):
    """Images to tokens: patches, class token and positions; ``(B, C, H, W)`` to ``(B, tokens, width)``."""

    def __init__(self, vit: Any) -> None:
        super().__init__()
        self.cls_token, self.reg_token, self.pos_embed = vit.cls_token, vit.reg_token, vit.pos_embed
        self.patch_embed, self.pos_drop, self.patch_drop, self.norm_pre = vit.patch_embed, vit.pos_drop, vit.patch_drop, vit.norm_pre
        self.dynamic_img_size, self.no_embed_class, self.num_prefix_tokens = vit.dynamic_img_size, vit.no_embed_class, vit.num_prefix_tokens
        self._pos_embed = type(vit)._pos_embed  # timm's own, of the parameters that stand here under their names there

    def forward(self, images: Tensor) -> Tensor:
        return self.norm_pre(self.patch_drop(self._pos_embed(self, self.patch_embed(images))))


class Pool(nn.Module):
    """Tokens to one vector: ``(B, tokens, width)`` to ``(B, width)``."""

    def __init__(self, vit: Any) -> None:
        super().__init__()
        self.norm, self.attn_pool, self.fc_norm = vit.norm, vit.attn_pool, vit.fc_norm
        self.global_pool, self.num_prefix_tokens = vit.global_pool, vit.num_prefix_tokens
        self.pool_include_prefix = vit.pool_include_prefix
        self._pool = type(vit).pool

    def forward(self, tokens: Tensor) -> Tensor:
        return self.fc_norm(self._pool(self, self.norm(tokens)))


def timm_model(
    num_classes: int,
    in_channels: int,
    image_size: int,
    *,
    arch: str,
    pretrained: bool,
    checkpoint: str = "",
    weights: str,
    freeze: bool,
    head: str,
    drop_path: float,
    cache: bool,  # noqa: ARG001
) -> nn.Module:
    """``timm.create_model(arch)``: a vision transformer as embed, blocks, pool and head; anything else as it is.

    ``pretrained`` fetches the weights ``checkpoint`` (empty: timm's choice) from the hub, ``weights`` reads a file with the names
    that timm gives them; positions are interpolated to ``image_size``, the head is new, and all else must be in the file.
    ``freeze`` leaves the head alone to train, and ``cache`` is the trainer's. ``head=two_layers``: width, ReLU, classes (KDD'24,
    section 4.1, which states neither the width nor the activation).

    Raises UserError where timm has no such model, and where the weights are not to be had or do not fit.
    """
    try:
        import timm
    except ImportError as error:
        raise UserError("This model needs the timm library: pip install 'sam-repro[timm]'.") from error
    if not timm.is_model(arch):
        raise UserError(f"timm has no model {arch!r}.{suggest(arch, timm.list_models())[:200]}")
    if weights and not Path(weights).is_file():
        raise UserError(f"model.weights={weights} is no file.")
    if freeze and drop_path:
        raise UserError("model.drop_path is for training the blocks that model.freeze=true freezes: set one of them.")
    transformer = issubclass_of_vit(arch)
    values: dict[str, Any] = {"num_classes": num_classes, "in_chans": in_channels}
    values |= {"img_size": image_size} if transformer else {}
    values |= {"drop_path_rate": drop_path} if drop_path else {}
    values |= {"pretrained_cfg_overlay": {"file": weights}} if weights else {}
    name = f"{arch}.{checkpoint}" if pretrained and checkpoint and not weights else arch
    heads = timm.get_pretrained_cfg_value(arch, "classifier") or ()
    said = f"model.weights={weights} does not fit {arch} (do the weights belong to this model?)"
    try:
        with whole(said, {heads} if isinstance(heads, str) else {*heads}) if weights else nullcontext():
            model: Any = timm.create_model(name, pretrained=pretrained or bool(weights), **values)
    except UserError:
        raise
    except Exception as error:  # timm, the hub and the file formats each have their own
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        hint = "do the weights belong to this model?" if weights else "without a network, set model.weights=FILE or model.pretrained=false."
        raise UserError(f"timm could not make {name!r}: {reason} ({hint})") from error
    if transformer:
        side = model.patch_embed.patch_size[0]
        if image_size % side:
            raise UserError(f"{arch} needs images of a multiple of {side} pixels, not {image_size}: set dataset.size.")
        return chained(model, head, freeze)
    if freeze or head != "linear":
        raise UserError(f"model.freeze and model.head are for vision transformers; {arch!r} is none.")
    return model


def issubclass_of_vit(arch: str) -> bool:
    """Whether timm builds ``arch`` as its plain vision transformer."""
    from timm.models import model_entrypoint
    from timm.models import vision_transformer as module

    return model_entrypoint(arch).__module__ == module.__name__


def chained(vit: Any, head: str, freeze: bool) -> Chain:
    """A vision transformer as a chain: embed, block1, ..., pool, head. The modules are the model's own."""
    from timm.models.vision_transformer import Block

    stages = OrderedDict[str, nn.Module](embed=Embed(vit))
    stages |= {f"block{index}": block for index, block in enumerate(vit.blocks, start=1)}
    stages["pool"] = Pool(vit)
    width, classes = vit.num_features, vit.num_classes
    layers = OrderedDict[str, nn.Module](drop=vit.head_drop)
    if head == "two_layers":
        layers |= OrderedDict(hidden=nn.Linear(width, width), relu=nn.ReLU(), linear=nn.Linear(width, classes))
    else:
        layers["linear"] = vit.head
    if freeze:
        for stage in stages.values():
            stage.requires_grad_(False)
    stages["head"] = nn.Sequential(layers)
    for block in vit.blocks:
        vars(block)["feeds"] = {"norm1": "attn", "norm2": "mlp"} if isinstance(block, Block) else {}
    model = Chain(stages)
    # Not of a class of ours: the modules are timm's.
    vars(model)["feeds"] = {"pool.norm": "head" if vit.attn_pool is None else "pool.attn_pool", "pool.fc_norm": "head"}
    return model
