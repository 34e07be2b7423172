"""From any depth map to disparity: what bright means and in which units is said, never guessed.

Disparity is 1/depth (dioptres when depth is in metres), or anything that grows linearly with it. Larger is
nearer. Blur is linear in disparity (``delta = K (disparity - focus_disparity)``), which is why every lens
model here takes disparity.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import Enum

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import BokehError
from .edges import align_to_image, edge_reach
from .fill import pull_push

Notice = Callable[[str], None]
"""Takes a sentence or two that the user should read, though nothing is wrong enough to stop."""


class DepthUnit(str, Enum):
    """What one unit of disparity is."""

    DIOPTRES = "dioptres"
    """1/metre."""
    RELATIVE = "relative"
    """Unknown: some scale and some offset away from dioptres."""


@dataclass(frozen=True, eq=False)
class DepthMap:
    """Disparity that knows its unit.

    Attributes:
        disparity: ``[B, 1, H, W]`` fp32, finite, larger is nearer.
        unit: what one unit of it is.
        focal_pixels: the focal length of the picture, in pixels of the map's width, where it was estimated; else None.
    """

    disparity: Tensor
    unit: DepthUnit
    focal_pixels: float | None = None


class DepthKind(str, Enum):
    """What the values of a depth map mean."""

    DISPARITY = "disparity (near is bright)"
    INVERTED = "inverted (far is bright)"
    METRIC = "metric (metres)"
    MILLIMETRES = "metric (millimetres)"
    CANONICAL = "canonical (Depth Pro)"


class DepthRange(str, Enum):
    """What the values of a depth map are measured in."""

    AS_IS = "as is"
    NORMALISE = "normalise to 0..1"
    NORMALISE_BATCH = "normalise over the batch"
    SCALE = "multiply by scale"
    BETWEEN = "between two distances"


NORMALISED = (DepthRange.NORMALISE, DepthRange.NORMALISE_BATCH)
"""Ranges that forget the units."""

IN_METRES = {DepthKind.METRIC: 1.0, DepthKind.MILLIMETRES: 0.001}
"""Kinds whose values are distances, and their unit in metres."""


class DepthEdges(str, Enum):
    """Where the edges of a depth map are put."""

    ALIGNED = "aligned to the image"
    AS_IS = "as is"


_UNALIKE = 0.02  # share of the whole range by which the ranges of maps may differ without remark

_FLATTENED = (
    " A map of only 1.0 is what ComfyUI's Load Image makes of a 16-bit greyscale PNG; "
    'load such a file with "Load Depth Map (16 bit)" instead.'
)


def to_depth_map(
    depth: Tensor | DepthMap,
    kind: DepthKind | str = DepthKind.DISPARITY,
    scaling: DepthRange | str = DepthRange.AS_IS,
    scale: float = 1.0,
    notice: Notice | None = None,
    focal_pixels: float = 0.0,
    distances: tuple[float, float] = (0.0, 1.0),
) -> DepthMap:
    """Disparity and its unit, from a depth map of any convention.

    ========= ============== ====================== ====================================== =========================
    kind      as is          multiply by scale      normalise to 0..1 (each map by itself) between two distances
    ========= ============== ====================== ====================================== =========================
    disparity ``v``          ``v * scale``          ``v`` from its least to its largest    ``1/a + v (1/b - 1/a)``
    inverted  ``1 - v``      ``(1 - v) * scale``    ``-v`` from its least to its largest   the same
    metric    ``1 / v``      ``1 / (v * scale)``    ``1 / v`` from its least to its largest ``1 / (a + v (b - a))``
    canonical ``v w / f``    ``v w / f * scale``    ``v`` from its least to its largest    refused
    ========= ============== ====================== ====================================== =========================

    So ``scale`` is dioptres at the brightest value for the first two kinds, and metres at value 1.0 for metric depth
    (millimetres are divided by 1000 first). ``a`` and ``b`` are the distances in metres that the values 0 and 1 stand
    for; the first two rows then are what photographs with a depth of RangeInverse hold and every other affine map, the
    third is RangeLinear, and maps of 1 - normalised distance, whose nearest is bright.

    Normalising is BokehMe's convention and forgets the units: K then counts pixels between the farthest and the nearest
    point. Over the batch, the least and largest are those of all maps together, so that the frames of a video keep one
    measure. A few values far outside what the others span (by more than half of it) do not count, and are cut off.

    Canonical inverse depth is what Depth Pro (Bochkovskii et al. 2024) predicts before it knows the camera:
    metres are ``f / (w v)``, with ``f`` the focal length in pixels and ``w`` the width in pixels of the picture it
    saw, which is the map's. (Most programs hand its metres on; these are the kind *metric*.)

    Where a value says nothing (NaN; 0 or less of a metric map, as sensors write where they saw nothing; infinity of
    another) it is filled in from around it. Infinitely far metric depth is sky: disparity 0.

    Args:
        depth: ``[B, H, W]``, or a picture ``[B, H, W, C]`` with C = 1, 3 or 4 whose colours are equal, of any floating
            type; or a map that knows its unit, of which only ``scaling`` is asked: whether it is normalised. One
            without a unit is, whatever is asked.
        kind: what the values mean.
        scaling: what they are measured in.
        scale: > 0, used with ``DepthRange.SCALE`` only.
        notice: called with a sentence when the result is legitimate but of little use, or something was filled in.
        focal_pixels: ``f`` above, > 0; used for canonical maps only, and not where these are normalised.
        distances: ``a`` and ``b`` above, metres, different, 0 for infinitely far; ``DepthRange.BETWEEN`` only.

    Returns:
        Disparity in fp32 (fp64 from fp64); its unit is dioptres unless it was normalised.

    Raises:
        BokehError: not a depth map (rank, channels, colours, empty); a map of which nothing is known; inverted values
            outside 0..1 unless normalised; nothing to normalise; ``scale`` not above 0; a canonical map without its
            focal length; distances that are alike, or both infinite for a metric map.
    """
    kind, scaling = DepthKind(_option(DepthKind, kind)), DepthRange(_option(DepthRange, scaling))
    if isinstance(depth, DepthMap):
        if notice and (kind is not DepthKind.DISPARITY or scaling in (DepthRange.SCALE, DepthRange.BETWEEN)):
            notice(
                f"{kind.value!r} and {scaling.value!r} are not looked at: the depth that is linked knows its unit."
            )
        if scaling not in NORMALISED and depth.unit is DepthUnit.RELATIVE:
            scaling = DepthRange.NORMALISE_BATCH
            if notice:
                notice("The depth that is linked has no unit, so it is normalised over the batch.")
        if scaling not in NORMALISED:
            return depth
        return replace(
            depth, disparity=_normalised(depth.disparity.clone(), scaling, notice), unit=DepthUnit.RELATIVE
        )
    if scaling is DepthRange.SCALE and not (np.isfinite(scale) and scale > 0):
        raise BokehError(f"The depth scale is {scale}; it must be above 0.")
    between = _ends(kind, distances) if scaling is DepthRange.BETWEEN else None
    canonical = kind is DepthKind.CANONICAL and scaling not in NORMALISED
    if canonical and not (np.isfinite(focal_pixels) and focal_pixels > 0):
        raise BokehError(
            f"The kind {DepthKind.CANONICAL.value!r} needs the focal length in pixels that came with the depth map, "
            f"but it is {focal_pixels:g}. Give it, or choose {DepthRange.NORMALISE.value!r}."
        )
    value = one_channel(depth)
    value = value if value.dtype == torch.float64 else value.float()
    if notice:
        _remark_white(value, notice)
    metric = kind in IN_METRES
    far = torch.isposinf(value) if metric else torch.zeros_like(value, dtype=torch.bool)
    holes = ~(torch.isfinite(value) | far)
    if metric and between is None:
        holes |= value <= 0
    # A copy that is worked on in place: of the frames of a video there is no room for many.
    usable = value.masked_fill(holes | far, 1.0)
    if between is not None:
        low, high = between
        disparity = usable.mul_(high - low).add_(low)
        disparity = disparity.reciprocal_() if metric else disparity
        _refuse(
            ~torch.isfinite(disparity), value, "are at distance 0", "Check the distances of black and white."
        )
    elif metric:
        factor = IN_METRES[kind] * (scale if scaling is DepthRange.SCALE else 1.0)
        disparity = usable.mul_(factor).reciprocal_()
        _refuse(torch.isinf(disparity), value, "are so near that 1/depth overflows", "Check the units.")
    else:
        factor = scale if scaling is DepthRange.SCALE else 1.0
        if kind is DepthKind.INVERTED:
            if scaling not in NORMALISED:
                _refuse(
                    (usable < -1e-3) | (usable > 1 + 1e-3),
                    value,
                    "lie outside 0..1, so 1 - value is no disparity",
                    f"Choose {DepthRange.NORMALISE.value!r}, or the kind {DepthKind.METRIC.value!r} for metres.",
                )
            usable.neg_().add_(1)
        disparity = usable.mul_(factor * value.shape[2] / focal_pixels if canonical else factor)
    disparity = _filled(disparity.masked_fill_(far, 0.0), holes, kind, notice)
    if scaling in NORMALISED:
        return DepthMap(_normalised(disparity[:, None], scaling, notice), DepthUnit.RELATIVE)
    if notice:
        _remark_flat(disparity, notice)
    return DepthMap(disparity[:, None], DepthUnit.DIOPTRES)


def _ends(kind: DepthKind, distances: tuple[float, float]) -> tuple[float, float]:
    """What 0 and 1 of a map between two distances are: metres of a metric map, dioptres of another."""
    black, white = distances
    if kind is DepthKind.CANONICAL:
        raise BokehError(
            f"The kind {DepthKind.CANONICAL.value!r} is not measured between two distances: its unit comes from "
            f"focal_pixels. Choose {DepthRange.AS_IS.value!r}."
        )
    if not (min(black, white) >= 0 and black != white):
        raise BokehError(
            f"The distances of black and white are {black:g} and {white:g} metres; they must differ, and be above 0, "
            "or 0 for infinitely far."
        )
    if kind in IN_METRES:
        if min(black, white) == 0:
            raise BokehError(
                "Metres between two distances need two that are finite and above 0; infinitely far (0) is for "
                "disparity."
            )
        return black, white
    return (1 / black if black else 0.0), (1 / white if white else 0.0)


def _filled(disparity: Tensor, holes: Tensor, kind: DepthKind, notice: Notice | None) -> Tensor:
    """Maps ``[B, H, W]`` with what is not known taken from around it."""
    if not bool(holes.any()):
        return disparity
    counts = holes.flatten(1).sum(1)
    what = "0, negative or NaN" if kind in IN_METRES else "NaN or infinite"
    for row in counts.nonzero().flatten().tolist():
        known = (~holes[row])[None].to(disparity)
        if int(counts[row]) == known.numel():
            raise BokehError(
                f"All values of depth map {row + 1} of {len(holes)} are {what}: nothing is known of its depth. Choose "
                "another map, or another kind."
            )
        around = pull_push(disparity[row][None] * known, known, 32)[0]
        disparity[row] = torch.where(holes[row], around, disparity[row])
    if notice:
        notice(f"{_counted(holes)} are {what}, so nothing is known there; they were filled in from around.")
    return disparity


def _normalised(disparity: Tensor, scaling: DepthRange, notice: Notice | None) -> Tensor:
    """Maps ``[B, 1, H, W]`` from 0 to 1, each by itself or all together; in place."""
    bounds = [robust_range(plane) for plane in disparity]
    low, high = (torch.stack(each).view(-1, 1, 1, 1) for each in zip(*bounds, strict=True))
    together = scaling is DepthRange.NORMALISE_BATCH
    if together:
        low, high = low.amin().expand_as(low), high.amax().expand_as(high)
    flat = (low == high).flatten().nonzero().flatten().tolist()
    if flat:
        which = f"Depth map {flat[0] + 1} of {len(disparity)} has"
        if together and len(disparity) > 1:
            which = f"Together, the {len(disparity)} depth maps have"
        raise BokehError(
            f"{which} the same disparity {float(disparity[flat[0]].flatten()[0]):g} everywhere, so there is nothing to "
            f"normalise.{_hint(disparity)}"
        )
    if notice:
        cut = sum(
            int(((plane < least) | (plane > most)).sum())
            for plane, least, most in zip(disparity, low, high, strict=True)
        )
        if cut:
            notice(
                f"{cut} values of the depth map lie far outside what all others span, and are not counted when it is "
                "normalised."
            )
        if not together and len(disparity) > 1:
            _remark_ranges(low, high, notice)
    return disparity.sub_(low).div_(high - low).clamp_(0, 1)


_OUTLIERS = 0.001  # share of a map, at either end, that may lie far outside
_FAR_OUTSIDE = 0.5  # of what the others span


def robust_range(plane: Tensor) -> tuple[Tensor, Tensor]:
    """Least and largest value of a map ``[H, W]`` but for a few that lie far outside what the others span."""
    values = plane.flatten()
    least, most = values.aminmax()
    few = int(_OUTLIERS * len(values))
    low, high = (values.kthvalue(place).values for place in (few + 1, len(values) - few))
    reach = _FAR_OUTSIDE * (high - low)
    if not bool(reach > 0):
        return least, most
    return torch.maximum(least, low - reach), torch.minimum(most, high + reach)


def _hint(disparity: Tensor) -> str:
    return _FLATTENED if bool((disparity == 1).all()) else ""


def _remark_flat(disparity: Tensor, notice: Notice) -> None:
    low, high = disparity.amin((1, 2)), disparity.amax((1, 2))
    flat = (low == high).nonzero().flatten().tolist()
    if flat:
        notice(
            f"Depth map {flat[0] + 1} of {len(disparity)} has the same disparity {float(low[flat[0]]):g} everywhere: "
            f"the whole picture gets the same blur.{_hint(disparity)}"
        )


def _remark_white(value: Tensor, notice: Notice) -> None:
    white = float((value == 1).float().mean())
    if 0.9 < white < 1:
        notice(f"{100 * white:.0f} % of the depth map is exactly 1.0; it looks clipped.{_FLATTENED}")


def fit_to_image(
    disparity: Tensor,
    batch: int,
    height: int,
    width: int,
    notice: Notice | None = None,
    guide: Tensor | None = None,
    device: torch.device | str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Tensor:
    """Bring disparity to the batch and size of the picture it belongs to, and its edges to the picture's if told to.

    One map serves a whole batch. Another size is resized bilinearly (antialiased when shrinking), which mixes near
    and far along edges; with a ``guide`` every pixel there then decides for one of the two
    (:func:`bokeh_ops.depth.edges.align_to_image`).

    Args:
        disparity: ``[B, 1, H, W]``.
        batch: pictures; the map's own batch must be 1 or this.
        height: of the picture, in pixels.
        width: of the picture, in pixels.
        notice: told when the map was resized.
        guide: ``[batch, C, height, width]``, the pictures as displayed, 0..1, to whose edges those of the map move;
            None leaves them where they are.
        device: where the edges are moved, one picture at a time; by default where the disparity is.
        progress: called as ``progress(done, total)`` while edges are moved; may raise to stop.

    Returns:
        ``[batch, 1, height, width]``; the input itself, expanded, where nothing was done.

    Raises:
        BokehError: another batch, or a map that lies on its side.
    """
    check_fit(disparity, batch, height, width, notice)
    own_width = disparity.shape[3]
    if disparity.shape[2:] != (height, width):
        disparity = F.interpolate(
            disparity, size=(height, width), mode="bilinear", align_corners=False, antialias=True
        )
    if guide is not None:
        reach = edge_reach(height, width, width / own_width)
        return align_to_image(disparity, guide, reach, device, progress)
    return disparity.expand(batch, -1, -1, -1)


def same_shape(one: tuple[int, int], other: tuple[int, int]) -> bool:
    """Whether two sizes (width, height) are alike in aspect ratio, to 2 %."""
    stretch = (one[0] / one[1]) / (other[0] / other[1])
    return max(stretch, 1 / stretch) <= 1.02


def check_fit(disparity: Tensor, batch: int, height: int, width: int, notice: Notice | None = None) -> None:
    """Refuse disparity that :func:`fit_to_image` cannot fit, with the same arguments and errors."""
    maps, _, own_height, own_width = disparity.shape
    if maps not in (1, batch):
        raise BokehError(f"There are {maps} depth maps for {batch} images; give one, or one per image.")
    if (own_height, own_width) == (height, width):
        return
    if not same_shape((own_width, own_height), (width, height)):
        if (own_width - own_height) * (width - height) < 0:
            raise BokehError(
                f"The depth map is {own_width} x {own_height} but the image is {width} x {height}: one is upright and "
                "the other is not. Turn one of them, or give the depth map of this picture."
            )
        if notice:
            notice(
                f"The depth map is {own_width} x {own_height} but the image is {width} x {height}. It is taken to show "
                "the whole view and stretched to fit; if it was cropped, crop the image alike."
            )
        return
    if notice:
        notice(f"The depth map was resized from {own_width} x {own_height} to {width} x {height}.")


def _remark_ranges(low: Tensor, high: Tensor, notice: Notice) -> None:
    """Say where maps ``[B, 1, 1]`` that were each normalised by itself differ in range, as the frames of a video do."""
    whole = float(high.max() - low.min())
    differ = max(float(bound.max() - bound.min()) for bound in (low, high)) / whole
    if differ > _UNALIKE:
        notice(
            f"Each of the {len(low)} depth maps is normalised by itself, and their ranges differ by "
            f"{100 * differ:.0f} %. For the frames of one video choose {DepthRange.NORMALISE_BATCH.value!r}, or the "
            "blur flickers."
        )


def _option(kind: type, value: object):
    try:
        return kind(value)
    except ValueError as error:
        known = ", ".join(repr(member.value) for member in kind)  # type: ignore[attr-defined]
        raise BokehError(f"{value!r} is not one of: {known}.") from error


def one_channel(depth: Tensor) -> Tensor:
    """``[B, H, W]`` from a mask or a grey picture of floating point numbers.

    Raises:
        BokehError: another shape or type, nothing in it, or colours that differ.
    """
    if depth.ndim not in (3, 4) or (depth.ndim == 4 and depth.shape[3] not in (1, 3, 4)):
        raise BokehError(
            f"Expected a depth map as a picture [B, H, W, 1 to 4] or a mask [B, H, W]; got "
            f"{tuple(depth.shape)}."
        )
    if 0 in depth.shape:
        raise BokehError(f"The depth map is empty: its shape is {tuple(depth.shape)}.")
    if not depth.is_floating_point():
        raise BokehError(f"Expected a floating point depth map; got {depth.dtype}.")
    if depth.ndim == 3:
        return depth
    colours = depth[..., :3]
    first = colours[..., 0]
    if all(bool((one == one[..., :1]).all()) for one in colours):
        return first
    spread, size, count = 0.0, 0.0, 0
    for one in colours:  # map by map: all at once would take more memory than the maps
        finite = one[torch.isfinite(one).all(-1)].float()
        if len(finite):
            spread += float((finite.amax(-1) - finite.amin(-1)).sum(dtype=torch.float64))
            size = max(size, float(finite.abs().max()))
            count += len(finite)
    # A grey picture that went through JPEG differs by a few levels between its channels; a colour map by far
    # more.
    if count and spread / count > 0.02 * size:
        raise BokehError(
            f"The depth map is coloured (its channels differ by {spread / count:.3f} on average). "
            "Colours do not say what is near; use a grey map."
        )
    return colours.mean(-1)


def _refuse(bad: Tensor, value: Tensor, what: str, remedy: str) -> None:
    """Raise, saying how many values of the map ``[B, H, W]`` are bad and where the first is."""
    if bool(bad.any()):
        raise BokehError(f"{_counted(bad)} {what}; the first is {float(value[bad][0]):g}. {remedy}")


def _counted(found: Tensor) -> str:
    """How many values of a map ``[B, H, W]`` were found, and where the first is."""
    image, y, x = found.nonzero()[0].tolist()
    return (
        f"{int(found.sum())} of {found.numel()} values of the depth map (the first in map {image + 1} at x = {x}, "
        f"y = {y})"
    )
