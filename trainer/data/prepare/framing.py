"""Which part of a photograph is trained on, and at which scale."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Framing:
    """A crop of a photograph.

    The whole photograph is reduced to ``work`` pixels, the least at which the training resolution fits in; the crop
    is a rectangle of exactly the training resolution in that.

    Attributes:
        upright: width and height of the photograph in pixels.
        work: width and height of the reduced photograph.
        resolution: width and height of the crop.
        left: of the crop, in pixels of the reduced photograph.
        top: likewise.
    """

    upright: tuple[int, int]
    work: tuple[int, int]
    resolution: tuple[int, int]
    left: int
    top: int

    def cut(self, values: np.ndarray) -> np.ndarray:
        """The crop of a map or picture ``[h, w, ...]`` of the reduced photograph."""
        return values[self.top : self.top + self.resolution[1], self.left : self.left + self.resolution[0]]

    def sensor_shown(self, sensor_across: float) -> float:
        """Width in metres of the part of the sensor that the crop shows.

        With it and the crop's width in pixels, eq. 9 gives K at the training resolution.
        """
        return sensor_across * self.resolution[0] / self.work[0]

    @property
    def box(self) -> tuple[float, float, float, float]:
        """Left, top, width and height of the crop in pixels of the photograph."""
        x, y = self.upright[0] / self.work[0], self.upright[1] / self.work[1]
        return self.left * x, self.top * y, self.resolution[0] * x, self.resolution[1] * y


def work_size(upright: tuple[int, int], resolution: tuple[int, int]) -> tuple[int, int]:
    """Width and height to which a photograph is reduced so that the resolution just fits in."""
    scale = max(resolution[0] / upright[0], resolution[1] / upright[1])
    return (
        max(resolution[0], round(upright[0] * scale)),
        max(resolution[1], round(upright[1] * scale)),
    )


def frame(
    upright: tuple[int, int], resolution: tuple[int, int], foreground: np.ndarray | None = None
) -> Framing:
    """Choose the crop: in the middle, or as much over the foreground as the frame allows.

    Args:
        upright: width and height of the photograph in pixels.
        resolution: width and height wanted.
        foreground: mask of the reduced photograph ``[h, w]``, 0..1, to put the crop over; None for the middle.
    """
    work = work_size(upright, resolution)
    spare = (work[0] - resolution[0], work[1] - resolution[1])
    centre = (work[0] / 2, work[1] / 2)
    if foreground is not None and (total := float(foreground.sum())) > 0:
        columns, rows = foreground.sum(0), foreground.sum(1)
        centre = (
            float((columns * (np.arange(work[0]) + 0.5)).sum()) / total,
            float((rows * (np.arange(work[1]) + 0.5)).sum()) / total,
        )
    left, top = (min(max(round(centre[axis] - resolution[axis] / 2), 0), spare[axis]) for axis in (0, 1))
    return Framing(upright, work, resolution, left, top)
