"""A scatter over many offsets in few large steps, for accelerators, where each step costs the launch of a kernel.

One at a time, thousands of offsets are as many additions; those of a small picture take an accelerator less time than
it takes to launch them. Here the offsets of one row that follow one another are a *run*, and a run is one step: its
weights ``[h, J, w]`` are made at once, and so is its sum over J. The terms are the same, all positive and none dropped;
only the order in which they are added differs. More memory is read and written than one by one, so that this is slower
where an addition is large: of pictures of 1920 x 1080 it was measured to be a little faster, of 3840 x 2160 slower.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from .plan import SHARPNESS, Rings

NUMBERS = 1 << 26
"""Numbers in one step: enough for a launch to be worth it, 256 MB in fp32."""


FORCED = False
"""For tests: whether a CPU computes as an accelerator does."""
_LARGE = 2_500_000  # numbers in an addition that is worth its launch


def worth_it(numbers: int) -> bool:
    """Whether additions of so many numbers had better be put together on an accelerator."""
    return numbers < _LARGE


class Run(NamedTuple):
    """Neighbouring offsets ``(dy, dx), (dy, dx + 1), ...`` and the distance at which each meets the soft edge."""

    dy: int
    dx: int
    reach: Tensor
    """``[J, 1]``"""
    steepness: Tensor
    """``[J, 1]``: of the edge there."""

    def edge(self, radius: Tensor) -> Tensor:
        """``sigmoid(steepness (r - reach))`` of radii ``[..., h, 1 or J, w]``: ``[..., h, J, w]``."""
        return torch.sub(radius, self.reach).mul_(self.steepness).sigmoid_()


def runs(
    rings: Rings, first: int, last: int, beyond: int, turn: int, most: int, like: Tensor
) -> Iterator[Run]:
    """The offsets of the rings ``first <= i < last``, row by row.

    Args:
        rings: all of them.
        first, last: those meant.
        beyond: only offsets with ``dy^2 + dx^2`` above this; -1 for all.
        turn: 1, or -1 for offsets of the opposite sign.
        most: offsets in a run.
        like: a tensor whose type and device to use.
    """
    dy, dx, ring = rings.offsets(first, last)
    if beyond >= 0:
        outside = rings.square[ring] > beyond
        dy, dx, ring = dy[outside], dx[outside], ring[outside]
    if not len(ring):
        return
    dy, dx = turn * dy, turn * dx
    order = np.lexsort((dx, dy))
    dy, dx, ring = dy[order], dx[order], ring[order]
    reach, steepness = (
        torch.from_numpy(values[ring]).to(like.device, like.dtype)[:, None]
        for values in (rings.reach, SHARPNESS * rings.scale)
    )
    cut = np.flatnonzero(np.r_[True, (np.diff(dy) != 0) | (np.diff(dx) != 1), True]).tolist()
    for start, end in pairwise(cut):
        for at in range(start, end, most):
            part = slice(at, min(at + most, end))
            yield Run(int(dy[at]), int(dx[at]), reach[part], steepness[part])


def scattered(planes: Tensor, weights: Tensor) -> Tensor:
    """What a run's offsets receive: the sum over j of ``planes * weights[:, j]`` moved j to the right.

    Args:
        planes: ``[C, h, w]``.
        weights: ``[h, J, w]``.

    Returns:
        ``[C, h, w + J - 1]``.
    """
    count, height, width = planes.shape
    run = weights.shape[1]
    # Rows are J longer than they need be, with zeros. Read with a step of one less than a row, term j of the sum
    # lies j further to the right.
    pitch = width + run
    terms = planes.new_empty(count, height, run, pitch)
    terms[..., width:].zero_()
    torch.mul(planes[:, :, None], weights, out=terms[..., :width])
    sheared = terms.as_strided(
        (count, height, run, width + run - 1), (height * run * pitch, run * pitch, pitch - 1, 1)
    )
    return sheared.sum(2)
