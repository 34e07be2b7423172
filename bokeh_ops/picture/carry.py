"""Carrying an edit that was made at a model's size to the pixels of the picture it was made from.

A model that edits a photograph sees, and gives back, a reduced one. Of the original ``O``, the reduced picture before
the edit ``B`` and after it ``A``, this makes

    up(A) + g (O - up(B))

where ``up`` enlarges (Lanczos) and ``O - up(B)`` is all that the model never saw: what is finer than its pixels, grain,
and what its codec lost. ``g``, from 0 to 1, says how much of that is left at each place. Where nothing changed it is 1,
and the original comes out. Where the edit blurs, fine detail has to go with what could be seen going: ``g`` is what
the edit left of the finest detail that ``B`` has, the slope of ``A``'s on ``B``'s by least squares, to the power of 3,
as blur takes the more the finer (a Gaussian takes the fourth power an octave up). Where the edit sharpens, or invents
detail, the slope is above 1 and the original keeps what it has. Where ``B`` has no detail to tell by, wider
neighbourhoods do. What the codec did to colours over large areas stays undone in all of the picture.

Where a change is too small to count the original's pixels stay, bit for bit. A place without any detail that lies among
changed ones is taken to have changed with them: the texture it may have is finer than what the model saw.

A host's codec may cut sides to multiples of its unit, so that ``B`` shows a little less than ``O``; where it does is
found by comparing the two, and ``up`` goes by it.

The whole is laid out at the model's size, then made in strips of the original's rows, each as it would be alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import BokehError

SMALLEST_CHANGE = 1 / 255
"""Difference of values 0..1 up to which a change counts as none, unless told: what 8 bits can hold."""

_FINE = 0.7  # standard deviation of the blur that what remains of is the finest detail; this and those below in pixels
_WINDOWS = (4.0, 1.0)  # within which the slope is taken, from where little is known to where much is
_EVIDENCE = 3e-5  # sum of the squares of detail, over the colours, from which a place speaks for itself
_SHARPER = 16.0  # times the energy of detail that is new detail alone
_POWER = 3.0
_REACH = 2  # that a change reaches beyond itself
_LEAST = 0.02  # of a change that a place takes over from those around it: less is none
_COLOURS = 4.0  # standard deviation of the blur beyond which the codec's error is one of colours over areas
# By how many pixels, and by what share of it, a side of the model's size may miss the original's shape.
_ROUNDING = 8, 0.02
_OFF = 0.4  # pixels by which before is off from which it is laid elsewhere
_FARTHEST = 12.0  # and from which nothing is believed
_STRIP = 1 << 20  # pixels made at once


@torch.no_grad()
def carry_edit(
    original: Tensor,
    before: Tensor,
    after: Tensor,
    smallest: float = SMALLEST_CHANGE,
    progress: Callable[[int, int], None] | None = None,
    notice: Callable[[str], None] | None = None,
    strip: int = _STRIP,
) -> Tensor:
    """Make the change from ``before`` to ``after`` in the original, at its own size; see the module.

    Args:
        original: ``[R, H, W, C]``, values as displayed, C = 1, 3 or 4 (RGB and alpha, which is kept).
        before: ``[S, h, w, C']``, the same picture reduced to the model's size; best after the codec's round trip, as
            the edit that changes nothing. Alpha is not looked at.
        after: ``[B, h, w, C']``, edited. ``R`` and ``S`` divide ``B`` (1 and ``B`` do): edit ``i`` is one of original
            ``i % R`` and of ``before[i % S]``, as series of several pictures are laid out here.
        smallest: difference, of values 0..1, up to which a change counts as none. 0 counts all.
        progress: called as ``progress(done, total)``; may raise to stop.
        notice: told where ``before`` does not show quite the whole original.
        strip: pixels of the original made at once. Changes nothing but memory.

    Returns:
        ``[B, H, W, C]`` in the original's type and on its device; three colours if either side has them.

    Raises:
        BokehError: shapes, sizes or batches that do not belong together, a shape of the original that is not that of
            the edit, a threshold outside 0..1, or values that are NaN or infinite.
    """
    _check(original, before, after, smallest)
    colours = max(min(3, each.shape[-1]) for each in (original, before, after))
    batch, (height, width), size = len(after), original.shape[1:3], before.shape[1:3]
    made = original.new_empty(batch, height, width, colours + original[..., 3:].shape[-1])
    rows = max(1, strip // width)
    strips = math.ceil(height / rows)
    reduced = [_reduced(picture[..., :3], size) for picture in original]  # once, however many its edits
    for i in range(batch):
        whole = original[i % len(original)]
        made[i, ..., :colours], made[i, ..., colours:] = whole[..., :3], whole[..., 3:]
        low, high = (float(value) for value in whole[..., :3].aminmax())
        own, seen, edited = (
            each[..., :3].to(made.device, torch.float32).expand(*size, colours)
            for each in (reduced[i % len(original)], before[i % len(before)], after[i])
        )
        places = _places(own, seen)
        if notice and any(map(any, places)):
            most = max(abs(shift) + abs(growth) for shift, growth in places)
            notice(
                f"What before shows is off from the original by up to {most:.1f} of its pixels, as where VAE Encode "
                "cuts sides to multiples of 8; the edit was laid where it belongs."
            )
        plan = _plan(_moved(own, places), seen, edited, smallest)
        sharp, smooth = (
            [
                _taps(inside, outside, kernel, reach, made.device, place)
                for inside, outside, place in zip(size, (height, width), places, strict=True)
            ]
            for kernel, reach in ((_lanczos, 3), (_triangle, 1))
        )
        for number in range(strips):
            if progress:
                progress(i * strips + number, batch * strips)
            part = slice(number * rows, min((number + 1) * rows, height))
            changed, gain = _enlarged(plan.share, smooth, part).split(1, -1)
            if not bool((changed > 0).any()):
                continue
            given = made[i, part, :, :colours]
            own = given.float()
            edit, known = _enlarged(plan.pictures, sharp, part).split(colours, -1)
            edit = torch.addcmul(edit, gain, own - known).clamp_(min(0.0, low), max(1.0, high))
            edit = torch.lerp(own, edit, changed).to(given)
            given.copy_(torch.where(changed > 0, edit, given))
    if progress:
        progress(batch * strips, batch * strips)
    return made


class _Plan(NamedTuple):
    """What is known at the model's size."""

    pictures: Tensor
    """``[h, w, 2 colours]``: after the edit, without what the codec did to colours, and before it, likewise."""
    share: Tensor
    """``[h, w, 2]``: how far it changed, 0 to 1, and ``g``."""


def _plan(reduced: Tensor, before: Tensor, after: Tensor, smallest: float) -> _Plan:
    """Lay out an edit, all ``[h, w, colours]``."""
    own, seen, edited = (each.movedim(-1, 0)[None] for each in (reduced, before, after))
    colour = _blurred(own - seen, _COLOURS)
    fine, left = (each - _blurred(each, _FINE) for each in (seen, edited))
    there, kept, new = (each.sum(1, keepdim=True) for each in (fine * fine, fine * left, left * left))
    change = _blurred((edited - seen).abs().amax(1, keepdim=True), _FINE)
    change = F.max_pool2d(change, 2 * _REACH + 1, 1, _REACH)
    certain = _smooth((change - smallest) / max(smallest, torch.finfo(change.dtype).tiny))
    weight = there + _EVIDENCE * certain
    gain, changed = torch.ones_like(there), torch.zeros_like(there)
    for window in _WINDOWS:
        sums = _blurred(torch.cat([there, kept, new, weight, weight * certain], 1), window)
        had, kept_around, has, weight_around, changed_around = sums.split(1, 1)
        gain = ((torch.maximum(kept_around, has / _SHARPER) + _EVIDENCE * gain) / (had + _EVIDENCE)).clamp_(
            0, 1
        )
        changed = (changed_around + _EVIDENCE * changed) / (weight_around + _EVIDENCE)
    changed = torch.maximum(certain, ((changed - _LEAST) / (1 - _LEAST)).clamp_(0, 1))
    pictures, share = torch.cat([edited + colour, seen + colour], 1), torch.cat([changed, gain**_POWER], 1)
    return _Plan(*(each[0].movedim(0, -1).contiguous() for each in (pictures, share)))


_Place = tuple[float, float]
"""How far off a side of the model's picture is, in its pixels: all of it, and its ends besides."""


def _places(reduced: Tensor, before: Tensor) -> tuple[_Place, _Place]:
    """Where the original shows what ``before`` shows, both ``[h, w, colours]``: by least squares (Lucas and Kanade).

    0 unless it is off by a good part of a pixel and clearly so: what a codec does to a picture moves nothing.
    """
    own, seen = (_blurred(each.mean(-1)[None, None], _COLOURS)[0, 0] for each in (reduced, before))
    ends = [torch.linspace(-1, 1, side, device=own.device) for side in own.shape]
    if min(own.shape) < 16:
        return (0.0, 0.0), (0.0, 0.0)
    # What lies outside the frame is unknown, and blur brings it in.
    margins = [min(math.ceil(3 * _COLOURS), side // 6) for side in own.shape]
    inner = tuple(slice(margin, side - margin) for margin, side in zip(margins, own.shape, strict=True))
    found, first, error = torch.zeros(4, dtype=torch.float64), 0.0, 0.0
    for turn in range(5):
        rows, columns = found.view(2, 2).tolist()
        warped = _moved(own[..., None], (rows, columns))[..., 0]
        left = (seen - warped)[inner]
        left = left - left.mean()
        error = float(left.square().mean())
        first = error if turn == 0 else first
        slopes = torch.gradient(warped)
        parts = [slopes[0], slopes[0] * ends[0][:, None], slopes[1], slopes[1] * ends[1]]
        moves = torch.stack([part[inner].flatten() for part in parts])
        normal = (moves @ moves.T).double().cpu()
        ridge = torch.eye(4, dtype=torch.float64) * (1e-4 * normal.trace() + 1e-12)
        found += torch.linalg.solve(normal + ridge, (moves @ left.flatten()).double().cpu())
        if not bool((found.abs() < _FARTHEST).all()):
            return (0.0, 0.0), (0.0, 0.0)
    clear = error < first / 2 and float(found.view(2, 2).abs().sum(1).max()) > _OFF
    (row, tall), (column, broad) = found.view(2, 2).tolist() if clear else ((0.0, 0.0), (0.0, 0.0))
    return (row, tall), (column, broad)


def _moved(planes: Tensor, places: Sequence[_Place]) -> Tensor:
    """``[h, w, C]`` as seen from where it is said to be seen."""
    if not any(map(any, places)):
        return planes
    for dim, (shift, growth) in enumerate(places):
        side = planes.shape[dim]
        centre = torch.arange(side) + shift + growth * torch.linspace(-1, 1, side)
        low = centre.floor()
        index = torch.stack([low, low + 1], 1).long().clamp(0, side - 1)
        weight = torch.stack([low + 1 - centre, centre - low], 1)
        planes = _weighed(planes, index.to(planes.device), weight.to(planes), dim)
    return planes


def _smooth(values: Tensor) -> Tensor:
    """From 0 to 1 without a bend at either."""
    values = values.clamp(0, 1)
    return values * values * (3 - 2 * values)


def _blurred(planes: Tensor, deviation: float) -> Tensor:
    """``[1, C, h, w]`` after a Gaussian, the frame's pixels going on outside it."""
    radius, channels = math.ceil(3 * deviation), planes.shape[1]
    steps = torch.arange(-radius, radius + 1, dtype=planes.dtype, device=planes.device)
    kernel = torch.exp(-0.5 * (steps / deviation) ** 2)
    kernel = (kernel / kernel.sum()).expand(channels, 1, 1, -1)
    planes = F.pad(planes, [radius] * 4, mode="replicate")
    return F.conv2d(F.conv2d(planes, kernel, groups=channels), kernel.mT, groups=channels)


def _reduced(picture: Tensor, size: Sequence[int]) -> Tensor:
    """``[H, W, C]`` averaged to ``size``, row by row, so that no second picture of the original's size is made."""
    height, width = size
    edges = [row * len(picture) / height for row in range(height + 1)]
    lines = [picture[int(top) : math.ceil(end)].float().mean(0) for top, end in pairwise(edges)]
    return F.adaptive_avg_pool1d(torch.stack(lines).mT, width).mT


_Taps = tuple[Tensor, Tensor]
"""Which of a side's pixels each new one is made of, and their weights, both ``[new, taps]``."""


def _taps(
    inside: int,
    outside: int,
    kernel: Callable[[Tensor], Tensor],
    reach: int,
    device: torch.device,
    place: _Place = (0.0, 0.0),
) -> _Taps:
    """Of a side of ``inside`` pixels that becomes ``outside``; a kernel is widened where that is fewer."""
    wide = max(1.0, inside / outside)
    centre = (torch.arange(outside, dtype=torch.float64) + 0.5) * inside / outside - 0.5
    shift, growth = place
    centre = (centre - shift + growth) / (1 + 2 * growth / max(1, inside - 1))
    near = math.ceil(reach * wide)
    index = centre.floor().long()[:, None] + torch.arange(1 - near, near + 1)
    weight = kernel((index - centre[:, None]) / wide)
    weight = weight / weight.sum(1, keepdim=True)
    return index.clamp(0, inside - 1).to(device), weight.float().to(device)


def _lanczos(distance: Tensor) -> Tensor:
    return torch.where(distance.abs() < 3, torch.sinc(distance) * torch.sinc(distance / 3), 0)


def _triangle(distance: Tensor) -> Tensor:
    return (1 - distance.abs()).clamp(min=0)


def _enlarged(planes: Tensor, sides: Sequence[_Taps], part: slice) -> Tensor:
    """The rows ``part`` of ``[h, w, C]`` enlarged; every value is reckoned alike, however the rows are parted."""
    rows, columns = sides
    index, weight = (each[part] for each in rows)
    first, last = int(index.min()), int(index.max())
    planes = _weighed(planes[first : last + 1], *columns, 1)
    return _weighed(planes, index - first, weight, 0)


def _weighed(planes: Tensor, index: Tensor, weight: Tensor, dim: int) -> Tensor:
    total: Tensor | None = None
    for places, weights in zip(index.T, weight.T, strict=True):
        taken = planes.index_select(dim, places)
        weights = weights.view(-1, 1, 1) if dim == 0 else weights.view(-1, 1)
        total = taken * weights if total is None else total.addcmul_(taken, weights)
    assert total is not None
    return total


def _check(original: Tensor, before: Tensor, after: Tensor, smallest: float) -> None:
    named = {"original": original, "before": before, "after": after}
    for name, pictures in named.items():
        if pictures.ndim != 4 or 0 in pictures.shape or pictures.shape[-1] not in (1, 3, 4):
            raise BokehError(
                f"{name}: expected pictures [B, H, W, C], at least one, with 1, 3 or 4 channels; "
                f"got {tuple(pictures.shape)}."
            )
        if not pictures.is_floating_point():
            raise BokehError(f"{name}: expected floating point values from 0 to 1; got {pictures.dtype}.")
    if not 0 <= smallest <= 1:
        raise BokehError(f"The smallest change is {smallest}; it must be from 0 (all count) to 1.")
    if before.shape[1:3] != after.shape[1:3]:
        raise BokehError(
            f"before is {_size(before)} and after {_size(after)}, but both must be of the one size at which the model "
            "worked. Decode both the same way, and resize neither."
        )
    for name, given in (("original", original), ("before", before)):
        if len(after) % len(given):
            raise BokehError(
                f"There are {len(given)} pictures in {name} for {len(after)} edits in after: give one, or one for "
                f"each, or a number that divides {len(after)} (they are then used in turn)."
            )
    (height, width), (low, narrow) = original.shape[1:3], before.shape[1:3]
    pixels, share = _ROUNDING
    for side, due in ((low, narrow * height / width), (narrow, low * width / height)):
        if abs(side - due) <= max(1, min(pixels, share * due)):
            break
    else:
        raise BokehError(
            f"The original is {_size(original)}, so an edit of it {narrow} wide is {round(narrow * height / width)} "
            f"high, but before and after are {_size(before)}. They must show all that the original shows: link the "
            "picture that was reduced for the model, or crop the original as it was cropped for it."
        )
    for name, pictures in named.items():
        for row, picture in enumerate(pictures):
            if not all(math.isfinite(float(value)) for value in picture.aminmax()):
                raise BokehError(f"{name}: picture {row} holds NaN or infinite values; all must be finite.")


def _size(pictures: Tensor) -> str:
    return f"{pictures.shape[2]} x {pictures.shape[1]} pixels"
