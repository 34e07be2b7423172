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
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from .contract import Lens, Progress, Rendered
from .highlights import recover
from .matte import take_apart
from .spread import Lattice, spread
from .surfaces import ALIGN, Cut, Slice, Surface, grow, ladder

SECTORS = 4
"""Parts of the lens whose view is told apart."""
LARGEST = 8_000_000
"""Pixels that are rendered at once; larger pictures go in tiles."""
_TILE = 2048  # pixels along a tile
_CELLS = 8  # a cat's eye changes from cell to cell of a grid, this many along the longer side


@torch.no_grad()
def render_layered(
    image: Tensor, disparity: Tensor, lens: Lens, progress: Progress | None = None
) -> Rendered:
    """Render each picture of the batch; see the module.

    Computed in fp32 (fp64 for fp64 pictures). An image whose defocus is 0 everywhere comes back bit for bit.
    Alpha (a fourth channel, straight) is spread like light, and colour is weighed by it.

    Args:
        image: ``[B, C, H, W]``, C = 1, 3 or 4.
        disparity: ``[B, 1, H, W]``.
        lens: everything; any aperture.
        progress: called as ``progress(done, total)``, about once for each surface; may raise to stop.

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

        here = defocus[row, 0].to(work)
        light = _light(image[row].to(work), here.abs(), lens)
        rendered[row] = _developed(expose(light, here, lens, report), image[row], lens).to(image.dtype)
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


def _developed(light: Tensor, image: Tensor, lens: Lens) -> Tensor:
    if len(light) != 4:
        return lens.from_light(light)
    alpha = light[3:4]
    seen = alpha > 0
    colour = lens.from_light(light[:3] / torch.where(seen, alpha, 1))
    return torch.cat([torch.where(seen, colour, image[:3].to(colour.dtype)), alpha])


class _Tile(NamedTuple):
    """A part of the picture: what is rendered, what of it is kept, and as what part of the lens's field."""

    outer: tuple[slice, slice]
    inner: tuple[slice, slice]
    weight: Tensor | None
    at: tuple[float, float]


def expose(light: Tensor, defocus: Tensor, lens: Lens, report: Callable[[float], None]) -> Tensor:
    """The light behind the lens of one picture.

    Args:
        light: ``[C, H, W]`` linear light.
        defocus: ``[H, W]`` signed defocus in pixels of blur radius.
        lens: its aperture is what is used.
        report: called with the share that is done.

    Returns:
        ``[C, H, W]``.
    """
    height, width = defocus.shape
    least, most = (value.item() for value in defocus.aminmax())
    slices = ladder(defocus)
    reach = max(most, -least)
    if lens.aperture.cats_eye == 0 and height * width <= LARGEST:
        lattice = Lattice(lens.aperture, (0.0, 0.0), light)
        return expose_tile(light, defocus, lattice, slices, most, report)
    tiles = list(_tiles(height, width, reach, lens.aperture.cats_eye > 0, light))
    out, total = torch.zeros_like(light), light.new_zeros(height, width)
    lattice = None
    for number, tile in enumerate(tiles):
        if lattice is None or lattice.at != tile.at:
            lattice = Lattice(lens.aperture, tile.at, light)
        part = expose_tile(
            light[:, tile.outer[0], tile.outer[1]],
            defocus[tile.outer],
            lattice,
            slices,
            most,
            lambda share, number=number: report((number + share) / len(tiles)),
        )
        top, left = (inner.start - outer.start for inner, outer in zip(tile.inner, tile.outer, strict=True))
        kept = part[
            :,
            top : top + tile.inner[0].stop - tile.inner[0].start,
            left : left + tile.inner[1].stop - tile.inner[1].start,
        ]
        weight = light.new_ones(kept.shape[1:]) if tile.weight is None else tile.weight
        out[:, tile.inner[0], tile.inner[1]] += kept * weight
        total[tile.inner] += weight
    return out / total


def _tiles(height: int, width: int, reach: float, blend: bool, like: Tensor) -> Iterator[_Tile]:
    """Tiles that cover the picture; blended into one another if the lens differs from place to place."""
    halo = -(-math.ceil(3 * reach + 16) // ALIGN) * ALIGN
    step = -(-max(height, width) // _CELLS) if blend else _TILE

    def outer(low: int, high: int, end: int) -> slice:
        low = max(0, low - halo) // ALIGN * ALIGN
        return slice(low, min(end, high + halo))

    def hat(centre: float, low: int, high: int) -> Tensor:
        place = torch.arange(low, high, device=like.device, dtype=like.dtype) + 0.5
        return (1 - (place - centre).abs() / step).clamp_min(1e-6)

    half = math.hypot(height, width) / 2
    if not blend:
        for top in range(0, height, step):
            for left in range(0, width, step):
                inner = slice(top, min(height, top + step)), slice(left, min(width, left + step))
                around = (
                    outer(inner[0].start, inner[0].stop, height),
                    outer(inner[1].start, inner[1].stop, width),
                )
                yield _Tile(around, inner, None, (0.0, 0.0))
        return
    for i in range(-(-height // step) + 1):
        for j in range(-(-width // step) + 1):
            y, x = i * step, j * step
            inner = (
                slice(max(0, y - step), min(height, y + step)),
                slice(max(0, x - step), min(width, x + step)),
            )
            if inner[0].start >= inner[0].stop or inner[1].start >= inner[1].stop:
                continue
            weight = (
                hat(y, inner[0].start, inner[0].stop)[:, None] * hat(x, inner[1].start, inner[1].stop)[None]
            )
            around = (
                outer(inner[0].start, inner[0].stop, height),
                outer(inner[1].start, inner[1].stop, width),
            )
            at = (min(x, width) - width / 2) / half, (min(y, height) - height / 2) / half
            yield _Tile(around, inner, weight, at)


def expose_tile(
    light: Tensor,
    defocus: Tensor,
    lattice: Lattice,
    slices: list[Slice],
    most: float,
    report: Callable[[float], None],
    sectors: int = SECTORS,
) -> Tensor:
    """The light behind the lens, of a picture or a tile with its surroundings: ``[C, H, W]``."""
    height, width = defocus.shape
    cut = Cut(light, defocus, take_apart(light, defocus), slices, most)
    front, back = _Stack(height, width), _Stack(height, width)
    count = max(1, sum(cut.present))
    done = 0

    def surfaces(wanted: Callable[[Slice], bool], nearest_first: bool) -> Iterator[tuple[Surface, Tensor]]:
        nonlocal done
        order = range(len(slices))
        for which in reversed(order) if nearest_first else order:
            part = slices[which]
            if not (wanted(part) and cut.present[which]):
                continue
            surface = cut.surface(which)
            yield surface, spread(surface, lattice, 1 if part.near_focus else sectors)
            done += 1
            report(done / count)

    for surface, seen in surfaces(lambda part: not part.near_focus and part.low > 0, True):
        front.lay_behind(surface, seen)
    for surface, seen in surfaces(lambda part: not part.near_focus and part.low < 0, False):
        back.lay_in_front(surface, seen)
    finest = min((part.scale for part in slices if not part.near_focus), default=1)
    over, behind = front.at_scale(min(2, finest)), back.at_scale(min(2, finest))
    if over is not None and behind is not None:
        behind = (1 - over[:, -1:]) * behind
    # The parts of the lens are averaged here: the surfaces that remain hide all of them alike.
    shares = lattice.shares(sectors)
    means = [(stack * shares).sum(0, keepdim=True) for stack in (over, behind) if stack is not None]
    full = torch.cat(means, 1) if means else None
    if full is not None:
        full = (grow(full, height, width) if finest > 1 else full)[0]
    planes = len(light) + 1
    out = light.new_zeros(planes, height, width)
    rest = None
    if full is not None:
        out = full[:planes] if over is not None else out
        rest = full[-planes:] if behind is not None else None
    passes = 1 - out[-1:]
    for surface, seen in surfaces(lambda part: part.near_focus, True):
        box, clear = (slice(None), *surface.box), 1 - seen[0, -1:]
        out[box].addcmul_(passes[box], seen[0])
        passes[box].mul_(clear)
        if rest is not None:
            rest[box].mul_(clear)
    if rest is not None:
        out = out + rest
    return out[:-1] / out[-1:].clamp_min(1e-6)


class _Stack:
    """Surfaces on one side of the focus laid over one another, ``[S, C + 1, h, w]`` with opacity last.

    They come from the most blurred to the sharpest, at ever finer scales.
    """

    def __init__(self, height: int, width: int) -> None:
        self.size = height, width
        self.planes: Tensor | None = None
        self.scale = 0

    def at_scale(self, scale: int) -> Tensor | None:
        """What is there, grown to a scale at least as fine as before."""
        while self.planes is not None and self.scale > scale:
            self.scale //= 2
            self.planes = grow(self.planes, *(-(-side // self.scale) for side in self.size))
        return self.planes

    def _canvas(self, seen: Tensor, scale: int) -> Tensor:
        before = self.at_scale(scale)
        if before is None:
            before = seen.new_zeros(*seen.shape[:2], *(-(-side // scale) for side in self.size))
        self.planes, self.scale = before, scale
        return before

    def lay_behind(self, surface: Surface, seen: Tensor) -> None:
        """Add what shows of a surface behind all of this."""
        there = self._canvas(seen, surface.slice.scale)[(slice(None), slice(None), *surface.box)]
        there.addcmul_(1 - there[:, -1:], seen)

    def lay_in_front(self, surface: Surface, seen: Tensor) -> None:
        """Cover all of this with a surface in front of it."""
        there = self._canvas(seen, surface.slice.scale)[(slice(None), slice(None), *surface.box)]
        there.mul_(1 - seen[:, -1:]).add_(seen)
