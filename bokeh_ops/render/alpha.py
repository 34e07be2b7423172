"""From light that was spread together with alpha back to straight colour, in the one place where it is divided.

Light is spread premultiplied, so a colour is ``light / alpha``. Both carry the error of their arithmetic (Fourier
transforms leave some 1e-7 of the largest value everywhere), which a division by next to nothing makes a rainbow. So
alpha within that error is 0, and where alpha is too small to divide by, the colour is that of the neighbours.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..depth.fill import pull_push
from .contract import Lens

_NOTHING = 2e-6  # of the largest alpha: within the error
_DOUBT = 1e-4  # of the largest value: alpha within this gives no colour, and from twice this on all of it
_VISIBLE = 1 / 512  # but what an 8-bit file can show has its own colour


def develop(light: Tensor, lens: Lens, image: Tensor) -> Tensor:
    """A picture from the light behind the lens. Differentiable.

    Args:
        light: ``[..., C, H, W]`` linear light, C = 1 or 3; or 4, premultiplied, see :func:`straight`.
        lens: its transfer is what is used.
        image: the same shape: the picture that was given; one in which nothing is stays as it is.

    Returns:
        The same shape: pixel values, and straight alpha.
    """
    if light.shape[-3] != 4:
        return lens.from_light(light)
    seen = straight(light)
    alpha = seen[..., 3:, :, :]
    made = torch.cat([lens.from_light(seen[..., :3, :, :]), alpha], -3)
    return torch.where((alpha > 0).flatten(-3).any(-1)[..., None, None, None], made, image)


def straight(light: Tensor) -> Tensor:
    """Straight colour in linear light, and alpha, from premultiplied light. Differentiable.

    Args:
        light: ``[..., 4, H, W]``: linear light times alpha, >= 0, and alpha.

    Returns:
        The same shape: linear light, and alpha in 0..1. Alpha is exactly 0 where nothing is; there the colour is
        that of the nearest things, or 0 if the whole picture is empty.
    """
    if light.ndim > 3:
        return torch.stack([straight(one) for one in light])
    premultiplied, alpha = light[:3], light[3:].clamp(0, 1)
    most = float(alpha.detach().max())
    if most == 0:
        return torch.zeros_like(light)
    alpha = torch.where(alpha > _NOTHING * most, alpha, 0)
    doubt = min(_DOUBT * max(most, float(premultiplied.detach().max())), _VISIBLE * most)
    own = premultiplied / torch.where(alpha > doubt, alpha, 1)
    if bool((alpha >= 2 * doubt).all()):
        return torch.cat([own, alpha])
    known = torch.where(alpha > 0, premultiplied, 0)
    near = pull_push(known, alpha, max(light.shape[-2:]).bit_length())
    trust = (alpha / doubt - 1).clamp(0, 1)
    return torch.cat([near + trust * (own - near), alpha])
