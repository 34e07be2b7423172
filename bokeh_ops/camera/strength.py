"""How strongly a picture is blurred: K in its depth map's own measure, K per dioptre, or an f-number."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..depth.conventions import IN_METRES, NORMALISED, DepthKind, DepthMap, DepthRange, DepthUnit, Notice
from ..errors import BokehError
from ..numbers import PerDioptre
from .optics import FULL_FRAME_WIDTH, TRAINING_WIDTH, Camera, k_at_width, k_from_camera, k_lacking


@dataclass(frozen=True)
class Strength:
    """One or more strengths of blur that know their unit.

    Attributes:
        values: K, pixels of blur radius per unit of disparity (:class:`~bokeh_ops.numbers.PerDioptre` where that unit
            is known); or f-numbers.
        stops: whether they are f-numbers, of ``camera``, or of a full-frame one with the picture's own field of view.
        width: longer side in pixels of the picture on which K's pixels are counted.
        present: K that the picture has already, of which only the rest is added (:func:`.optics.k_lacking`).
        camera: whose focal length and sensor f-numbers go with, wherever it is focused then.

    Raises:
        BokehError: an f-number that is not above 0; a K below 0 that is there already.
    """

    values: Sequence[float]
    stops: bool = False
    width: float = TRAINING_WIDTH
    present: float = 0.0
    camera: Camera | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.present < math.inf:
            raise BokehError(
                f"K of the photograph is {self.present}; it must be 0 (all in focus) or larger, and finite."
            )
        for value in self.values if self.stops else ():
            if not (math.isfinite(value) and value > 0):
                raise BokehError(f"The f-number is {value}; it must be above 0 and finite, or 0 to go by K.")

    @property
    def needs_dioptres(self) -> bool:
        """Whether it means nothing in a map without that unit."""
        return self.stops or any(isinstance(value, PerDioptre) for value in self.values)

    def reading(
        self,
        depth: Tensor | DepthMap,
        kind: DepthKind | str,
        scaling: DepthRange | str,
        notice: Notice | None = None,
    ) -> DepthRange:
        """How a depth map is to be read (:func:`.to_depth_map`): as told, but never without its unit.

        Args:
            depth: the map.
            kind: of its values.
            scaling: as told.
            notice: told where the map is read otherwise.

        Raises:
            BokehError: the map has no unit, or would lose it, and is not known to be in metres.
        """
        scaling = DepthRange(scaling)
        if not self.needs_dioptres:
            return scaling
        if isinstance(depth, DepthMap):
            if depth.unit is DepthUnit.RELATIVE:
                raise BokehError(
                    f"{self._unit}, but the depth that is linked has no unit: it knows near and far, not metres. Take "
                    "a model that measures, such as Depth Pro; or type K in by hand."
                )
        elif scaling in NORMALISED and DepthKind(kind) not in IN_METRES:
            raise BokehError(
                f"{self._unit}, but the depth map is read by {scaling.value!r}, which forgets dioptres: the blur would "
                "be several times too strong or too weak. Use a map in metres (the kind 'metric'), or Estimate Depth "
                f"with a model that measures; or choose {DepthRange.BETWEEN.value!r} and say how far its black and "
                "white are; or type K in by hand."
            )
        if scaling in NORMALISED:
            if notice:
                unit = self._unit[0].lower() + self._unit[1:] if self.stops else self._unit
                notice(f"The depth map is read in its own units and not by {scaling.value!r}, as {unit}.")
            return DepthRange.AS_IS
        return scaling

    def check_focal(self, focal: float) -> None:
        """Raise where an f-number lacks the picture's focal length (0: not known): before anything is computed."""
        if self.stops and self.camera is None and not focal:
            raise BokehError(
                "f_number needs the focal length of the picture, which its depth does not tell. Link Estimate Depth "
                "with Depth Pro, or Depth From Geometry; or set focal_pixels; or use Bokeh K From Camera."
            )

    def at(self, focus_disparity: Tensor, height: int, width: int, focal: float) -> list[float | Tensor]:
        """K of each value in pixels of a picture, per unit of its map's disparity.

        Args:
            focus_disparity: ``[B]``, dioptres where :attr:`stops`.
            height, width: of the picture, in pixels.
            focal: its focal length as a share of its width; used for f-numbers alone.

        Returns:
            A number each, or for f-numbers ``[B]``, as their K depends a little on the distance (eq. 9).

        Raises:
            BokehError: f-numbers without a focal length; a focus nearer than the focal length.
        """
        side = max(height, width)
        present = float(k_at_width(self.present, side, self.width))
        if not self.stops:
            return [float(k_lacking(k_at_width(value, side, self.width), present)) for value in self.values]
        self.check_focal(focal)
        length, sensor, scale = focal * width / side * FULL_FRAME_WIDTH, FULL_FRAME_WIDTH, 1.0
        if self.camera is not None:
            length, sensor, scale = (
                self.camera.focal_length,
                self.camera.sensor_width,
                self.camera.focus_scale,
            )
        distance = distance_of(focus_disparity)
        return [
            k_lacking(torch.as_tensor(k_from_camera(length, value, distance, sensor, side, scale)), present)
            for value in self.values
        ]

    def cameras(
        self, focus_disparity: Tensor, height: int, width: int, focal: float
    ) -> list[list[Camera | None]]:
        """The camera of each picture, for each value: what may be written into its file.

        Args:
            as for :meth:`at`; the focus disparity in dioptres.

        Returns:
            For each value one for each of ``[B]``: None for K, which many cameras have.
        """
        if not self.stops:
            return [[None] * len(focus_disparity) for _ in self.values]
        camera = self.camera
        if camera is None:
            length = focal * width / max(height, width) * FULL_FRAME_WIDTH
            camera = Camera(length, 1.0, math.inf, FULL_FRAME_WIDTH)
        distances = distance_of(focus_disparity).tolist()
        return [
            [replace(camera, f_number=value, focus_distance=one) for one in distances]
            for value in self.values
        ]

    @property
    def _unit(self) -> str:
        if self.stops:
            return "An f-number needs depth in metres"
        return "K is in pixels per dioptre, as Bokeh K From Camera gives it"


def distance_of(disparity: Tensor) -> Tensor:
    """Metres from dioptres; infinite where these are 0 or less."""
    return torch.where(disparity > 0, 1 / disparity.clamp(min=1e-12), torch.inf)
