"""How much blur bokehNet is asked for: defocus in pixels, from a strength in any unit."""

from __future__ import annotations

from enum import Enum

import torch
from torch import Tensor

from ..camera.optics import TRAINING_WIDTH
from ..camera.strength import Strength
from ..depth.conventions import DepthKind, DepthMap, DepthRange, DepthUnit, Notice, to_depth_map
from ..depth.focus import Focus
from ..depth.frames import Progress, fit_frames
from ..errors import BokehError
from ..render.contract import Lens


class StrengthUnit(str, Enum):
    """What a strength of blur counts."""

    REFERENCE = f"K at {TRAINING_WIDTH} px"
    IMAGE = "K at image px"
    STOPS = "f-number"
    RADIUS = "largest radius in px"


def defocus_maps(
    depth: Tensor | DepthMap,
    focus: Focus,
    strength: float,
    unit: StrengthUnit | str,
    pictures: Tensor,
    notice: Notice | None = None,
    device: torch.device | str | None = None,
    progress: Progress | None = None,
) -> list[Tensor]:
    """Signed defocus of pictures, for every step of a focus pull.

    Args:
        depth: of the pictures, knowing its unit; or a grey map whose bright is near, which has none.
        focus: what stays sharp.
        strength: > 0.
        unit: what it counts: K, pixels of blur radius per dioptre, on a picture of :data:`TRAINING_WIDTH` or of this
            size; an f-number, of a full-frame camera with the picture's field of view; or the radius in pixels of
            whatever is blurred most in each picture, which needs no unit of depth.
        pictures: ``[B, C, H, W]`` as displayed, 0..1, to whose edges soft ones of the map move.
        notice: told what the user should know.
        device: where edges are moved.
        progress: called as ``progress(done, total)`` meanwhile; may raise to stop.

    Returns:
        ``[B, 1, H, W]`` each, in pixels of blur radius, positive in front of the focus.

    Raises:
        BokehError: a strength that is not above 0 and finite; depth without a unit for K or an f-number; no focal
            length for an f-number; what reading depth and finding the focus raise.
    """
    unit = StrengthUnit(unit)
    batch, _, height, width = pictures.shape
    if not 0 < strength < float("inf"):
        raise BokehError(f"The strength is {strength:g} ({unit.value}); give one above 0.")
    known = isinstance(depth, DepthMap)
    dioptres = known and depth.unit is DepthUnit.DIOPTRES
    if unit is not StrengthUnit.RADIUS and not dioptres:
        raise BokehError(
            f"The strength is {unit.value!r}, which counts from metres, but the depth that is linked has no unit"
            f"{'' if known else ' (a grey picture)'}: it knows near and far alone. Take Estimate Depth with a model "
            f"that measures, such as Depth Pro, or Depth From Geometry; or set strength_unit to "
            f"{StrengthUnit.RADIUS.value!r}."
        )
    scaling = DepthRange.AS_IS if dioptres else DepthRange.NORMALISE_BATCH
    found = to_depth_map(depth, DepthKind.DISPARITY, scaling, notice=notice)
    focal = (found.focal_pixels or 0.0) / found.disparity.shape[3]
    if unit is StrengthUnit.STOPS and not focal:
        raise BokehError(
            f"The strength is an {unit.value}, which needs the focal length of the picture, and its depth does not "
            "tell it. Link Estimate Depth with Depth Pro, or Depth From Geometry; or choose another strength_unit."
        )
    maps = fit_frames(
        found.disparity, batch, height, width, notice, lambda row: pictures[row : row + 1], device, progress
    )
    disparity = torch.cat([one.float().cpu() for one in maps])
    side = max(height, width) if unit is StrengthUnit.IMAGE else TRAINING_WIDTH
    defocus = []
    for at in focus.find(maps, dioptres, notice):
        k: float | Tensor = 1.0
        if unit is not StrengthUnit.RADIUS:
            asked = Strength([strength], unit is StrengthUnit.STOPS, side)
            (k,) = asked.at(at.disparity, height, width, focal)
        blurred = Lens(k, at.disparity, focus_band=at.band, sharp=at.sharp).defocus(disparity)
        if unit is StrengthUnit.RADIUS:
            most = blurred.abs().amax((1, 2, 3), keepdim=True)
            if bool((most == 0).any()):
                raise BokehError(
                    "All of a picture lies in focus, so nothing can be blurred: its depth is the same everywhere. "
                    "Check the depth map."
                )
            blurred = blurred * (strength / most)
        defocus.append(blurred)
    return defocus
