"""Depth from what ComfyUI's own nodes for Depth Anything 3 and MoGe give, geometry in a dictionary.

========== ================================================= ====================================================
key        Depth Anything 3 (it has a ``mode``)              MoGe
========== ================================================= ====================================================
depth      ``[B, H, W]``, as the network put it out          ``[B, H, W]``, infinite where ``mask`` is False
sky        ``[B, H, W]``, probability; Mono and Metric       (the mask)
confidence ``[B, H, W]``, any scale; Small and Base          (none)
intrinsics ``[1, B, 3, 3]``, pixels of the network's picture ``[B, 3, 3]``, shares of the picture; not of panoramas
mask       (none)                                            ``[B, H, W]``, False for sky and what is not known
normal     (none)                                            ``[B, H, W, 3]``, from version 2 on, which measures
========== ================================================= ====================================================
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from enum import Enum
from typing import Any

import torch
from torch import Tensor

from ..errors import BokehError
from .conventions import DepthKind, DepthMap, DepthUnit, Notice, to_depth_map

SKY = 0.3
"""From this probability on Depth Anything 3 takes a pixel for sky."""
_CANONICAL_FOCAL = 300.0
_KEYS = "depth (from Run Depth Anything 3 or Run MoGe Inference)"


class GeometryUnit(str, Enum):
    """What one unit of a geometry's depth is."""

    AUTOMATIC = "as the geometry tells"
    METRES = "metres"
    DA3_METRIC = "Depth Anything 3 Metric"
    """Metres times 300, over the focal length in pixels of the picture that the network saw."""
    RELATIVE = "no unit"


def from_geometry(
    geometry: object,
    unit: GeometryUnit | str = GeometryUnit.AUTOMATIC,
    focal_pixels: float = 0.0,
    resolution: int = 504,
    confidence: float = 0.0,
    notice: Notice | None = None,
) -> DepthMap:
    """Disparity that knows its unit, from the dictionary of Depth Anything 3's or MoGe's node.

    Sky has disparity 0. What is NaN, 0 or negative is filled in from around it.

    Args:
        geometry: as in the table above.
        unit: of its depth. It tells by itself only that MoGe's is metres, by its normals.
        focal_pixels: of the picture, in pixels of its width; 0: the geometry's own.
        resolution: longest side of the picture that Depth Anything 3 saw; used for ``DA3_METRIC`` alone.
        confidence: 0..1: what is less confident, where each map's least is 0 and its most 1, is filled in too.
        notice: told what was filled in, and where the unit is not known.

    Returns:
        Its focal length is the median over the pictures, or what was given.

    Raises:
        BokehError: no geometry, no depth in it, nothing but sky in all pictures, confidence 0 everywhere, nothing known
            of a picture; ``DA3_METRIC`` without a focal length.
    """
    unit = GeometryUnit(unit)
    found = _mapping(geometry)
    depth = _plane(found, "depth")
    da3 = "mode" in found
    focal = focal_pixels if focal_pixels > 0 else _focal(found, depth.shape[2], da3)
    sky = torch.isposinf(depth)
    if "sky" in found:
        sky |= _plane(found, "sky", depth) >= SKY
    if "mask" in found:
        sky |= ~_plane(found, "mask", depth).bool()
    _check_sky(sky, depth, notice)
    if "confidence" in found:
        depth = _confident(depth, _plane(found, "confidence", depth), confidence, notice)
    depth = torch.where(sky, torch.inf, depth)
    if unit is GeometryUnit.DA3_METRIC:
        if not focal:
            raise BokehError(
                f"{unit.value!r} measures in focal lengths, so it needs focal_pixels: the focal length in pixels of "
                f"the picture's width ({depth.shape[2]} pixels; 26 mm on full frame is 0.72 of it, 50 mm is "
                "1.39). Give it, or choose 'no unit'."
            )
        seen = focal * resolution / max(depth.shape[1:])
        depth = depth * (seen / _CANONICAL_FOCAL)
    made = to_depth_map(depth, DepthKind.METRIC, notice=notice)
    measured = unit in (GeometryUnit.METRES, GeometryUnit.DA3_METRIC)
    if unit is GeometryUnit.AUTOMATIC:
        measured = not da3 and "normal" in found
        if not measured and notice:
            notice(_unknown_unit(found, da3))
    return replace(
        made, unit=DepthUnit.DIOPTRES if measured else DepthUnit.RELATIVE, focal_pixels=focal or None
    )


def _mapping(geometry: object) -> Mapping[str, Any]:
    if not isinstance(geometry, Mapping):
        raise BokehError(f"Expected geometry with {_KEYS}; got {type(geometry).__name__}.")
    if not isinstance(geometry.get("depth"), Tensor):
        have = ", ".join(sorted(map(str, geometry))) or "nothing"
        raise BokehError(f"The geometry has no depth: it holds {have}. Expected {_KEYS}.")
    return geometry


def _plane(found: Mapping[str, Any], key: str, depth: Tensor | None = None) -> Tensor:
    """``[B, H, W]`` fp32 on the CPU, of the depth's shape."""
    plane = found[key]
    shape = tuple(plane.shape) if isinstance(plane, Tensor) else type(plane).__name__
    if not isinstance(plane, Tensor) or plane.ndim != 3 or 0 in plane.shape:
        raise BokehError(f"The geometry's {key} is {shape}; expected [B, H, W], not empty.")
    if depth is not None and plane.shape != depth.shape:
        raise BokehError(
            f"The geometry's {key} is {shape} but its depth {tuple(depth.shape)}; expected the same."
        )
    return plane.detach().float().cpu()


def _check_sky(sky: Tensor, depth: Tensor, notice: Notice | None) -> None:
    unknown = torch.isnan(depth)
    empty = [row for row in range(len(sky)) if bool((sky[row] | unknown[row]).all())]
    nothing = [row for row in empty if len(empty) == len(sky) or bool(unknown[row].all())]
    if nothing:
        row = nothing[0]
        what = "NaN" if bool(unknown[row].all()) else "sky or masked out"
        raise BokehError(
            f"All of picture {row + 1} of {len(sky)} is {what} in the geometry, so nothing is known of its depth. "
            "Use another picture or another model, or switch apply_mask off."
        )
    if empty and notice:
        which = ", ".join(str(row + 1) for row in empty)
        notice(
            f"All of picture {which} of {len(sky)} is sky or masked out: it is taken to be infinitely far."
        )


def _confident(depth: Tensor, confidence: Tensor, least: float, notice: Notice | None) -> Tensor:
    """Depth with holes where it is not certain enough."""
    # As the host's nodes reckon: each picture's least is 0, its most is 1; all are 1 where they are alike.
    low, high = confidence.amin((1, 2), keepdim=True), confidence.amax((1, 2), keepdim=True)
    for row in range(len(depth)):
        if not bool(high[row] > 0):
            raise BokehError(
                f"The confidence of picture {row + 1} of {len(depth)} is {float(high[row]):g} at most: the model is "
                "sure of no pixel's depth. Use another picture or another model."
            )
    if least <= 0:
        return depth
    share = torch.where(high > low, (confidence - low) / (high - low), 1.0)
    unsure = ~(share >= least)
    if notice and bool(unsure.any()):
        notice(f"{100 * float(unsure.float().mean()):.1f} % of the depth is less confident than {least:g}.")
    return depth.masked_fill(unsure, torch.nan)


def _focal(found: Mapping[str, Any], width: int, da3: bool) -> float:
    """Median focal length in pixels of the picture's width; 0 where it is not known."""
    matrices: Any = found.get("intrinsics")
    if not isinstance(matrices, Tensor) or matrices.ndim < 3 or matrices.shape[-2:] != (3, 3):
        return 0.0
    matrices = matrices.detach().float().cpu().reshape(-1, 3, 3)
    # Depth Anything 3 counts pixels of what it saw, whose width is twice its centre's; MoGe counts the width as 1.
    across = 2 * matrices[:, 0, 2] if da3 else torch.ones(len(matrices))
    focal = matrices[:, 0, 0] / across * width
    focal = focal[torch.isfinite(focal) & (focal > 0)]
    return float(focal.median()) if len(focal) else 0.0


def _unknown_unit(found: Mapping[str, Any], da3: bool) -> str:
    if not da3 and "intrinsics" not in found:
        return "The depth of a panorama has no unit: it knows near and far, not metres."
    if not da3:
        return (
            "MoGe's geometry without normals does not tell its unit, so its depth is taken as relative: near and far, "
            "not metres. Choose 'metres' for a model of MoGe 2 or 3."
        )
    if "sky" in found:
        return (
            "Depth Anything 3 Mono and Metric look alike, so this depth is taken as relative: near and far, not "
            f"metres. Choose {GeometryUnit.DA3_METRIC.value!r} and give focal_pixels if it is the Metric model."
        )
    return "This depth has no unit: Depth Anything 3 Small and Base know near and far, not metres."
