"""Light that the white of an 8-bit picture clipped, guessed back from how the picture arrives at white.

A lamp is far brighter than white: its rim falls from white to dark within a pixel. A bright wall is barely
clipped: around its white lies a shoulder of nearly white pixels. So the share of nearly white pixels on the rim
of a clipped patch says how far above white it may be:

    light <- light * (1 + strength * (1 - shoulder)^2)

Without this a lamp's disc comes out grey, as the lamp's light is shared out over the disc.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .surfaces import pull_push

_CLIPPED = 0.97  # every channel at least this, in linear light: white
_SHOULDER = 0.7  # any channel at least this, and not clipped: nearly white
_RIM = 2  # pixels around a clipped patch


def recover(light: Tensor, radius: Tensor, strength: float) -> Tensor:
    """Raise clipped light where it is out of focus.

    Args:
        light: ``[C, H, W]`` linear light, white is 1.
        radius: ``[H, W]`` blur radius in pixels; below 1 the recovery fades out, so that sharp pixels stay.
        strength: light added to a patch without any shoulder, in units of white; 0 is off.

    Returns:
        ``[C, H, W]``.
    """
    clipped = (light.amin(0, keepdim=True) > _CLIPPED).to(light.dtype)
    if strength == 0 or not bool(clipped.any()):
        return light
    shoulder = (light.amax(0, keepdim=True) > _SHOULDER) * (1 - clipped)
    size = 2 * _RIM + 1
    rim = F.max_pool2d(clipped[None], size, 1, _RIM)[0] - clipped
    levels = max(light.shape[-2:]).bit_length()
    share = pull_push(shoulder * rim, rim, levels) if bool(rim.any()) else torch.ones_like(rim)
    return light * (1 + strength * clipped * (1 - share.clamp(0, 1)).square() * radius.clamp(max=1))
