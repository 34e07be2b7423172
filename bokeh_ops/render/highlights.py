"""Light that the white of an 8-bit picture clipped, guessed back where the white is a lamp.

A lamp is far brighter than white. Paper, snow, a shirt, a chessboard are no brighter than that, and are told by this:

* The rim of a lamp falls from white to dark within a pixel. Around the white of a bright wall lies a shoulder of
  nearly white pixels, so the share of nearly white pixels on the rim says how far above white it may be.
* A lamp is compact and stands alone: no line much longer than it is thick fits into it, as into a stroke of white
  paint, and most of a window :data:`_AROUND` times as wide as it is thick is not white. How thick a thing is, openings
  of growing size say.
* Around it it is dark, and it is small beside the picture.
* It is in such company: of all the white around that falls to dark so quickly, most is lamps by these signs. So the
  full stop on a black page is none, and a lamp that twigs cut to pieces is one, piece by piece.

    light <- light * (1 + strength * (1 - shoulder)^2 * dark * small * company)

The signs are ramps and the company is a mean, so that nothing jumps from frame to frame. Without this a lamp's disc
comes out grey, as the lamp's light is shared out over the disc.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ..depth.fill import pull_push

_CLIPPED = 0.97, 0.985  # every channel at least this, in linear light: white
_SHOULDER = 0.7  # any channel at least this, and not clipped: nearly white
_BRIGHT = 0.5  # every channel at least this: part of a white thing
_RIM = 2  # pixels around a clipped patch
_AROUND = 6  # width of the window about a thing, in its own thickness
_DARK = 0.65, 0.35  # mean of the least channel in what is not white of that window
_ALONE = 0.35, 0.20  # share of that window that is white
_ALL_ALONE = 0.14, 0.11  # the same for a thing that is longer than it is thick: below that of a line, 1/6
_LENGTHS = 3, 4, 6  # times its thickness: half compact, not compact, a line even if it is all alone
_DIRECTIONS = 12  # in which lines are looked for
_SMALL = 1 / 6, 1 / 12  # thickness beside the picture's longer side
_COMPANY = 5  # how far around there is company: the picture's longer side by this
_AMONG = 0.4, 0.7  # share of the white there that is lamps by the other signs
_SIZES = (4, 6)  # thickness in pixels of each level of a pyramid ...
_FINE = (1, 2, 3)  # ... and below


def recover(light: Tensor, radius: Tensor, strength: float) -> Tensor:
    """Raise clipped light where it is a lamp out of focus.

    Args:
        light: ``[C, H, W]`` linear light, white is 1.
        radius: ``[H, W]`` blur radius in pixels; below 1 the recovery fades out, so that sharp pixels stay.
        strength: light added to a patch without any shoulder, in units of white; 0 is off.

    Returns:
        ``[C, H, W]``.
    """
    least = light.amin(0, keepdim=True)
    white = _ramp(least, _CLIPPED)
    if strength == 0 or not bool(white.any()):
        return light
    clipped = (white > 0).to(light.dtype)
    shoulder = (light.amax(0, keepdim=True) > _SHOULDER) * (1 - clipped)
    size = 2 * _RIM + 1
    rim = F.max_pool2d(clipped[None], size, 1, _RIM)[0] - clipped
    levels = max(light.shape[-2:]).bit_length()
    share = pull_push(shoulder * rim, rim, levels) if bool(rim.any()) else torch.ones_like(rim)
    crisp = white * (1 - share.clamp(0, 1)).square()
    return light * (1 + strength * crisp * _stands_alone(least, crisp) * radius.clamp(max=1))


def _ramp(x: Tensor, ends: tuple[float, float]) -> Tensor:
    """0 up to the first end and 1 from the second on, or the other way round."""
    return ((x - ends[0]) / (ends[1] - ends[0])).clamp(0, 1)


def _stands_alone(least: Tensor, crisp: Tensor) -> Tensor:
    """How far each white thing is a lamp by what is around it.

    Args:
        least: ``[1, H, W]`` the least channel of linear light.
        crisp: ``[1, H, W]`` how far each pixel is white without a shoulder, 0..1.

    Returns:
        ``[1, H, W]``, 0..1.
    """
    size = least.shape[-2:]
    bright = (least > _BRIGHT).to(least.dtype)
    lamp, may, rest = torch.zeros_like(least), torch.zeros_like(least), bright * (crisp > 0)
    levels, scale = [(1, bright, least * (1 - bright), rest)], 1
    while 2 * scale * _SIZES[0] < max(size) * _SMALL[0]:
        scale *= 2
        white, other, lit = (F.avg_pool2d(x, scale, ceil_mode=True) for x in levels[0][1:])
        levels.append((scale, white, other, lit))
    for scale, white, other, lit in reversed(levels):
        mask = white[0] >= 0.5
        for thickness in (*reversed(_SIZES), *(reversed(_FINE) if scale == 1 else ())):
            # Its rim is no thicker than a line, but belongs to it.
            thick = _wider(_opened(mask, thickness), thickness // 2)
            here = _grown(thick[None], scale, size) * rest
            if not bool(here.any()):
                continue
            rest = rest - here
            reach = (_AROUND * thickness) // 2
            share = _box(white, reach)
            fits = _ramp(_box(other, reach) / (1 - share).clamp_min(1e-3), _DARK)
            fits = fits * _ramp(share.new_tensor(scale * thickness / max(size)), _SMALL)
            alone = fits * _ramp(share, _ALONE)
            asked = ((alone > 0) & thick & (lit > 0))[0].nonzero()
            if len(asked):
                # Only there and as far around as is looked.
                far = 2 * max(_LENGTHS) * thickness
                low, high = ((asked.amin(0) - far).clamp_min(0), asked.amax(0) + far + 1)
                box = slice(None), slice(int(low[0]), int(high[0])), slice(int(low[1]), int(high[1]))
                long, longer, longest = (found.to(share) for found in _long(mask[box[1:]], thickness))
                all_alone = fits[box] * _ramp(share[box], _ALL_ALONE)
                alone[box] = torch.maximum(alone[box] * (1 - (long + longer) / 2), all_alone * (1 - longest))
            lamp = lamp + here * _grown(alone, scale, size)
            may = may + here * _grown(fits, scale, size)
    # What is around decides: a full stop is no lamp, and a lamp that twigs cut to pieces is one.
    reach = max(size) // _COMPANY
    among = _box(lamp * crisp, reach) / _box(crisp, reach).clamp_min(1e-12)
    return may * _ramp(among, _AMONG)


def _shifted(mask: Tensor, down: int, right: int) -> Tensor:
    """``mask[y + down, x + right]``, False beyond the frame."""
    height, width = mask.shape
    out = torch.zeros_like(mask)
    if abs(down) < height and abs(right) < width:
        to = slice(max(0, -down), height - max(0, down)), slice(max(0, -right), width - max(0, right))
        of = slice(max(0, down), height - max(0, -down)), slice(max(0, right), width - max(0, -right))
        out[to] = mask[of]
    return out


def _along(mask: Tensor, length: int, step: tuple[float, float], every: bool, have: int = 1) -> Tensor:
    """Whether ``every`` pixel, or any, of the next ``length`` in a direction is in a mask ``[H, W]``.

    ``have`` is the length for which ``mask`` says so already.
    """
    while have < length:
        more = min(have, length - have)
        other = _shifted(mask, round(more * step[0]), round(more * step[1]))
        mask = mask & other if every else mask | other
        have += more
    return mask


def _opened(mask: Tensor, size: int) -> Tensor:
    """Where a square of ``size`` fits into a mask."""
    for every, sign in ((True, 1), (False, -1)):
        for step in ((0, sign), (sign, 0)):
            mask = _along(mask, size, step, every)
    return mask


def _wider(mask: Tensor, by: int) -> Tensor:
    for step in ((0, 1), (0, -1), (1, 0), (-1, 0)):
        mask = _along(mask, by + 1, step, False)
    return mask


def _long(mask: Tensor, thickness: int) -> list[Tensor]:
    """Where something goes on for each of ``_LENGTHS``, in ``thickness``, at half that thickness or more."""
    half = (thickness + 1) // 2
    for step in ((0, 1), (1, 0)):
        mask = _along(mask, half, step, True)
    found = [torch.zeros_like(mask) for _ in _LENGTHS]
    for number in range(_DIRECTIONS):
        angle = math.pi * number / _DIRECTIONS
        step = math.sin(angle), math.cos(angle)
        span = max(abs(step[0]), abs(step[1]))
        step = step[0] / span, step[1] / span
        line, have = mask, 1
        for one, length in zip(found, _LENGTHS, strict=True):
            wanted = round((length * thickness - half + 1) * span)
            line = _along(line, wanted, step, True, have)
            have = wanted
            one |= _along(line, have, (-step[0], -step[1]), False)
    return [_wider(one, thickness) for one in found]


def _grown(x: Tensor, scale: int, size: torch.Size) -> Tensor:
    """``[1, h, w]`` as many times as large, cut to ``size``."""
    if scale == 1:
        return x
    return x.repeat_interleave(scale, 1).repeat_interleave(scale, 2)[:, : size[0], : size[1]]


def _box(x: Tensor, reach: int) -> Tensor:
    """Mean over what a picture ``[1, H, W]`` holds of a square of ``2 reach + 1`` about each pixel."""
    for axis in (1, 2):
        side, total = x.shape[axis], x.cumsum(axis)
        after = total.narrow(axis, min(reach, side - 1), max(0, side - reach))
        end = total.narrow(axis, side - 1, 1)
        after = torch.cat([after, *[end] * (side - after.shape[axis])], axis) if reach else total
        before = torch.zeros_like(total)
        if side > reach + 1:
            before.narrow(axis, reach + 1, side - reach - 1).copy_(total.narrow(axis, 0, side - reach - 1))
        at = torch.arange(side, device=x.device)
        count = (at + reach + 1).clamp_max(side) - (at - reach).clamp_min(0)
        x = (after - before) / count.reshape((-1, 1) if axis == 1 else (1, -1))
    return x
