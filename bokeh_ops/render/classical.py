"""The classical renderer of BokehMe (Peng et al., CVPR 2022): an exact scatter in linear light.

Every source pixel with blur radius ``r = |K (disp - disp_focus)|`` spreads over the disc around it with

    w(dist) = (0.5 + 0.5 tanh(4 (r - dist))) / (r^2 + 0.2)

and the picture is ``(sum w I^gamma / sum w)^(1 / gamma)``. What would land outside the frame is dropped,
so the borders renormalise by themselves. With a polygonal aperture the edge ``r`` depends on the direction
(:func:`bokeh_ops.render.offsets.aperture_scale`); the denominator keeps the vertex radius, so that a pixel's
light stays even over its polygon.

In front of the focal plane an opening is seen upside down (:mod:`bokeh_ops.render.aperture` derives it). The
published scatter takes ``|defocus|`` and so draws a polygon of 3, 5, 7 ... blades alike on both sides; here it is
turned by 180 degrees in front. Round openings, the only ones the published networks know, are the same either way.

Light of hidden pixels is added like any other, so a sharp foreground bleeds into a blurred background and a
background's blur spills over a sharp edge: the known limit of this model.

How it is computed: see :mod:`bokeh_ops.render.offsets`. Everything is a sum of positive terms, so dark pixels
beside HDR highlights keep their precision (no prefix sums, no FFT). The edge counts as 1 where it is above
1 - 1e-6. A weight counts as 0 below ``min(1e-6, 0.001^gamma)`` of the weight that the picture's most blurred
pixel has at its own centre: the final root lifts faint light out of black, and what is dropped must not show.
Memory: one accumulator of the picture's size plus its blur margin in fp32, and one tile.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from ..errors import BokehError
from .alpha import develop
from .contract import Lens, Progress, Rendered, drawn
from .offsets import FLOOR, SHARPNESS, Group, Plan, covering

# Numbers in one addition on a CPU: what torch still does in one thread (its grain size) and what stays in the
# second-level cache. Thousands of short additions gain little from more threads, and crawl when those threads
# have to wait for a busy core.
CPU_NUMBERS = 32768
LARGEST_RADIUS = 1024
"""Pixels of blur radius above which this model is refused, unless the disc covers the whole picture anyway."""
_FARTHEST = 1000.0  # diagonals of the picture: light of even wider discs is nothing
TILE = 1024
"""Pixels along a tile elsewhere, where steps should be few and large."""


@torch.no_grad()
def render_classical(
    image: Tensor,
    disparity: Tensor,
    lens: Lens,
    progress: Progress | None = None,
    tile: int | None = None,
) -> Rendered:
    """Scatter each picture of the batch; see the module for the equations.

    Computed in fp32 (fp64 for fp64 pictures). Negative values count as 0. An image whose radii are all 0
    comes back bit for bit. Alpha (a fourth channel, straight) is spread with the same weights and without
    gamma, and colour is weighed by it, so that what is transparent gives no colour.

    Args:
        image: ``[B, C, H, W]``, C = 1, 3 or 4.
        disparity: ``[B, 1, H, W]``.
        lens: K, focus, gamma, highlights, and an aperture that is round or a polygon with straight edges.
        progress: called as ``progress(done, total)`` many times a second or so; may raise to stop.
        tile: see :class:`~bokeh_ops.render.contract.LensModel`.

    Returns:
        :class:`~bokeh_ops.render.contract.Rendered`.

    Raises:
        BokehError: another aperture, or a blur radius over :data:`LARGEST_RADIUS` that does not cover the picture.
    """
    aperture = lens.aperture
    if not (aperture.is_disc or aperture.is_polygon):
        raise BokehError(
            "The classical lens model draws round openings and polygons with straight edges only, not curved blades, "
            "kernel pictures, squeeze, cat's eye or spherical aberration. Choose the lens model 'layered' for these."
        )
    blades = aperture.blades if aperture.is_polygon else 0
    defocus = lens.defocus(disparity.to(image.device))
    shown = drawn(defocus[:, 0], _FARTHEST)
    work = torch.float64 if image.dtype == torch.float64 else torch.float32
    cpu = image.device.type == "cpu"
    side = tile or (max(8, math.isqrt(CPU_NUMBERS // (image.shape[1] + 1)) // 8 * 8) if cpu else TILE)
    numbers = CPU_NUMBERS if cpu else 4 * side * side
    # Near black a power lifts light by its root, and the sRGB curve by 12.92.
    tail = min(1e-6, 0.001 / 12.92 if lens.gamma == "srgb" else 0.001**lens.gamma)
    radii = [row.abs().float().cpu().numpy() for row in shown]
    widest = max(float(radius.max(where=~covering(radius, blades), initial=0.0)) for radius in radii)
    if widest > LARGEST_RADIUS:
        raise BokehError(
            f"The blur radius runs to {widest:.0f} pixels; the classical lens model draws up to {LARGEST_RADIUS}, "
            "as its work grows with the square of the radius. Lower K, or choose the lens model 'layered'."
        )
    plans = [
        Plan(
            radius,
            blades,
            aperture.rotation,
            tail,
            side,
            (row > 0).cpu().numpy() if aperture.sided else None,
        )
        if radius.any()
        else None
        for row, radius in zip(shown, radii, strict=True)
    ]
    total = max(1, sum(plan.total for plan in plans if plan))
    done = 0
    rendered = image.clone()
    for index, plan in enumerate(plans):
        if plan is None:
            continue
        total_light = _accumulate(
            image[index], shown[index].to(work), lens, plan, numbers, work, progress, done, total
        )
        rendered[index] = develop(total_light[:-1] / total_light[-1:], lens, image[index]).to(image.dtype)
        done += plan.total
    if progress:
        progress(total, total)
    return Rendered(rendered, defocus)


def _light(image: Tensor, radius: Tensor, lens: Lens) -> Tensor:
    """Planes to be spread, of one tile ``[C, h, w]``: light of each colour, alpha if there is one, and 1."""
    alpha = image[3:4] if image.shape[0] == 4 else None
    colour = (image[:3] if alpha is not None else image).clamp_min(0)
    if lens.highlight_boost > 0:
        # By the brightest channel, so that hue stays; fading in with the radius, so that sharp pixels stay.
        above = (colour.amax(0) - lens.highlight_threshold) / (1 - lens.highlight_threshold)
        colour = colour * (1 + lens.highlight_boost * above.clamp(0, 1) * radius.clamp(max=1))
    colour = lens.to_light(colour)
    one = torch.ones_like(colour[:1])
    if alpha is None:
        return torch.cat([colour, one])
    alpha = alpha.clamp_min(0)
    return torch.cat([colour * alpha, alpha, one])


def _accumulate(
    image: Tensor,
    defocus: Tensor,
    lens: Lens,
    plan: Plan,
    numbers: int,
    work: torch.dtype,
    progress: Progress | None,
    done: int,
    total: int,
) -> Tensor:
    """Spread every group of the plan and cut the margin off: planes ``[C + 1 or 2, H, W]``."""
    height, width = defocus.shape
    pad_y, pad_x = plan.pad
    planes = image.shape[0] + 1
    sums = torch.zeros(planes, height + 2 * pad_y, width + 2 * pad_x, dtype=work, device=image.device)
    for group in plan.groups:
        box = (slice(group.top, group.bottom), slice(group.left, group.right))
        r = defocus[box].abs()
        # The plan was made in fp32; the same rounding decides who belongs to the group.
        member = (r.float() >= group.least) & (r.float() <= group.most)
        if plan.sided:
            member &= (defocus[box] > 0) == (group.turn < 0)
        light = _light(image[:, box[0], box[1]].to(work), r, lens) * (member / (r * r + FLOOR))
        _add_inner(sums, light, group, plan.pad, numbers)
        y, x = group.top + pad_y, group.left + pad_x
        for share in _add_edge(sums, light, r, group, plan, (y, x)):
            if progress:
                progress(done + int(share * group.cost), total)
        done += group.cost
        if progress:
            progress(done, total)
    seen = sums[:, pad_y : pad_y + height, pad_x : pad_x + width]
    if plan.covering.any():
        r = defocus.abs()
        covering = torch.from_numpy(plan.covering).to(r.device)
        seen = seen + (_light(image.to(work), r, lens) * (covering / (r * r + FLOOR))).sum(
            (1, 2), keepdim=True
        )
    return seen


def _add_edge(
    sums: Tensor, light: Tensor, r: Tensor, group: Group, plan: Plan, at: tuple[int, int]
) -> Iterator[float]:
    """Add ``light`` at every offset on a group's soft edge to ``sums``, in place; yields the share that is done."""
    (y, x), (h, w) = at, r.shape
    spent = 0.02
    step = (1 - spent) / max(1, group.last - group.first)
    for number in range(group.first, group.last):
        if plan.rings.square[number] <= group.inner:
            continue
        ring = plan.rings[number]
        edge = light * torch.sigmoid((r - ring.reach).mul_(SHARPNESS * ring.scale))
        for dy, dx in ring.offsets:
            v, u = y + group.turn * dy, x + group.turn * dx
            sums[:, v : v + h, u : u + w].add_(edge)
        if (number - group.first) % 64 == 0:
            yield spent + (number - group.first) * step


def _add_inner(sums: Tensor, light: Tensor, group: Group, pad: tuple[int, int], numbers: int) -> None:
    """Add ``light`` at every offset with ``dy^2 + dx^2 <= group.inner`` to ``sums``, in place.

    Row by row from the top of the disc to its middle the box grows, so each column of it is added once.
    """
    if group.inner < 0:
        return
    pad_y, pad_x = pad
    _, h, w = light.shape
    height = math.isqrt(group.inner)
    reach = min(height, pad_x)  # further columns lie outside the frame for every pixel
    y, x = group.top + pad_y, group.left + pad_x - reach
    several = max(1, numbers // (h * (w + 2 * reach)))
    for planes, target in zip(light.split(several), sums.split(several), strict=True):
        box = planes.new_zeros(len(planes), h, w + 2 * reach)
        box[:, :, reach : reach + w] = planes
        grown = 0
        for dy in range(height, -1, -1):
            half = min(math.isqrt(group.inner - dy * dy), reach)
            while grown < half:
                grown += 1
                box[:, :, reach + grown : reach + grown + w].add_(planes)
                box[:, :, reach - grown : reach - grown + w].add_(planes)
            if dy > pad_y:
                continue
            for row in {dy, -dy}:
                target[:, y + row : y + row + h, x : x + w + 2 * reach].add_(box)
