"""What a run leaves to look at: ``losses.jsonl``, ``validation.jsonl`` and TensorBoard."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from trainer.files import replace_text, unwritable

LOSSES, VALIDATION = "losses.jsonl", "validation.jsonl"


class Log:
    """The log of one run; continued where a resumed run left it.

    Args:
        folder: ``out`` of the settings.
        step: steps done; what was logged behind them is of a part that was lost, and is removed.
        tensorboard: whether to write for TensorBoard too.
    """

    def __init__(self, folder: Path, step: int, tensorboard: bool) -> None:
        self.folder = folder
        for name in (LOSSES, VALIDATION):
            kept = [line for line in read_lines(folder / name) if line["step"] <= step]
            if kept or name == LOSSES:
                replace_text(folder / name, "".join(json.dumps(line) + "\n" for line in kept))
        self._board: Any = None
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)

    def step(self, step: int, values: Mapping[str, Any]) -> None:
        """Log one step; ``step`` counts from 1."""
        self._write(LOSSES, step, values)
        # What differs with the kind of step gets a curve for each.
        kind = values.get("kind")
        own = () if kind is None else ("loss", "error", "localisation")
        self._curves(step, {f"{name}/{kind}" if name in own else name: v for name, v in values.items()})

    def validation(self, step: int, values: Mapping[str, float]) -> None:
        """Log the losses on what stays the same."""
        self._write(VALIDATION, step, values)
        self._curves(step, {f"validation/{name}": value for name, value in values.items()})

    def _write(self, name: str, step: int, values: Mapping[str, Any]) -> None:
        try:
            with (self.folder / name).open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": step, **values}) + "\n")
        except OSError as error:
            raise unwritable(self.folder / name, error) from error

    def _curves(self, step: int, values: Mapping[str, Any]) -> None:
        if self._board is not None:
            for name, value in values.items():
                if isinstance(value, float) and math.isfinite(value):
                    self._board.add_scalar(name, value, step)

    def picture(self, name: str, picture: Tensor, step: int) -> None:
        """Show a picture ``[H, W, 3]``, 0..1."""
        if self._board is not None:
            self._board.add_image(name, picture, step, dataformats="HWC")

    def close(self) -> None:
        if self._board is not None:
            self._board.close()


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The steps of ``losses.jsonl``; a line that a killed process left unfinished is left out."""
    if not path.is_file():
        return []
    texts = path.read_text(encoding="utf-8").splitlines()
    return [json.loads(text) for text in texts if text.startswith("{") and text.endswith("}")]
