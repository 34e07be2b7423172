"""The rows of a grounded sweep: one pivot and several targets of every picture, in one batch."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import BokehError

GROUNDED_SHARE = 0.6
"""Share of the steps that are grounded by default: 30 of 50 (SD1.5) and 18 of 30 (FLUX) in the paper."""


def default_grounding_steps(steps: int) -> int:
    """60 % of the steps, rounded (alg. 1: ``G = 30`` of ``T = 50``; FLUX: 18 of 30)."""
    return round(GROUNDED_SHARE * steps)


def resolve_grounding_steps(grounding_steps: int, steps: int) -> int:
    """``grounding_steps`` as a number of steps; a negative one means the default share.

    Raises:
        BokehError: more grounded steps than steps.
    """
    if grounding_steps < 0:
        return default_grounding_steps(steps)
    if grounding_steps > steps:
        raise BokehError(
            f"grounding_steps is {grounding_steps} but only {steps} steps are sampled. "
            f"Give 0 (not grounded) to {steps} (all of them), or -1 for 60 %."
        )
    return grounding_steps


def grounding_level(sigmas: Sequence[float], steps: int) -> float:
    """The noise level above which the first ``steps`` of a run are evaluated, and no other (alg. 1).

    Args:
        sigmas: noise levels of the run, ``steps + 1`` or more.
        steps: at least 1.
    """
    # A little above the last level, for samplers that compute the level they evaluate at.
    return float(sigmas[steps]) * (1 + 1e-4)


@dataclass(frozen=True)
class SweepRows:
    """The rows of one batch, role by role: all pivots, then all first targets, then all second targets, ...

    Row ``r`` belongs to picture ``r % pictures``. In this order everything the host repeats to a batch by
    tiling (masks, ControlNet images, prompts) meets its own picture.

    Attributes:
        pictures: pictures of the latent batch, each with a pivot.
        targets: targets of every picture.
    """

    pictures: int
    targets: int

    @property
    def roles(self) -> int:
        return 1 + self.targets

    @property
    def total(self) -> int:
        return self.pictures * self.roles

    def pivots(self) -> list[int]:
        """Per row the row of its pivot, -1 for the pivots themselves."""
        return [-1] * self.pictures + list(range(self.pictures)) * self.targets

    def per_row(self, pivot: float, targets: Sequence[float]) -> list[float]:
        """One value per row from one value per role."""
        return [value for value in (pivot, *targets) for _ in range(self.pictures)]

    def tile(self, x: Tensor) -> Tensor:
        """``[pictures, ...]`` -> ``[total, ...]``: every role gets the same."""
        return x.repeat(self.roles, *[1] * (x.ndim - 1))


def target_groups(
    targets: Sequence[float], pictures: int, rows_per_batch: int
) -> Iterator[tuple[float, ...]]:
    """Split the targets so that a batch of pivots and targets has at most ``rows_per_batch`` rows.

    Every group has its pivots beside it again, so it is right on its own; 0 puts all into one. A group holds at
    least one target of every picture, however small ``rows_per_batch`` is.
    """
    size = len(targets) if rows_per_batch <= 0 else max(1, rows_per_batch // pictures - 1)
    for start in range(0, len(targets), max(size, 1)):
        yield tuple(targets[start : start + size])


def mosaic(x: Tensor) -> Tensor:
    """Lay the rows of ``[R, C, H, W]`` side by side as one picture ``[1, C, H', W']``, in reading order.

    Of each row every n-th place is taken, so that the whole has no more places than one row had (and one for each row
    at least): what is made of it costs no more than one picture. Not means of places: a decoder makes mud of those,
    and sharp rows look as blurred as the others. What is not of that shape (video) gives its first row.
    """
    if x.ndim != 4 or x.shape[0] == 1:
        return x[:1]
    rows, channels, height, width = x.shape
    columns = min(rows, max(1, math.ceil(math.sqrt(rows * height / width))))  # about square as a whole
    lines = -(-rows // columns)
    area = height * width // (lines * columns)
    # A little more than the scale, as 12 * (1 / 3) may come out as 3.9999; the area has the last word.
    scale = 1 / math.sqrt(lines * columns) + 1e-6
    tall = max(1, math.floor(height * scale))
    wide = max(1, min(math.floor(width * scale), area // tall))
    size = (max(1, min(tall, area // wide)), wide)
    down, across = (
        ((torch.arange(few) + 0.5) * many / few).long()
        for few, many in zip(size, (height, width), strict=True)
    )
    canvas = x.new_zeros(lines * columns, channels, *size)
    canvas[:rows] = x[:, :, down[:, None], across]
    canvas = canvas.unflatten(0, (lines, columns)).permute(2, 0, 3, 1, 4)
    return canvas.reshape(1, channels, lines * size[0], columns * size[1])
