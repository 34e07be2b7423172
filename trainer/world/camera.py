"""The camera that takes a picture of the world: its settings, and through eq. 9 its K."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bokeh_ops.camera.optics import FULL_FRAME_WIDTH, k_at_width, k_from_camera

K_MOST = 30.0
"""Largest K of a picture, counted at 512 pixels."""
FOCAL_LENGTHS = (0.035, 0.05, 0.085)
"""Metres, before a sensor as wide as full frame."""
F_NUMBERS = (0.7, 45.0)
"""From the fastest lens ever made to a small stop."""


@dataclass(frozen=True)
class Shot:
    """How a picture is taken.

    Attributes:
        focal_length: metres.
        f_number: N; None for a pinhole, which has no blur.
        focus_distance: S1, metres.
        sensor_width: metres.
    """

    focal_length: float
    f_number: float | None
    focus_distance: float
    sensor_width: float = FULL_FRAME_WIDTH

    @property
    def k(self) -> float:
        """Pixels of blur radius per dioptre, counted at 512 pixels (eq. 9)."""
        if self.f_number is None:
            return 0.0
        return float(k_from_camera(self.focal_length, self.f_number, self.focus_distance, self.sensor_width))

    def k_at(self, width: int) -> float:
        """The same counted on a picture whose longer side is ``width``."""
        return float(k_at_width(self.k, width))

    @property
    def focal(self) -> float:
        """Focal length in picture widths."""
        return self.focal_length / self.sensor_width


def draw_shot(chance: np.random.Generator, focus: float, sharp: bool) -> Shot:
    """A camera focused at the disparity ``focus`` whose K is, over all, uniform from 0 to :data:`K_MOST`.

    Always draws two numbers. The stop follows from K and the lens; a lens that cannot reach K gives way to a longer
    one.
    """
    wanted = float(chance.uniform(0.0, K_MOST))
    first = int(chance.integers(len(FOCAL_LENGTHS)))
    distance = 1 / focus
    if sharp:
        return Shot(FOCAL_LENGTHS[first], None, distance)
    for focal_length in FOCAL_LENGTHS[first:]:
        stop = Shot(focal_length, 1.0, distance).k / max(wanted, 1e-6)
        if stop >= F_NUMBERS[0]:
            return Shot(focal_length, min(stop, F_NUMBERS[1]), distance)
    return Shot(FOCAL_LENGTHS[-1], F_NUMBERS[0], distance)
