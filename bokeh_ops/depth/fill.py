"""Filling in what is not known from what lies around it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def pull_push(planes: Tensor, weight: Tensor, levels: int) -> Tensor:
    """Fill in what has no weight, smoothly and from near by (Gortler et al. 1996, "The Lumigraph", sec. 4.3).

    Args:
        planes: ``[C, H, W]``, already times ``weight``.
        weight: ``[1, H, W]``, 0 (unknown) to 1 (known).
        levels: how many times the resolution is halved: farther than ``2 ** levels`` nothing is filled in.

    Returns:
        ``[C, H, W]``; 0 where nothing known is near enough.
    """
    stack = torch.cat([planes, weight])[None]
    pyramid = [stack]
    while len(pyramid) <= levels and max(stack.shape[-2:]) > 1:
        stack = pull(stack)
        pyramid.append(stack)
    filled = pyramid[-1][:, :-1] / pyramid[-1][:, -1:].clamp_min(1e-12)
    for stack in reversed(pyramid[:-1]):
        height, width = stack.shape[-2:]
        filled = stack[:, :-1] + (1 - stack[:, -1:]) * grow(filled, height, width)
    return filled[0]


def pull(stack: Tensor) -> Tensor:
    """One level of a pyramid ``[1, C + 1, h, w]`` from the one below, the weight last."""
    height, width = stack.shape[-2:]
    if height % 2 or width % 2:
        stack = F.pad(stack, (0, width % 2, 0, height % 2))
    stack = F.avg_pool2d(stack, 2)
    # One known pixel of the four is enough for the block to count as known.
    share = stack[:, -1:]
    return stack * ((4 * share).clamp(max=1) / share.clamp_min(1e-12))


def grow(planes: Tensor, height: int, width: int) -> Tensor:
    """Twice as large, bilinear, cut to ``height`` by ``width``: undoes a mean over 2 x 2 pixels.

    Args:
        planes: ``[N, C, h, w]``.
    """
    return F.interpolate(planes, scale_factor=2.0, mode="bilinear", align_corners=False)[..., :height, :width]
