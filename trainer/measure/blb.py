"""Folders in the layout of BLB (Peng et al. 2022, BokehMe): a scene and its ground truth for several lenses.

``image.exr`` linear and sharp everywhere, ``depth.exr`` metres, ``info.json`` with ``blur_parameters`` and
``focus_distances``, and for blur i and focus j (two digits each) ``bokeh_0i_0j.exr``, linear. Signed defocus in pixels
of blur radius is ``blur_parameters[i] (1 / depth - 1 / focus_distances[j])``. No library reads it; pictures are read by
:mod:`trainer.exr`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bokeh_ops.errors import BokehError
from trainer.exr import read_colour, read_plane


@dataclass(frozen=True)
class Case:
    """One ground-truth picture of a scene, and the lens it was made with."""

    name: str
    """``0i_0j``."""
    path: Path
    k: float
    """Pixels of blur radius per dioptre."""
    focus_disparity: float
    """Dioptres."""

    def truth(self, size: tuple[int, int]) -> Tensor:
        """Linear ``[3, H, W]``; refused where it is not of ``size`` (H, W)."""
        return _sized(read_colour(self.path), size, self.path)


@dataclass(frozen=True)
class Scene:
    """A folder of this layout whose ``info.json`` has been read and whose files are all there."""

    folder: Path
    cases: tuple[Case, ...]

    @property
    def name(self) -> str:
        return self.folder.name

    def load(self) -> tuple[Tensor, Tensor]:
        """The sharp picture, linear ``[3, H, W]``, and its disparity in dioptres ``[H, W]`` (0 at infinity).

        Raises:
            BokehError: a file cannot be read, sizes differ, or a depth is not above 0.
        """
        picture = read_colour(self.folder / "image.exr")
        path = self.folder / "depth.exr"
        depth = read_plane(path)
        if depth.shape != picture.shape[:2]:
            raise BokehError(
                f"{path} is {_size(depth)} but image.exr is {_size(picture)}; they must be of one size."
            )
        bad = int((~(depth > 0)).sum())  # NaN too; infinity is the sky
        if bad:
            raise BokehError(f"{path} has {bad} depths that are 0, negative or NaN; expected metres above 0.")
        return torch.from_numpy(picture).permute(2, 0, 1), torch.from_numpy(1 / depth)


def find_scenes(folders: Sequence[Path]) -> list[Scene]:
    """Every scene in the folders given: each is a scene, or holds scenes.

    Raises:
        BokehError: a folder is missing or holds no scene, or a scene is not whole (the message says what it lacks).
    """
    found: list[Scene] = []
    for folder in folders:
        if not folder.is_dir():
            raise BokehError(f"There is no folder {folder}.")
        if (folder / "info.json").is_file():
            inside = [folder]
        else:
            inside = [each for each in sorted(folder.iterdir()) if (each / "info.json").is_file()]
        if not inside:
            raise BokehError(
                f"{folder} is not a scene and holds none: a scene is a folder with info.json, image.exr, depth.exr and "
                "bokeh_00_00.exr and so on."
            )
        found += [_scene(each) for each in inside]
    return found


def _scene(folder: Path) -> Scene:
    path = folder / "info.json"
    try:
        info = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BokehError(f"{path} cannot be read as JSON: {error}.") from error
    blurs = _numbers(info, "blur_parameters", path, zero=True)
    focuses = _numbers(info, "focus_distances", path, zero=False)
    cases = tuple(
        Case(f"{i:02d}_{j:02d}", folder / f"bokeh_{i:02d}_{j:02d}.exr", k, 1 / distance)
        for i, k in enumerate(blurs)
        for j, distance in enumerate(focuses)
    )
    wanted = [folder / "image.exr", folder / "depth.exr", *(case.path for case in cases)]
    missing = [each.name for each in wanted if not each.is_file()]
    if missing:
        shown = ", ".join(missing[:4]) + (f" and {len(missing) - 4} more" if len(missing) > 4 else "")
        raise BokehError(
            f"{folder} lacks {shown}. Its info.json has {len(blurs)} blur_parameters and {len(focuses)} "
            f"focus_distances, so {len(cases)} bokeh pictures are expected."
        )
    return Scene(folder, cases)


def _numbers(info: Any, key: str, path: Path, zero: bool) -> list[float]:
    values = info.get(key) if isinstance(info, dict) else None

    def good(value: Any) -> bool:
        if not isinstance(value, (int, float)) or isinstance(value, bool) or math.isnan(value):
            return False
        # A focus at infinity is a disparity of 0; JSON as Python reads it has a word for it.
        return 0 <= value < math.inf if zero else value > 0

    if not isinstance(values, list) or not values or not all(good(value) for value in values):
        what = "numbers, 0 or larger" if zero else "distances in metres above 0"
        raise BokehError(f"{path}: {key!r} is {values!r}; expected a list of {what}.")
    return [float(value) for value in values]


def _sized(picture: np.ndarray, size: tuple[int, int], path: Path) -> Tensor:
    if picture.shape[:2] != size:
        raise BokehError(
            f"{path} is {_size(picture)} but image.exr is {size[1]} x {size[0]}; they must be of one size."
        )
    return torch.from_numpy(picture).permute(2, 0, 1)


def _size(array: np.ndarray) -> str:
    return f"{array.shape[1]} x {array.shape[0]}"
