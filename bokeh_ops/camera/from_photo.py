"""K and focus of a photograph that exists, from its EXIF data or else from its pixels, and how sure that is."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from enum import Enum

import torch.nn.functional as F
from torch import Tensor

from ..depth.conventions import DepthMap, DepthUnit, fit_to_image, same_shape
from ..depth.focus import focus_in_mask
from ..errors import BokehError
from ..numbers import PerDioptre, format_value
from .blur import BlurFit, Evidence, fit, gather, working_size
from .exif import CameraExif, fill_in
from .optics import FULL_FRAME_WIDTH, Camera, metres

PORTRAIT = (7, 8)
"""CustomRendered of telephones' portrait modes, whose blur no lens made."""

_TOLD = 0.9  # confidence in what EXIF data tell of lens and sensor
_MASKED = 0.8  # in the focus where a mask says what is sharp
_DISTANCE = 0.7  # in SubjectDistance, which cameras round coarsely
_ABOUT_MASK = (
    0.05  # share of the range of disparity about a mask's median within which the focus is looked for
)
_WORDS = ((0.6, "good"), (1 / 3, "fair"), (0.0, "poor"))
_NEEDED = {"f_number": "f-number", "focal_length": "focal length"}


class Source(str, Enum):
    """Where K is taken from."""

    AUTO = "auto (EXIF, else pixels)"
    EXIF = "EXIF"
    PIXELS = "pixels"


@dataclass(frozen=True)
class PhotoBlur:
    """K and focus of one photograph.

    Attributes:
        k: pixels of blur radius per unit of disparity at 512 px; :class:`~bokeh_ops.numbers.PerDioptre` where the unit
            is known.
        focus: disparity in focus, in the map's unit.
        distance: metres; None where the map has no unit. May be infinite.
        confidence: 0 to 1.
        text: all of it in words, and what was missing.
        doubtful: whether the confidence is poor, or all is sharp.
        size: height and width of the copy that was looked at.
    """

    k: float
    focus: float
    distance: float | None
    confidence: float
    text: str
    doubtful: bool
    size: tuple[int, int]


def exif_lacks(exif: CameraExif | None, height: int, width: int) -> str | None:
    """Why EXIF data do not tell the K of a picture of this size; None where they do.

    Args:
        exif: of the photograph; None where none was given.
        height, width: of the picture that K is for, in pixels.
    """
    if exif is None:
        return "no photograph file is given to read EXIF data from"
    if "exif" in exif.reasons:
        return exif.reasons["exif"]
    absent = [
        f"{label} ({exif.reasons.get(name, 'unknown')})"
        for name, label in _NEEDED.items()
        if getattr(exif, name) is None
    ]
    if exif.sensor_shown is None:
        absent.append("size of the sensor (the camera is in no table, and has no 35 mm equivalent)")
    if absent:
        return f"the EXIF data lack the {' and the '.join(absent)}"
    if exif.custom_rendered in PORTRAIT:
        return "the telephone made the blur itself (portrait mode), so its lens does not tell it"
    shown = exif.upright_size
    if not (same_shape(shown, (width, height)) or same_shape(shown, (height, width))):
        return (
            f"the photograph file is {shown[0]} x {shown[1]} but the picture is {width} x {height}, so another crop, "
            "and what it shows of the sensor is not known"
        )
    nearest = exif.focus_distance
    if nearest is not None and exif.focal_length is not None and nearest <= exif.focal_length:
        return f"the EXIF data's focus distance of {nearest:g} m is within the focal length, which cannot be true"
    return None


def from_photograph(
    picture: Tensor,
    depth: DepthMap,
    mask: Tensor | None = None,
    exif: CameraExif | None = None,
    source: Source | str = Source.AUTO,
) -> PhotoBlur:
    """K and focus of one photograph.

    From EXIF data K is the camera's (:meth:`.Camera.k`), and the focus SubjectDistance, or the mask's depth, or what
    pixels say at that K. From pixels both are what explains the picture's blur (:mod:`.blur`), with a mask the focus at
    its depth.

    Args:
        picture: ``[1, C, H, W]`` as displayed, 0..1, C = 1, 3 or 4 (alpha is not looked at), any size.
        depth: of this picture, ``[1, 1, h, w]``.
        mask: ``[1, h, w]``, white where the picture is sharp.
        exif: of the photograph's file.
        source: where K is taken from.

    Raises:
        BokehError: EXIF is asked for and does not tell K, or the depth is in no unit; the picture's pixels tell
            nothing or are not finite; a mask that is empty; a depth map that lies on its side.
    """
    source = Source(source)
    if not picture.isfinite().all():
        raise BokehError("The picture has values that are NaN or infinite; all must be finite.")
    height, width = picture.shape[-2:]
    size = working_size(height, width)
    disparity = fit_to_image(depth.disparity.float(), 1, *size)
    known = depth.unit is DepthUnit.DIOPTRES
    sharp = None if mask is None else float(focus_in_mask(disparity, mask)[0])
    lack = exif_lacks(exif, height, width)
    if lack is None and not known:
        lack = "the depth map has no unit, and the EXIF data tell K per dioptre"
    if source is Source.EXIF and lack:
        raise BokehError(
            f"K is not to be had from EXIF data: {lack}. Choose {Source.PIXELS.value!r}, or use Bokeh K From Camera."
        )
    small = F.interpolate(picture[:, :3].float(), size=size, mode="area")
    if source is not Source.PIXELS and lack is None and exif is not None:
        return _by_exif(exif, small, disparity, sharp, size)
    evidence = gather(small, disparity)
    found = fit(evidence, focus=_about(sharp, evidence))
    return _by_pixels(found, known, sharp is not None, size, None if source is Source.PIXELS else lack)


def _about(sharp: float | None, evidence: Evidence) -> tuple[float, float] | None:
    if sharp is None:
        return None
    reach = _ABOUT_MASK * (evidence.bounds[1] - evidence.bounds[0])
    return sharp - reach, sharp + reach


def _by_exif(
    exif: CameraExif, small: Tensor, disparity: Tensor, sharp: float | None, size: tuple[int, int]
) -> PhotoBlur:
    distance, confidence = exif.focus_distance, _DISTANCE
    how = "SubjectDistance of the EXIF data"
    missing = ""
    camera, taken, _ = fill_in(Camera(0.05, 2.0, 2.0, FULL_FRAME_WIDTH), exif)
    if distance is None:
        reason = exif.reasons.get("focus_distance", "it is unknown")
        if sharp is not None:
            focus, how, confidence = sharp, "the depth of the mask", _MASKED
            missing = f" The EXIF data tell no focus distance ({reason}): it is taken from the mask."
        else:
            evidence = gather(small, disparity)
            middle = replace(camera, focus_distance=_distance(float(evidence.disparity.median())))
            found = fit(evidence, k=middle.k())
            focus, how, confidence = found.focus, f"{found.patches} patches of the picture", found.confidence
            missing = (
                f" The EXIF data tell no focus distance ({reason}), and no mask is linked: it is from pixels."
            )
        distance = _distance(focus)
    focus = 1 / distance
    camera = replace(camera, focus_distance=distance)
    confidence = min(_TOLD, confidence)
    low, high = (float(end) for end in disparity.aminmax())
    if not low <= focus <= high:
        confidence *= 0.5
        missing += (
            f" That lies outside the depth map, which runs from {metres(_distance(high))} to "
            f"{metres(_distance(low))}: one of the two may be wrong."
        )
    text = (
        f"K = {format_value(camera.k())} px of blur radius per dioptre at 512 px, by EXIF ({', '.join(taken)}). "
        f"Focus at {focus:.3g} dioptres ({metres(distance)}), by {how}. {_sure(confidence)}{missing}"
    )
    return PhotoBlur(
        PerDioptre(camera.k()), focus, distance, confidence, text, confidence < _WORDS[1][0], size
    )


def _by_pixels(
    found: BlurFit, known: bool, masked: bool, size: tuple[int, int], lack: str | None
) -> PhotoBlur:
    unit = "dioptre" if known else "unit of disparity"
    place = f"{found.focus:.3g}" + (
        f" dioptres ({metres(_distance(found.focus))})" if known else " of the depth map"
    )
    text = (
        f"K = {format_value(found.k)} px of blur radius per {unit} at 512 px, give or take "
        f"{100 * min(found.k_error, 9.99):.0f} %. Focus at {place}{', about the mask' if masked else ''}. By "
        f"{found.patches} patches of the picture, looked at in {size[1]} x {size[0]}. {_sure(found.confidence)}"
    )
    if lack:
        text += f" Not from EXIF: {lack}."
    if found.sharp:
        text += " That it is sharp all over explains as much."
    k = PerDioptre(found.k) if known else found.k
    distance = _distance(found.focus) if known else None
    doubtful = found.sharp or found.confidence < _WORDS[1][0]
    return PhotoBlur(k, found.focus, distance, found.confidence, text, doubtful, size)


def _sure(confidence: float) -> str:
    word = next(word for least, word in _WORDS if confidence >= least)
    return f"Confidence {confidence:.2f}: {word}."


def _distance(disparity: float) -> float:
    return 1 / disparity if disparity > 1e-6 else math.inf
