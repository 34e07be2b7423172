"""Moving the edges of a disparity map to where the picture has them.

Estimated depth is soft at edges, and enlarged depth softer still: between a near thing and what lies behind it the map
passes through disparities at which nothing is, and a lens rendered from it draws halos. Here every pixel near such an
edge decides for one of the two sides: its neighbours vote, each for its own side, weighed by how alike the colours
are, how near they lie, how clearly they belong to their side, and how far they are from the edge themselves (the
weights of a joint bilateral filter: Kopf et al., "Joint Bilateral Upsampling", SIGGRAPH 2007, eq. 3). The pixel takes
the weighted mean disparity of the side that wins, so no disparity between the two is left. Two rounds, because the
first moves the edge that the second looks at.

Slopes are not edges: where disparity goes on changing beyond the neighbourhood, nothing is touched. Neither is
anything farther from an edge than a few pixels.

A guided filter (He et al. 2013) was tried in its place: it follows the picture too, but leaves the mixtures in between.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .errors import BokehError

ROUNDS = 2
JUMP = 0.04
"""Share of the map's own range (2nd to 98th percentile) above which a change of disparity is an edge."""
ALIKE = 0.06
"""Standard deviation of the weight by colour, of the distance of two RGB colours 0..1."""
# Share of the change over twice the neighbourhood that lies within the neighbourhood: less is a slope. A straight
# slope has 1/2, and at the frame, which cuts both, up to 2/3.
_CONTINUES = 0.7
_LEAST = 0.05  # confidence of a pixel on an edge, against 1 far from it
_FAINT = 1e-3
_ENOUGH = 0.05
_UNANIMOUS = 0.8
_STEP = 0.2
_SPREAD = 0.75
_CHUNK = 1 << 18  # pixels decided at once
_STEPS = 100  # of the progress of one picture


def edge_reach(height: int, width: int, enlarged: float = 1.0) -> int:
    """How far, in pixels, a pixel looks for its like: 1/64 of the longer side, at least 4 and what one pixel became.

    Args:
        height, width: of the picture.
        enlarged: by how much the map was enlarged to fit it.
    """
    return max(4, round(max(height, width) / 64), round(enlarged))


@torch.no_grad()
def align_to_image(
    disparity: Tensor,
    guide: Tensor,
    reach: int | None = None,
    device: torch.device | str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Tensor:
    """Move the edges of disparity to those of the picture; see the module.

    Args:
        disparity: ``[B or 1, 1, H, W]``, finite.
        guide: ``[B, C, H, W]``, C = 1, 3 or 4 (alpha is not looked at): the picture as displayed, 0..1; what lies
            outside is clamped.
        reach: pixels that a pixel looks around; by default :func:`edge_reach` of the picture.
        device: where to compute, one picture at a time; by default where the disparity is.
        progress: called as ``progress(done, total)`` several times a picture, the last time with both equal; may
            raise to stop.

    Returns:
        ``[B, 1, H, W]`` in the disparity's type and on its device. Maps without edges come back bit for bit.

    Raises:
        BokehError: shapes that do not belong together, or a reach below 1.
    """
    batch, _, height, width = guide.shape
    if disparity.shape not in ((batch, 1, height, width), (1, 1, height, width)):
        raise BokehError(
            f"The disparity map is {tuple(disparity.shape)} and the picture {tuple(guide.shape)}: size and batch "
            "must agree (or a single map serve all pictures)."
        )
    reach = edge_reach(height, width) if reach is None else reach
    if reach < 1:
        raise BokehError(f"The reach is {reach} pixels; it must be 1 or more.")
    place = disparity.device if device is None else torch.device(device)
    aligned = disparity.expand(batch, -1, -1, -1).clone()
    for row in range(batch):
        plane = aligned[row, 0].to(place)
        plane = plane if plane.dtype == torch.float64 else plane.float()
        colour = guide[row, :3].to(place, plane.dtype).clamp(0, 1)
        given, soft = plane, _soft(plane, reach)

        def report(share: float, before: float = row) -> None:
            if progress:
                progress(round(_STEPS * (before + share)), _STEPS * batch)

        report(0.0)
        plane = _walk(plane, colour, ~soft, reach, lambda share: report(share / 2))
        report(0.5)
        passed = plane
        for count in range(ROUNDS):
            plane, passed = _vote(
                plane, passed, colour, soft, reach, lambda share, n=count: report((1 + (n + share) / ROUNDS) / 2)
            )
        plane = _connected(given, plane, passed, soft, reach)
        report(1.0)
        aligned[row, 0] = plane.to(aligned)
    return aligned


class _Band(NamedTuple):
    """What is known of every pixel ``[H, W]``."""

    edge: Tensor
    """Whether it lies by an edge, not on a slope."""
    far: Tensor
    """The least disparity close by."""
    gap: Tensor
    """How much more the largest is."""


def _close(reach: int) -> int:
    return max(1, reach // 4)


def _jump(plane: Tensor) -> float:
    """Change of disparity above which it is an edge: more than the step of a map of few levels."""
    step = max(1, round((plane.numel() / 262144) ** 0.5))
    values = plane[::step, ::step].flatten().sort().values
    low, high = (float(values[round(share * (len(values) - 1))]) for share in (0.02, 0.98))
    steps, whole = values.diff(), float(values[-1] - values[0])
    level = float(steps[steps > 0].min()) if whole else 0.0
    return max(JUMP * ((high - low) or float(plane.max() - plane.min())), min(1.5 * level, whole / 10))


def _band(plane: Tensor, reach: int) -> _Band:
    close, jump = _close(reach), _jump(plane)
    far = -_largest(-plane, close + 1)
    gap = _largest(plane, close + 1) - far
    change, change_around = (_largest(plane, r) + _largest(-plane, r) for r in (reach, 2 * reach))
    return _Band((gap > jump) & (change > _CONTINUES * change_around), far, gap)


class _Side(NamedTuple):
    """What the neighbourhood of each of n pixels has of one side."""

    like: Tensor
    """Weight of what is of the pixel's colour."""
    all: Tensor
    """Weight of all colours."""
    value: Tensor
    """Mean disparity of what is of its colour."""

    @property
    def share(self) -> Tensor:
        return self.like / self.all.clamp_min(torch.finfo(self.all.dtype).tiny)


class _Neighbourhood:
    """Looks around pixels for colours ``[C, H, W]`` and disparity ``[H, W]``, each weighed by its trust ``[H, W]``."""

    def __init__(self, colour: Tensor, plane: Tensor, trust: Tensor, reach: int) -> None:
        planes = F.pad(torch.cat([colour, plane[None], trust[None]]), [reach] * 4)  # no trust outside the frame
        self.stride, self.reach, self.planes = planes.shape[-1], reach, planes.flatten(1)

    def sides(self, y: Tensor, x: Tensor, band: _Band) -> tuple[_Side, _Side]:
        """The near and the far side as the pixels of a list see them."""
        reach, far, gap = self.reach, band.far[y, x], band.gap[y, x]
        centre = (y + reach) * self.stride + x + reach
        colour = self.planes[:-2, centre]
        like, total, sums = ([torch.zeros_like(far) for _ in range(2)] for _ in range(3))
        step = _close(reach)
        for dy in range(-reach, reach + 1, step):
            for dx in range(-reach, reach + 1, step):
                square = dy * dy + dx * dx
                if square > reach * reach:
                    continue
                seen = self.planes.index_select(1, centre + (dy * self.stride + dx))
                unlike = 3 * (seen[:-2] - colour).square().mean(0)  # as of three channels, however many there are
                alike = torch.exp(-unlike / (2 * ALIKE**2)) + 1e-9  # where nothing is alike, nearness alone decides
                trust = seen[-1] * math.exp(-2 * square / reach**2)
                side = (2 * (seen[-2] - far) / gap - 1).clamp(-1, 1)  # 1 as near as the nearest, -1 as far
                for index, sign in enumerate((1, -1)):
                    one = trust * (sign * side).clamp_min(0).square()
                    total[index] += one
                    one = one * alike
                    like[index] += one
                    sums[index].addcmul_(one, seen[-2])
        smallest = torch.finfo(far.dtype).tiny
        means = [part / weight.clamp_min(smallest) for part, weight in zip(sums, like, strict=True)]
        near, away = (_Side(*parts) for parts in zip(like, total, means, strict=True))
        return near, away


def _walk(
    plane: Tensor, colour: Tensor, crisp: Tensor, reach: int, report: Callable[[float], None]
) -> Tensor:
    """Move crisp edges, pixel by pixel, across what all along them has the colours of the other side only."""
    close = _close(reach)
    band = _band(plane, reach)
    zone = band.edge & crisp
    if not bool(zone.any()):
        return plane
    trust = (_confidence(plane, reach) == 1).to(plane.dtype)
    around = _Neighbourhood(colour, plane, trust, reach)
    near = plane > band.far + band.gap / 2
    made = plane.clone()
    evidence = torch.zeros_like(plane)
    asked = torch.zeros_like(zone)
    fresh = zone
    for count in range(close):
        report(count / close)
        beside = [zone & own & (_largest((zone & ~own).to(plane.dtype), 1) > 0) for own in (near, ~near)]
        ring = (beside[0] | beside[1]) & fresh
        rows, columns = (ring & ~asked).nonzero(as_tuple=True)
        values = torch.empty(2, len(rows)).to(plane)
        for part in torch.arange(len(rows), device=plane.device).split(_CHUNK):
            y, x = rows[part], columns[part]
            one, other = around.sides(y, x, band)
            found = (one.share - other.share) / (one.share + other.share + _FAINT)
            enough = torch.minimum(one.all, other.all) > _ENOUGH
            evidence[y, x] = torch.where(enough, found, 0)
        asked |= ring
        moved = torch.zeros_like(zone)
        for own, sign in zip(beside, (-1, 1), strict=True):
            member = own.to(plane.dtype)
            count, total = (_box(each, reach) for each in (member, member * evidence))
            moved |= own & (sign * total > _UNANIMOUS * count) & (sign * evidence > 0)
        if not bool(moved.any()):
            break
        y, x = moved.nonzero(as_tuple=True)
        one, other = around.sides(y, x, band)
        made[y, x] = torch.where(near[y, x], other.value, one.value)
        near = near ^ moved
        fresh = _largest(moved.to(plane.dtype), reach) > 0
    return made


def _box(plane: Tensor, radius: int) -> Tensor:
    size = 2 * radius + 1
    plane = F.pad(plane, [radius] * 4)[None, None]
    return F.avg_pool2d(F.avg_pool2d(plane, (1, size), 1), (size, 1), 1)[0, 0]


def _vote(
    plane: Tensor, passed: Tensor, colour: Tensor, soft: Tensor, reach: int, report: Callable[[float], None]
) -> tuple[Tensor, Tensor]:
    """One round: every pixel by a soft edge takes the side for which most of the neighbourhood's weight votes.

    Returns:
        The disparity of the side that won, and that of the side that lost (``passed`` where there was no vote).
    """
    band = _band(plane, reach)
    rows, columns = (band.edge & soft).nonzero(as_tuple=True)
    if len(rows) == 0:
        return plane, passed
    around = _Neighbourhood(colour, plane, _confidence(plane, reach), reach)
    made, passed = plane.clone(), passed.clone()
    for part in torch.arange(len(rows), device=plane.device).split(_CHUNK):
        report(float(part[0]) / len(rows))
        y, x = rows[part], columns[part]
        near, away = around.sides(y, x, band)
        both, wins = (near.like > 0) & (away.like > 0), near.like > away.like
        for result, won in ((made, wins), (passed, ~wins)):
            result[y, x] = torch.where(both, torch.where(won, near.value, away.value), plane[y, x])
    return made, passed


def _connected(given: Tensor, made: Tensor, passed: Tensor, soft: Tensor, reach: int) -> Tensor:
    """What was made of a map, but for pixels that no way within their side connects to what was surely there before.

    These take the disparity of the other side, ``passed``.
    """
    band = _band(given, reach)
    middle = band.far + band.gap / 2
    near = made > middle
    sure = torch.where(near, given > middle + band.gap / 4, given < middle - band.gap / 4)
    alone = soft & (made != given) & ~sure
    rows, columns = alone.nonzero(as_tuple=True)
    if len(rows) == 0:
        return made
    held, values = (F.pad(each, [1] * 4).flatten() for each in (~alone, made))
    stride = given.shape[1] + 2
    left = torch.stack([rows, columns, (rows + 1) * stride + columns + 1])
    for _ in range(2 * reach):
        y, x, place = left
        found = torch.zeros_like(place, dtype=torch.bool)
        for beside in (place + dy * stride + dx for dy in (-1, 0, 1) for dx in (-1, 0, 1)):
            found |= held[beside] & ((values[beside] > middle[y, x]) == near[y, x])
        if not bool(found.any()):
            break
        held[place[found]] = True
        left = left[:, ~found]
    made = made.clone()
    made[left[0], left[1]] = passed[left[0], left[1]]
    return made


def _soft(plane: Tensor, reach: int) -> Tensor:
    """Where most of the change close by is spread over more pixels than an exact map's step takes, of ``[H, W]``."""
    close, jump = _close(reach) + 1, _jump(plane)
    spread = [_spread(plane, close), _spread(plane.mT, close).mT]
    gap = _largest(plane, close) + _largest(-plane, close)
    soft = (gap > jump) & (torch.maximum(*spread) > _SPREAD * gap)
    return _largest(soft.to(plane.dtype), close) > 0


def _spread(plane: Tensor, close: int) -> Tensor:
    """How much disparity changes along each row but for its steps, within ``close`` pixels."""
    change = F.pad(plane, [3, 3], mode="replicate").diff(dim=1)  # of i to i + 1 at i + 3
    size = change.abs()
    crisp = torch.zeros_like(size, dtype=torch.bool)
    width = plane.shape[1]
    one = change[:, 1:-1]
    before, after = change[:, :-2], change[:, 2:]
    alone = torch.maximum(before * one.sign(), after * one.sign()) <= _STEP * one.abs()
    crisp[:, 1:-1] |= alone
    two = change[:, 1:-2] + change[:, 2:-1]
    together = change[:, 1:-2] * change[:, 2:-1] > 0
    before, after = change[:, :-3], change[:, 3:]
    alone = together & (torch.maximum(before * two.sign(), after * two.sign()) <= _STEP * two.abs())
    crisp[:, 1:-2] |= alone
    crisp[:, 2:-1] |= alone
    size[crisp] = 0
    size = size[:, 2:]  # of i - 1 to i at i
    total = F.pad(size, [close, close + 1]).cumsum(1)
    total = F.pad(total, [1, 0])
    n = 2 * close + 1
    found = total[:, n:n + width] - total[:, :width]
    return _largest(found, close)


def _confidence(plane: Tensor, reach: int) -> Tensor:
    """From nearly 0 on an edge to 1 at a quarter of the reach from it."""
    close, jump = _close(reach), _jump(plane)
    edge = (_largest(plane, 1) + _largest(-plane, 1) > jump / 2).to(plane.dtype)
    total = torch.full_like(plane, _LEAST)
    for _ in range(close):
        total += (1 - edge) * ((1 - _LEAST) / close)
        edge = _largest(edge, 1)
    return total


def _largest(plane: Tensor, radius: int) -> Tensor:
    """The largest value of the square that reaches ``radius`` pixels each way, of ``[H, W]``."""
    for dim in (0, 1):
        size, pad = plane.shape[dim], [0, 0, radius, radius] if dim == 0 else [radius, radius]
        plane = F.pad(plane, pad, value=-math.inf)
        reached = 0
        while (
            reached < radius
        ):  # windows of 3, 9, 27, ... that meet without a gap; what is left falls off the end
            shift = min(2 * reached + 1, radius - reached)
            length = plane.shape[dim] - 2 * shift
            parts = [plane.narrow(dim, start, length) for start in (0, shift, 2 * shift)]
            plane = torch.maximum(torch.maximum(parts[0], parts[2]), parts[1])
            reached += shift
        assert plane.shape[dim] == size
    return plane
