"""The signed defocus map as something to look at, and as a mask."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..camera.optics import SHARP_SHARE

# Diverging: deep blue, light blue, white, orange, dark red at -1, -1/2, 0, 1/2, 1.
_STOPS = (
    (0.02, 0.19, 0.45),
    (0.35, 0.65, 0.86),
    (1.00, 1.00, 1.00),
    (0.98, 0.62, 0.28),
    (0.55, 0.05, 0.04),
)

_FRONT, _SHARP, _BEHIND = _STOPS[3], (0.25, 0.85, 0.35), _STOPS[1]  # tints of the overlay
_LUMINANCE = (0.2126, 0.7152, 0.0722)  # Rec. 709
ACCEPTABLE = SHARP_SHARE / 2
"""Blur radius over the picture's diagonal up to which a print looks sharp: the circle of confusion d / 1500."""


def colour_defocus(defocus: Tensor, limit: float | None = None) -> Tensor:
    """Colours for a signed defocus map: white in focus, orange to red in front of it, blue behind it.

    Args:
        defocus: ``[B, 1, H, W]`` signed pixels of blur radius.
        limit: blur radius in pixels at which the colours end; by default the largest of the whole batch, so
            that the pictures of a batch can be compared.

    Returns:
        ``[B, 3, H, W]``, 0..1. All white where nothing is blurred.
    """
    stops = torch.tensor(_STOPS, dtype=defocus.dtype, device=defocus.device)
    position = _share(defocus, limit).clamp(-1, 1).add(1).mul(2)[:, 0]
    below = position.floor().clamp(max=len(_STOPS) - 2)
    part = (position - below)[..., None]
    index = below.long()
    return torch.lerp(stops[index], stops[index + 1], part).permute(0, 3, 1, 2)


def blur_amount(defocus: Tensor, limit: float | None = None) -> Tensor:
    """How blurred each pixel is: 0 in focus, 1 at ``limit`` pixels of blur radius (default: the batch's
    largest).

    Args:
        defocus: ``[B, 1, H, W]`` signed pixels of blur radius.
        limit: as for :func:`colour_defocus`.

    Returns:
        ``[B, H, W]``, 0..1.
    """
    return _share(defocus, limit).abs().clamp(max=1)[:, 0]


def in_focus(defocus: Tensor, acceptable: float | None = None) -> Tensor:
    """What looks sharp: 1 up to the acceptable circle of confusion, fading to 0 at twice that.

    That is a radius of 1/3000 of the picture's diagonal (a diameter of d / 1500, as depth-of-field tables have it),
    but no less than half a pixel, which nobody can see.

    Args:
        defocus: ``[B, 1, H, W]`` signed pixels of blur radius.
        acceptable: another radius in pixels, > 0, in place of that one.

    Returns:
        ``[B, H, W]``, 0..1.
    """
    least = max(0.5, ACCEPTABLE * math.hypot(*defocus.shape[2:])) if acceptable is None else acceptable
    return (2 - defocus[:, 0].abs() / least).clamp(0, 1)


def overlay(
    image: Tensor, defocus: Tensor, limit: float | None = None, acceptable: float | None = None
) -> Tensor:
    """The picture in grey, tinted green where it is in focus, orange in front of that and blue behind.

    The tint of what is not in focus deepens with its blur.

    Args:
        image: ``[B, C, H, W]`` as displayed, C = 1, 3 or 4 (alpha is not looked at); clamped to 0..1.
        defocus: ``[B, 1, H, W]`` signed pixels of blur radius.
        limit: as for :func:`colour_defocus`.
        acceptable: as for :func:`in_focus`.

    Returns:
        ``[B, 3, H, W]``, 0..1, in the defocus map's type.
    """
    shown = image[:, :3].to(defocus).clamp(0, 1)
    weight = torch.tensor(
        _LUMINANCE if shown.shape[1] == 3 else (1.0,), dtype=shown.dtype, device=shown.device
    )
    grey = (shown * weight.view(1, -1, 1, 1)).sum(1, keepdim=True)
    front, sharp, behind = (
        torch.tensor(tint, dtype=shown.dtype, device=shown.device).view(1, 3, 1, 1)
        for tint in (_FRONT, _SHARP, _BEHIND)
    )
    focused = in_focus(defocus, acceptable)[:, None]
    strength = torch.lerp(
        0.35 + 0.4 * _share(defocus, limit).abs().clamp(max=1), torch.tensor(0.6).to(shown), focused
    )
    tint = torch.lerp(torch.where(defocus > 0, front, behind), sharp, focused)
    return torch.lerp(grey.expand(-1, 3, -1, -1), tint * (0.25 + 0.75 * grey), strength)


def _share(defocus: Tensor, limit: float | None) -> Tensor:
    largest = float(defocus.abs().max()) if limit is None else limit
    return defocus / largest if largest > 0 else torch.zeros_like(defocus)
