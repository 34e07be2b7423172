"""The signed defocus map as something to look at, and as a mask."""

from __future__ import annotations

import torch
from torch import Tensor

# Diverging: deep blue, light blue, white, orange, dark red at -1, -1/2, 0, 1/2, 1.
_STOPS = (
    (0.02, 0.19, 0.45),
    (0.35, 0.65, 0.86),
    (1.00, 1.00, 1.00),
    (0.98, 0.62, 0.28),
    (0.55, 0.05, 0.04),
)


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


def _share(defocus: Tensor, limit: float | None) -> Tensor:
    largest = float(defocus.abs().max()) if limit is None else limit
    return defocus / largest if largest > 0 else torch.zeros_like(defocus)
