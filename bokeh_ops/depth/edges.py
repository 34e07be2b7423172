"""Moving the edges of a disparity map to where the picture has them.

Estimated depth is soft at edges, and enlarged depth softer still: between a near thing and what lies behind it the map
passes through disparities at which nothing is, and a lens rendered from it draws halos. Here every pixel near such an
edge decides for one of the two sides: its neighbours vote, each for its own side, weighed by how alike the colours
are, how near they lie, how clearly they belong to their side, and how far they are from the edge themselves (the
weights of a joint bilateral filter: Kopf et al., "Joint Bilateral Upsampling", SIGGRAPH 2007, eq. 3). The pixel takes
the weighted mean disparity of the side that wins, so no disparity between the two is left. Two rounds, because the
first moves the edge that the second looks at. A pixel that became part of a near thing and is not connected, within
it, to what surely was before takes the other side after all. (What was opened to the background needs no connection:
a map often closes small gaps.)

Where the map has a step from one pixel to the next (or to the next but one, as where it is antialiased), it knows where
its edge is, and a vote would do harm: what lies behind may well have the thing's colours. Such an edge stays, bit for
bit, unless all along a stretch of it the pixels beside it have colours that are found on the other side only, as when
a map was grown or shrunk. Then it moves on by a pixel and is asked again. A thing too thin to have an inside is not
asked.

Slopes are not edges: where disparity goes on changing beyond the neighbourhood, nothing is touched. Neither is
anything farther from an edge than a few pixels.

A guided filter (He et al. 2013) was tried in its place: it follows the picture too, but leaves the mixtures in between.
So were votes as shares of what each side has of the colour, which were worse in soft maps: a thing's rim is often of
a colour of its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import BokehError

ROUNDS = 2
JUMP = 0.04
"""Share of the map's own range (2nd to 98th percentile) above which a change of disparity is an edge."""
ALIKE = 0.06
"""Standard deviation of the weight by colour, of the distance of two RGB colours 0..1."""
# Share of the change over twice the neighbourhood that lies within the neighbourhood: less is a slope. A straight
# slope has 1/2, and at the frame, which cuts both, up to 2/3.
_CONTINUES = 0.7
_LEAST = 0.05  # confidence of a pixel on an edge, against 1 far from it
# How much disparity may go on changing beside a step of a map, as a share of the step.
_STEP = 0.2
# Share of the change close by that is spread, not stepped, from which the map is soft there: a soft map has all of it,
# a ball's silhouette a little.
_SPREAD = 0.75
# Mean evidence along a crisp edge, from 1 for the other side's colours alone to -1 for its own, above which it moves.
_UNANIMOUS = 0.9
_FAINT = 1e-3  # share of a side that has to have a pixel's colour for it to be evidence
_ENOUGH = 0.05  # weight that each side has to have at all: a pixel next to the centre has nearly 1
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
        ``[B, 1, H, W]`` in the disparity's type and on its device. Maps without edges come back bit for bit, and so
            do crisp ones whose edges the picture does not contradict.

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
        given, band = plane, _band(plane, reach)
        soft = _soft(plane, band, reach)

        def report(share: float, before: float = row) -> None:
            if progress:
                progress(round(_STEPS * (before + share)), _STEPS * batch)

        report(0.0)
        plane = _walk(plane, colour, ~soft, band, reach, lambda share: report(share / 2))
        report(0.5)
        passed = plane
        for count in range(ROUNDS if bool((soft & band.edge).any()) else 0):
            plane, passed = _vote(
                plane,
                passed,
                colour,
                soft,
                band if plane is given else _band(plane, reach),
                reach,
                lambda share, n=count: report((1 + (n + share) / ROUNDS) / 2),
            )
        plane = _connected(given, plane, passed, soft, band, reach)
        report(1.0)
        aligned[row, 0] = plane.to(aligned)
    return aligned


class _Band(NamedTuple):
    """Where the edges of a map are, of every pixel ``[H, W]``."""

    jump: float
    """Change of disparity above which it is an edge."""
    edge: Tensor
    """Whether it lies by an edge, not on a slope."""
    far: Tensor
    """The least disparity close by."""
    gap: Tensor
    """How much more the largest is."""


def _close(reach: int) -> int:
    """How far an edge may move in one round, and how far apart a pixel's samples lie, in pixels."""
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
    return _Band(jump, (gap > jump) & (change > _CONTINUES * change_around), far, gap)


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
        planes = torch.cat([colour, plane[None], trust[None]])
        planes = F.pad(planes, [reach] * 4)  # no trust outside the frame
        self.stride, self.reach, self.planes = planes.shape[-1], reach, planes.flatten(1)

    def sides(self, y: Tensor, x: Tensor, band: _Band, shares: bool) -> tuple[_Side, _Side]:
        """The near and the far side as the pixels of a list see them, with ``all`` if shares are wanted."""
        reach, far, scale = self.reach, band.far[y, x], 2 / band.gap[y, x]
        centre = (y + reach) * self.stride + x + reach
        colour = self.planes[:-2, centre]
        like, total, sums = ([torch.zeros_like(far) for _ in range(2)] for _ in range(3))
        step = _close(reach)
        channels = 3 / len(colour)  # as of three, however many there are
        for dy in range(-reach, reach + 1, step):
            for dx in range(-reach, reach + 1, step):
                square = dy * dy + dx * dx
                if square > reach * reach:
                    continue
                seen = self.planes.index_select(1, centre + (dy * self.stride + dx))
                alike = (seen[:-2] - colour).square_().sum(0).mul_(channels).mul_(-1 / (2 * ALIKE**2)).exp_()
                alike += 1e-9  # where nothing is alike, nearness alone decides
                side = ((seen[-2] - far) * scale).sub_(1).clamp_(-1, 1)  # 1 as near as the nearest, -1 as far
                side = (side * side.abs()).mul_(seen[-1]).mul_(math.exp(-2 * square / reach**2))
                for index, part in enumerate((side.clamp_min(0), side.neg_().clamp_min_(0))):
                    if shares:
                        total[index] += part
                    part *= alike
                    like[index] += part
                    sums[index].addcmul_(part, seen[-2])
        smallest = torch.finfo(far.dtype).tiny
        means = [part / weight.clamp_min(smallest) for part, weight in zip(sums, like, strict=True)]
        near, away = (_Side(*parts) for parts in zip(like, total, means, strict=True))
        return near, away


def _walk(
    plane: Tensor, colour: Tensor, crisp: Tensor, band: _Band, reach: int, report: Callable[[float], None]
) -> Tensor:
    """Move crisp edges, pixel by pixel, across what all along them has the colours of the other side only.

    Only what lies well inside a thing, or well behind its edge, says which colours it has: a thing too thin to have
    an inside stays as it is.
    """
    zone = band.edge & crisp
    if not bool(zone.any()):
        return plane
    inside = _confidence(plane, band.jump, reach) > 1 - 0.5 / _close(reach)
    around = _Neighbourhood(colour, plane, inside.to(plane.dtype), reach)
    near = plane > band.far + band.gap / 2
    made, beyond, evidence = plane.clone(), plane.clone(), torch.zeros_like(plane)
    asked = torch.zeros_like(zone)
    for count in range(_close(reach)):
        sides = [zone & own & _largest(zone & ~own, 1) for own in (near, ~near)]
        rows, columns = ((sides[0] | sides[1]) & ~asked).nonzero(as_tuple=True)
        asked[rows, columns] = True
        for start in range(0, len(rows), _CHUNK):
            report((count + start / len(rows)) / _close(reach))
            y, x = (each[start : start + _CHUNK] for each in (rows, columns))
            one, other = around.sides(y, x, band, shares=True)
            found = (one.share - other.share) / (one.share + other.share + _FAINT)
            evidence[y, x] = torch.where(torch.minimum(one.all, other.all) > _ENOUGH, found, 0)
            beyond[y, x] = torch.where(near[y, x], other.value, one.value)
        moved = torch.zeros_like(zone)
        for own, sign in zip(sides, (-1, 1), strict=True):
            wrong = own & (sign * evidence > 0)
            if not bool(wrong.any()):
                continue
            member = own.to(plane.dtype)
            moved |= wrong & (_sum(member * (sign * evidence - _UNANIMOUS), reach) > 0)
        # An edge moves in stretches, it gets no dents.
        moved &= _sum(moved.to(plane.dtype), reach) > reach / 2
        if not bool(moved.any()):
            break
        made, near = torch.where(moved, beyond, made), near ^ moved
    return made


def _sum(plane: Tensor, radius: int) -> Tensor:
    """The sum of the square that reaches ``radius`` pixels each way, of ``[H, W]``."""
    for _ in range(2):
        total = F.pad(plane, [radius + 1, radius]).cumsum(1)
        plane = (total[:, 2 * radius + 1 :] - total[:, : -2 * radius - 1]).mT
    return plane


def _vote(
    plane: Tensor,
    passed: Tensor,
    colour: Tensor,
    soft: Tensor,
    band: _Band,
    reach: int,
    report: Callable[[float], None],
) -> tuple[Tensor, Tensor]:
    """One round: every pixel by a soft edge takes the side for which most of the neighbourhood's weight votes.

    Returns:
        The disparity of the side that won, and that of the side that lost (``passed`` where there was no vote).
    """
    rows, columns = (band.edge & soft).nonzero(as_tuple=True)
    if len(rows) == 0:
        return plane, passed
    around = _Neighbourhood(colour, plane, _confidence(plane, band.jump, reach), reach)
    made, passed = plane.clone(), passed.clone()
    for start in range(0, len(rows), _CHUNK):
        report(start / len(rows))
        y, x = (each[start : start + _CHUNK] for each in (rows, columns))
        near, away = around.sides(y, x, band, shares=False)
        both, wins = (near.like > 0) & (away.like > 0), near.like > away.like
        for result, won in ((made, wins), (passed, ~wins)):
            result[y, x] = torch.where(both, torch.where(won, near.value, away.value), plane[y, x])
    return made, passed


def _connected(given: Tensor, made: Tensor, passed: Tensor, soft: Tensor, band: _Band, reach: int) -> Tensor:
    """What was made of a map, but for near pixels that nothing connects to what surely was of their thing.

    These take the disparity of the other side, ``passed``.
    """
    middle = band.far + band.gap / 2
    alone = soft & (made != given) & (made > middle) & (given <= middle + band.gap / 4)
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
            found |= held[beside] & (values[beside] > middle[y, x])
        if not bool(found.any()):
            break
        held[place[found]] = True
        left = left[:, ~found]
    made = made.clone()
    made[left[0], left[1]] = passed[left[0], left[1]]
    return made


def _soft(plane: Tensor, band: _Band, reach: int) -> Tensor:
    """Where, within twice what is close, most of the change is spread over more pixels than an exact map's step."""
    close = _close(reach) + 1
    across, along = _steps(plane), _steps(plane.mT).mT
    spread = torch.maximum(
        _spread(plane, across, along, close), _spread(plane.mT, along.mT, across.mT, close).mT
    )
    return _largest((band.gap > band.jump) & (_largest(spread, close) > _SPREAD * band.gap), close)


def _steps(plane: Tensor) -> Tensor:
    """Height of the steps along the rows at each pixel on either side of one or within it, of ``[H, W]``.

    A step is a change from one pixel to the next, or to the next but one as where an edge is antialiased, on either
    side of which disparity does not go on changing the same way.
    """
    change = F.pad(plane, [3, 3], mode="replicate").diff(dim=1)
    steps = F.pad(torch.zeros_like(plane), [3, 3])
    for length in (1, 2):
        first, last = change[:, 1:-length], change[:, length : change.shape[1] - 1]
        whole = first if length == 1 else first + last
        goes_on = torch.maximum(
            change[:, : -length - 1] * whole.sign(), change[:, length + 1 :] * whole.sign()
        )
        found = torch.where((goes_on <= _STEP * whole.abs()) & (first * last >= 0), whole.abs(), 0)
        for start in range(1, length + 2):
            part = steps[:, start : start + found.shape[1]]
            torch.maximum(part, found, out=part)
    return steps[:, 3:-3]


def _spread(plane: Tensor, across: Tensor, along: Tensor, close: int) -> Tensor:
    """How much disparity changes along the rows close by, but for steps, of ``[H, W]``.

    Args:
        across: the steps along the rows themselves.
        along: the steps along the columns: where a steep edge has one, it may take long to cross the other way.
    """
    change = plane.diff(dim=1).abs()
    step = torch.minimum(across[:, :-1], across[:, 1:])
    step = torch.maximum(step, torch.maximum(along[:, :-1], along[:, 1:]))
    total = F.pad(torch.where(change <= step, 0, change), [close + 1, close + 1]).cumsum(1)
    return total[:, 2 * close + 1 :] - total[:, : plane.shape[1]]


def _confidence(plane: Tensor, jump: float, reach: int) -> Tensor:
    """From nearly 0 on an edge to 1 at a quarter of the reach from it."""
    close = _close(reach)
    edge = _largest(plane, 1) + _largest(-plane, 1) > jump / 2
    total = torch.full_like(plane, _LEAST)
    for _ in range(close):
        total += ~edge * ((1 - _LEAST) / close)
        edge = _largest(edge, 1)
    return total


def _largest(plane: Tensor, radius: int) -> Tensor:
    """The largest value of the square that reaches ``radius`` pixels each way, numbers or truths ``[H, W]``."""
    for dim in (0, 1):
        size, pad = plane.shape[dim], [0, 0, radius, radius] if dim == 0 else [radius, radius]
        plane = F.pad(plane, pad, value=-math.inf if plane.is_floating_point() else False)
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
