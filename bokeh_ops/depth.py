"""From any depth map to disparity: what bright means and in which units is said, never guessed.

Disparity is 1/depth (dioptres when depth is in metres), or anything that grows linearly with it. Larger is
nearer. Blur is linear in disparity (``delta = K (disparity - focus_disparity)``), which is why every lens
model here takes disparity.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import Tensor

from .errors import BokehError
from .guided import align_to_image, edge_reach

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
    CANONICAL = "canonical (Depth Pro)"


class DepthRange(str, Enum):
    """What the values of a depth map are measured in."""

    AS_IS = "as is"
    NORMALISE = "normalise to 0..1"
    NORMALISE_BATCH = "normalise over the batch"
    SCALE = "multiply by scale"


NORMALISED = (DepthRange.NORMALISE, DepthRange.NORMALISE_BATCH)
"""Ranges that forget the units."""


class DepthEdges(str, Enum):
    """Where the edges of a depth map are put."""

    ALIGNED = "aligned to the image"
    AS_IS = "as is"


_UNALIKE = 0.02  # share of the whole range by which the ranges of maps may differ without remark

_FLATTENED = (
    " A map of only 1.0 is what ComfyUI's Load Image makes of a 16-bit greyscale PNG; "
    'load such a file with "Load Depth Map (16 bit)" instead.'
)


def to_disparity(
    depth: Tensor,
    kind: DepthKind | str = DepthKind.DISPARITY,
    scaling: DepthRange | str = DepthRange.AS_IS,
    scale: float = 1.0,
    notice: Notice | None = None,
    focal_pixels: float = 0.0,
) -> Tensor:
    """Disparity from a depth map.

    ========= ============== ====================== =====================================
    kind      as is          multiply by scale      normalise to 0..1 (each map by itself)
    ========= ============== ====================== =====================================
    disparity ``v``          ``v * scale``          ``v`` from its least to its largest
    inverted  ``1 - v``      ``(1 - v) * scale``    ``-v`` from its least to its largest
    metric    ``1 / v``      ``1 / (v * scale)``    ``1 / v`` from its least to its largest
    canonical ``v w / f``    ``v w / f * scale``    ``v`` from its least to its largest
    ========= ============== ====================== =====================================

    So ``scale`` is dioptres at the brightest value for the first two kinds, and metres at value 1.0 for
    metric depth. Normalising is BokehMe's convention and forgets the units: K then counts pixels between the
    farthest and the nearest point. Over the batch, the least and largest are those of all maps together, so that
    the frames of a video keep one measure.

    Canonical inverse depth is what Depth Pro (Bochkovskii et al. 2024) predicts before it knows the camera:
    metres are ``f / (w v)``, with ``f`` the focal length in pixels and ``w`` the width in pixels of the picture it
    saw, which is the map's. (Most programs hand its metres on; these are the kind *metric*.)

    Args:
        depth: ``[B, H, W]``, or a picture ``[B, H, W, C]`` with C = 1, 3 or 4 whose colours are equal.
            Any floating type. Metric depth may be +infinity (the sky): its disparity is 0.
        kind: what the values mean.
        scaling: what they are measured in.
        scale: > 0, used with ``DepthRange.SCALE`` only.
        notice: called with a sentence when the result is legitimate but of little use.
        focal_pixels: ``f`` above, > 0; used for canonical maps only, and not where these are normalised.

    Returns:
        ``[B, 1, H, W]`` fp32 (fp64 from fp64), larger is nearer, finite.

    Raises:
        BokehError: not a depth map (rank, channels, colours, empty); NaN or infinite values; metric depth of
            0 or below; inverted values outside 0..1 unless normalised; nothing to normalise; ``scale`` not
            above 0; a canonical map without its focal length.
    """
    kind, scaling = _option(DepthKind, kind), _option(DepthRange, scaling)
    if scaling is DepthRange.SCALE and not (np.isfinite(scale) and scale > 0):
        raise BokehError(f"The depth scale is {scale}; it must be above 0.")
    normalised = scaling in NORMALISED
    canonical = kind is DepthKind.CANONICAL and not normalised
    if canonical and not (np.isfinite(focal_pixels) and focal_pixels > 0):
        raise BokehError(
            f"The kind {DepthKind.CANONICAL.value!r} needs the focal length in pixels that came with the depth map, "
            f"but it is {focal_pixels:g}. Give it, or choose {DepthRange.NORMALISE.value!r}."
        )
    value = _one_channel(depth)
    value = value if value.dtype == torch.float64 else value.float()
    _refuse(torch.isnan(value), value, "are NaN", "Mend the depth map first.")
    factor = scale if scaling is DepthRange.SCALE else 1.0
    if kind is DepthKind.METRIC:
        _refuse(
            value <= 0, value, "are 0 or negative metres", "Depth must be above 0; set the sky to +infinity."
        )
        disparity = 1 / (value * factor)
        _refuse(torch.isinf(disparity), value, "are so near that 1/depth overflows", "Check the units.")
    else:
        _refuse(
            torch.isinf(value),
            value,
            "are infinite",
            f"Only the kind {DepthKind.METRIC.value!r} may have them.",
        )
        if kind is DepthKind.INVERTED and not normalised:
            outside = (value < -1e-3) | (value > 1 + 1e-3)
            _refuse(
                outside,
                value,
                "lie outside 0..1, so 1 - value is no disparity",
                f"Choose {DepthRange.NORMALISE.value!r}, or the kind {DepthKind.METRIC.value!r} for metres.",
            )
        near = 1 - value if kind is DepthKind.INVERTED else value
        disparity = near * (factor * value.shape[2] / focal_pixels if canonical else factor)
    low, high = disparity.amin((1, 2), keepdim=True), disparity.amax((1, 2), keepdim=True)
    if scaling is DepthRange.NORMALISE_BATCH:
        low, high = (bound.expand_as(low) for bound in (low.amin(), high.amax()))
    flat = (low == high).flatten().nonzero().flatten().tolist()
    hint = _FLATTENED if bool((value == 1).all()) else ""
    if normalised:
        if flat:
            which = f"Depth map {flat[0] + 1} of {len(value)} has"
            if scaling is DepthRange.NORMALISE_BATCH and len(value) > 1:
                which = f"Together, the {len(value)} depth maps have"
            raise BokehError(
                f"{which} the same value {float(value[flat[0], 0, 0]):g} "
                f"everywhere, so there is nothing to normalise.{hint}"
            )
        disparity = (disparity - low) / (high - low)
        if notice and scaling is DepthRange.NORMALISE and len(value) > 1:
            _remark_ranges(low, high, notice)
    elif flat and notice:
        notice(
            f"Depth map {flat[0] + 1} of {len(value)} has the same value {float(value[flat[0], 0, 0]):g} "
            f"everywhere: the whole picture gets the same blur.{hint}"
        )
    white = float((value == 1).float().mean())
    if notice and not hint and white > 0.9:
        notice(f"{100 * white:.0f} % of the depth map is exactly 1.0; it looks clipped.{_FLATTENED}")
    return disparity[:, None]


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
    (:func:`bokeh_ops.guided.align_to_image`).

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
        BokehError: another batch, or an aspect ratio that differs by more than 2 %.
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


def check_fit(disparity: Tensor, batch: int, height: int, width: int, notice: Notice | None = None) -> None:
    """Refuse disparity that :func:`fit_to_image` cannot fit, with the same arguments and errors."""
    maps, _, own_height, own_width = disparity.shape
    if maps not in (1, batch):
        raise BokehError(f"There are {maps} depth maps for {batch} images; give one, or one per image.")
    if (own_height, own_width) == (height, width):
        return
    stretch = (own_width / own_height) / (width / height)
    if max(stretch, 1 / stretch) > 1.02:
        raise BokehError(
            f"The depth map is {own_width} x {own_height} but the image is {width} x {height}: their "
            "shapes differ by more than 2 %. Crop one of them so that both show the same view."
        )
    if notice:
        notice(f"The depth map was resized from {own_width} x {own_height} to {width} x {height}.")


def load_depth(path: str | os.PathLike[str], notice: Notice | None = None) -> Tensor:
    """Read a depth map from a picture file without losing its precision.

    8-bit files give value/255, 16-bit files value/65535 (also where Pillow reads them as 32-bit integers),
    32-bit floating point TIFF gives its values as they are. EXIF orientation is applied.

    Args:
        path: a greyscale PNG, TIFF, ... or an RGB picture of equal channels.
        notice: told when precision is lost: of colours of 16 bits only 8 are read.

    Returns:
        ``[1, H, W]`` fp32.

    Raises:
        BokehError: the file cannot be read, is coloured, or holds integers above 65535.
    """
    try:
        with Image.open(path) as opened:
            deep = any(";16" in str(tile[3]) for tile in getattr(opened, "tile", []))
            opened.load()
            picture = ImageOps.exif_transpose(opened) or opened
    except OSError as error:
        raise BokehError(f"Could not read the depth map {os.fspath(path)!r}: {error}") from error
    if picture.mode == "F":
        values = np.array(picture, dtype=np.float32)
    elif picture.mode == "I" or picture.mode.startswith("I;16"):
        integers = np.array(picture).astype(np.int64)
        if integers.min() < 0 or integers.max() > 65535:
            raise BokehError(
                f"The depth map {os.fspath(path)!r} holds integers from {integers.min()} to "
                f"{integers.max()}; expected 16 bits (0 to 65535) or floating point."
            )
        values = (integers / 65535).astype(np.float32)
    elif picture.mode in ("1", "L"):
        values = np.array(picture.convert("L"), dtype=np.float32) / 255
    else:
        values = np.array(picture.convert("RGB"), dtype=np.float32) / 255
        if deep and notice:
            notice(
                f"The depth map {os.fspath(path)!r} is a colour picture of 16 bits, of which only 8 are read: the blur "
                "may show steps. Save the map as a greyscale picture of 16 bits."
            )
    return _one_channel(torch.from_numpy(values)[None])


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


def _one_channel(depth: Tensor) -> Tensor:
    """``[B, H, W]`` from a mask or a grey picture."""
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
    count = int(bad.sum())
    if count:
        image, y, x = bad.nonzero()[0].tolist()
        first = float(value[image, y, x])
        raise BokehError(
            f"{count} of {bad.numel()} values of the depth map {what} (the first, {first:g}, is in map "
            f"{image + 1} at x = {x}, y = {y}). {remedy}"
        )
