"""Lens models behind one contract: picture + disparity + :class:`Lens` -> picture + signed defocus map."""

from __future__ import annotations

from torch import Tensor

from ..errors import BokehError
from .classical import render_classical
from .contract import REFERENCE_WIDTH, Lens, LensModel, Progress, Rendered, check_inputs, k_in_pixels

__all__ = ["MODELS", "REFERENCE_WIDTH", "Lens", "LensModel", "Progress", "Rendered", "k_in_pixels", "render"]

MODELS: dict[str, LensModel] = {"classical": render_classical}
"""The lens models by name. Another model is added by one entry here."""


def render(
    image: Tensor,
    disparity: Tensor,
    lens: Lens,
    model: str = "classical",
    progress: Progress | None = None,
) -> Rendered:
    """Give a picture that is sharp everywhere the depth of field of ``lens``.

    Args:
        image: ``[B, C, H, W]``, C = 1, 3 or 4 (RGB and straight alpha), values >= 0 (0..1, or linear HDR
            with ``lens.gamma = 1``), any floating type, any device.
        disparity: ``[B, 1, H, W]``, larger is nearer (see :mod:`bokeh_ops.depth`).
        lens: K, focus, gamma and aperture.
        model: a key of :data:`MODELS`.
        progress: called as ``progress(done, total)``; an exception raised in it stops the rendering.

    Returns:
        :class:`Rendered`: the picture in the input's type, and the signed defocus map in pixels.

    Raises:
        BokehError: an unknown model, or inputs that do not belong together (see the message).
    """
    if model not in MODELS:
        raise BokehError(f"There is no lens model named {model!r}; there are: {', '.join(sorted(MODELS))}.")
    check_inputs(image, disparity)
    return MODELS[model](image, disparity, lens, progress)
