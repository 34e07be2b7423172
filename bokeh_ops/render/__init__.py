"""Lens models behind one contract: picture + disparity + :class:`Lens` -> picture + signed defocus map."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ..errors import BokehError
from .aperture import Aperture
from .classical import render_classical
from .contract import Lens, LensModel, Progress, Rendered, check_inputs
from .defocus import blur_amount, colour_defocus
from .layered import render_layered
from .thin_lens import render_thin_lens

__all__ = [
    "MODELS",
    "Aperture",
    "Lens",
    "LensModel",
    "Progress",
    "Rendered",
    "blur_amount",
    "colour_defocus",
    "render",
    "render_sweep",
]

MODELS: dict[str, LensModel] = {
    "layered": render_layered,
    "classical": render_classical,
    "thin_lens": render_thin_lens,
}
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
        lens: K, focus, gamma, aperture and highlights.
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


def render_sweep(
    image: Tensor,
    disparity: Tensor,
    lens: Lens,
    ks: Sequence[float],
    model: str = "classical",
    device: torch.device | str | None = None,
    progress: Progress | None = None,
) -> Rendered:
    """Render a batch at several K, one picture at a time, so that only one is on the device at once.

    Args:
        image: ``[B, C, H, W]``.
        disparity: ``[B, 1, H, W]``.
        lens: everything but K.
        ks: the values of K in pixels, at least one.
        model: a key of :data:`MODELS`.
        device: where to compute; by default where the image is.
        progress: called as ``progress(done, total)``; may raise to stop.

    Returns:
        :class:`Rendered` with ``len(ks) * B`` rows on the image's device, value by value: all pictures at the
        first K, then all at the second.

    Raises:
        BokehError: no values, or what :func:`render` raises.
    """
    if not ks:
        raise BokehError("No value of K was given; give at least one.")
    check_inputs(image, disparity)
    batch = image.shape[0]
    device = torch.device(device) if device is not None else image.device
    focus = _rows(lens.focus_disparity, batch, "The focus disparity")
    band = _rows(lens.focus_band, batch, "The focus band")
    jobs = len(ks) * batch
    images = image.new_empty(jobs, *image.shape[1:])
    defocus = disparity.new_empty(jobs, *disparity.shape[1:], dtype=torch.float32)

    def report(done: int, total: int) -> None:
        if progress is not None:
            progress(int(1000 * (job + done / total)), 1000 * jobs)

    for job in range(jobs):
        k, row = ks[job // batch], job % batch
        one = slice(row, row + 1)
        this = replace(lens, k=k, focus_disparity=focus[one], focus_band=band[one])
        result = render(image[one].to(device), disparity[one].to(device), this, model, report)
        images[job], defocus[job] = result.image[0].to(image.device), result.defocus[0].to(image.device)
    return Rendered(images, defocus)


def _rows(value: float | Tensor, batch: int, name: str) -> Tensor:
    rows = torch.as_tensor(value).reshape(-1)
    if rows.numel() not in (1, batch):
        raise BokehError(f"{name} has {rows.numel()} values for {batch} images; give one, or one per image.")
    return rows.expand(batch)
