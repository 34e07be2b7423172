"""The thin lens, sensors, and what "K" means in the systems that use the word.

Lengths are metres and widths of pictures pixels throughout: 50 mm is ``0.05``. Widths of pictures and sensors are
those of a camera that is not turned, so the longer side of each: turning a camera changes no blur. Every function takes
numbers or tensors (broadcast against each other). Disparity is ``1 / distance``, in dioptres (1/m); a distance may be
infinite.

Source: Fortes et al., "Bokeh Diffusion" (SIGGRAPH Asia 2025), eqs. 6 to 9.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import BokehError
from ..numbers import format_value

Quantity = float | Tensor

TRAINING_WIDTH = 512
"""Longer side in pixels of the picture on which Bokeh Diffusion counts K."""

BOKEHDIFF_UNIT = 10.0
"""Pixels of blur radius that BokehDiff's defocus channel counts as 1."""

FULL_FRAME_WIDTH = 0.036
FULL_FRAME_DIAGONAL = math.hypot(0.036, 0.024)

SENSORS: dict[str, tuple[float, float]] = {
    "Full frame": (36.0, 24.0),
    "APS-C": (23.5, 15.6),
    "APS-C (Canon)": (22.3, 14.9),
    "APS-H (Canon)": (27.9, 18.6),
    "Micro Four Thirds": (17.3, 13.0),
    "1 inch": (13.2, 8.8),
    "2/3 inch": (8.8, 6.6),
    "1/1.7 inch": (7.6, 5.7),
    "1/1.8 inch": (7.18, 5.32),
    "1/2.3 inch": (6.17, 4.55),
    "Medium format 44 x 33": (43.8, 32.9),
    "Medium format 645": (53.4, 40.0),
    "Super 35": (24.89, 18.66),
    "iPhone 14 Pro to 16 Pro, main": (9.84, 7.38),
    "iPhone 15, 16, main": (8.06, 6.05),
    "iPhone 13 Pro, 14, main": (7.66, 5.75),
    "iPhone 12 Pro Max, 13, main": (6.85, 5.14),
    "iPhone XS to 12 Pro, main": (5.64, 4.23),
}
"""Width and height in **millimetres** by the makers' data; phones from pixel pitch times number of pixels."""


def coc_diameter(
    focal_length: Quantity, f_number: Quantity, focus_distance: Quantity, subject_distance: Quantity
) -> Quantity:
    """Diameter of the circle of confusion on the sensor, in metres (eqs. 6 and 8).

        d = f^2 / (N (S1 - f)) |S2 - S1| / S2 = f^2 S1 / (N (S1 - f)) |1/S1 - 1/S2|

    Args:
        focal_length: ``f``, metres.
        f_number: ``N``.
        focus_distance: ``S1``, metres; may be infinite.
        subject_distance: ``S2``, metres; may be infinite.

    Raises:
        BokehError: a quantity that is not above 0, or a focus no farther than the focal length.
    """
    _above_zero(subject_distance, "subject distance", "metres", infinite=True)
    return _reach(focal_length, f_number, focus_distance) * _difference(focus_distance, subject_distance)


def blur_radius(k: Quantity, focus_distance: Quantity, subject_distance: Quantity) -> Quantity:
    """Blur radius in pixels, ``K |1/S1 - 1/S2|`` (eq. 7), at the width at which K is counted.

    Args:
        k: pixels of radius per dioptre, 0 or more.
        focus_distance: ``S1``, metres; may be infinite.
        subject_distance: ``S2``, metres; may be infinite.

    Raises:
        BokehError: K negative, or a distance that is not above 0.
    """
    if not _all(k, lambda value: value >= 0):
        raise BokehError(f"K is {k}; it must be 0 (all in focus) or larger.")
    _above_zero(focus_distance, "focus distance", "metres", infinite=True)
    _above_zero(subject_distance, "subject distance", "metres", infinite=True)
    return k * _difference(focus_distance, subject_distance)


def pixel_ratio(image_width: Quantity, sensor_width: Quantity) -> Quantity:
    """Pixels of the picture per metre of the sensor.

    Both are longer sides; of a picture that was cropped, of the part of the sensor that its longer side shows.
    """
    _above_zero(image_width, "image width", "pixels")
    _above_zero(sensor_width, "sensor width", "metres")
    return image_width / sensor_width


def k_from_camera(
    focal_length: Quantity,
    f_number: Quantity,
    focus_distance: Quantity,
    sensor_width: Quantity = FULL_FRAME_WIDTH,
    image_width: Quantity = TRAINING_WIDTH,
    focus_scale: Quantity = 1.0,
) -> Quantity:
    """K of a camera: ``f^2 S1 / (2 N (S1 - f)) pixel_ratio``, pixels of blur radius per dioptre (eq. 9).

    50 mm at f/1.8, focused at 2 m on a 36 mm sensor and 512 px, is ``K = 10.13``. With a scale of the focus distance
    it is ``f^2 S1 / (2 N (f_s S1 - f)) pixel_ratio`` (Shrivastava et al., "Fine-grained Defocus Blur Control", eq. 6).

    Args:
        focal_length: metres.
        f_number: N.
        focus_distance: metres; may be infinite.
        sensor_width: metres.
        image_width: pixels; 512 for the K that Bokeh Diffusion is trained on.
        focus_scale: ``f_s``, learned with a generator; 1 is the thin lens itself.

    Raises:
        BokehError: a quantity that is not above 0, or a focus (scaled) no farther than the focal length.
    """
    reach = _reach(focal_length, f_number, focus_distance, focus_scale)
    return reach / 2 * pixel_ratio(image_width, sensor_width)


@dataclass(frozen=True)
class Camera:
    """One camera as it is set.

    Attributes:
        focal_length: metres.
        f_number: N.
        focus_distance: metres.
        sensor_width: metres.
        focus_scale: of the focus distance, as for :func:`k_from_camera`.
    """

    focal_length: float
    f_number: float
    focus_distance: float
    sensor_width: float
    focus_scale: float = 1.0

    def k(self, image_width: float = TRAINING_WIDTH) -> float:
        """K at a width in pixels (:func:`k_from_camera`)."""
        return float(
            k_from_camera(
                self.focal_length,
                self.f_number,
                self.focus_distance,
                self.sensor_width,
                image_width,
                self.focus_scale,
            )
        )

    def sharp_range(self, circle: float) -> tuple[float, float]:
        """Near and far limit of what looks sharp, in metres, in closed form.

        Blur is linear in disparity: what lies ``circle / reach`` dioptres from the focus is blurred to a disc of that
        diameter, where ``reach = f^2 S / (N (S - f))``.

            near = 1 / (1/S + circle / reach)        far = 1 / (1/S - circle / reach), or infinity

        Args:
            circle: diameter in metres of the largest circle of confusion that looks sharp (:func:`sharp_circle`).

        Raises:
            BokehError: a circle or a setting that is not above 0, or a focus no farther than the focal length.
        """
        _above_zero(circle, "circle of confusion", "metres")
        reach = _reach(self.focal_length, self.f_number, self.focus_distance, self.focus_scale)
        dioptres = circle / float(reach)
        focus = 1 / self.focus_distance
        # Below the precision of a number, the difference is one of rounding: the focus is the hyperfocal distance.
        far = 1 / (focus - dioptres) if focus - dioptres > 1e-12 * focus else math.inf
        return 1 / (focus + dioptres), far

    def hyperfocal(self, circle: float) -> float:
        """The nearest focus, in metres, with which infinity looks sharp: ``f^2 / (N circle) + f``.

        From half of it on all looks sharp then. The focus that is set does not matter.

        Args:
            circle: as for :meth:`sharp_range`.

        Raises:
            BokehError: a circle or a setting that is not above 0.
        """
        _above_zero(circle, "circle of confusion", "metres")
        _above_zero(self.focal_length, "focal length", "metres")
        _above_zero(self.f_number, "f-number", "")
        return self.focal_length**2 / (self.f_number * circle) + self.focal_length

    def describe_sharp(self, circle: float) -> str:
        """A few lines for people: limits of what looks sharp, hyperfocal distance, and the blur of infinity."""
        near, far = self.sharp_range(circle)
        disc = float(coc_diameter(self.focal_length, self.f_number, self.focus_distance, math.inf))
        depth = f"{metres(far - near)} deep" if far < math.inf else "without end"
        return "\n".join(
            [
                f"Sharp from {metres(near)} to {metres(far)} ({depth}), at a circle of confusion of "
                f"{circle * 1e6:.3g} µm.",
                f"Hyperfocal distance {metres(self.hyperfocal(circle))}.",
                f"Infinity is blurred to discs of {disc * 1e6:.0f} µm, {100 * disc / self.sensor_width:.3g} % of the "
                "picture's longer side.",
            ]
        )

    def describe(self, image_width: float = TRAINING_WIDTH) -> str:
        """A line for people: ``50 mm f/1.8 focused at 2 m on a 36 mm sensor, 512 px: K = 10.13 ...``."""
        scaled = "" if self.focus_scale == 1 else f"focus scale {self.focus_scale:.4g}, "
        return (
            f"{self.focal_length * 1000:.4g} mm f/{self.f_number:.4g} focused at {self.focus_distance:.4g} m on a "
            f"{self.sensor_width * 1000:.4g} mm sensor, {scaled}{image_width:g} px: K = "
            f"{format_value(self.k(image_width))} px of blur radius per dioptre"
        )


SHARP_SHARE = 1 / 1500
"""Diameter of the largest circle of confusion that looks sharp in a print, over the diagonal of what it shows."""


def sharp_circle(sensor_width: float, aspect: float = 1.5) -> float:
    """That diameter on the sensor, in metres: its diagonal / 1500, 28.8 um for full frame.

    Args:
        sensor_width: metres, the longer side.
        aspect: long side over short side of the picture.

    Raises:
        BokehError: a width that is not above 0, an aspect below 1.
    """
    _above_zero(sensor_width, "sensor width", "metres")
    _check_aspect(aspect)
    return SHARP_SHARE * sensor_width * math.hypot(1, 1 / aspect)


def metres(distance: float) -> str:
    """A distance for people: ``1.92 m``, ``24 cm``, ``infinity``."""
    if math.isinf(distance):
        return "infinity"
    return f"{distance * 100:.3g} cm" if distance < 1 else f"{distance:.4g} m"


def sensor_width(name: str) -> float:
    """Width in metres of a sensor of :data:`SENSORS`.

    Raises:
        BokehError: a name that is not there.
    """
    if name not in SENSORS:
        raise BokehError(f"There is no sensor format {name!r}; known are {', '.join(SENSORS)}.")
    return SENSORS[name][0] / 1000


def sensor_width_from_35mm(
    focal_length: float,
    focal_length_35mm: float,
    aspect: float = 1.5,
    convention: str = "diagonal",
) -> float:
    """Width in metres of the sensor on which a lens sees what ``focal_length_35mm`` sees on 36 x 24 mm.

    Cameras write the equivalent focal length rounded to a millimetre, so this is good to a few per cent. Where a
    phone zoomed digitally the equivalent includes that, and the width is of the part of the sensor that was used.

    Args:
        focal_length: metres.
        focal_length_35mm: metres.
        aspect: long side over short side of the whole picture (4/3 for phones); without effect for ``"width"``.
        convention: what the equivalence keeps: ``"diagonal"`` (CIPA DCG-001, the usual one) or ``"width"``. They
            agree for pictures of 3:2.

    Raises:
        BokehError: a length that is not above 0, an aspect below 1, or an unknown convention.
    """
    _above_zero(focal_length, "focal length", "metres")
    _above_zero(focal_length_35mm, "35 mm equivalent focal length", "metres")
    _check_aspect(aspect)
    crop = focal_length_35mm / focal_length
    if convention == "width":
        return FULL_FRAME_WIDTH / crop
    if convention != "diagonal":
        raise BokehError(f"The convention is {convention!r}; it must be 'diagonal' or 'width'.")
    return FULL_FRAME_DIAGONAL / crop * aspect / math.hypot(aspect, 1)


def k_at_width(k: Quantity, image_width: Quantity, reference_width: Quantity = TRAINING_WIDTH) -> Quantity:
    """K counted in pixels of a picture whose longer side is ``image_width``, from K counted at ``reference_width``.

    The blur covers the same share of the picture. Exchange the two widths for the way back.
    """
    _above_zero(image_width, "image width", "pixels")
    _above_zero(reference_width, "reference width", "pixels")
    return k * image_width / reference_width


def k_lacking(k: Quantity, present: Quantity) -> Quantity:
    """K by which a picture that has ``present`` already must be blurred to have ``k`` in all; 0 where it has more.

    Blurring twice adds up the variances of the two discs, each a quarter of its radius squared; the shape comes out a
    little softer at its rim than one disc.
    """
    more = k * abs(k) - present * present  # a K below 0 is no K, and stays so
    if isinstance(more, Tensor):
        return more.clamp(min=0).sqrt()
    return k if k < 0 else math.sqrt(max(more, 0.0))


def bokehme_k(k: Quantity, disparity_range: Quantity, image_width: Quantity) -> Quantity:
    """BokehMe's K from Bokeh Diffusion's.

    Args:
        k: pixels of radius per dioptre, at 512 pixels width.
        disparity_range: largest less smallest disparity of the map, dioptres: what min-max normalisation makes 1.
        image_width: pixels.

    Returns:
        Pixels of radius, at the picture's own resolution, per unit of disparity normalised to 0..1.
    """
    _above_zero(disparity_range, "disparity range", "dioptres")
    return k_at_width(k, image_width) * disparity_range


def k_from_bokehme(bokehme: Quantity, disparity_range: Quantity, image_width: Quantity) -> Quantity:
    """Bokeh Diffusion's K (px per dioptre at 512 px) from BokehMe's; the inverse of :func:`bokehme_k`."""
    _above_zero(disparity_range, "disparity range", "dioptres")
    return k_at_width(bokehme, TRAINING_WIDTH, image_width) / disparity_range


def genfocus_k(k: Quantity, image_width: Quantity) -> Quantity:
    """Genfocus's K from Bokeh Diffusion's.

    Args:
        k: pixels of radius per dioptre, at 512 pixels width.
        image_width: pixels.

    Returns:
        Pixels of radius, at the picture's own resolution, per dioptre (its disparity is not normalised).
    """
    return k_at_width(k, image_width)


def k_from_genfocus(genfocus: Quantity, image_width: Quantity) -> Quantity:
    """Bokeh Diffusion's K (px per dioptre at 512 px) from Genfocus's; the inverse of :func:`genfocus_k`."""
    return k_at_width(genfocus, TRAINING_WIDTH, image_width)


def bokehdiff_gain(k: Quantity, disparity_range: Quantity, image_width: Quantity) -> Quantity:
    """The factor ``K / 10`` of BokehDiff's defocus channel ``|d - d_f| K / 10``, from Bokeh Diffusion's K.

    Its tiles of 512 x 512 are cut from the picture, not scaled, so a pixel of a tile is a pixel of the picture.

    Args:
        k: pixels of radius per dioptre, at 512 pixels width.
        disparity_range: dioptres that one unit of the disparity map stands for (its range, where it is min-max
            normalised; 1 where it is in dioptres).
        image_width: pixels of the whole picture.

    Returns:
        Units of 10 pixels of radius, per unit of the disparity map.
    """
    return bokehme_k(k, disparity_range, image_width) / BOKEHDIFF_UNIT


def k_from_bokehdiff(gain: Quantity, disparity_range: Quantity, image_width: Quantity) -> Quantity:
    """Bokeh Diffusion's K (px per dioptre at 512 px) from BokehDiff's; the inverse of :func:`bokehdiff_gain`."""
    return k_from_bokehme(gain * BOKEHDIFF_UNIT, disparity_range, image_width)


def _reach(
    focal_length: Quantity, f_number: Quantity, focus_distance: Quantity, focus_scale: Quantity = 1.0
) -> Quantity:
    """``f^2 S1 / (N (f_s S1 - f))``: metres of blur diameter per dioptre. Written so that S1 may be infinite."""
    _above_zero(focal_length, "focal length", "metres")
    _above_zero(f_number, "f-number", "")
    _above_zero(focus_distance, "focus distance", "metres", infinite=True)
    _above_zero(focus_scale, "scale of the focus", "")
    if not _all(focus_scale * focus_distance - focal_length, lambda value: value > 0):
        least = float(torch.as_tensor(focus_scale * focus_distance).min())
        longest = float(torch.as_tensor(focal_length).max())
        raise BokehError(
            f"The focus distance is {least:g} m and the focal length {longest:g} m; the focus must be "
            "farther than the focal length. Lengths are in metres: 50 mm is 0.05."
        )
    return focal_length * focal_length / (f_number * (focus_scale - focal_length / focus_distance))


def _check_aspect(aspect: float) -> None:
    if not 1 <= aspect < math.inf:
        raise BokehError(f"The aspect is {aspect}; it is the long side over the short side, so at least 1.")


def _difference(focus_distance: Quantity, subject_distance: Quantity) -> Quantity:
    return abs(1 / focus_distance - 1 / subject_distance)


def _all(value: Quantity, holds: Callable[[Any], Any]) -> bool:
    result = holds(value)
    return bool(result.all()) if isinstance(result, Tensor) else bool(result)


def _above_zero(value: Quantity, what: str, unit: str, infinite: bool = False) -> None:
    finite = torch.isfinite(value).all() if isinstance(value, Tensor) else not math.isinf(value)
    if not _all(value, lambda number: number > 0) or not (infinite or finite):
        kind = "above 0" if infinite else "above 0 and finite"
        raise BokehError(f"The {what} is {value}{' ' + unit if unit else ''}; it must be {kind}.")
