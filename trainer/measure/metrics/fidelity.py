"""How near a picture comes to its ground truth: PSNR, PSNR about depth edges, SSIM."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from bokeh_ops.errors import BokehError

DISPLAY_GAMMA = 2.2
"""Pictures are compared after clipping to 0..1 and raising to one over this, as by BLB and BokehDiff."""

EDGE_DIOPTRES = 0.15
"""Neighbouring pixels whose disparity differs by more than this are a depth edge."""

BAND_PIXELS = 15
"""How far from a depth edge its band reaches."""

_GAUSSIAN, _SIGMA, _UNIFORM = 11, 1.5, 7


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
    from scipy.ndimage import distance_transform_edt

    if not bool(edge.any()):
        return edge
    distance: Any = distance_transform_edt(~edge.cpu().numpy())
    return torch.from_numpy(distance <= reach).to(edge.device)


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
    from skimage.metrics import structural_similarity

    # In float64: a variance is a small difference of large numbers.
    x, y = (each.cpu().double().numpy() for each in (image, reference))
    options: dict[str, Any] = {"win_size": _UNIFORM}
    if window == "gaussian":
        options = {"gaussian_weights": True, "sigma": _SIGMA, "use_sample_covariance": False}
    found: Any = structural_similarity(x, y, channel_axis=0, data_range=1.0, **options)
    return float(found)


def _check_pair(image: Tensor, reference: Tensor) -> None:
    if image.shape != reference.shape:
        raise BokehError(
            f"The picture is {tuple(image.shape)} and its reference {tuple(reference.shape)}; sizes must agree."
        )
