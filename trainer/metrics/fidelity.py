"""How near a picture comes to its ground truth: PSNR, PSNR about depth edges, SSIM."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from bokeh_ops.errors import BokehError

DISPLAY_GAMMA = 2.2
"""Pictures are compared after clipping to 0..1 and raising to one over this, as by BLB and BokehDiff."""

EDGE_DIOPTRES = 0.15
"""Neighbouring pixels whose disparity differs by more than this are a depth edge."""

BAND_PIXELS = 15
"""How far from a depth edge its band reaches."""

_WINDOW, _SIGMA = 11, 1.5
_C1, _C2 = 0.01**2, 0.03**2  # (K1 L)^2 and (K2 L)^2 of Wang et al. 2004 for values 0..1


def display_encode(linear: Tensor) -> Tensor:
    """Linear light, any range, as a display shows it: clipped to 0..1 and raised to 1/2.2. Elementwise."""
    return linear.clamp(0, 1) ** (1 / DISPLAY_GAMMA)


def psnr(image: Tensor, reference: Tensor, mask: Tensor | None = None) -> float:
    """Peak signal-to-noise ratio in dB, ``-10 log10(mean squared error)``, for values 0..1.

    Args:
        image: ``[..., C, H, W]``.
        reference: of the same shape.
        mask: bool ``[H, W]``; only where it is true counts. ``None``: everywhere.

    Returns:
        dB; infinite where the pictures are equal, NaN where the mask is empty.

    Raises:
        BokehError: shapes differ.
    """
    _check_pair(image, reference)
    squared = (image.double() - reference.double()) ** 2
    if mask is not None:
        if mask.shape != image.shape[-2:]:
            raise BokehError(f"The mask is {tuple(mask.shape)} for pictures of {tuple(image.shape[-2:])}.")
        squared = squared[..., mask]
    if squared.numel() == 0:
        return math.nan
    error = float(squared.mean())
    return math.inf if error == 0 else -10 * math.log10(error)


def depth_edge_band(disparity: Tensor, step: float = EDGE_DIOPTRES, reach: int = BAND_PIXELS) -> Tensor:
    """Where renderers differ: the pixels near a jump in depth.

    A pixel is at an edge if its disparity differs from that of the pixel right of it or below it by more than
    ``step`` (both of them are). The band is every pixel whose row and whose column are within ``reach`` of one.

    Args:
        disparity: ``[H, W]`` in dioptres.
        step: the jump, in dioptres.
        reach: in pixels, >= 0.

    Returns:
        bool ``[H, W]``.

    Raises:
        BokehError: another number of dimensions.
    """
    if disparity.ndim != 2:
        raise BokehError(f"Expected a disparity map [H, W]; got {tuple(disparity.shape)}.")
    edge = torch.zeros_like(disparity, dtype=torch.bool)
    across = (disparity[:, 1:] - disparity[:, :-1]).abs() > step
    down = (disparity[1:] - disparity[:-1]).abs() > step
    edge[:, 1:] |= across
    edge[:, :-1] |= across
    edge[1:] |= down
    edge[:-1] |= down
    grown = F.max_pool2d(edge.float()[None, None], 2 * reach + 1, stride=1, padding=reach)
    return grown[0, 0] > 0


def ssim(image: Tensor, reference: Tensor) -> float:
    """Structural similarity (Wang et al. 2004) of values 0..1: mean over channels and over every whole window.

    Gaussian window of 11 x 11 with sigma 1.5, variances of the population: scikit-image's
    ``structural_similarity(gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=1)``.

    Args:
        image: ``[C, H, W]``, both sides at least 11.
        reference: of the same shape.

    Raises:
        BokehError: shapes differ, or a picture smaller than the window.
    """
    _check_pair(image, reference)
    if image.ndim != 3 or min(image.shape[-2:]) < _WINDOW:
        raise BokehError(
            f"SSIM needs a picture [C, H, W] of at least {_WINDOW} x {_WINDOW} pixels; got {tuple(image.shape)}."
        )
    # float64 where there is one: a variance is a small difference of large numbers.
    work = torch.float32 if image.device.type == "mps" else torch.float64
    x, y = image.to(work), reference.to(work)
    mean_x, mean_y, xx, yy, xy = (_windowed(each) for each in (x, y, x * x, y * y, x * y))
    var_x, var_y, covariance = xx - mean_x**2, yy - mean_y**2, xy - mean_x * mean_y
    above = (2 * mean_x * mean_y + _C1) * (2 * covariance + _C2)
    below = (mean_x**2 + mean_y**2 + _C1) * (var_x + var_y + _C2)
    return float((above / below).mean())


def _windowed(planes: Tensor) -> Tensor:
    """Gaussian mean of ``[C, H, W]`` over every window that lies in the picture."""
    offsets = torch.arange(_WINDOW, dtype=planes.dtype, device=planes.device) - _WINDOW // 2
    weights = torch.exp(-0.5 * (offsets / _SIGMA) ** 2)
    weights = weights / weights.sum()
    planes = F.conv2d(planes[:, None], weights.reshape(1, 1, -1, 1))
    return F.conv2d(planes, weights.reshape(1, 1, 1, -1))[:, 0]


def _check_pair(image: Tensor, reference: Tensor) -> None:
    if image.shape != reference.shape:
        raise BokehError(
            f"The picture is {tuple(image.shape)} and its reference {tuple(reference.shape)}; sizes must agree."
        )
