"""Any model of the timm library."""

from __future__ import annotations

from torch import nn

from ..schema import UserError, suggest


def timm_model(num_classes: int, in_channels: int, arch: str, pretrained: bool) -> nn.Module:
    """``timm.create_model(arch)``; the engine takes it as a chain of one stage."""
    try:
        import timm
    except ImportError as error:
        raise UserError("model=timm needs the timm library: pip install 'sam-repro[timm]'.") from error
    if not timm.is_model(arch):
        raise UserError(f"timm has no model {arch!r}.{suggest(arch, timm.list_models())[:200]}")
    try:
        return timm.create_model(arch, pretrained=pretrained, num_classes=num_classes, in_chans=in_channels)
    except (OSError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"timm could not make {arch!r}: {reason} (without a network, pretrained=false works).") from error
