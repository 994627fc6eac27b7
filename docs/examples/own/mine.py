"""A small network and a folder of images of one's own."""

from collections import OrderedDict
from pathlib import Path

from torch import nn

from sam_repro.data import image_folder
from sam_repro.models import Chain
from sam_repro.plugins import register


@register("model/small")
def small(num_classes, in_channels, image_size, *, width):
    """A chain of three stages, so that layer-wise SAM need not repeat what lies before the first perturbed one; any module will do."""
    side = image_size // 4
    return Chain(
        OrderedDict(
            stem=nn.Sequential(nn.Conv2d(in_channels, width, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
            body=nn.Sequential(nn.Conv2d(width, 2 * width, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
            head=nn.Sequential(nn.Flatten(), nn.Linear(2 * width * side * side, 32), nn.ReLU(), nn.Linear(32, num_classes)),
        )
    )


@register("dataset/scans")
def scans(data_dir, **fields):
    """``scans/{train,val}/<class>/<image>`` under ``data_dir``."""
    return image_folder(Path(data_dir) / "scans", **fields)
