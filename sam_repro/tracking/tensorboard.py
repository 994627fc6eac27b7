"""TensorBoard: event files in the run's directory. ``tensorboard --logdir runs`` shows them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray
from torch.utils.tensorboard.summary import hparams
from torch.utils.tensorboard.writer import SummaryWriter

from ..schema import flat

Row = dict[str, Any]
COMPARED = ("final/score_last", "final/train_loss", "final/images_per_second")  # in the HParams tab


class TensorBoard:
    """The event file of a run."""

    def __init__(self, folder: Path) -> None:
        self.writer = SummaryWriter(str(folder))
        self.epoch = 0
        self.settings: Row = {}

    def config(self, values: Row) -> None:
        """As YAML in the Text tab, and in the HParams tab, where runs are compared by their settings and their last scores."""
        self.settings = {key: value if isinstance(value, (bool, int, float)) else str(value) for key, value in flat(values)}
        self._text("config", f"```yaml\n{yaml.safe_dump(values, sort_keys=False)}\n```")

    def log(self, epoch: int, values: dict[str, float]) -> None:
        """A scalar each."""
        self.epoch = epoch
        for name, value in values.items():
            self.writer.add_scalar(name, value, epoch)
        self.writer.flush()

    def table(self, name: str, rows: list[Row]) -> None:
        """As Markdown, in the Text tab."""
        head = list(rows[0])
        lines = [head, ["---"] * len(head), *([str(row[key]) for key in head] for row in rows)]
        self._text(name, "\n".join(f"| {' | '.join(line)} |" for line in lines))

    def image(self, name: str, pixels: NDArray[np.uint8]) -> None:
        """In the Images tab."""
        self.writer.add_image(name, pixels, self.epoch, dataformats="HWC")

    def close(self, state: str, final: Row) -> None:
        """The state and the words of the summary as text, its numbers as scalars."""
        self._text("state", state)
        for summary in hparams(self.settings, {name: final[name] for name in COMPARED if name in final}):
            self.writer._get_file_writer().add_summary(summary)
        for name, value in final.items():
            if isinstance(value, str):
                self._text(name, value)
            else:
                self.writer.add_scalar(name, value, self.epoch)
        self.writer.close()

    def _text(self, name: str, text: str) -> None:
        self.writer.add_text(name, text, self.epoch)
