"""What a lens that trains from nothing may be told beside the picture (ours).

The released lens learns of depth from its attention alone, whose tokens are 16 pixels wide: blur that is smaller has no
place there. A network of its own can be given maps as further channels of its input.

Shapes: ``R`` rows, pictures of ``H`` x ``W``.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..render import Lens, render

TOLD = {"defocus": 2, "layered": 3}
"""Channels of what can be told: disparity and signed blur radius; what the lens model ``layered`` makes of them."""

_SPREAD = 0.5  # brings usual radii, in units of the attention, to about 1


def told_channels(told: Sequence[str], pixels: int) -> int:
    """Channels beside those of the latents, at one place of ``pixels`` x ``pixels``."""
    return pixels * pixels * sum(TOLD[name] for name in told)


def first_guess(told: Sequence[str], image: Tensor, disparity: Tensor, lens: Lens) -> Tensor:
    """What ``layered`` makes of pictures, 0..1, where it is told; else no rows of the same shape."""
    if "layered" not in told:
        return image[:0]
    return render(image, disparity, lens, "layered").image.clamp(0, 1)


def hints(told: Sequence[str], near: Tensor, blur: Tensor, guess: Tensor, pixels: int) -> Tensor:
    """The further channels of a network's input, ``[R, C, H / pixels, W / pixels]``.

    Args:
        told: names of :data:`TOLD`.
        near: disparity ``[R, 1, H, W]``, 0 to 1.
        blur: signed radius ``[R, 1, H, W]``, in :func:`~bokeh_ops.diffusion_lens.attention.units`.
        guess: from :func:`first_guess`, ``[R, 3, H, W]``, 0..1.
        pixels: along one place of the latents.
    """
    parts = {"defocus": (2 * near - 1, _SPREAD * blur), "layered": (2 * guess - 1,)}
    return F.pixel_unshuffle(torch.cat([each.to(near) for name in told for each in parts[name]], 1), pixels)
