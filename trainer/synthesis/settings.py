"""What scenes are drawn from."""

from __future__ import annotations

import math
from dataclasses import dataclass

from bokeh_ops.camera.optics import TRAINING_WIDTH, k_at_width
from bokeh_ops.errors import BokehError
from trainer.synthesis.trace import RAYS

PROCEDURAL, WORLD = "procedural", "world"
"""Sources that are drawn and not read."""

STEEPEST = 0.5
"""Largest product of K and a plane's slope: at 1 the plane would cut the lens."""


@dataclass(frozen=True)
class Settings:
    """What scenes are drawn from. All that has a length is told as shares of the picture or counted at 512 pixels.

    Attributes:
        width, height: of the pictures, in pixels.
        foregrounds: least and largest number of planes in front of the background.
        disparity: least and largest disparity in the middle of a plane, dioptres.
        tilt: largest change of a plane's disparity over the picture's longer side, as a share of the disparity in its
            middle. 1 is a plane at 45 degrees to a lens of 54 degrees across; each plane has its own, from 0 on.
        k: least and largest K, pixels of blur radius per dioptre on a picture 512 wide.
        levels: pictures of a scene, the one that is all in focus among them.
        rays: of a pixel.
        front: where foregrounds come from, each as likely as any other: ``"procedural"``, a folder of pictures with
            transparency, or a data set whose photographs are cut out by their masks.
        back: where backgrounds come from: ``"procedural"``, ``"world"``, a folder of photographs, or a data set.

    Raises:
        BokehError: values that cannot be.
    """

    width: int = 512
    height: int = 512
    foregrounds: tuple[int, int] = (1, 3)
    disparity: tuple[float, float] = (0.1, 2.5)
    tilt: float = 0.8
    k: tuple[float, float] = (0.0, 30.0)
    levels: int = 4
    rays: int = RAYS
    front: tuple[str, ...] = (PROCEDURAL,)
    back: tuple[str, ...] = (PROCEDURAL,)

    def __post_init__(self) -> None:
        if min(self.width, self.height) < 16:
            raise BokehError(
                f"Pictures of {self.width} x {self.height} are too small; give at least 16 x 16."
            )
        if not 1 <= self.foregrounds[0] <= self.foregrounds[1] <= 8:
            raise BokehError(
                f"A scene is to have {self.foregrounds[0]} to {self.foregrounds[1]} foregrounds; give 1 to 8, the "
                "least first."
            )
        if not 0 < self.disparity[0] < self.disparity[1] < math.inf:
            raise BokehError(
                f"Disparities are to lie between {self.disparity[0]} and {self.disparity[1]} dioptres; give finite "
                "numbers above 0, the least first."
            )
        if not 0 <= self.k[0] < self.k[1] < math.inf:
            raise BokehError(
                f"K is to lie between {self.k[0]} and {self.k[1]}; give 0 or more, the least first."
            )
        if self.levels < 2 or self.rays < 1:
            raise BokehError(
                f"There are to be {self.levels} levels and {self.rays} rays; give at least 2 and 1."
            )
        if not 0 <= self.tilt < math.inf:
            raise BokehError(f"The tilt is {self.tilt}; it must be 0 or more, and finite.")
        steep = self.k[1] * self.tilt * self.disparity[1] / TRAINING_WIDTH
        if steep > STEEPEST:
            raise BokehError(
                f"Planes of {self.disparity[1]:g} dioptres with a tilt of {self.tilt:g} come too near to the lens at "
                f"K = {self.k[1]:g}: the product of the three over {TRAINING_WIDTH} is {steep:.2g}, and may be "
                f"{STEEPEST}."
            )

    @property
    def k_most(self) -> float:
        """Largest K, at the pictures' own resolution."""
        return float(k_at_width(self.k[1], max(self.width, self.height)))
