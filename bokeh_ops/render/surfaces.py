"""A picture cut into surfaces by defocus, each continued behind whatever hides it.

A lens sees around the edge of a near thing what the picture does not show. So the picture is cut where its
defocus crosses a fixed ladder of bounds (:func:`ladder`), and each slice is completed behind everything nearer
than itself, in light and in opacity: what a hidden pixel holds is filled in from the visible pixels at its own
depth or farther, near ones first (:func:`~bokeh_ops.depth.fill.pull_push`). The farthest slice is therefore opaque
everywhere, and a slice in between continues with the opacity that its surroundings have.

The bounds are close together near focus, where a small error of depth shows, and far apart where all is blurred.
A slice whose blur is wide is kept at a fraction of the picture's resolution, which is what keeps the work from
growing with K. Slices near focus are never kept as a whole: :meth:`Cut.near` makes them for a window of the picture,
so that all that is done at full resolution is done in windows that stay in a processor's cache.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..depth.fill import pull, pull_push
from .matte import Fragments

Box = tuple[slice, slice]
"""Rows and columns."""

SHARP = 4.2  # pixels of defocus up to which a slice keeps the picture's resolution
_BOUNDS = (1.2, SHARP, 9.0, 18.6)
ALIGN = 64
"""Every part of a picture begins at a multiple of this, so that coarse pixels are the same everywhere."""
_BRIGHTEST = 2.2  # times white, that is filled in where nothing is known
_SMALL = 100_000  # pixels of a picture that is computed at its own resolution throughout, as that is quick
_SMALL_BLUR = 40.0  # ... where it is blurred by no more than this
_LARGE = 500_000  # pixels of a picture in which a pixel or two more of softness cannot be seen
_RESOLVED = (8.0, 4.0)  # a disc has at least this radius in the pixels of its slice; in large pictures
_LAMP = 1.5  # times white, of which a slice holds something if its discs are to be seen as such ...
_LAMP_RESOLVED = 16.0  # ... and then they have at least this radius


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
    """One slice, completed: the part of the picture that has anything of it, at the slice's own scale."""

    slice: Slice
    box: Box
    """Rows and columns of the slice, of ``ceil(H / scale)`` by ``ceil(W / scale)``; h by w."""
    light: Tensor
    """``[C, h, w]`` light times opacity."""
    opacity: Tensor
    """``[1, h, w]``, 0..1."""
    defocus: Tensor
    """``[1, h, w]`` signed defocus in pixels of the picture, defined everywhere."""


def ladder(defocus: Tensor, light: Tensor | None = None) -> list[Slice]:
    """The slices of a picture, the farthest first.

    Their bounds do not depend on the picture, so that every picture of a film is cut alike. Slices with lamps in them
    are kept finer: the edge of a lamp's disc is seen, where blur of anything else has none.

    Args:
        defocus: ``[H, W]`` signed defocus in pixels.
        light: ``[C, H, W]`` linear light, to look for lamps in; None for a picture without.
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
    usual = _RESOLVED[defocus.numel() > _LARGE]
    lit = torch.zeros(len(edges) - 1, dtype=torch.bool)
    if light is not None:
        lamps = number[light[:3].amax(0) > _LAMP]
        lit = torch.bincount(lamps, minlength=len(edges) - 1).cpu() > 0
    slices = []
    for (low, high), sharpest, broadest, lamp in zip(
        pairwise(edges), *found.tolist(), lit.tolist(), strict=True
    ):
        if high > least and low <= most:
            resolved = _LAMP_RESOLVED if lamp else usual
            scale = 1 if low * high < 0 else _scale(min(abs(low), abs(high)), resolved)
            if defocus.numel() <= _SMALL and broadest <= _SMALL_BLUR:
                scale = 1
            slices.append(Slice(low, high, scale, sharpest, broadest))
    return slices


def _scale(radius: float, resolved: float) -> int:
    scale = 1 if radius < SHARP else 2
    while radius / (2 * scale) >= resolved and scale < ALIGN:
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
        window: pixels along the windows in which it is taken apart.
    """

    def __init__(
        self,
        light: Tensor,
        defocus: Tensor,
        fragments: Fragments,
        slices: list[Slice],
        most: float,
        window: int,
    ) -> None:
        bounds = torch.tensor([part.high for part in slices[:-1]], device=light.device, dtype=defocus.dtype)
        self.slices, self.most, self.window = slices, most, window
        self.light, self.defocus = light, defocus
        # Of an edge pixel, the slice of what lies behind: all of the pixel is hidden only from what is farther still.
        self.number = torch.bucketize(defocus.contiguous(), bounds, right=True, out_int32=True)
        self.near_number = torch.bucketize(fragments.near_defocus, bounds, right=True)
        self.far_number = torch.bucketize(fragments.far_defocus, bounds, right=True)
        self.number.view(-1)[fragments.pixel] = self.far_number.int()
        self.fragment = torch.full_like(self.number, -1)
        self.fragment.view(-1)[fragments.pixel] = torch.arange(
            len(fragments.pixel), dtype=torch.int32, device=light.device
        )
        # Light, opacity, opacity times defocus of fragments: in front, behind, and both where one slice has both.
        pixel, alpha = light.flatten(1)[:, fragments.pixel], fragments.alpha
        self.front = torch.cat([fragments.near * alpha, alpha[None], (fragments.near_defocus * alpha)[None]])
        self.behind = torch.cat([fragments.far, torch.ones_like(alpha)[None], fragments.far_defocus[None]])
        self.whole = torch.cat(
            [pixel, torch.ones_like(alpha)[None], defocus.flatten()[fragments.pixel][None]]
        )
        self._count_blocks(fragments)
        self.present = self.blocks.any((1, 2)).tolist()
        self._hidden: dict[int, tuple[Box, Tensor] | None] = {}

    def _count_blocks(self, fragments: Fragments) -> None:
        """Which slices each block of 64 by 64 pixels holds, and what in it hides the most."""
        height, width = self.number.shape
        rows, columns = -(-height // ALIGN), -(-width // ALIGN)
        count, device = len(self.slices), self.number.device
        across = torch.arange(width, device=device) // ALIGN
        down = torch.arange(height, device=device) // ALIGN * columns
        key = (down[:, None] + across).mul_(count).add_(self.number).flatten()
        held = torch.bincount(key, minlength=rows * columns * count)
        if len(fragments.pixel):
            block = (
                fragments.pixel // width // ALIGN * columns + fragments.pixel % width // ALIGN
            ) * count + self.near_number
            held += torch.bincount(block, minlength=len(held))
        self.blocks = (held > 0).reshape(rows, columns, count).movedim(-1, 0).cpu()
        nearest = F.max_pool2d(self.number[None, None].float(), ALIGN, ceil_mode=True)
        self.nearest = nearest[0, 0].int().cpu()

    def _holds(self, which: int, box: Box) -> bool:
        """Whether anything of a slice may be in a box of pixels."""
        return bool(self.blocks[which][_blocks_of(box)].any())

    def _hides(self, which: int, box: Box) -> bool:
        """Whether a slice may be hidden somewhere in a box of pixels."""
        return bool((self.nearest[_blocks_of(box)] > which).any())

    def may_show(self, which: int, box: Box) -> bool:
        """Whether anything of a slice, visible or filled in, may be in a box of pixels."""
        return self._holds(which, box) or self._hides(which, box)

    def reach(self, which: int) -> float:
        """How far what lies in front spreads over a slice's neighbours, in pixels."""
        return self.most - self.slices[which].low

    def box(self, which: int) -> Box:
        """Rows and columns of the picture beyond which nothing of a slice is seen, at multiples of 64."""
        part = self.slices[which]
        margin = self.reach(which) + max(abs(part.low), abs(part.high)) + 2
        more = math.ceil(margin / ALIGN)
        ends = []
        for axis in (0, 1):
            first, last = self.blocks[which].any(1 - axis).nonzero().aminmax()
            high = min((int(last) + 1 + more) * ALIGN, self.number.shape[axis])
            ends.append(slice(max(0, int(first) - more) * ALIGN, high))
        return ends[0], ends[1]

    def take(self, which: int, box: Box) -> Tensor:
        """What a box of pixels holds of a slice: ``[C + 3, h, w]``, the last plane 1 where that is known.

        The others are light and opacity, both 0 where there is nothing, and opacity times defocus.
        """
        number = self.number[box]
        count = len(self.light)
        planes = self.light.new_empty(count + 3, *number.shape)
        member = planes[count].copy_(number == which)
        torch.mul(self.light[:, box[0], box[1]], member, out=planes[:count])
        torch.mul(self.defocus[box], member, out=planes[count + 1])
        planes[-1].copy_(number <= which)
        of = self.fragment[box]
        some = of >= 0
        if bool(some.any()):
            y, x = some.nonzero(as_tuple=True)
            number = of[y, x].long()
            near, far = self.near_number[number], self.far_number[number]
            held = torch.where(far == which, self.behind[:, number], self.front[:, number] * (near == which))
            planes[:-1, y, x] = torch.where((near == which) & (far == which), self.whole[:, number], held)
        return planes

    def surface(self, which: int) -> Surface:
        """The completed surface of one slice, of those that are ``present``, at the slice's scale."""
        part = self.slices[which]
        box = self.box(which)
        scale = part.scale
        planes = self._shrunk(which, box, scale)
        known, opaque = planes[-1:], planes[-3:-2]
        levels = max(1, int(self.reach(which) / scale).bit_length())
        filled = planes[:-2]
        if self._hides(which, box):
            # A lamp may go on behind what hides it, but must not light up all that is hidden around it.
            glare = _glare(filled[:-1])
            filled[:-1] -= glare
            filled = pull_push(filled, known, levels)
            filled[:-1] += glare
        elsewhere = 0.0 if part.in_focus else (part.low + part.high) / 2
        if scale > 1:
            defocus = pull_push(planes[-2:-1], opaque, levels)
            defocus = torch.where(defocus == 0, elsewhere, defocus)
        else:
            defocus = torch.where(opaque > 0, planes[-2:-1] / opaque.clamp_min(1e-6), elsewhere)
        rows, columns = (slice(side.start // scale, -(-side.stop // scale)) for side in box)
        return Surface(
            part, (rows, columns), filled[:-1], filled[-1:].clamp_(0, 1), defocus.clamp_(part.low, part.high)
        )

    def _shrunk(self, which: int, box: Box, scale: int) -> Tensor:
        """:meth:`take` of a box at a fraction of its resolution, window by window."""
        sides = [-(-(side.stop - side.start) // scale) for side in box]
        planes = self.light.new_zeros(len(self.light) + 3, *sides)
        planes[-1] = 1
        for window in windows(box, self.window):
            if not self.may_show(which, window):
                continue
            part = shrink(self.take(which, window), scale)
            planes[(slice(None), *_within(window, box, scale, part.shape[1:]))] = part
        return planes

    def near(self, which: int, window: Box) -> Surface:
        """The completed surface of one slice near focus in a window of the picture, at full resolution.

        Args:
            which: the slice's number.
            window: rows and columns of the picture, inside the slice's box.
        """
        part = self.slices[which]
        planes = self.take(which, window)
        filled, opaque, known = planes[:-2], planes[-3:-2], planes[-1:]
        defocus = torch.where(opaque > 0, planes[-2:-1] / opaque.clamp_min(1e-6), 0.0)
        if not part.in_focus:
            defocus = torch.where(opaque > 0, defocus, (part.low + part.high) / 2)
        if self._hides(which, window) and bool((known < 1).any()):
            filled = filled + (1 - known) * self._filled(which, window)
        return Surface(
            part, window, filled[:-1], filled[-1:].clamp(0, 1), defocus.clamp_(part.low, part.high)
        )

    def _filled(self, which: int, window: Box) -> Tensor:
        """What is filled in behind what hides a slice, ``[C + 1, h, w]``, from half the resolution."""
        if which not in self._hidden:
            box = self.box(which)
            sides = [-(-(side.stop - side.start) // 2) for side in box]
            # What is farther than a window from all that is hidden is left unknown: it is not needed.
            stack = self.light.new_zeros(len(self.light) + 2, *sides)
            for part in windows(box, self.window):
                if not self._hides(which, widened(part, math.ceil(self.reach(which)))):
                    continue
                planes = self.take(which, part)
                planes = torch.cat([planes[:-2], planes[-1:]])
                planes[:-2] -= _glare(planes[:-2])
                pulled = pull(planes[None])[0]
                stack[(slice(None), *_within(part, box, 2, pulled.shape[1:]))] = pulled
            levels = max(1, int(self.reach(which)).bit_length())
            self._hidden[which] = box, pull_push(stack[:-1], stack[-1:], levels - 1)
        box, filled = self._hidden[which]  # type: ignore[misc]
        return grow_part(filled[None], box, window)[0]


def _glare(light: Tensor) -> Tensor:
    """What of light ``[C, h, w]`` is too bright to be filled in elsewhere."""
    brightest = light.amax(0, keepdim=True)
    return light * (1 - _BRIGHTEST / brightest.clamp_min(_BRIGHTEST))


def _blocks_of(box: Box) -> Box:
    rows, columns = (slice(side.start // ALIGN, -(-side.stop // ALIGN)) for side in box)
    return rows, columns


def widened(box: Box, margin: int) -> Box:
    """A box and ``margin`` pixels on every side of it, which may lie beyond the right and lower end of the picture."""
    rows, columns = (slice(max(0, side.start - margin), side.stop + margin) for side in box)
    return rows, columns


def _within(window: Box, box: Box, scale: int, shape: torch.Size) -> Box:
    """Where a window lies in a box that begins at a multiple of ``scale``, in pixels of that scale."""
    rows, columns = (
        slice((side.start - of.start) // scale, (side.start - of.start) // scale + size)
        for side, of, size in zip(window, box, shape, strict=True)
    )
    return rows, columns


def windows(box: Box, size: int) -> Iterator[Box]:
    """Cut a box into windows of at most ``size`` by ``size``, row by row."""
    for top in range(box[0].start, box[0].stop, size):
        for left in range(box[1].start, box[1].stop, size):
            yield slice(top, min(box[0].stop, top + size)), slice(left, min(box[1].stop, left + size))


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


def grow_part(planes: Tensor, box: Box, window: Box) -> Tensor:
    """What :func:`~bokeh_ops.depth.fill.grow` makes in a window, from what lies there alone.

    Args:
        planes: ``[N, C, h, w]`` at half the resolution, beginning where ``box`` does, at even rows and columns.
        box: rows and columns, at full resolution, of the whole of ``planes``.
        window: inside it.
    """
    taken, kept = [], []
    for of, side, size in zip(box, window, planes.shape[-2:], strict=True):
        low = max(0, (side.start - of.start) // 2 - 1)
        high = min(size, (side.stop - of.start + 1) // 2 + 1)
        first = side.start - of.start - 2 * low
        taken.append(slice(low, high))
        kept.append(slice(first, first + side.stop - side.start))
    grown = F.interpolate(
        planes[..., taken[0], taken[1]], scale_factor=2.0, mode="bilinear", align_corners=False
    )
    return grown[..., kept[0], kept[1]]
