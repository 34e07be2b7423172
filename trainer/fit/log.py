"""What a run leaves to look at: ``losses.jsonl``, TensorBoard, and a report of a batch that went wrong."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from trainer.files import replace_text, unwritable
from trainer.fit.plan import MicroBatch

LOSSES = "losses.jsonl"


class Log:
    """The log of one run; continued where a resumed run left it.

    Args:
        folder: ``out`` of the settings.
        step: steps done; what was logged behind them is of a part that was lost, and is removed.
        tensorboard: whether to write for TensorBoard too.
    """

    def __init__(self, folder: Path, step: int, tensorboard: bool) -> None:
        self.path = folder / LOSSES
        kept = [line for line in read_lines(self.path) if line["step"] <= step]
        replace_text(self.path, "".join(json.dumps(line) + "\n" for line in kept))
        self._file = self.path.open("a", encoding="utf-8")
        self._board: Any = None
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)

    def step(self, step: int, values: Mapping[str, Any]) -> None:
        """Log one step; ``step`` counts from 1."""
        try:
            self._file.write(json.dumps({"step": step, **values}) + "\n")
            self._file.flush()
        except OSError as error:
            raise unwritable(self.path, error) from error
        if self._board is not None:
            kind = values["kind"]
            for name, value in values.items():
                if isinstance(value, float) and math.isfinite(value):
                    own = name in ("loss", "error", "localisation")
                    self._board.add_scalar(f"{name}/{kind}" if own else name, value, step)

    def picture(self, name: str, picture: Tensor, step: int) -> None:
        """Show a picture ``[H, W, 3]``, 0..1."""
        if self._board is not None:
            self._board.add_image(name, picture, step, dataformats="HWC")

    def close(self) -> None:
        self._file.close()
        if self._board is not None:
            self._board.close()


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The steps of ``losses.jsonl``; a line that a killed process left unfinished is left out."""
    if not path.is_file():
        return []
    texts = path.read_text(encoding="utf-8").splitlines()
    return [json.loads(text) for text in texts if text.startswith("{") and text.endswith("}")]


def describe_rows(
    micros: Sequence[MicroBatch],
    keys: Sequence[Sequence[str]],
    captions: Sequence[Sequence[str]],
    sigmas: Sequence[Sequence[float]],
    losses: Mapping[int, float],
) -> list[dict[str, Any]]:
    """What the rows of a step were, for a person to look into."""
    rows = []
    for micro, names, texts, levels in zip(micros, keys, captions, sigmas, strict=True):
        for picture, key, caption, sigma in zip(micro.pictures, names, texts, levels, strict=True):
            rows.append(
                {
                    "photograph": key,
                    "k": picture.k,
                    "told": picture.told,
                    "caption": caption,
                    "noise level": sigma,
                    "pivot": picture.pivot,
                    "loss": repr(losses.get(picture.slot)),
                }
            )
    return rows
