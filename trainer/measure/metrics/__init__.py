"""Measures of pictures, in torch alone: of a picture against its ground truth, and of a sweep over K.

Every function says what it takes and whose definition it follows; :mod:`trainer.measure` reads the files and makes the
tables.
"""

from trainer.measure.metrics.fidelity import DISPLAY_GAMMA, depth_edge_band, display_encode, psnr, ssim
from trainer.measure.metrics.lpips import Lpips
from trainer.measure.metrics.statistics import (
    Interval,
    bootstrap,
    frechet_distance,
    pearson,
    rank_correlation,
)
from trainer.measure.metrics.sweep import (
    BothSides,
    Drift,
    LvCorr,
    blur_monotonicity,
    both_sides,
    content_consistency,
    drift,
    energy,
    focus_drift,
    laplacian_variance,
    lvcorr,
    mean_lab,
)

__all__ = [
    "DISPLAY_GAMMA",
    "BothSides",
    "Drift",
    "Interval",
    "Lpips",
    "LvCorr",
    "blur_monotonicity",
    "bootstrap",
    "both_sides",
    "content_consistency",
    "depth_edge_band",
    "display_encode",
    "drift",
    "energy",
    "focus_drift",
    "frechet_distance",
    "laplacian_variance",
    "lvcorr",
    "mean_lab",
    "pearson",
    "psnr",
    "rank_correlation",
    "ssim",
]
