"""How near a picture comes to its ground truth: PSNR, PSNR about depth edges, SSIM."""

from __future__ import annotations

import math
from collections.abc import Sequence

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

_GAUSSIAN, _SIGMA, _UNIFORM = 11, 1.5, 7
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
    ``step`` (both of them are). The band is every pixel within the Euclidean distance ``reach`` of one.

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
    # A disc is a stack of rows: each row of the picture, widened, goes to the rows up to ``reach`` away.
    rows = edge.float()[None, None]
    band = torch.zeros_like(rows)
    height = disparity.shape[0]
    for dy in range(min(reach, height - 1) + 1):
        half = math.isqrt(reach * reach - dy * dy)
        wide = F.max_pool2d(rows, (1, 2 * half + 1), stride=1, padding=(0, half))
        band[:, :, dy:] = torch.maximum(band[:, :, dy:], wide[:, :, : height - dy])
        band[:, :, : height - dy] = torch.maximum(band[:, :, : height - dy], wide[:, :, dy:])
    return band[0, 0] > 0


def ssim(image: Tensor, reference: Tensor, window: str = "uniform") -> float:
    """Structural similarity (Wang et al. 2004) of values 0..1: mean over channels and over every whole window.

    Two windows are in use, and their figures differ by up to some hundredths, so that only like may be compared:

    * ``"uniform"``: 7 x 7, variances of the sample; ``structural_similarity`` of scikit-image as it comes.
    * ``"gaussian"``: 11 x 11, sigma 1.5, variances of the population; the one of the original paper.

    Args:
        image: ``[C, H, W]``, both sides at least the window's.
        reference: of the same shape.
        window: which.

    Raises:
        BokehError: shapes differ, an unknown window, or a picture smaller than it.
    """
    _check_pair(image, reference)
    if window not in ("uniform", "gaussian"):
        raise BokehError(f"The window of SSIM is {window!r}; it must be uniform or gaussian.")
    size = _GAUSSIAN if window == "gaussian" else _UNIFORM
    if image.ndim != 3 or min(image.shape[-2:]) < size:
        raise BokehError(
            f"SSIM needs a picture [C, H, W] of at least {size} x {size} pixels; got {tuple(image.shape)}."
        )
    # float64 where there is one: a variance is a small difference of large numbers.
    work = torch.float32 if image.device.type == "mps" else torch.float64
    x, y = image.to(work), reference.to(work)
    offsets = torch.arange(size, dtype=work, device=x.device) - size // 2
    weights = torch.exp(-0.5 * (offsets / _SIGMA) ** 2) if window == "gaussian" else torch.ones_like(offsets)
    weights = weights / weights.sum()
    sample = 1.0 if window == "gaussian" else size**2 / (size**2 - 1)

    total = 0.0
    for a, b in zip(x, y, strict=True):
        mean_a, mean_b, aa, bb, ab = (
            _windowed(each, weights.tolist()) for each in (a, b, a * a, b * b, a * b)
        )
        var_a, var_b = sample * (aa - mean_a**2), sample * (bb - mean_b**2)
        covariance = sample * (ab - mean_a * mean_b)
        above = (2 * mean_a * mean_b + _C1) * (2 * covariance + _C2)
        below = (mean_a**2 + mean_b**2 + _C1) * (var_a + var_b + _C2)
        total += float((above / below).mean())
    return total / len(x)


def _windowed(plane: Tensor, weights: Sequence[float]) -> Tensor:
    """Weighted mean of ``[H, W]`` over every window that lies in it, by shifted sums: a convolution in float64
    takes ten times as long on a CPU."""
    for dim in (0, 1):
        length = plane.shape[dim] - len(weights) + 1
        mean = plane.narrow(dim, 0, length) * weights[0]
        for offset, weight in enumerate(weights[1:], 1):
            mean.add_(plane.narrow(dim, offset, length), alpha=weight)
        plane = mean
    return plane


def _check_pair(image: Tensor, reference: Tensor) -> None:
    if image.shape != reference.shape:
        raise BokehError(
            f"The picture is {tuple(image.shape)} and its reference {tuple(reference.shape)}; sizes must agree."
        )
