"""What is minimised: four losses in display values, and how hard the circle's edge is by when.

Source: Zhu et al., "BokehDiff" (ICCV 2025), eqs. 10 to 12 and supp. A.1.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from bokeh_ops.diffusion_lens.attention import HARDEST

SCALES = (1, 2, 3)


def mean_square(made: Tensor, truth: Tensor) -> Tensor:
    """``[R]`` of pictures ``[R, 3, H, W]``."""
    return (made - truth).square().flatten(1).mean(1)


def edges(made: Tensor, truth: Tensor, sharp: Tensor) -> Tensor:
    """The multi-scale edge loss (eq. 10).

    ``sum_l 1/l^2 | (grad_l made - grad_l truth) max(|grad_l truth|, |grad_l sharp|) |_1``: only where the picture has
    an edge before or after the lens does it count.

    Args:
        made, truth, sharp: ``[R, 3, H, W]``: of the lens, as it should be, and without a lens.

    Returns:
        ``[R]``.
    """
    total = made.new_zeros(len(made))
    for scale in SCALES:
        of_made, of_truth, of_sharp = (gradients(each, scale) for each in (made, truth, sharp))
        weight = torch.maximum(of_truth.abs(), of_sharp.abs())
        total = total + ((of_made - of_truth) * weight).abs().flatten(1).mean(1) / scale**2
    return total


def gradients(picture: Tensor, scale: int) -> Tensor:
    """Sobel's pair extended to a size: differences over ``scale`` pixels of means across them.

    Args:
        picture: ``[R, C, H, W]``.
        scale: pixels; 1 is the plain difference of neighbours.

    Returns:
        ``[R, 2 C, H, W]``, horizontal and vertical; nothing beyond the border.
    """
    padded = F.pad(picture, [scale] * 4, mode="replicate")
    across = F.avg_pool2d(padded, (scale, 1), 1), F.avg_pool2d(padded, (1, scale), 1)
    height, width = picture.shape[-2:]
    along = (
        across[0][..., scale:] - across[0][..., :-scale],
        across[1][..., scale:, :] - across[1][..., :-scale, :],
    )
    return torch.cat([each[..., scale : scale + height, scale : scale + width] for each in along], 1)


def hardness(step: int, first: float, steps: int) -> float:
    """How hard the circle's edge is at a step: from ``first`` to :data:`~bokeh_ops.diffusion_lens.attention.HARDEST`.

    The paper lets it rise with the step and then keeps it; here it rises geometrically over ``steps``.
    """
    part = min(1.0, step / steps) if steps else 1.0
    return first * (HARDEST / first) ** part
