"""One image in a file, as RGB of 8 bits: shown as it is meant, or refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ..schema import UserError

# By their content, not their name: PIL reads others too, some with the help of other programs.
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
SUFFIXES = {".bmp", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
LONGEST = 100  # the long side of an image over its short one: resized to a square's side, more would fill the memory


def read_image(path: Path) -> Any:
    """The image in the file, RGB; UserError that names a file which is none.

    Sixteen bits are scaled to eight, and what is transparent shows white. Of several images in a file it is the first.
    """
    from PIL import Image

    if not path.is_file():  # a pipe would wait for ever
        raise UserError(f"{path} is no file: images are files, or links to such.")
    try:
        with Image.open(path, formats=FORMATS) as image:
            if max(image.size) > LONGEST * min(image.size):
                raise ValueError(f"{image.width} x {image.height} pixels, its sides differ more than {LONGEST} times")
            return _rgb(image)
    except Exception as error:  # PIL hands on what its readers stumble on
        said = " ".join(str(error).split()) or type(error).__name__
        raise UserError(
            f"{path} cannot be read as an image ({said.removesuffix('.')}): replace the file, or delete its folder to fetch it again."
        ) from error


def _rgb(image: Any) -> Any:
    from PIL import Image

    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):  # grey of 16 bits
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise ValueError(f"its pixels are numbers of 32 bits, mode {image.mode}, and nothing says which of them is white")
    if image.has_transparency_data:
        over = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", over.size, "white"), over).convert("RGB")
    return image.convert("RGB")
