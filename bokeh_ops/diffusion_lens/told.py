"""What a lens that trains from nothing may be told beside the picture (ours).

The released lens learns of depth from its attention alone, whose tokens are 16 pixels wide: blur that is smaller has no
place there. A network of its own can be given maps as further channels of its input, and it can start from what a lens
model that believes its depth makes of the picture; then it has to learn only where that is wrong.

Shapes: ``R`` rows, pictures of ``H`` x ``W``.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..render import Lens, render

TOLD = {"defocus": 2, "layered": 3}
"""Channels of what can be told: disparity and signed blur radius; the picture, in whose place comes what the lens model
``layered`` makes of it."""

_SPREAD = 0.5  # brings usual radii, in units of the attention, to about 1


def told_channels(told: Sequence[str], pixels: int) -> int:
    """Channels beside those of the latents, at one place of ``pixels`` x ``pixels``."""
    return pixels * pixels * sum(TOLD[name] for name in told)


def start(
    told: Sequence[str], image: Tensor, disparity: Tensor, lens: Lens, tile: int | None = None
) -> Tensor:
    """What a network is to make blurred pictures of, 0..1: pictures, or what ``layered`` makes of them."""
    if "layered" not in told:
        return image
    return render(image, disparity, lens, "layered", tile=tile).image.clamp(0, 1)


def hints(told: Sequence[str], near: Tensor, blur: Tensor, image: Tensor, pixels: int) -> Tensor:
    """The further channels of a network's input, ``[R, C, H / pixels, W / pixels]``.

    Args:
        told: names of :data:`TOLD`.
        near: disparity ``[R, 1, H, W]``, 0 to 1.
        blur: signed radius ``[R, 1, H, W]``, in :func:`~bokeh_ops.diffusion_lens.attention.units`.
        image: the picture itself, ``[R, 3, H, W]``, 0..1.
        pixels: along one place of the latents.
    """
    parts = {"defocus": (2 * near - 1, _SPREAD * blur), "layered": (2 * image - 1,)}
    return F.pixel_unshuffle(torch.cat([each.to(near) for name in told for each in parts[name]], 1), pixels)
