"""Where to focus: the disparity that stays sharp, from a point, a mask or a distance.

Each function gives one focus disparity per image, in the units of the disparity map, for
:class:`bokeh_ops.render.Lens`. Medians make it robust against a few wrong pixels of an estimated map; the
median of an even count is the lower of the two middle values, so the result always occurs in the map.
:class:`Focus` is a choice among them, made before any map is seen.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import Enum

import torch
import torch.nn.functional as F
from torch import Tensor

from .errors import BokehError

_GRID = 64  # cells along the longer side in which salient regions are told apart
_SMALL = 0.05  # share of the largest salient region below which a region is no subject
_TRIMMED = 0.02  # share of a mask's pixels that a band leaves out at each end: they are edges and errors


class FocusMode(str, Enum):
    """What to focus on."""

    POINT = "point"
    MASK = "mask"
    WHOLE_MASK = "whole mask sharp"
    AUTOMATIC = "automatic"
    DISPARITY = "disparity value"
    DISTANCE = "distance in metres"


def focus_at_point(disparity: Tensor, x: float, y: float, window: float = 0.01) -> Tensor:
    """Focus on what is seen at a point: the median disparity of a small window around it.

    Args:
        disparity: ``[B, 1, H, W]``.
        x: 0 (left edge) to 1 (right edge) of the width.
        y: 0 (top edge) to 1 (bottom edge) of the height.
        window: side of the window as a share of the shorter side of the picture; at least 3 pixels, cut at
            the frame.

    Returns:
        ``[B]``.

    Raises:
        BokehError: the point lies outside the picture.
    """
    if not (0 <= x <= 1 and 0 <= y <= 1):
        raise BokehError(
            f"The focus point ({x:g}, {y:g}) lies outside the picture; x and y run from 0 (left, top) to "
            "1 (right, bottom)."
        )
    height, width = disparity.shape[2:]
    # Pixel i covers i/W to (i+1)/W, so x = 1 still falls into the last one.
    column, row = min(int(x * width), width - 1), min(int(y * height), height - 1)
    half = max(1, round(window * min(height, width) / 2))
    part = disparity[:, 0, max(0, row - half) : row + half + 1, max(0, column - half) : column + half + 1]
    return part.flatten(1).median(1).values


def focus_in_mask(disparity: Tensor, mask: Tensor) -> Tensor:
    """Focus on a masked thing: the median disparity where the mask is above one half.

    Args:
        disparity: ``[B, 1, H, W]``.
        mask: ``[B or 1, h, w]``, 0..1; another size is resized bilinearly.

    Returns:
        ``[B]``.

    Raises:
        BokehError: another rank or batch, or nothing inside the mask.
    """
    chosen = _inside(disparity, mask)
    return torch.stack([row[part].median() for row, part in zip(disparity[:, 0], chosen, strict=True)])


def focus_on_whole_mask(disparity: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Keep all of a masked thing sharp, as portrait modes do: the band of disparity that it fills.

    From the 2nd to the 98th percentile of what is inside, because along its edge a mask takes in what lies behind.

    Args:
        disparity: ``[B, 1, H, W]``.
        mask: as for :func:`focus_in_mask`.

    Returns:
        ``[B]`` the middle of the band, and ``[B]`` its width, for ``Lens(focus_disparity=..., focus_band=...)``.

    Raises:
        BokehError: what :func:`focus_in_mask` raises.
    """
    ends = []
    for row, part in zip(disparity[:, 0], _inside(disparity, mask), strict=True):
        values = row[part].sort().values
        last = len(values) - 1
        ends.append(torch.stack([values[round(_TRIMMED * last)], values[round((1 - _TRIMMED) * last)]]))
    low, high = torch.stack(ends).unbind(1)
    return (low + high) / 2, high - low


def focus_on_salient(disparity: Tensor, saliency: Tensor) -> Tensor:
    """Focus on the nearest salient region: its median disparity.

    A region is what hangs together above one half, told apart on a grid of 64 cells along the longer side; regions
    below 5 % of the largest are left out.

    Args:
        disparity: ``[B, 1, H, W]``.
        saliency: ``[B or 1, h, w]``, 0..1, as salient-object detectors and background removers give it.

    Returns:
        ``[B]``.

    Raises:
        BokehError: what :func:`focus_in_mask` raises.
    """
    chosen = _inside(disparity, saliency)
    height, width = disparity.shape[2:]
    share = min(1.0, _GRID / max(height, width))
    size = (max(1, round(height * share)), max(1, round(width * share)))
    found = []
    for row, part in zip(disparity[:, 0], chosen, strict=True):
        cells = F.adaptive_max_pool2d(part[None, None].float(), size) > 0
        regions = F.interpolate(_regions(cells), size=(height, width), mode="nearest")[0, 0]
        names, counts = regions[part].unique(return_counts=True)
        subjects = names[counts >= _SMALL * counts.max()]
        found.append(torch.stack([row[part & (regions == name)].median() for name in subjects]).max())
    return torch.stack(found)


def focus_at_distance(metres: float) -> float:
    """Focus at a distance: ``1 / metres`` dioptres. For disparity that is in dioptres only.

    Args:
        metres: > 0; infinity is allowed and gives 0.

    Raises:
        BokehError: a distance of 0 or below, or NaN.
    """
    if math.isnan(metres) or metres <= 0:
        raise BokehError(f"The focus distance is {metres} m; it must be above 0.")
    return 1 / metres


@dataclass(frozen=True, eq=False)
class Focus:
    """A choice of what stays sharp, to be looked up in any disparity map.

    Args:
        mode: what to focus on.
        x, y: for a point: 0 (left, top) to 1 (right, bottom).
        values: for disparities (in the map's units) or distances (metres, > 0, may be infinite): one, or several for a
            series.
        one_each: several values are one for each picture of the batch, instead of a series of all pictures.
        band: width of the band about the focus that stays sharp, in units of disparity, >= 0. With a whole mask it is
            added to the mask's own.
        mask: ``[B or 1, h, w]`` for the modes that need one.

    Raises:
        BokehError: no value, a band that is negative or not finite.
    """

    mode: FocusMode = FocusMode.POINT
    x: float = 0.5
    y: float = 0.5
    values: tuple[float, ...] = (1.0,)
    one_each: bool = False
    band: float = 0.0
    mask: Tensor | None = None

    def __post_init__(self) -> None:
        if not self.values:
            raise BokehError("The focus has no value; give at least one.")
        if not (math.isfinite(self.band) and self.band >= 0):
            raise BokehError(
                f"The focus band is {self.band}; it must be 0 (a single plane) or larger, and finite."
            )

    def with_mask(self, mask: Tensor | None) -> Focus:
        """The same with this mask, if it has none of its own."""
        return self if self.mask is not None or mask is None else replace(self, mask=mask)

    def find(
        self, disparity: Tensor, units: bool = True, notice: Callable[[str], None] | None = None
    ) -> list[tuple[Tensor, Tensor]]:
        """Focus disparity and band for every picture, once for every step of the series.

        Args:
            disparity: ``[B, 1, H, W]``.
            units: whether it is in dioptres.
            notice: told when nothing of a map lies at the focus, and when something given is not looked at.

        Returns:
            For each step ``([B], [B])``; a single step unless the values are a series.

        Raises:
            BokehError: no mask where the mode needs one; a distance where the map has no units; a number of values
                that is not the number of pictures; what the functions of this module raise.
        """
        batch = disparity.shape[0]
        band = torch.full((batch,), self.band)
        mode = FocusMode(self.mode)
        if notice:
            self._remark_unused(mode, notice)
        if mode is FocusMode.POINT:
            return [(focus_at_point(disparity, self.x, self.y), band)]
        if mode in (FocusMode.MASK, FocusMode.WHOLE_MASK, FocusMode.AUTOMATIC):
            if self.mask is None:
                raise BokehError(
                    f"The focus mode is {mode.value!r} but no mask is connected; connect one or choose "
                    f"{FocusMode.POINT.value!r}."
                )
            if mode is FocusMode.WHOLE_MASK:
                middle, width = focus_on_whole_mask(disparity, self.mask)
                return [(middle, width + band.to(width))]
            find = focus_in_mask if mode is FocusMode.MASK else focus_on_salient
            return [(find(disparity, self.mask), band)]
        values = list(self.values)
        if mode is FocusMode.DISTANCE:
            if not units:
                raise BokehError(
                    "A focus distance in metres needs a depth map in metres or dioptres, but the map is normalised, "
                    "which forgets the units. Choose another depth_range, or focus by a point, a mask or a value "
                    "from 0 to 1."
                )
            values = [focus_at_distance(metres) for metres in values]
        if self.one_each and len(values) not in (1, batch):
            raise BokehError(
                f"There are {len(values)} focus values for {batch} images; give one, or one per image."
            )
        steps = (
            [torch.tensor(values).expand(batch)]
            if self.one_each
            else [torch.tensor(v).expand(batch) for v in values]
        )
        if notice:
            _remark(disparity, torch.stack(steps), band, notice)
        return [(step, band) for step in steps]

    def _remark_unused(self, mode: FocusMode, notice: Callable[[str], None]) -> None:
        masked = mode in (FocusMode.MASK, FocusMode.WHOLE_MASK, FocusMode.AUTOMATIC)
        if self.mask is not None and not masked:
            notice(
                f"The focus mask is not looked at: the focus mode is {mode.value!r}. For the mask choose "
                f"{FocusMode.MASK.value!r} or {FocusMode.WHOLE_MASK.value!r}."
            )
        if len(self.values) > 1 and (masked or mode is FocusMode.POINT):
            notice(
                f"The {len(self.values)} focus values are not looked at: the focus mode is {mode.value!r}. For a focus "
                f"pull choose {FocusMode.DISPARITY.value!r} or {FocusMode.DISTANCE.value!r}."
            )


def _remark(disparity: Tensor, focus: Tensor, band: Tensor, notice: Callable[[str], None]) -> None:
    """Say where a focus ``[steps, B]`` misses its whole map."""
    low, high = disparity.amin((1, 2, 3)).cpu(), disparity.amax((1, 2, 3)).cpu()
    missed = ((focus + band / 2 < low) | (focus - band / 2 > high)).nonzero()
    if len(missed):
        step, picture = missed[0].tolist()
        notice(
            f"The focus disparity {float(focus[step, picture]):.4g} lies outside the depth map of picture "
            f"{picture + 1}, which runs from {float(low[picture]):.4g} to {float(high[picture]):.4g}: nothing there is "
            "in focus."
        )


def _inside(disparity: Tensor, mask: Tensor) -> Tensor:
    """Where the mask is above one half, ``[B, H, W]``; every picture has such pixels."""
    if mask.ndim != 3 or 0 in mask.shape:
        raise BokehError(f"Expected a focus mask [B, H, W]; got {tuple(mask.shape)}.")
    batch = disparity.shape[0]
    if mask.shape[0] not in (1, batch):
        raise BokehError(
            f"There are {mask.shape[0]} focus masks for {batch} images; give one, or one per image."
        )
    inside = mask.to(disparity.device, torch.float32)
    if inside.shape[1:] != disparity.shape[2:]:
        size = (disparity.shape[2], disparity.shape[3])
        inside = F.interpolate(inside[:, None], size=size, mode="bilinear", antialias=True)[:, 0]
    chosen = (inside > 0.5).expand(batch, -1, -1)
    empty = (~chosen.flatten(1).any(1)).nonzero().flatten().tolist()
    if empty:
        raise BokehError(
            f"The focus mask is empty: no value above 0.5 for image {empty[0] + 1} of {batch} (largest: "
            f"{float(mask.max()):g}). Paint over what should be sharp, or focus by a point."
        )
    return chosen


def _regions(cells: Tensor) -> Tensor:
    """A number above 0 for each cell ``[1, 1, h, w]``, equal for cells that touch, and 0 outside."""
    names = (
        torch.arange(1, cells.numel() + 1, device=cells.device, dtype=torch.float32).view_as(cells) * cells
    )
    while True:
        spread = F.max_pool2d(names, 3, 1, 1) * cells
        if torch.equal(spread, names):
            return names
        names = spread
