"""An occlusion-aware lens: what each part of the aperture sees, front to back.

The picture is cut into surfaces by defocus, each completed behind what hides it
(:mod:`bokeh_ops.render.surfaces`), and its edge pixels into what lies in front and behind
(:mod:`bokeh_ops.render.matte`). Each surface is spread over the aperture by itself, and the surfaces are laid
over one another from the nearest to the farthest:

    picture = mean over the parts of the lens of  B_1 + (1 - A_1) (B_2 + (1 - A_2) (...))

with B_i the light and A_i the opacity that a part of the lens sees of surface i. One part, the whole lens, would
assume that what one surface hides of another has nothing to do with direction; but the part of the lens that
looks past an edge on its left sees other things behind it than the part that looks past it on its right. Four
parts recover most of that. Surfaces near focus need not be cut: they hide all directions alike.

Surfaces that are much blurred are computed at a fraction of the resolution, and the parts of the lens are
averaged before the last step up, so that at full resolution only the surfaces near focus are convolved.

The picture is painted tile by tile, each from the surfaces that are seen in it: what is done to a tile stays in a
processor's cache, and what is not there costs nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from .alpha import develop
from .contract import Lens, Progress, Rendered, drawn
from .highlights import recover
from .matte import take_apart
from .spread import Lattice, spread
from .surfaces import ALIGN, Box, Cut, Surface, grow_part, ladder, widened, windows

SECTORS = 4
"""Parts of the lens whose view is told apart."""
LARGEST = 8_000_000
"""Pixels that are cut into surfaces at once; larger pictures go in pieces."""
_PIECE = 2048  # pixels along a piece
_TILES = {"cpu": (512, 256)}
"""Pixels along a tile, and along the windows at full resolution in it, by kind of device ..."""
_TILE = (1 << 30, 1 << 30)  # ... and elsewhere: as few and as large steps as there can be
_CELLS = 8  # a cat's eye changes from cell to cell of a grid, this many along the longer side
_CUTTING = 0.3  # share of the time that it takes to cut the surfaces
_MARGIN = 2  # coarse pixels about a tile, which growing to the next finer scale needs


@torch.no_grad()
def render_layered(
    image: Tensor,
    disparity: Tensor,
    lens: Lens,
    progress: Progress | None = None,
    tile: int | None = None,
) -> Rendered:
    """Render each picture of the batch; see the module.

    Computed in fp32 (fp64 for fp64 pictures). An image whose defocus is 0 everywhere comes back bit for bit.
    Alpha (a fourth channel, straight) is spread like light, and colour is weighed by it.

    Args:
        image: ``[B, C, H, W]``, C = 1, 3 or 4.
        disparity: ``[B, 1, H, W]``.
        lens: everything; any aperture.
        progress: called as ``progress(done, total)``, about once for each surface; may raise to stop.
        tile: see :class:`~bokeh_ops.render.contract.LensModel`.

    Returns:
        :class:`~bokeh_ops.render.contract.Rendered`.
    """
    work = torch.float64 if image.dtype == torch.float64 else torch.float32
    defocus = lens.defocus(disparity.to(image.device))
    rendered = image.clone()
    for row in range(len(image)):
        if not bool(defocus[row].any()):
            continue

        def report(share: float, row: int = row) -> None:
            if progress is not None:
                progress(int(1000 * (row + share)), 1000 * len(image))

        here = drawn(defocus[row, 0]).to(work)
        light = _light(image[row].to(work), here.abs(), lens)
        rendered[row] = develop(expose(light, here, lens, report, tile), lens, image[row]).to(image.dtype)
    if progress is not None:
        progress(1000 * len(image), 1000 * len(image))
    return Rendered(rendered, defocus)


def _light(image: Tensor, radius: Tensor, lens: Lens) -> Tensor:
    """Linear light ``[C, H, W]``; of a picture with alpha, colour times alpha, and alpha."""
    alpha = image[3:4].clamp(0, 1) if image.shape[0] == 4 else None
    colour = image[:3]
    if lens.highlight_boost > 0:
        # By the brightest channel, so that hue stays; fading in with the radius, so that sharp pixels stay.
        above = (colour.amax(0) - lens.highlight_threshold) / (1 - lens.highlight_threshold)
        colour = colour * (1 + lens.highlight_boost * above.clamp(0, 1) * radius.clamp(max=1))
    light = recover(lens.to_light(colour), radius, lens.recovery)
    return light if alpha is None else torch.cat([light * alpha, alpha])


class _Tile(NamedTuple):
    """A part of the picture that is painted with one lens."""

    box: Box
    at: tuple[float, float]
    """Place in the picture, for a cat's eye; see :meth:`Aperture.kernel`."""
    weight: Tensor | None
    """``[h, w]``, where tiles overlap; None where they do not."""


def expose(
    light: Tensor, defocus: Tensor, lens: Lens, report: Callable[[float], None], side: int | None = None
) -> Tensor:
    """The light behind the lens of one picture.

    Args:
        light: ``[C, H, W]`` linear light.
        defocus: ``[H, W]`` signed defocus in pixels of blur radius.
        lens: its aperture is what is used.
        report: called with the share that is done.
        side: pixels along the largest tile, of which 64 is the least; None for the usual ones.

    Returns:
        ``[C, H, W]``.
    """
    height, width = defocus.shape
    least, most = (value.item() for value in defocus.aminmax())
    slices = ladder(defocus, light)
    reach = max(most, -least)
    blend = lens.aperture.cats_eye > 0
    frame = slice(0, height), slice(0, width)
    tile, window = _TILES.get(light.device.type, _TILE)
    largest, length = LARGEST, _PIECE
    if side is not None:
        tile = min(tile, max(ALIGN, side // ALIGN * ALIGN))
        window, largest, length = min(window, tile), min(largest, (4 * tile) ** 2), min(length, 2 * tile)
    # Most tiles' size: a cat's eye's are its cells, which overlap by half.
    nominal = min(tile, 2 * _step(height, width)) if blend else tile
    out = torch.zeros_like(light)
    total = light.new_zeros(height, width) if blend else None
    lattice = None
    pieces = [frame]
    if height * width > largest and any(
        _around(piece, frame, reach) != frame for piece in windows(frame, length)
    ):
        pieces = list(windows(frame, length))
    for number, piece in enumerate(pieces):
        around = _around(piece, frame, reach)
        origin = around[0].start, around[1].start
        seen, there = light[:, around[0], around[1]], defocus[around]

        def share(done: float, number: int = number) -> None:
            report((number + done) / len(pieces))

        cut = Cut(seen, there, take_apart(seen, there), slices, most, window)
        painter = Painter(cut, window, lambda done: share(_CUTTING * done))
        tiles = list(_cells(piece, frame, light)) if blend else _plain(piece, tile)
        for done, (box, at, weight) in enumerate(tiles):
            share(_CUTTING + (1 - _CUTTING) * done / len(tiles))
            if lattice is None or lattice.at != at:
                lattice = Lattice(lens.aperture, at, light)
            part = painter.paint(_moved(box, origin), lattice, (nominal, nominal))
            if weight is None or total is None:
                out[:, box[0], box[1]] = part
            else:
                out[:, box[0], box[1]] += part * weight
                total[box] += weight
    return out if total is None else out / total


def _plain(piece: Box, size: int) -> list[_Tile]:
    return [_Tile(box, (0.0, 0.0), None) for box in windows(piece, size)]


def _around(piece: Box, frame: Box, reach: float) -> Box:
    """A piece of the picture and all that bears on it, from a multiple of 64 on."""
    if piece == frame:
        return frame
    halo = math.ceil(3 * reach + 16)
    rows, columns = (
        slice(max(0, side.start - halo) // ALIGN * ALIGN, min(of.stop, side.stop + halo))
        for side, of in zip(piece, frame, strict=True)
    )
    return rows, columns


def _moved(box: Box, origin: tuple[int, int]) -> Box:
    rows, columns = (slice(side.start - o, side.stop - o) for side, o in zip(box, origin, strict=True))
    return rows, columns


def _step(height: int, width: int) -> int:
    """Pixels from cell to cell of a cat's eye's grid."""
    return -(-max(height, width) // _CELLS)


def _cells(piece: Box, frame: Box, like: Tensor) -> Iterator[_Tile]:
    """Tiles that overlap by half and are blended into one another, as the lens differs from place to place."""
    height, width = frame[0].stop, frame[1].stop
    step = _step(height, width)
    half = math.hypot(height, width) / 2

    def hat(centre: float, side: slice) -> Tensor:
        place = torch.arange(side.start, side.stop, device=like.device, dtype=like.dtype) + 0.5
        return (1 - (place - centre).abs() / step).clamp_min(1e-6)

    for y in _centres(height, step):
        for x in _centres(width, step):
            rows, columns = (
                slice(max(side.start, centre - step), min(side.stop, centre + step))
                for side, centre in zip(piece, (y, x), strict=True)
            )
            if rows.start < rows.stop and columns.start < columns.stop:
                at = (x - width / 2) / half, (y - height / 2) / half
                yield _Tile((rows, columns), at, hat(y, rows)[:, None] * hat(x, columns)[None])


def _centres(whole: int, step: int) -> list[int]:
    """Places from 0 to ``whole``, no farther apart than ``step``, that lie alike from both ends."""
    count = -(-whole // step)
    near = [i * whole // count for i in range(count + 1)]
    return [place if 2 * i <= count else whole - near[count - i] for i, place in enumerate(near)]


class Painter:
    """Paints parts of a picture that has been cut.

    Args:
        cut: the picture.
        window: pixels along the windows that are painted at once at full resolution.
        report: called with the share of the surfaces that are there.
    """

    def __init__(self, cut: Cut, window: int, report: Callable[[float], None]) -> None:
        self.cut, self.window = cut, window
        self.size = cut.number.shape[0], cut.number.shape[1]
        order = [which for which, present in enumerate(cut.present) if present]
        self.near = [(which, cut.box(which)) for which in reversed(order) if cut.slices[which].near_focus]
        blurred = [which for which in order if not cut.slices[which].near_focus]
        # The most blurred first: on both sides from the coarsest scale to the finest.
        self.front: list[Surface] = []
        self.back: list[Surface] = []
        for done, which in enumerate(blurred):
            report(done / len(blurred))
            in_front = cut.slices[which].low > 0
            (self.front if in_front else self.back).append(cut.surface(which))
        self.front.reverse()
        scales = [surface.slice.scale for surface in (*self.front, *self.back)]
        self.finest = min(scales, default=1)

    def paint(self, box: Box, lattice: Lattice, nominal: tuple[int, int], sectors: int = SECTORS) -> Tensor:
        """The light behind the lens in a part of the picture.

        Args:
            box: its rows and columns.
            lattice: the aperture's kernels there.
            nominal: height and width that most such parts have.
            sectors: parts of the lens whose view is told apart.

        Returns:
            ``[C, h, w]``.
        """
        over, behind = self._blurred(box, lattice, nominal, sectors)
        planes = len(self.cut.light) + 1
        out = self.cut.light.new_empty(planes - 1, *(side.stop - side.start for side in box))
        for window in windows(box, self.window):
            rows, columns = _moved(window, (box[0].start, box[1].start))
            if over is None:
                here = out.new_zeros(planes, rows.stop - rows.start, columns.stop - columns.start)
            else:
                here = self._full(over, box, window).clone()
            rest = None if behind is None else self._full(behind, box, window).clone()
            passes = 1 - here[-1:]
            for which, of in self.near:
                self._near(which, of, window, lattice, here, passes, rest)
            if rest is not None:
                here += rest
            out[:, rows, columns] = here[:-1] / here[-1:].clamp_min(1e-6)
        return out

    def _near(
        self,
        which: int,
        of: Box,
        window: Box,
        lattice: Lattice,
        here: Tensor,
        passes: Tensor,
        rest: Tensor | None,
    ) -> None:
        """Lay a surface near focus behind ``here`` and in front of ``rest``, of which ``passes`` shows it."""
        part = self.cut.slices[which]
        seen_in = _overlap(window, of)
        if seen_in is None:
            return
        halo = lattice.reach(part.broadest) + 1
        around = _overlap(widened(seen_in, halo), of)
        if around is None or not self.cut.may_show(which, around):
            return
        surface = self.cut.near(which, around)
        if not bool(surface.opacity.any()):
            return
        sizes = seen_in[0].stop - seen_in[0].start, seen_in[1].stop - seen_in[1].start
        seen = spread(surface, lattice, 1, seen_in, sizes)[0]
        place = (slice(None), *_moved(seen_in, (window[0].start, window[1].start)))
        clear = 1 - seen[-1:]
        here[place] += passes[place] * seen
        passes[place] *= clear
        if rest is not None:
            rest[place] *= clear

    def _full(self, stack: tuple[Box, Tensor], box: Box, window: Box) -> Tensor:
        """The part of a stack, ``[C + 1, h, w]``, that lies in a window, at full resolution."""
        of, planes = stack
        if self.finest > 1:
            return grow_part(planes[None], of, window)[0]
        rows, columns = _moved(window, (of[0].start, of[1].start))
        return planes[:, rows, columns]

    def _blurred(
        self, box: Box, lattice: Lattice, nominal: tuple[int, int], sectors: int
    ) -> tuple[tuple[Box, Tensor] | None, tuple[Box, Tensor] | None]:
        """What is seen of the surfaces in front of the focus and behind it, each with the box that it fills.

        At half the resolution, or the whole where no surface is coarser.
        """
        front, back = _Stack(box, self.size), _Stack(box, self.size)
        for stack, surfaces, lay in (
            (front, self.front, front.lay_behind),
            (back, self.back, back.lay_in_front),
        ):
            for surface in surfaces:
                scale = surface.slice.scale
                window = _overlap(stack.window(scale), surface.box)
                if window is None:
                    continue
                size = [
                    -(-min(side, whole) // scale) + 2 * _MARGIN
                    for side, whole in zip(nominal, self.size, strict=True)
                ]
                lay(window, scale, spread(surface, lattice, sectors, window, (size[0], size[1])))
        scale = min(2, self.finest)
        over, behind = front.at_scale(scale), back.at_scale(scale)
        if over is not None and behind is not None:
            behind = (1 - over[:, -1:]) * behind
        # The parts of the lens are averaged here: the surfaces that remain hide all of them alike.
        shares = lattice.shares(sectors)
        of = _scaled(front.window(scale), scale)
        made = [None if stack is None else (of, (stack * shares).sum(0)) for stack in (over, behind)]
        return made[0], made[1]


def _scaled(box: Box, scale: int) -> Box:
    rows, columns = (slice(side.start * scale, side.stop * scale) for side in box)
    return rows, columns


def _overlap(one: Box, other: Box) -> Box | None:
    rows, columns = (
        slice(max(a.start, b.start), min(a.stop, b.stop)) for a, b in zip(one, other, strict=True)
    )
    return (rows, columns) if rows.start < rows.stop and columns.start < columns.stop else None


class _Stack:
    """Surfaces on one side of the focus laid over one another in a tile, ``[S, C + 1, h, w]`` with opacity last.

    They come from the most blurred to the sharpest, at ever finer scales.
    """

    def __init__(self, box: Box, size: tuple[int, int]) -> None:
        self.box, self.size = box, size
        self.planes: Tensor | None = None
        self.scale = 0

    def window(self, scale: int) -> Box:
        """Rows and columns at a scale that the tile and its margin fill."""
        if scale == 1:
            return self.box
        rows, columns = (
            slice(
                max(0, side.start // scale - _MARGIN),
                min(-(-whole // scale), -(-side.stop // scale) + _MARGIN),
            )
            for side, whole in zip(self.box, self.size, strict=True)
        )
        return rows, columns

    def at_scale(self, scale: int) -> Tensor | None:
        """What is there, grown to a scale at least as fine as before."""
        while self.planes is not None and self.scale > scale:
            of = _scaled(self.window(self.scale), 2)
            self.scale //= 2
            self.planes = grow_part(self.planes, of, self.window(self.scale))
        return self.planes

    def _canvas(self, seen: Tensor, scale: int) -> Tensor:
        before = self.at_scale(scale)
        if before is None:
            sides = (side.stop - side.start for side in self.window(scale))
            before = seen.new_zeros(*seen.shape[:2], *sides)
        self.planes, self.scale = before, scale
        return before

    def _place(self, window: Box, scale: int) -> tuple[slice, ...]:
        of = self.window(scale)
        return (slice(None), slice(None), *_moved(window, (of[0].start, of[1].start)))

    def lay_behind(self, window: Box, scale: int, seen: Tensor) -> None:
        """Add what shows of a surface behind all of this."""
        there = self._canvas(seen, scale)[self._place(window, scale)]
        there.addcmul_(1 - there[:, -1:], seen)

    def lay_in_front(self, window: Box, scale: int, seen: Tensor) -> None:
        """Cover all of this with a surface in front of it."""
        there = self._canvas(seen, scale)[self._place(window, scale)]
        there.mul_(1 - seen[:, -1:]).add_(seen)
