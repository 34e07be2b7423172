"""What `evaluate images` cannot know of a sweep: how far the thing in focus drifts, and both sides of the pivot."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bokeh_ops.errors import BokehError
from trainer.evaluate.sweeps import Sweep, find_sweeps, read_picture
from trainer.metrics import Interval, bootstrap, laplacian_variance
from trainer.world.mask import MainThing
from trainer.world.sweeps import PIVOTS

EDGE = 2
"""Pixels that the mask is shrunk by: the rim of a sharp thing mixes with what is blurred behind it."""
LEAST_PIXELS = 40
"""A smaller mask is not measured: nothing was found that is in focus."""

COLUMNS = ("drift", "outside", "sharper", "blurrier")


def measure(sweep: Sweep, pivot: Tensor, network: MainThing, pivot_k: float) -> dict[str, float | None]:
    """One scene.

    Args:
        sweep: its pictures.
        pivot: ``[3, H, W]``, 0..1.
        network: finds the main thing.
        pivot_k: K of the pivot.

    Returns:
        ``drift``: mean absolute difference from the pivot, in levels of 255, over pictures and over the inside of
        the main thing as found in the pivot; ``outside``: the same over the rest, where blur is meant to change
        something. ``sharper``, ``blurrier``: 1 where sharpness (variance of the Laplacian) falls with every step of
        K up to the pivot's, and from there on; else 0. None where it cannot be said.
    """
    pictures = sweep.load()
    mask = network.mask(pivot[None])[0].float()
    inside = -F.max_pool2d(-mask[None, None], 2 * EDGE + 1, 1, EDGE)[0, 0] > 0.5
    outside = F.max_pool2d(mask[None, None], 2 * EDGE + 1, 1, EDGE)[0, 0] < 0.5
    apart = torch.stack([(picture - pivot).abs().mean(0) * 255 for picture in pictures]).mean(0)
    trend = [(k, laplacian_variance(picture)) for k, picture in zip(sweep.values, pictures, strict=True)]
    own = (pivot_k, laplacian_variance(pivot))
    low = [*(point for point in trend if point[0] < pivot_k), own]
    high = [own, *(point for point in trend if point[0] > pivot_k)]
    return {
        "drift": float(apart[inside].mean()) if int(inside.sum()) >= LEAST_PIXELS else None,
        "outside": float(apart[outside].mean()) if bool(outside.any()) else None,
        "sharper": _falls(low),
        "blurrier": _falls(high),
    }


def _falls(points: Sequence[tuple[float, float]]) -> float | None:
    if len(points) < 2:
        return None
    return float(all(before[1] > after[1] for before, after in itertools.pairwise(points)))


def measure_folder(folder: Path, network: MainThing, pivot_k: float) -> dict[str, Any]:
    """All scenes of a folder: the mean of every column with its confidence interval, and how many there are.

    Where the folder has no pivots, as a reference has none, the picture at the pivot's K is taken.

    Raises:
        BokehError: neither is there.
    """
    rows = []
    for sweep in find_sweeps(folder):
        path = folder / PIVOTS / f"{sweep.name}.png"
        if not path.is_file():
            if pivot_k not in sweep.values:
                raise BokehError(f"{folder}: {sweep.name} has no pivot and no picture at K = {pivot_k:g}.")
            path = sweep.paths[sweep.values.index(pivot_k)]
        rows.append(measure(sweep, read_picture(path), network, pivot_k))
    means: dict[str, Interval] = {name: bootstrap([row[name] for row in rows]) for name in COLUMNS}
    return {"scenes": len(rows), "found": sum(row["drift"] is not None for row in rows), **means}


def table(found: dict[str, dict[str, Any]]) -> str:
    """Rows by name, as text."""
    width = max(len(name) for name in found)
    lines = [f"{'':{width}}  scenes  in focus  " + "  ".join(f"{name:>22}" for name in COLUMNS)]
    for name, row in found.items():
        cells = "  ".join(
            f"{row[column].mean:6.2f} [{row[column].low:6.2f}, {row[column].high:6.2f}]" for column in COLUMNS
        )
        lines.append(f"{name:{width}}  {row['scenes']:6d}  {row['found']:8d}  {cells}")
    return "\n".join(lines)
