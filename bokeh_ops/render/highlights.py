"""Light that the white of an 8-bit picture clipped, guessed back where the white is a lamp.

A lamp is far brighter than white, and is told by what else is in the picture:

* Its rim falls from white to dark within a pixel. Around the white of a bright wall lies a shoulder of nearly white
  pixels, so the share of nearly white pixels on the rim says how far above white it may be.
* It stands alone. Paper, snow, a shirt or a chessboard are white all over, and a stroke of white paint goes on: in a
  window that is :data:`_AROUND` times as wide as the white is thick, a compact thing covers less than a tenth, and a
  mere line a seventh. How thick a thing is, openings of growing size say.
* Around it it is dark, and it is small beside the picture.

    light <- light * (1 + strength * (1 - shoulder)^2 * alone * dark * small)

Every factor is a ramp, so that nothing flickers from frame to frame. Without this a lamp's disc comes out grey, as the
lamp's light is shared out over the disc.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from .surfaces import pull_push

_CLIPPED = 0.97, 0.985  # every channel at least this, in linear light: white
_SHOULDER = 0.7  # any channel at least this, and not clipped: nearly white
_BRIGHT = 0.5  # every channel at least this: part of a white thing
_RIM = 2  # pixels around a clipped patch
_AROUND = 6  # width of the window about a thing, in its own thickness
_LENGTHS = 6, 4, 3  # times its thickness: what goes on so far is not compact
_ALONE = 0.35, 0.20
_ALL_ALONE = 0.14, 0.11  # share of that window that is white: of a line and more, of something compact
_COMPANY = 10  # share of the picture's longer side, as one over: how far around there is company
_AMONG = 0.4, 0.7  # share of the crisp white there that is lamps by all other signs
_DARK = 0.65, 0.35  # mean of the least channel in the rest of that window
_SMALL = 1 / 6, 1 / 12  # thickness beside the picture's longer side
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
    """How far each white thing is small, compact, and by itself in the dark.

    Args:
        least: ``[1, H, W]`` the least channel of linear light.
        crisp: ``[1, H, W]`` how far each pixel is white without a shoulder, 0..1.

    Returns:
        ``[1, H, W]``, 0..1.
    """
    size = least.shape[-2:]
    bright = least[0] > _BRIGHT
    share_of, light_of = bright[None].to(least.dtype), least * ~bright
    lamp, may, rest = torch.zeros_like(least), torch.zeros_like(least), bright
    coarse, scale = [bright], 1
    while 2 * scale * _SIZES[0] < max(size):
        scale *= 2
        coarse.append(F.avg_pool2d(share_of, scale, ceil_mode=True)[0] >= 0.5)
    for level in range(len(coarse) - 1, -1, -1):
        scale = 2**level
        for thickness in (*reversed(_SIZES), *(reversed(_FINE) if level == 0 else ())):
            thick = _opened(coarse[level], thickness)
            if not bool(thick.any()):
                continue
            # Its rim is no thicker than a line, but belongs to it.
            thick = _grown(_wider(thick, thickness // 2), scale, size) & rest
            if not bool(thick.any()):
                continue
            rest = rest & ~thick
            width = scale * thickness
            small = _ramp(least.new_tensor(width / max(size)), _SMALL)
            if small == 0:
                continue
            reach = (_AROUND * width) // 2
            share = _box(share_of, reach)
            dark = _box(light_of, reach) / _box(1 - share_of, reach).clamp_min(1e-3)
            short, shorter, shortest = (
                _grown(~_long(coarse[level], thickness, length), scale, size).to(least.dtype)
                for length in _LENGTHS
            )
            compact = (shorter + shortest) / 2 * _ramp(share, _ALONE)
            fits = thick * _ramp(dark, _DARK) * small
            lamp = lamp + fits * torch.maximum(compact, short * _ramp(share, _ALL_ALONE))
            may = may + fits
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


def _along(mask: Tensor, length: int, step: tuple[float, float], every: bool) -> Tensor:
    """Whether ``every`` pixel, or any, of the next ``length`` in a direction is in a mask ``[H, W]``."""
    have = 1
    while have < length:
        more = min(have, length - have)
        other = _shifted(mask, round(more * step[0]), round(more * step[1]))
        mask = mask & other if every else mask | other
        have += more
    return mask


def _line(mask: Tensor, length: int, step: tuple[float, float]) -> Tensor:
    """Where a straight line of ``length`` pixels fits into a mask."""
    return _along(_along(mask, length, step, True), length, (-step[0], -step[1]), False)


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


def _long(mask: Tensor, thickness: int, length: int) -> Tensor:
    """Where something goes on for ``length`` times a thickness, at half that thickness or more."""
    half = (thickness + 1) // 2
    for step in ((0, 1), (1, 0)):
        mask = _along(mask, half, step, True)
    found = torch.zeros_like(mask)
    for number in range(8):
        angle = math.pi * number / 8
        step = math.sin(angle), math.cos(angle)
        span = max(abs(step[0]), abs(step[1]))
        step = step[0] / span, step[1] / span
        found |= _line(mask, round((length * thickness - half + 1) * span), step)
    return _wider(found, thickness)


def _grown(x: Tensor, scale: int, size: torch.Size) -> Tensor:
    if scale == 1:
        return x
    return x.repeat_interleave(scale, 0).repeat_interleave(scale, 1)[: size[0], : size[1]]


def _box(x: Tensor, reach: int) -> Tensor:
    """Mean over what a picture ``[1, H, W]`` holds of a square of ``2 reach + 1`` about each pixel."""
    for axis in (1, 2):
        side = x.shape[axis]
        total = F.pad(x.cumsum(axis), (1, 0) if axis == 2 else (0, 0, 1, 0))
        at = torch.arange(side, device=x.device)
        low, high = (at - reach).clamp_min(0), (at + reach + 1).clamp_max(side)
        count = (high - low).reshape((-1, 1) if axis == 1 else (1, -1))
        x = (total.index_select(axis, high) - total.index_select(axis, low)) / count
    return x
