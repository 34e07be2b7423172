"""Measures of pictures, in torch alone: of a picture against its ground truth, and of a sweep over K.

Every function says what it takes and whose definition it follows; :mod:`trainer.evaluate` reads the files and makes the
tables.
"""

from trainer.metrics.fidelity import DISPLAY_GAMMA, depth_edge_band, display_encode, psnr, ssim
from trainer.metrics.lpips import Lpips

__all__ = ["DISPLAY_GAMMA", "Lpips", "depth_edge_band", "display_encode", "psnr", "ssim"]
