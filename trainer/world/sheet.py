"""Scenes of the world to look at."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from bokeh_ops.numbers import format_value
from bokeh_ops.picture.sheet import contact_sheet
from trainer.recipes.bokeh.samples import write_png
from trainer.world.data import scene_sweep

KS = (0.0, 4.0, 8.0, 16.0, 30.0)
LARGER = 3


def write_sheet(path: Path, seeds: Sequence[int], ks: Sequence[float] = KS) -> None:
    """A sheet of scenes, one a row, each at several K."""
    sweeps = torch.from_numpy(np.stack([scene_sweep(seed, ks)[0] for seed in seeds])).float() / 255
    write_rows(path, sweeps, [f"K = {format_value(k)}" for k in ks])


def write_rows(path: Path, sweeps: Tensor, labels: Sequence[str]) -> None:
    """A sheet of sweeps ``[scenes, K, H, W, 3]``, one a row, large enough to be seen."""
    pictures = sweeps.transpose(0, 1).flatten(0, 1)  # all scenes at the first K first
    pictures = pictures.repeat_interleave(LARGER, 1).repeat_interleave(LARGER, 2)
    write_png(path, contact_sheet(pictures, labels, columns=len(labels))[0])
