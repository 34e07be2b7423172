"""A picture cut into surfaces by defocus, each continued behind whatever hides it.

A lens sees around the edge of a near thing what the picture does not show. So the picture is cut where its
defocus crosses a fixed ladder of bounds (:func:`ladder`), and each slice is completed behind everything nearer
than itself, in light and in opacity: what a hidden pixel holds is filled in from the visible pixels at its own
depth or farther, near ones first (pull-push: Gortler et al. 1996, "The Lumigraph", sec. 4.3). The farthest slice
is therefore opaque everywhere, and a slice in between continues with the opacity that its surroundings have.

The bounds are close together near focus, where a small error of depth shows, and far apart where all is blurred.
A slice whose blur is wide is kept at a fraction of the picture's resolution, which is what keeps the work from
growing with K.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .matte import Fragments

SHARP = 4.2  # pixels of defocus up to which a slice keeps the picture's resolution
_BOUNDS = (1.2, SHARP, 9.0, 18.6)
ALIGN = (
    64  # every part of a picture begins at a multiple of this, so that coarse pixels are the same everywhere
)
_BRIGHTEST = 2.2  # times white, that is filled in where nothing is known
_SMALL = 100_000  # pixels of a picture that is computed at its own resolution throughout, as that is quick
_SMALL_BLUR = 40.0  # ... where it is blurred by no more than this
_RESOLVED = 8.0  # a disc has at least this radius in the pixels of its slice


class Slice(NamedTuple):
    """Bounds of defocus in pixels, ``low <= defocus < high``, and how many pixels wide its pixels are."""

    low: float
    high: float
    scale: int
    sharpest: float = 0.0
    """The least and the largest blur radius that the picture has in it."""
    broadest: float = 0.0

    @property
    def in_focus(self) -> bool:
        """Whether the slice holds the focal plane itself."""
        return self.low < 0 < self.high

    @property
    def near_focus(self) -> bool:
        """Whether it is so little blurred that the parts of the lens need not be told apart."""
        return self.low >= -SHARP and self.high <= SHARP


class Surface(NamedTuple):
    """One slice, completed: the part of it that has anything in it, at the slice's own scale."""

    slice: Slice
    box: tuple[slice, slice]
    """Rows and columns of the slice, of ``ceil(H / scale)`` by ``ceil(W / scale)``; h by w."""
    light: Tensor
    """``[C, h, w]`` light times opacity."""
    opacity: Tensor
    """``[1, h, w]``, 0..1."""
    defocus: Tensor
    """``[1, h, w]`` signed defocus in pixels of the picture, defined everywhere."""


def ladder(defocus: Tensor) -> list[Slice]:
    """The slices of a picture, the farthest first.

    Their bounds do not depend on the picture, so that every picture of a film is cut alike.

    Args:
        defocus: ``[H, W]`` signed defocus in pixels.
    """
    least, most = (value.item() for value in defocus.aminmax())
    bounds = list(_BOUNDS)
    while bounds[-1] <= max(most, -least):
        bounds.append(bounds[-1] + max(10.0, 0.25 * bounds[-1]))
    edges = [-bound for bound in reversed(bounds)] + bounds
    number = torch.bucketize(defocus.contiguous(), torch.tensor(edges[1:-1]).to(defocus), right=True)
    radius = defocus.abs().flatten()
    found = radius.new_zeros(2, len(edges) - 1)
    for row, how in zip(found, ("amin", "amax"), strict=True):
        row.scatter_reduce_(0, number.flatten(), radius, how, include_self=False)
    slices = []
    for (low, high), sharpest, broadest in zip(pairwise(edges), *found.tolist(), strict=True):
        if high > least and low <= most:
            scale = 1 if low * high < 0 else _scale(min(abs(low), abs(high)))
            if defocus.numel() <= _SMALL and broadest <= _SMALL_BLUR:
                scale = 1
            slices.append(Slice(low, high, scale, sharpest, broadest))
    return slices


def _scale(radius: float) -> int:
    scale = 1 if radius < SHARP else 2
    while radius / (2 * scale) >= _RESOLVED:
        scale *= 2
    return scale


class Cut:
    """A picture ready to be cut: which pixel and which fragment belongs to which slice.

    Args:
        light: ``[C, H, W]`` linear light.
        defocus: ``[H, W]`` signed defocus in pixels.
        fragments: of its edge pixels.
        slices: from :func:`ladder`.
        most: largest defocus of the picture, of which this may be a part.
    """

    def __init__(
        self, light: Tensor, defocus: Tensor, fragments: Fragments, slices: list[Slice], most: float
    ) -> None:
        bounds = torch.tensor([part.high for part in slices[:-1]], device=light.device, dtype=defocus.dtype)
        self.slices, self.most = slices, most
        self.fragments = fragments
        self.number = torch.bucketize(defocus.contiguous(), bounds, right=True)
        self.place = fragments.pixel // defocus.shape[1], fragments.pixel % defocus.shape[1]
        self.near = torch.bucketize(fragments.near_defocus, bounds, right=True)
        self.far = torch.bucketize(fragments.far_defocus, bounds, right=True)
        pixel = light.flatten(1)[:, fragments.pixel]
        # Light, opacity, opacity times defocus: of every pixel, and of the fragments in their stead.
        self.planes = torch.cat([light, torch.ones_like(light[:1]), defocus[None]])
        self.whole = torch.cat([pixel, torch.ones_like(pixel[:1]), defocus.flatten()[fragments.pixel][None]])
        alpha = fragments.alpha
        self.front = torch.cat([fragments.near * alpha, alpha[None], (fragments.near_defocus * alpha)[None]])
        self.behind = torch.cat([fragments.far, torch.ones_like(alpha)[None], fragments.far_defocus[None]])
        self.number.flatten()[fragments.pixel] = -1
        counts = torch.bincount(self.number.flatten() + 1, minlength=len(slices) + 1)[1:]
        counts += torch.bincount(self.near, minlength=len(slices)) + torch.bincount(
            self.far, minlength=len(slices)
        )
        self.present = [bool(count) for count in counts.tolist()]

    def surface(self, which: int) -> Surface:
        """The completed surface of one slice, of those that are ``present``."""
        part = self.slices[which]
        # What lies in front reaches this far over its neighbours, and this slice over its own.
        reach = self.most - part.low
        box = self._box(which, reach + max(abs(part.low), abs(part.high)) + 2)
        number = self.number[box]
        member = (number == which).to(self.planes.dtype)
        known = ((number <= which) & (number >= 0)).to(self.planes.dtype)
        planes = torch.cat([self.planes[(slice(None), *box)] * member, known[None]])
        self._put_fragments(planes, which, box)
        planes = shrink(planes, part.scale)
        known, opaque = planes[-1:], planes[-3:-2]
        levels = max(1, int(reach / part.scale).bit_length())
        filled = planes[:-2]
        if bool((known < 1).any()):
            # A lamp may go on behind what hides it, but must not light up all that is hidden around it.
            brightest = filled[:-1].amax(0, keepdim=True)
            glare = filled[:-1] * (1 - _BRIGHTEST / brightest.clamp_min(_BRIGHTEST))
            filled[:-1] -= glare
            filled = pull_push(filled, known, levels)
            filled[:-1] += glare
        elsewhere = 0.0 if part.in_focus else (part.low + part.high) / 2
        if part.scale > 1:
            defocus = pull_push(planes[-2:-1], opaque, levels)
            defocus = torch.where(defocus == 0, elsewhere, defocus)
        else:
            defocus = torch.where(opaque > 0, planes[-2:-1] / opaque.clamp_min(1e-6), elsewhere)
        return Surface(
            part,
            (
                slice(box[0].start // part.scale, box[0].start // part.scale + planes.shape[1]),
                slice(box[1].start // part.scale, box[1].start // part.scale + planes.shape[2]),
            ),
            filled[:-1],
            filled[-1:].clamp(0, 1),
            defocus.clamp(part.low, part.high),
        )

    def _box(self, which: int, margin: float) -> tuple[slice, slice]:
        """Rows and columns within ``margin`` pixels of the slice's pixels, cut where every scale has a pixel's edge."""
        member = self.number == which
        ends = []
        for axis in (0, 1):
            held = member.any(1 - axis)
            inside = (self.near == which) | (self.far == which)
            held[self.place[axis][inside]] = True
            first, last = held.nonzero().aminmax()
            low = max(0, int(first) - math.ceil(margin)) // ALIGN * ALIGN
            high = -(-(int(last) + 1 + math.ceil(margin)) // ALIGN) * ALIGN
            ends.append(slice(low, min(high, self.number.shape[axis])))
        return ends[0], ends[1]

    def _put_fragments(self, planes: Tensor, which: int, box: tuple[slice, slice]) -> None:
        """Write the fragments that lie in the box, and whether they are known, over their pixels."""
        y, x = (place - side.start for place, side in zip(self.place, box, strict=True))
        here = (y >= 0) & (x >= 0) & (y < planes.shape[1]) & (x < planes.shape[2])
        here &= (self.near <= which) | (
            self.far <= which
        )  # the others hide the slice, and are unknown already
        here = here.nonzero()[:, 0]
        in_near, in_far = self.near[here] == which, self.far[here] == which
        held = torch.where(in_far, self.behind[:, here], self.front[:, here] * in_near)
        held = torch.where(in_near & in_far, self.whole[:, here], held)
        planes[:, y[here], x[here]] = torch.cat([held, torch.ones_like(held[:1])])


def shrink(planes: Tensor, scale: int) -> Tensor:
    """Mean over blocks of ``scale`` by ``scale`` pixels; what is missing at the right and below is repeated.

    Args:
        planes: ``[C, H, W]``.
        scale: 1 or more.

    Returns:
        ``[C, ceil(H / scale), ceil(W / scale)]``.
    """
    if scale == 1:
        return planes
    height, width = planes.shape[-2:]
    down, right = -height % scale, -width % scale
    if down or right:
        planes = F.pad(planes[None], (0, right, 0, down), mode="replicate")[0]
    return F.avg_pool2d(planes[None], scale)[0]


def grow(planes: Tensor, height: int, width: int) -> Tensor:
    """Twice as large, bilinear, cut to ``height`` by ``width``: undoes :func:`shrink` by 2.

    Args:
        planes: ``[N, C, h, w]``.
    """
    return F.interpolate(planes, scale_factor=2.0, mode="bilinear", align_corners=False)[..., :height, :width]


def pull_push(planes: Tensor, weight: Tensor, levels: int) -> Tensor:
    """Fill in what has no weight, smoothly and from near by (Gortler et al. 1996, sec. 4.3).

    Args:
        planes: ``[C, H, W]``, already times ``weight``.
        weight: ``[1, H, W]``, 0 (unknown) to 1 (known).
        levels: how many times the resolution is halved: farther than ``2 ** levels`` nothing is filled in.

    Returns:
        ``[C, H, W]``; 0 where nothing known is near enough.
    """
    stack = torch.cat([planes, weight])[None]
    pyramid = [stack]
    while len(pyramid) <= levels and max(stack.shape[-2:]) > 1:
        height, width = stack.shape[-2:]
        if height % 2 or width % 2:
            stack = F.pad(stack, (0, width % 2, 0, height % 2))
        stack = F.avg_pool2d(stack, 2)
        # One known pixel of the four is enough for the block to count as known.
        share = stack[:, -1:]
        stack = stack * ((4 * share).clamp(max=1) / share.clamp_min(1e-12))
        pyramid.append(stack)
    filled = pyramid[-1][:, :-1] / pyramid[-1][:, -1:].clamp_min(1e-12)
    for stack in reversed(pyramid[:-1]):
        height, width = stack.shape[-2:]
        filled = stack[:, :-1] + (1 - stack[:, -1:]) * grow(filled, height, width)
    return filled[0]
