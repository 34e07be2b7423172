"""Where to focus: the disparity that stays sharp, from a point, a mask or a distance.

Each function gives one focus disparity per image, in the units of the disparity map, for
:class:`bokeh_ops.render.Lens`. Medians make it robust against a few wrong pixels of an estimated map; the
median of an even count is the lower of the two middle values, so the result always occurs in the map. A mean weighted
by saliency (:func:`focus_by_weight`) is less robust, but smooth, so that what finds the saliency can learn from it.
:class:`Focus` is a choice among them, made before any map is seen.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import Enum
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import BokehError
from .frames import Maps, planes
from .rim import reach_edge

_GRID = 64  # cells along the longer side in which salient regions are told apart
_SMALL = 0.05  # share of the largest salient region below which a region is no subject


class FocusMode(str, Enum):
    """What to focus on."""

    POINT = "point"
    MASK = "mask"
    WHOLE_MASK = "whole mask sharp"
    WEIGHTED = "weighted by the mask"
    AUTOMATIC = "automatic"
    DISPARITY = "disparity value"
    DISTANCE = "distance in metres"


def focus_at_point(disparity: Maps, x: float, y: float, window: float = 0.01) -> Tensor:
    """Focus on what is seen at a point: the median disparity of a small window around it.

    Args:
        disparity: ``[B, 1, H, W]``, or B maps (:data:`bokeh_ops.depth.frames.Maps`).
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
    found = []
    for plane in planes(disparity):
        height, width = plane.shape
        # Pixel i covers i/W to (i+1)/W, so x = 1 still falls into the last one.
        column, row = min(int(x * width), width - 1), min(int(y * height), height - 1)
        half = max(1, round(window * min(height, width) / 2))
        part = plane[max(0, row - half) : row + half + 1, max(0, column - half) : column + half + 1]
        found.append(part.flatten().median())
    return torch.stack(found)


def focus_in_mask(disparity: Maps, mask: Tensor) -> Tensor:
    """Focus on a masked thing: the median disparity where the mask is above one half.

    Args:
        disparity: ``[B, 1, H, W]``, or B maps (:data:`bokeh_ops.depth.frames.Maps`).
        mask: ``[B or 1, h, w]``, 0..1; another size is resized bilinearly.

    Returns:
        ``[B]``.

    Raises:
        BokehError: another rank or batch, or nothing inside the mask.
    """
    return _middle(planes(disparity), _inside(disparity, mask))


def focus_on_whole_mask(disparity: Maps, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Keep all of a masked thing sharp, as portrait modes do, and blur the rest by its own depth.

    The focus is the median disparity inside, which what the mask takes in along its edge does not move. The mask's
    pixels are held there, whatever their depth, and what it left out along an edge of depth beside it
    (:func:`bokeh_ops.depth.rim.reach_edge`). Nothing else is.

    Args:
        disparity: ``[B, 1, H, W]``, or B maps.
        mask: as for :func:`focus_in_mask`.

    Returns:
        ``[B]`` the focus disparity, and ``[B, H, W]`` what is held there, boolean, for
        ``Lens(focus_disparity=..., sharp=...)``.

    Raises:
        BokehError: what :func:`focus_in_mask` raises.
    """
    maps, inside = planes(disparity), _inside(disparity, mask)
    sharp = torch.empty(len(maps), *inside.shape[1:], dtype=torch.bool, device=inside.device)
    for row, (plane, part) in enumerate(_pairs(maps, inside)):
        sharp[row] = reach_edge(plane, part)
    return _middle(maps, inside), sharp


def focus_on_salient(disparity: Maps, saliency: Tensor) -> Tensor:
    """Focus on the nearest salient region: its median disparity.

    A region is what hangs together above one half, told apart on a grid of 64 cells along the longer side; regions
    below 5 % of the largest are left out.

    Args:
        disparity: ``[B, 1, H, W]``, or B maps (:data:`bokeh_ops.depth.frames.Maps`).
        saliency: ``[B or 1, h, w]``, 0..1, as salient-object detectors and background removers give it.

    Returns:
        ``[B]``.

    Raises:
        BokehError: what :func:`focus_in_mask` raises.
    """
    chosen = _inside(disparity, saliency)
    height, width = chosen.shape[1:]
    share = min(1.0, _GRID / max(height, width))
    size = (max(1, round(height * share)), max(1, round(width * share)))
    found = []
    for row, part in _pairs(planes(disparity), chosen):
        cells = F.adaptive_max_pool2d(part[None, None].float(), size) > 0
        regions = F.interpolate(_regions(cells), size=(height, width), mode="nearest")[0, 0]
        names, counts = regions[part].unique(return_counts=True)
        subjects = names[counts >= _SMALL * counts.max()]
        found.append(torch.stack([row[part & (regions == name)].median() for name in subjects]).max())
    return torch.stack(found)


def focus_by_weight(values: Maps, weights: Tensor) -> Tensor:
    """The mean of a map, weighted by saliency: ``sum(d S) / sum(S)`` (Shrivastava et al., "Fine-grained Defocus Blur
    Control", eq. 4). Differentiable in both; never outside the range of the map.

    The paper averages depth in metres. Here maps are disparity, whose far end is finite (sky is 0), where one pixel of
    sky makes the mean of depth infinite. The two differ where weight lies on several depths: the mean of disparity is
    then the nearer one, a harmonic mean of depth. Either may be given.

    Args:
        values: ``[B, 1, H, W]``, or B maps (:data:`bokeh_ops.depth.frames.Maps`): disparity, or depth, finite.
        weights: ``[B or 1, h, w]``, 0 or more, as saliency and matting networks give them; another size is resized
            bilinearly. Soft ones count as they are.

    Returns:
        ``[B]``, in the units of the map.

    Raises:
        BokehError: another rank or batch; weights that are all 0, negative, NaN or infinite; a map that is not finite.
    """
    _check_masks(values, weights)
    found = []
    for row, (plane, own) in enumerate(_pairs(planes(values), weights)):
        low, high = plane.detach().aminmax()
        if not bool(torch.isfinite(low) & torch.isfinite(high)):
            raise BokehError(
                f"The map of image {row + 1} of {len(values)} runs from {float(low):g} to {float(high):g}; its mean "
                "needs finite values. Give disparity, in which infinitely far is 0, and fill in what is not known."
            )
        plane = plane if plane.dtype == torch.float64 else plane.float()
        weight = own.to(plane)
        if weight.shape != plane.shape:
            weight = F.interpolate(weight[None, None], size=plane.shape, mode="bilinear", antialias=True)[
                0, 0
            ]
        least, most = weight.detach().aminmax()
        if not bool((least >= 0) & (most > 0) & torch.isfinite(most)):
            what = (
                "0 everywhere"
                if bool(most == 0) and bool(least == 0)
                else f"from {float(least):g} to {float(most):g}"
            )
            raise BokehError(
                f"The focus mask of image {row + 1} of {len(values)} is {what}; expected values from 0 to 1, some "
                "above 0. Paint over what should be sharp, or focus by a point."
            )
        share = weight / most  # so that no weights are too large to be added up
        mean = (plane * share).sum() / share.sum()
        found.append(mean.clamp(low.to(mean), high.to(mean)))  # the sums are rounded
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


_MEASURES: dict[FocusMode, Callable[[Maps, Tensor], Tensor]] = {
    FocusMode.MASK: focus_in_mask,
    FocusMode.WEIGHTED: focus_by_weight,
    FocusMode.AUTOMATIC: focus_on_salient,
}
"""What finds the focus disparity in a mask, in the modes that do nothing else with it."""
_MASKED = (*_MEASURES, FocusMode.WHOLE_MASK)


class FocusStep(NamedTuple):
    """What is in focus, found in a batch of maps: for the fields of :class:`bokeh_ops.render.Lens` named below."""

    disparity: Tensor
    """``[B]``: ``focus_disparity``."""
    band: Tensor
    """``[B]``: ``focus_band``."""
    sharp: Tensor | None = None
    """``[B, H, W]``, boolean: ``sharp``."""


@dataclass(frozen=True, eq=False)
class Focus:
    """A choice of what stays sharp, to be looked up in any disparity map.

    Args:
        mode: what to focus on.
        x, y: for a point: 0 (left, top) to 1 (right, bottom).
        values: for disparities (in the map's units) or distances (metres, > 0, may be infinite): one, or several for a
            series.
        one_each: several values are one for each picture of the batch, instead of a series of all pictures.
        band: width of the band about the focus that stays sharp, in units of disparity, >= 0.
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
        self, disparity: Maps, units: bool = True, notice: Callable[[str], None] | None = None
    ) -> list[FocusStep]:
        """Look the choice up in every picture's map, once for every step of the series.

        Args:
            disparity: ``[B, 1, H, W]``, or B maps (:data:`bokeh_ops.depth.frames.Maps`).
            units: whether it is in dioptres.
            notice: told when nothing of a map lies at the focus, and when something given is not looked at.

        Returns:
            A single step unless the values are a series.

        Raises:
            BokehError: no mask where the mode needs one; a distance where the map has no units; a number of values
                that is not the number of pictures; what the functions of this module raise.
        """
        batch = len(disparity)
        band = torch.full((batch,), self.band)
        mode = FocusMode(self.mode)
        if notice:
            self._remark_unused(mode, notice)
        if mode is FocusMode.POINT:
            return [FocusStep(focus_at_point(disparity, self.x, self.y), band)]
        if mode in _MASKED:
            if self.mask is None:
                raise BokehError(
                    f"The focus mode is {mode.value!r} but no mask is connected; connect one or choose "
                    f"{FocusMode.POINT.value!r}."
                )
            if mode is FocusMode.WHOLE_MASK:
                middle, sharp = focus_on_whole_mask(disparity, self.mask)
                return [FocusStep(middle, band, sharp)]
            return [FocusStep(_MEASURES[mode](disparity, self.mask), band)]
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
        return [FocusStep(step, band) for step in steps]

    def _remark_unused(self, mode: FocusMode, notice: Callable[[str], None]) -> None:
        masked = mode in _MASKED
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


def _remark(disparity: Maps, focus: Tensor, band: Tensor, notice: Callable[[str], None]) -> None:
    """Say where a focus ``[steps, B]`` misses its whole map."""
    low, high = (torch.stack(ends).cpu() for ends in zip(*map(torch.aminmax, planes(disparity)), strict=True))
    missed = ((focus + band / 2 < low) | (focus - band / 2 > high)).nonzero()
    if len(missed):
        step, picture = missed[0].tolist()
        notice(
            f"The focus disparity {float(focus[step, picture]):.4g} lies outside the depth map of picture "
            f"{picture + 1}, which runs from {float(low[picture]):.4g} to {float(high[picture]):.4g}: nothing there is "
            "in focus."
        )


def _check_masks(disparity: Maps, mask: Tensor) -> None:
    if mask.ndim != 3 or 0 in mask.shape:
        raise BokehError(f"Expected a focus mask [B, H, W]; got {tuple(mask.shape)}.")
    if mask.shape[0] not in (1, len(disparity)):
        raise BokehError(
            f"There are {mask.shape[0]} focus masks for {len(disparity)} images; give one, or one per image."
        )


def _inside(disparity: Maps, mask: Tensor) -> Tensor:
    """Where the mask is above one half, ``[B or 1, H, W]`` as the mask; each has such pixels."""
    _check_masks(disparity, mask)
    batch, first = len(disparity), disparity[0]
    size = first.shape[-2:]
    chosen = torch.empty(len(mask), *size, dtype=torch.bool, device=first.device)
    for row, own in enumerate(mask):
        inside = own.to(first.device, torch.float32)[None, None]
        if own.shape != size:
            inside = F.interpolate(inside, size=size, mode="bilinear", antialias=True)
        chosen[row] = inside[0, 0] > 0.5
        if not bool(chosen[row].any()):
            raise BokehError(
                f"The focus mask is empty: no value above 0.5 for image {row + 1} of {batch} (largest: "
                f"{float(mask.max()):g}). Paint over what should be sharp, or focus by a point."
            )
    return chosen


def _pairs(maps: list[Tensor], chosen: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Each map ``[H, W]`` with its part of a mask for all or for each."""
    return list(zip(maps, chosen.expand(len(maps), -1, -1), strict=True))


def _middle(maps: list[Tensor], chosen: Tensor) -> Tensor:
    return torch.stack([plane[part].median() for plane, part in _pairs(maps, chosen)])


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
