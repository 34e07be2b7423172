"""A stand-in for a foreground mask, for those who have none and say so."""

from __future__ import annotations

import numpy as np

from bokeh_ops.errors import BokehError
from trainer.data.prepare.providers.protocol import MapProvider, Photograph
from trainer.data.prepare.rejection import Rejected


def nearest_mask(ratio: float = 1.5) -> MapProvider:
    """Foreground is whatever is no farther than ``ratio`` times the nearest distance.

    The nearest distance is the 98th percentile of disparity, so that a few wrong pixels do not decide. This knows
    nothing of subjects: a floor that begins at the camera's feet is foreground, and a portrait behind a twig is not.
    A real mask is better wherever it can be had.

    Raises:
        BokehError: a ratio that is not above 1.
    """
    if not ratio > 1:
        raise BokehError(f"The ratio of 'nearest' is {ratio:g}; it must be above 1.")

    def mask(photograph: Photograph) -> np.ndarray:
        assert photograph.disparity is not None
        near = float(np.quantile(photograph.disparity, 0.98))
        if near <= 0:
            raise Rejected("no_mask", "everything is infinitely far")
        return (photograph.disparity >= near / ratio).astype(np.float32)

    return mask
